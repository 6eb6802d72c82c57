"""Held out means unseen: no frame of a video lies beside one that is trained on, and growth moves nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.cli import cli
from moge_core.datasets import read_index, split_dataset
from moge_core.datasets.holding_out import LEAST_CLAIMED, divide, hold_out, neighbours_trained_on
from moge_core.datasets.lists import FOLDER_RULE, Split, WrittenLists
from moge_core.datasets.scene_finding import find_scenes
from moge_core.datasets.splits import split_scenes
from moge_core.errors import DatasetError

Write = Callable[..., Path]
NOWHERE = Path("/nonexistent")


def write_list(root: Path, names: list[str]) -> None:
    (root / ".index.txt").write_text("".join(f"{name}\n" for name in sorted(names)))


@given(length=st.integers(3, 400), fraction=st.floats(0.01, 0.8), cameras=st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_of_one_video_a_block_is_held_out_and_a_gap_kept(length: int, fraction: float, cameras: int) -> None:
    names = [f"cam{camera}/{number:04d}" for camera in range(cameras) for number in range(length)]
    scenes = find_scenes(NOWHERE, names)
    try:
        held = hold_out(scenes, fraction)
    except DatasetError:
        assert fraction * length + 0.05 * length + 2 > length
        return
    assert sorted([*held.train, *held.held_out, *held.gap]) == sorted(names) and held.train and held.held_out
    numbers = {side: {int(name[-4:]) for name in some} for side, some in vars(held).items() if isinstance(some, list)}
    out, trained = numbers["held_out"], numbers["train"]
    assert max(out) - min(out) + 1 == len(out), "a contiguous block"
    assert len(held.held_out) == cameras * len(out), "all cameras of a frame are on one side"
    assert min(abs(one - other) for one in out for other in (min(trained), max(trained))) > 0.05 * length
    assert neighbours_trained_on(scenes, held.held_out, held.train) == 0
    parts = divide(scenes, held.held_out)
    if parts.claimed:
        assert len(parts.claimed) >= LEAST_CLAIMED and parts.selection
        chosen, claimed = ({int(name[-4:]) for name in some} for some in (parts.selection, parts.claimed))
        assert min(chosen) - max(claimed) > 0.05 * length
        assert {*parts.selection, *parts.claimed} <= set(held.held_out)
    else:
        assert parts.selection == held.held_out and "no score is claimed" in parts.told


@pytest.mark.parametrize("unit", [1e0, 1e3, 1e6, 1e9])
def test_where_names_are_stamps_the_gap_lasts_two_seconds(unit: float) -> None:
    times = [1305031102 + number / 30 for number in range(400)]
    names = [f"{time:.4f}" if unit == 1 else str(round(time * unit)) for time in times]
    held = hold_out(find_scenes(NOWHERE, names), 0.3)
    out, trained = ([float(name) / unit for name in some] for some in (held.held_out, held.train))
    assert 2.0 <= min(trained) - max(out) < 2.1
    parts = divide(find_scenes(NOWHERE, names), held.held_out)
    assert min(map(float, parts.selection)) - max(map(float, parts.claimed)) >= 2 * unit


def test_cameras_that_count_by_themselves_are_held_out_at_the_same_time() -> None:
    names = [f"left/{number}" for number in range(100)] + [f"right/{number}" for number in range(500, 600)]
    held = hold_out(find_scenes(NOWHERE, names), 0.2)
    assert sorted(int(name.split("/")[1]) % 500 for name in held.held_out) == sorted([*range(20), *range(20)])


def test_a_scene_too_short_for_a_gap_is_refused_by_name() -> None:
    with pytest.raises(DatasetError, match=r"one scene \(by frame numbers of one video\) of 2 frames"):
        hold_out(find_scenes(NOWHERE, ["0001", "0002"]), 0.5)


def test_the_index_command_says_what_it_held_out_of_one_video(data: Path, write_instance: Write) -> None:
    for number in range(1, 41):
        write_instance(f"{number:04d}")
    run = CliRunner().invoke(cli, ["index", str(data), "--val-fraction", "0.1"])
    assert run.exit_code == 0, run.output
    assert ".train.txt: 34 instances; .val.txt: 4 (a block of one scene); in neither: 2" in run.output
    assert (
        "found by frame numbers of one video" in run.output and "of one video of 40 frames 0001 to 0004" in run.output
    )
    share = run.output.split("`--val-fraction ")[1].split("`")[0]
    run = CliRunner().invoke(cli, ["index", str(data), "--val-fraction", share])
    assert "8 others for the score: by blocks" in run.output, run.output
    names = [*read_index(data, ".train.txt"), *read_index(data, ".val.txt")]
    assert len(set(names)) == len(names) < 40


@given(first=st.integers(30, 200), more=st.lists(st.integers(1, 100), max_size=4), fraction=st.floats(0.05, 0.4))
@settings(max_examples=25, deadline=None)
def test_a_video_that_grows_moves_no_frame_to_the_other_list(first: int, more: list[int], fraction: float) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder, length = Path(name), first
        write_list(folder, [f"{number:04d}" for number in range(length)])
        before = split_dataset(folder, fraction)
        for added in more:
            length += added
            write_list(folder, [f"{number:04d}" for number in range(length)])
            now = split_dataset(folder, fraction)
            assert set(before.validation) <= set(now.validation)
            assert not set(before.validation) & set(now.train) and not set(before.train) & set(now.validation)
            before = now
        other = [f"other/{number:04d}" for number in range(10)]
        write_list(folder, [*(f"{number:04d}" for number in range(length)), *other])
        now = split_dataset(folder, fraction)
        assert not set(before.validation) & set(now.train) and not set(before.train) & set(now.validation)


def test_scenes_that_were_told_apart_by_less_keep_their_sides_when_more_come(data: Path) -> None:
    families = [f"all/{room}_{number:03d}" for room in ("hall", "attic", "cellar") for number in range(9)]
    write_list(data, families)
    before = split_dataset(data, 0.3)
    assert before.num_scenes[1] == 3
    write_list(data, [*families, *(f"garden/{number:03d}" for number in range(9))])
    now = split_dataset(data, 0.3)
    assert set(before.train) <= set(now.train) and set(before.validation) <= set(now.validation)


def test_lists_of_the_rule_of_before_keep_it_until_they_are_made_anew(data: Path) -> None:
    names = [f"{number:04d}" for number in range(40)]
    write_list(data, names)
    train, validation = split_scenes(names, 0.1)
    lists = WrittenLists.load(data)
    for path, chosen in ((data / ".train.txt", train), (data / ".val.txt", validation)):
        lists.write(path, chosen)
    lists.split = Split(val_fraction=0.1)
    lists.save()
    state = data / ".moge" / "lists.json"
    state.write_text(state.read_text().replace('"rule": 1,', ""))
    write_list(data, [*names, "0040", "0041"])
    report = split_dataset(data, 0.1)
    assert report.rule == FOLDER_RULE and report.num_scenes[1] == 42 and "rule of before" in report.told[0]
    assert set(validation) <= set(report.validation) and set(train) <= set(report.train) and not report.gap
    for made in (split_dataset(data, 0.1, rebuild=True), split_dataset(data, 0.1)):
        assert made.rule != FOLDER_RULE and made.num_scenes == (1, 1) and made.gap


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_several_scenes_are_divided_whole(sizes: list[int]) -> None:
    held_out = [f"scene{scene}/{number}" for scene, size in enumerate(sizes) for number in range(size)]
    scenes = find_scenes(NOWHERE, [*held_out, *(f"trained/{number}" for number in range(5))])
    parts = divide(scenes, held_out)
    if parts.claimed:
        assert len(parts.claimed) >= LEAST_CLAIMED and parts.selection
        if len(sizes) > 1:
            assert sorted([*parts.claimed, *parts.selection]) == sorted(held_out)
            assert not {name.split("/")[0] for name in parts.claimed} & {name.split("/")[0] for name in parts.selection}
    elif len(sizes) > 1:
        assert max(sizes) < LEAST_CLAIMED and sum(sizes) - min(sizes) < 2 * LEAST_CLAIMED
