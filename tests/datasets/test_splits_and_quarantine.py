"""Splits hold out whole scenes and stay put when a dataset grows; quarantine keeps instances out without deleting."""

from __future__ import annotations

import json
import tempfile
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


steps = st.lists(st.sets(st.integers(0, 99).map("scene{}".format), min_size=1, max_size=5), min_size=1, max_size=5)


@given(first=st.sets(st.integers(0, 99).map("scene{}".format), min_size=2, max_size=6), steps=steps)
@settings(max_examples=60, deadline=None)
def test_growth_by_steps_moves_no_scene_however_few_there_are(first: set[str], steps: list[set[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scenes: set[str] = set()
        placed: tuple[set[str], set[str]] = (set(), set())
        for more in (first, *steps):
            scenes |= more
            lines = [f"{scene}/{number}\n" for scene in sorted(scenes) for number in range(2)]
            (Path(folder) / ".index.txt").write_text("".join(lines))
            report = split_dataset(folder, 0.1)
            now = {scene_of(name) for name in report.train}, {scene_of(name) for name in report.validation}
            assert placed[0] <= now[0]
            assert placed[1] <= now[1]
            assert now[0] | now[1] == scenes
            assert not now[0] & now[1]
            assert now[0]
            assert now[1]
            placed = now


def scenes_of(data: Path, name: str) -> set[str]:
    return {scene_of(instance) for instance in read_index(data, name)}


def test_another_share_makes_the_split_anew(data: Path) -> None:
    names = [f"scene{number}/0" for number in range(40)]
    (data / ".index.txt").write_text("".join(f"{name}\n" for name in names))
    split_dataset(data, 0.1)
    split_dataset(data, 0.6)
    assert (read_index(data, ".train.txt"), read_index(data, ".val.txt")) == split_scenes(names, 0.6)


def test_a_scene_held_out_against_its_hash_keeps_its_place_when_it_comes_back(data: Path) -> None:
    few = [f"scene{number}/0" for number in range(6)]
    _, (chosen,) = split_scenes(few, 1e-6)
    (data / ".index.txt").write_text("".join(f"{name}\n" for name in few))
    split_dataset(data, 1e-6)
    (data / ".index.txt").write_text("".join(f"{name}\n" for name in few if name != chosen))
    split_dataset(data, 1e-6)
    (data / ".index.txt").write_text("".join(f"{name}\n" for name in few))
    split_dataset(data, 1e-6)
    assert chosen in read_index(data, ".val.txt")


def test_a_list_that_would_be_empty_gets_a_new_scene_before_one_that_has_its_place() -> None:
    names = [f"scene{number}/0" for number in range(8)]
    for new in names:
        kept = {scene_of(name): False for name in names if name != new}
        assert split_scenes(names, 1e-6, kept)[1] == [new]
        kept = dict.fromkeys(kept, True)
        assert split_scenes(names, 1 - 1e-6, kept)[0] == [new]


def test_indexing_takes_what_is_not_listed_any_more_out_of_our_splits(data: Path, write_instance: Write) -> None:
    for scene in "abcd":
        write_instance(f"{scene}/0")
        write_instance(f"{scene}/1")
    index_dataset(data)
    split_dataset(data, 0.5)
    before = {name: read_index(data, name) for name in (".train.txt", ".val.txt")}
    aside, lost = before[".train.txt"][0], before[".val.txt"][0]
    quarantine_instances(data, {aside: "blurred"})
    (data / lost / "meta.json").unlink()
    write_instance("e/0")
    run = CliRunner().invoke(cli, ["index", str(data)])
    assert run.exit_code == 0, run.output
    assert ".train.txt: 1 that are not listed any more were taken out" in run.output
    assert read_index(data, ".train.txt") == before[".train.txt"][1:]
    assert read_index(data, ".val.txt") == before[".val.txt"][1:]
    split_dataset(data, 0.5)
    assert index_dataset(data).notes == ()


def test_indexing_leaves_the_users_splits_and_empties_none(data: Path, write_instance: Write) -> None:
    for scene in "ab":
        write_instance(f"{scene}/0")
    index_dataset(data)
    split_dataset(data, 0.5)
    held_out = read_index(data, ".val.txt")
    (data / ".train.txt").write_text("a/0\nb/0\n")
    quarantine_instances(data, dict.fromkeys(held_out, "blurred"))
    (note,) = index_dataset(data).notes
    assert "split again" in note
    assert read_index(data, ".train.txt") == ["a/0", "b/0"]
    assert read_index(data, ".val.txt") == held_out


@pytest.mark.parametrize("name", ["c/", "./c", "c/.", ".//c//"])
def test_each_way_to_write_an_instance_puts_the_same_one_aside(data: Path, write_instance: Write, name: str) -> None:
    for instance in ("c", "d"):
        write_instance(instance)
    assert CliRunner().invoke(cli, ["quarantine", str(data), name]).exit_code == 0
    assert list(read_quarantine(data)) == ["c"]
    assert index_dataset(data).instances == ["d"]
    assert release_instances(data, [name]) == 1
    assert index_dataset(data).instances == ["c", "d"]


def test_a_folder_of_instances_stands_for_all_of_them(data: Path, write_instance: Write) -> None:
    for instance in ("scene/a", "scene/deep/b", "scene2/a"):
        write_instance(instance)
    run = CliRunner().invoke(cli, ["quarantine", str(data), "scene", "scene/a/"])
    assert run.output.startswith("2 put into quarantine")
    assert list(read_quarantine(data)) == ["scene/a", "scene/deep/b"]
    assert index_dataset(data).instances == ["scene2/a"]
    assert release_instances(data, ["scene/"]) == 2
    assert read_quarantine(data) == {}
    reasons = {"scene/a": "blurred", "scene": "all of it"}
    for order in (reasons, dict(reversed(reasons.items()))):
        quarantine_instances(data, order)
        assert read_quarantine(data) == {"scene/a": "blurred", "scene/deep/b": "all of it"}


def test_a_folder_without_instances_or_behind_a_link_is_not_put_aside(
    data: Path, write_instance: Write, tmp_path: Path
) -> None:
    write_instance("a")
    (data / "empty").mkdir()
    (data / "link").symlink_to(tmp_path)
    for name in ("empty", "link", "link/data/a", ".", "a/image.jpg"):
        with pytest.raises(DatasetError):
            quarantine_instances(data, {name: "x"})
    assert read_quarantine(data) == {}


def test_a_quarantine_that_was_written_otherwise_is_obeyed(data: Path, write_instance: Write) -> None:
    for instance in "ab":
        write_instance(instance)
    (data / ".moge").mkdir()
    (data / ".moge" / "quarantine.json").write_text('{"a/": "by hand"}')
    assert index_dataset(data).instances == ["b"]
    assert release_instances(data, ["a"]) == 1


def test_validate_puts_no_folder_aside_for_what_lies_beside_its_instances(data: Path, write_instance: Write) -> None:
    image = write_instance("scene/a") / "image.jpg"
    (data / "scene" / "image.jpg").write_bytes(image.read_bytes())
    run = CliRunner().invoke(cli, ["validate", str(data), "--quarantine"])
    assert run.exit_code == 1
    assert "files-present" in run.output
    assert read_quarantine(data) == {}


@pytest.mark.parametrize("line", ["./a", "a/", "a//b", "a/./b", "./", "a/b/."])
def test_a_list_entry_has_one_spelling(data: Path, write_instance: Write, line: str) -> None:
    write_instance("a/b")
    plain = "/".join(part for part in line.split("/") if part not in {"", "."})
    (data / ".index.txt").write_text(f"a/b\n{line}\n")
    with pytest.raises(DatasetError, match=rf"\.index\.txt:2: .*Write '{plain}'\." if plain else "inside"):
        read_index(data)
    run = CliRunner().invoke(cli, ["validate", str(data), "--json"])
    (finding,) = json.loads(run.stdout)["findings"]
    assert (finding["rule"], finding["instance"]) == ("list-entry", f"{data / '.index.txt'}:2")


@pytest.mark.parametrize("line", ["a", "scene/frame", "Scène 1/frame.0/x y", "...", "a/.hidden", "~/x", "ab:c/d"])
def test_plain_relative_paths_stay_accepted(data: Path, line: str) -> None:
    (data / ".index.txt").write_text(f"{line}\r\n", newline="")
    assert read_index(data) == [line]


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


def test_without_a_list_what_is_in_quarantine_is_not_checked(data: Path, write_instance: Write) -> None:
    for name in "ab":
        write_instance(name)
    (data / "a" / "depth.png").write_bytes(b"no picture")
    quarantine_instances(data, {"a": "broken"})
    assert validate_dataset(data) == []


def test_a_damaged_quarantine_is_an_error_that_names_the_file(data: Path, write_instance: Write) -> None:
    write_instance("a")
    (data / ".moge").mkdir()
    (data / ".moge" / "quarantine.json").write_text("[")
    with pytest.raises(DatasetError, match=r"quarantine\.json"):
        index_dataset(data)
