"""Sample n is a function of (seed, n), the image size one of (seed, step); shares follow the weights."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_planes import data_section

from moge_core.configuration import parse_as
from moge_core.errors import InputError
from moge_core.loading.config import DataConfig
from moge_core.loading.sampling import BatchLayout, Sampler


def make_sampler(*datasets, seed=0, **keys):
    config = parse_as(DataConfig, data_section(*({"path": "unread", **d} for d in datasets), **keys), "data")
    return Sampler(config, [[f"{d.name}/{i}" for i in range(50)] for d in config.datasets], seed)


def test_shares_match_the_weights_over_20000_draws():
    weights = {"a": 4.8, "b": 0.0, "c": 1.2, "d": 4.0}
    sampler = make_sampler(*({"name": name, "weight": weight} for name, weight in weights.items()))
    drawn = Counter("abcd"[sampler.dataset_of(n)] for n in range(20_000))
    for name, weight in weights.items():
        assert drawn[name] / 20_000 == pytest.approx(weight / 10, abs=0.015)
    assert drawn["b"] == 0


def test_instances_are_drawn_evenly():
    sampler = make_sampler({"name": "a"})
    drawn = Counter(sampler.plan_sample(n).candidates[0].instance for n in range(5_000))
    assert len(drawn) == 50
    assert min(drawn.values()) > 50 and max(drawn.values()) < 160


@settings(max_examples=25)
@given(
    global_batch=st.sampled_from([1, 6, 12]),
    split=st.sampled_from([(1, 1), (2, 1), (1, 2), (3, 2), (1, 6)]),
    step=st.integers(0, 10**6),
)
def test_ranks_and_micro_batches_share_one_order(global_batch, split, step):
    accumulation, world_size = split
    if global_batch % (accumulation * world_size):
        return
    batch_size = global_batch // (accumulation * world_size)
    layouts = [BatchLayout(batch_size, accumulation, rank, world_size) for rank in range(world_size)]
    sampler = make_sampler({"name": "a"}, {"name": "b"})
    plans = [sampler.plan_batch(layout, step, micro) for micro in range(accumulation) for layout in layouts]
    whole = sampler.plan_batch(BatchLayout(global_batch), step, 0)
    assert [sample for plan in plans for sample in plan.samples] == list(whole.samples)
    assert {plan.size for plan in plans} == {whole.size}


def test_seeds_numbers_and_attempts_draw_differently():
    one, other = make_sampler({"name": "a"}, seed=1), make_sampler({"name": "a"}, seed=2)
    seeds = [c.seed for sampler in (one, other) for n in range(100) for c in sampler.plan_sample(n).candidates]
    assert len(set(seeds)) == len(seeds)


@given(step=st.integers(0, 10**9), low=st.floats(0.2, 1), high=st.floats(1, 4))
def test_sizes_stay_within_area_and_aspect_limits(step, low, high):
    sampler = make_sampler({"name": "a"}, aspect_ratio_range=[low, high], area_range=[100_000, 400_000])
    width, height = sampler.image_size(step, {0})
    # Both sides are rounded down.
    assert (width + 1) * (height + 1) > 100_000 and width * height <= 400_000
    assert (width + 1) / height > low and width / (height + 1) < high


def test_the_aspect_ratio_suits_all_datasets_of_a_step():
    sampler = make_sampler(
        {"name": "wide", "aspect_ratio_range": [1.0, 2.0]},
        {"name": "any", "aspect_ratio_range": [0.5, 1.2]},
        {"name": "tall", "aspect_ratio_range": [0.4, 0.6]},
        area_range=[10**6, 10**6],
    )

    def ratios(datasets):
        return [width / height for width, height in (sampler.image_size(step, datasets) for step in range(300))]

    assert min(ratios({0, 1})) > 0.99 and max(ratios({0, 1})) < 1.21
    assert min(ratios({0})) < 1.05 and max(ratios({0})) > 1.95
    assert min(ratios({0, 2})) < 0.5 and max(ratios({0, 2})) > 1.9, "no common ratio: any of either"


def test_listed_image_sizes_win():
    sampler = make_sampler({"name": "a"}, image_sizes=[[320, 240], [100, 200]])
    assert {sampler.image_size(step, {0}) for step in range(50)} == {(320, 240), (100, 200)}
    assert sampler.plan_batch(BatchLayout(1), 0, 0).size in {(240, 320), (200, 100)}


@pytest.mark.parametrize("layout", [(0, 1, 0, 1), (1, 0, 0, 1), (1, 1, 2, 2), (1, 1, -1, 1), (1, 1, 0, 0)])
def test_an_impossible_layout_is_refused(layout):
    with pytest.raises(InputError):
        BatchLayout(*layout)


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match="seed"):
        make_sampler({"name": "a"}, seed=-1)
