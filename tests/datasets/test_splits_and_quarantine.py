"""Splits hold out whole scenes and stay put when a dataset grows; quarantine keeps instances out without deleting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.cli import cli
from moge_core.datasets import (
    index_dataset,
    quarantine_instances,
    read_index,
    read_quarantine,
    release_instances,
    split_dataset,
    validate_dataset,
)
from moge_core.datasets.splits import scene_of, split_scenes
from moge_core.errors import DatasetError, InputError, MissingIndexError

Write = Callable[..., Path]

scene_names = st.lists(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=2, max_size=60, unique=True)


@given(scenes=scene_names, per_scene=st.integers(1, 4), fraction=st.floats(0.01, 0.99))
def test_a_scene_is_never_in_both_lists_and_nothing_is_lost(scenes: list[str], per_scene: int, fraction: float) -> None:
    instances = [f"{scene}/{number}" for scene in scenes for number in range(per_scene)]
    train, validation = split_scenes(instances, fraction)
    assert sorted(train + validation) == sorted(instances)
    assert train
    assert validation
    assert not {scene_of(name) for name in train} & {scene_of(name) for name in validation}


@given(scenes=scene_names, more=scene_names, fraction=st.floats(0.2, 0.8))
@settings(max_examples=50)
def test_growth_moves_no_scene_from_one_list_to_the_other(scenes: list[str], more: list[str], fraction: float) -> None:
    # With scenes on both sides by their hashes, which is so for all but tiny datasets.
    base = [f"scene{number:03d}/0" for number in range(40)]
    before = split_scenes([*base, *(f"{scene}/0" for scene in scenes)], fraction)
    after = split_scenes([*base, *(f"{scene}/0" for scene in {*scenes, *more})], fraction)
    assert set(before[0]) <= set(after[0])
    assert set(before[1]) <= set(after[1])


def test_the_share_held_out_is_about_the_one_asked_for() -> None:
    _, validation = split_scenes([f"scene{number}/0" for number in range(4000)], 0.1)
    assert 330 < len(validation) < 470


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="val_fraction"):
        split_scenes(["a/0", "b/0"], fraction)


def test_one_scene_cannot_be_split() -> None:
    with pytest.raises(DatasetError, match="at least two scenes"):
        split_scenes(["a/0", "a/1"], 0.5)


def test_the_index_command_writes_both_lists_and_they_follow_the_dataset(data: Path, write_instance: Write) -> None:
    for scene in "abcdefgh":
        write_instance(f"{scene}/0")
        write_instance(f"{scene}/1")
    run = CliRunner().invoke(cli, ["index", str(data), "--val-fraction", "0.3"])
    assert run.exit_code == 0, run.output
    before = read_index(data, ".train.txt"), read_index(data, ".val.txt")
    assert sorted(before[0] + before[1]) == read_index(data)
    write_instance("new/0")
    assert CliRunner().invoke(cli, ["index", str(data), "--val-fraction", "0.3"]).exit_code == 0
    after = read_index(data, ".train.txt"), read_index(data, ".val.txt")
    assert sorted(after[0] + after[1]) == read_index(data)
    assert set(before[0]) <= set(after[0])
    assert set(before[1]) <= set(after[1])


def test_a_split_of_the_users_own_is_not_replaced_unless_asked(data: Path, write_instance: Write) -> None:
    with pytest.raises(MissingIndexError):
        split_dataset(data, 0.5)
    for scene in "ab":
        write_instance(f"{scene}/0")
    index_dataset(data)
    (data / ".val.txt").write_text("b/0\n")
    with pytest.raises(DatasetError, match="your own"):
        split_dataset(data, 0.5)
    assert (data / ".val.txt").read_text() == "b/0\n"
    split_dataset(data, 0.5, rebuild=True)
    assert (data / ".val.txt.bak").read_text() == "b/0\n"
    split_dataset(data, 0.5)


def test_a_quarantined_instance_is_left_out_of_the_list_and_comes_back(data: Path, write_instance: Write) -> None:
    for name in "abc":
        write_instance(name)
    assert quarantine_instances(data, {"b": "blurred"}) == 1
    report = index_dataset(data)
    assert report.instances == ["a", "c"]
    assert report.quarantined == ("b",)
    assert (data / "b" / "image.jpg").exists()
    assert quarantine_instances(data, {"b": "blurred"}) == 0
    assert release_instances(data, ["b"]) == 1
    assert index_dataset(data).instances == ["a", "b", "c"]


def test_a_list_by_hand_that_names_a_quarantined_instance_is_told(data: Path, write_instance: Write) -> None:
    for name in "ab":
        write_instance(name)
    (data / ".index.txt").write_text("a\nb\n")
    quarantine_instances(data, {"b": "blurred"})
    for findings in (index_dataset(data).findings, validate_dataset(data)):
        (finding,) = findings
        assert (finding.instance, finding.rule) == ("b", "not-quarantined")
        assert "blurred" in finding.evidence


@pytest.mark.parametrize("name", ["../x", "/etc", "nowhere", ""])
def test_only_instances_of_the_dataset_can_be_put_aside(data: Path, write_instance: Write, name: str) -> None:
    write_instance("a")
    with pytest.raises(DatasetError):
        quarantine_instances(data, {name: "x"})
    with pytest.raises(InputError, match="quarantine"):
        release_instances(data, ["a"])


def test_validate_puts_broken_instances_aside_when_asked(data: Path, write_instance: Write) -> None:
    for name in "ab":
        write_instance(name)
    (data / "a" / "depth.png").write_bytes(b"no picture")
    run = CliRunner().invoke(cli, ["validate", str(data), "--quarantine", "--json"])
    assert run.exit_code == 1
    assert json.loads(run.stdout)["rules"] == {"depth-decodable": 1}
    assert "depth-decodable" in read_quarantine(data)["a"]
    listed = CliRunner().invoke(cli, ["quarantine", str(data)])
    assert listed.output.startswith("a: depth-decodable")
    assert index_dataset(data).instances == ["b"]
    assert CliRunner().invoke(cli, ["quarantine", str(data), "a", "--release"]).exit_code == 0
    assert read_quarantine(data) == {}


def test_a_damaged_quarantine_is_an_error_that_names_the_file(data: Path, write_instance: Write) -> None:
    write_instance("a")
    (data / ".moge").mkdir()
    (data / ".moge" / "quarantine.json").write_text("[")
    with pytest.raises(DatasetError, match=r"quarantine\.json"):
        index_dataset(data)
