from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moge_core.errors import InputError
from moge_core.geometry import depth_map_edge

CRITERIA = {
    "loader": {"ltol": 0.01, "kernel_size": 5},
    "rtol": {"rtol": 0.04},
    "atol": {"atol": 0.5},
}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("case", "01")
def test_edges_are_those_of_the_published_code(golden, kind, case, criterion):
    depth = golden[f"d2p.{case}.depth"]
    edge = depth_map_edge(kind(depth), mask=kind(np.isfinite(depth)), **CRITERIA[criterion])
    assert np.array_equal(edge, golden[f"edge.{case}.{criterion}"])


@pytest.mark.parametrize("parameters", [{"atol": 0.5}, {"rtol": 0.1}, {"ltol": 0.01}, {"ltol": 0.01, "kernel_size": 5}])
def test_a_step_is_an_edge_and_a_slanted_plane_is_none(kind, parameters):
    disparity = np.broadcast_to(np.linspace(0.5, 0.4, 40, dtype=np.float32), (30, 40))
    plane = 1 / disparity
    assert not np.asarray(depth_map_edge(kind(plane), **parameters)).any()
    step = plane.copy()
    step[:, 20:] += 3
    edge = np.asarray(depth_map_edge(kind(step), **parameters))
    assert edge[:, 19:21].all()
    assert not edge[:, :17].any()
    assert not edge[:, 23:].any()


def test_the_border_of_the_sky_is_an_edge_and_the_sky_itself_is_none(kind):
    depth = np.full((20, 20), 5, np.float32)
    depth[:10] = np.inf
    for parameters in ({"ltol": 0.01}, {"atol": 1.0}):
        edge = np.asarray(depth_map_edge(kind(depth), **parameters))
        assert edge[9:11].all()
        assert not edge[:8].any()
        assert not edge[12:].any()


def test_pixels_outside_the_mask_make_no_edges(kind):
    depth = np.full((20, 20), 5, np.float32)
    for value in (np.nan, np.inf, 0.0, -3.0, 1e-40, 1e38):
        depth[7:12, 7:12] = value
        for parameters in ({"ltol": 0.01, "kernel_size": 5}, {"atol": 0.1}, {"rtol": 0.1}):
            edge = np.asarray(depth_map_edge(kind(depth), mask=kind(depth == 5), **parameters))
            assert not edge[depth == 5].any()


def test_a_single_absurd_value_is_felt_only_in_its_own_window(kind):
    rng = np.random.default_rng(0)
    depth = rng.uniform(2, 3, (40, 40)).astype(np.float32)
    expected = np.asarray(depth_map_edge(kind(depth), ltol=0.02, kernel_size=5))
    spoilt = depth.copy()
    spoilt[20, 20] = 1e-35
    found = np.asarray(depth_map_edge(kind(spoilt), ltol=0.02, kernel_size=5))
    differs = np.argwhere(found != expected)
    assert (abs(differs - 20) <= 4).all()


@given(
    depth=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 8), st.integers(1, 8)),
        elements=st.floats(width=32) | st.sampled_from([1.0, 1.01, 2.0, np.nan, np.inf]),
    ),
    kernel_size=st.sampled_from([1, 3, 5, 9]),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=150)
def test_any_float32_is_borne_and_mirrored_maps_have_mirrored_edges(depth, kernel_size, seed):
    mask = np.random.default_rng(seed).random(depth.shape) < 0.8
    for parameters in ({"atol": 0.5}, {"rtol": 0.04}):
        edge = depth_map_edge(depth, mask=mask, kernel_size=kernel_size, **parameters)
        assert edge.dtype == bool
        flipped = depth_map_edge(depth[:, ::-1], mask=mask[:, ::-1], kernel_size=kernel_size, **parameters)
        assert np.array_equal(flipped[:, ::-1], edge)
        tensor = depth_map_edge(
            torch.from_numpy(depth), mask=torch.from_numpy(mask), kernel_size=kernel_size, **parameters
        )
        assert np.array_equal(tensor, edge)
    # Sums of five orders of magnitude round differently in the two libraries; that they are borne is what counts.
    assert depth_map_edge(depth, ltol=0.01, mask=mask, kernel_size=kernel_size).shape == depth.shape
    assert depth_map_edge(torch.from_numpy(depth), ltol=0.01, kernel_size=kernel_size).shape == depth.shape


def test_numpy_and_torch_agree_on_batches(kind):
    depth = np.random.default_rng(3).uniform(2, 2.1, (2, 3, 17, 13)).astype(np.float32)
    depth[..., 6:] += 1
    depth[np.random.default_rng(4).random(depth.shape) < 0.1] = np.nan
    batch = np.asarray(depth_map_edge(kind(depth), ltol=0.03, atol=0.9, kernel_size=5))
    assert 0.1 < batch.mean() < 0.9
    for image in np.ndindex(2, 3):
        assert np.array_equal(batch[image], depth_map_edge(depth[image], ltol=0.03, atol=0.9, kernel_size=5))


def test_an_unknown_map_and_a_single_pixel_have_no_edges(kind):
    for depth in (np.full((6, 5), np.nan, np.float32), np.ones((1, 1), np.float32)):
        edge = depth_map_edge(kind(depth), atol=0.0, rtol=0.0, ltol=0.0, kernel_size=5)
        assert not np.asarray(edge).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "at least one of atol, rtol and ltol"),
        ({"ltol": 0.1, "kernel_size": 4}, "odd"),
        ({"ltol": -0.1}, "ltol"),
        ({"atol": float("nan")}, "atol"),
        ({"atol": 1, "mask": np.ones((3, 3), bool)}, "mask"),
        ({"depth": np.ones((4, 4), np.int32), "atol": 1}, "floating-point"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(arguments, words):
    with pytest.raises(InputError, match=words):
        depth_map_edge(**{"depth": np.ones((4, 4), np.float32), **arguments})
