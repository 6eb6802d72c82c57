"""What an import may touch: never the instances of another source, nothing in silence, and its log can repeat it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from moge_core.cli import cli
from moge_core.datasets import import_arrays, import_rgbd_folder, import_table, index_dataset, read_import_log
from moge_core.datasets.importers import ImportReport, writing
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportSettings, Record, Stored, StoredDepth
from moge_core.datasets.importers.writing import run_import
from moge_core.errors import DatasetError
from moge_core.io import read_depth, read_meta

H, W = 12, 16
NUM_FRAMES = 6
CAMERA = "20,21,7.5,5.5"


def make_sequence(folder: Path, seed: int, num_frames: int = NUM_FRAMES, *, flat_images: bool = False) -> Path:
    """rgb/0.png and depth/0.png and so on, in millimetres."""
    rng = np.random.default_rng(seed)
    for kind in ("rgb", "depth"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(num_frames):
        image = np.full((H, W, 3), 90, np.uint8) if flat_images else rng.integers(0, 255, (H, W, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "rgb" / f"{number}.png"), image)
        cv2.imwrite(str(folder / "depth" / f"{number}.png"), rng.integers(1000, 3000, (H, W), dtype=np.uint16))
    return folder


def import_folder(source: Path, out: Path, **options: Any) -> ImportReport:
    return import_rgbd_folder(source, out, **{"intrinsics": CAMERA, "depth_scale": 1000.0, **options})


def import_rows(source: Path, out: Path, **options: Any) -> ImportReport:
    rows = [f"{n},rgb/{n}.png,depth/{n}.png,20,21,7.5,5.5,1000" for n in range(NUM_FRAMES)]
    (source / "frames.csv").write_text("\n".join(["name,image,depth,fx,fy,cx,cy,scale", *rows]))
    return import_table(source / "frames.csv", out, **options)


def import_stacks(source: Path, out: Path, **options: Any) -> ImportReport:
    if not (source / "frames.npz").exists():
        images, depths = (
            np.stack([cv2.imread(str(source / kind / f"{n}.png"), cv2.IMREAD_UNCHANGED) for n in range(NUM_FRAMES)])
            for kind in ("rgb", "depth")
        )
        np.savez(source / "frames.npz", images=images, depths=depths)
    return import_arrays(source / "frames.npz", out, intrinsics=CAMERA, **options)


IMPORTS: tuple[Callable[..., ImportReport], ...] = (import_folder, import_rows, import_stacks)


def instances_of(out: Path) -> dict[str, bytes]:
    """Every file of every instance."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".moge" not in path.parts
    }


def last_event(out: Path) -> dict[str, Any]:
    event: dict[str, Any] = json.loads((out / ".moge" / "import.jsonl").read_text().splitlines()[-1])
    return event


def typed(command: str, *more: str) -> str:
    """Type a command line that was printed, and return what it prints."""
    program, *arguments = shlex.split(command)
    assert program == "moge"
    result = CliRunner().invoke(cli, [*arguments, *more])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize("flat_images", [False, True])
@pytest.mark.parametrize("run", IMPORTS)
def test_a_second_sequence_with_the_same_names_is_refused_and_comes_in_by_the_prefix_that_is_named(
    tmp_path: Path, out: Path, run: Callable[..., ImportReport], flat_images: bool
) -> None:
    run(make_sequence(tmp_path / "first", 1, flat_images=flat_images), out)
    before = instances_of(out)
    second = make_sequence(tmp_path / ".the 2nd'", 2, flat_images=flat_images)
    with pytest.raises(DatasetError) as error:
        run(second, out)
    assert str(tmp_path / "first") in str(error.value)
    assert instances_of(out) == before
    prefix = re.search(r"--name-prefix (\S+/)", str(error.value))
    assert prefix is not None
    report = run(second, out, name_prefix=prefix[1])
    assert (report.num_written, report.num_replaced) == (NUM_FRAMES, 0)
    assert before.items() <= instances_of(out).items()


def test_a_second_sequence_of_which_only_some_names_are_taken_is_refused_whole(tmp_path: Path, out: Path) -> None:
    import_folder(make_sequence(tmp_path / "first", 1, 3), out)
    before = instances_of(out)
    with pytest.raises(DatasetError, match="--name-prefix"):
        import_folder(make_sequence(tmp_path / "second", 2, 60), out)
    assert instances_of(out) == before


def test_another_sequence_at_the_same_place_is_refused(tmp_path: Path, out: Path) -> None:
    """As where each recording is mounted at one place."""
    import_folder(make_sequence(tmp_path / "source", 1), out)
    before = instances_of(out)
    shutil.rmtree(tmp_path / "source")
    with pytest.raises(DatasetError, match="--name-prefix"):
        import_folder(make_sequence(tmp_path / "source", 2), out)
    assert instances_of(out) == before


def test_files_that_no_import_made_are_not_overwritten(tmp_path: Path, out: Path) -> None:
    (out / "0").mkdir(parents=True)
    (out / "0/image.jpg").write_bytes(b"mine")
    report = import_folder(make_sequence(tmp_path / "a", 1), out)
    (refused,) = report.skipped
    assert refused.instance == "0" and "image.jpg" in refused.evidence and "--name-prefix" in str(refused.fix)
    assert [path.name for path in (out / "0").iterdir()] == ["image.jpg"]
    assert (out / "0/image.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("run", IMPORTS)
def test_a_source_that_lies_elsewhere_now_goes_on(tmp_path: Path, out: Path, run: Callable[..., ImportReport]) -> None:
    run(make_sequence(tmp_path / "here", 1), out)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    # A copy has other change times, so that its frames are made again; with the same result.
    before = instances_of(out)
    assert run(tmp_path / "there", out).skipped == []
    assert instances_of(out) == before
    assert run(tmp_path / "there", out, max_depth=2.0).num_replaced == NUM_FRAMES


@pytest.mark.parametrize("run", IMPORTS)
def test_a_corrected_import_of_the_same_source_replaces_and_counts_it_apart(
    tmp_path: Path, out: Path, run: Callable[..., ImportReport]
) -> None:
    source = make_sequence(tmp_path / "source", 1)
    first = run(source, out)
    assert (first.num_written, first.num_replaced) == (NUM_FRAMES, 0)
    other_options = run(source, out, max_depth=2.0)
    assert (other_options.num_written, other_options.num_replaced) == (NUM_FRAMES, NUM_FRAMES)
    event = last_event(out)
    assert (event["written"], event["replaced"]) == (NUM_FRAMES, NUM_FRAMES)


def test_mended_depth_of_every_frame_is_the_same_source(tmp_path: Path, out: Path) -> None:
    source = make_sequence(tmp_path / "source", 1)
    import_folder(source, out)
    for path in (source / "depth").iterdir():
        cv2.imwrite(str(path), np.full((H, W), 2500, np.uint16))
    report = import_folder(source, out)
    assert (report.num_replaced, report.skipped) == (NUM_FRAMES, [])
    np.testing.assert_allclose(read_depth(out / "0" / "depth.png"), 2.5, rtol=1e-4)


def test_a_command_tells_written_and_replaced_and_those_that_were_there(tmp_path: Path, out: Path) -> None:
    source = make_sequence(tmp_path / "source", 1, 4)
    (source / "depth" / "3.png").rename(tmp_path / "later.png")
    command = f"moge import rgbd-folder {source} -o {out} --intrinsics {CAMERA} --depth-scale 1000"
    assert f"{out}: 3 instances written, 0 already there" in typed(command)
    (tmp_path / "later.png").rename(source / "depth" / "3.png")
    cv2.imwrite(str(source / "depth" / "0.png"), np.full((H, W), 2500, np.uint16))
    assert f"{out}: 1 instances written, 1 replaced, 2 already there" in typed(command)


def forget_samples(out: Path) -> None:
    """Make the log look as earlier versions wrote it."""
    path = out / ".moge" / "import.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    kept = ("time", "importer", "source", "options", "instances", "written", "notes", "skipped")
    path.write_text("".join(json.dumps({key: event[key] for key in kept}) + "\n" for event in events))


@pytest.mark.parametrize("run", IMPORTS)
def test_a_dataset_without_samples_in_its_log_is_as_safe(
    tmp_path: Path, out: Path, run: Callable[..., ImportReport]
) -> None:
    run(make_sequence(tmp_path / "first", 1), out)
    forget_samples(out)
    before = instances_of(out)
    with pytest.raises(DatasetError, match="--name-prefix"):
        run(make_sequence(tmp_path / "second", 2), out)
    assert instances_of(out) == before
    shutil.copytree(tmp_path / "first", tmp_path / "moved")
    assert run(tmp_path / "moved", out).skipped == []
    assert instances_of(out) == before


@pytest.mark.parametrize("run", IMPORTS)
def test_a_dataset_that_lost_its_log_is_as_safe_and_can_be_corrected(
    tmp_path: Path, out: Path, run: Callable[..., ImportReport]
) -> None:
    source = make_sequence(tmp_path / "first", 1)
    run(source, out)
    shutil.rmtree(out / ".moge")
    before = instances_of(out)
    with pytest.raises(DatasetError, match="--name-prefix"):
        run(make_sequence(tmp_path / "second", 2), out)
    assert instances_of(out) == before
    assert run(source, out, max_depth=2.0).num_replaced == NUM_FRAMES


def test_after_a_killed_import_another_source_is_refused_and_the_same_goes_on(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_sequence(tmp_path / "first", 1)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_folder(source, out, progress=stop)
    assert not (out / ".moge" / "import.jsonl").exists()
    with pytest.raises(DatasetError, match="--name-prefix"):
        import_folder(make_sequence(tmp_path / "second", 2), out)
    assert len(import_folder(source, out).instances) == NUM_FRAMES
    assert [path.name for path in (out / ".moge").iterdir()] == ["import.jsonl"]


@pytest.mark.parametrize("run", [import_folder, import_rows])
def test_what_an_earlier_import_left_is_told_and_the_printed_command_removes_exactly_that(
    tmp_path: Path, out: Path, run: Callable[..., ImportReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_sequence(tmp_path / "my source", 1)
    other = make_sequence(tmp_path / "other", 2)
    run(source, out)
    run(other, out, name_prefix="other/")
    shutil.copytree(out / "0", out / "by hand")
    meta = json.loads((out / "by hand" / "meta.json").read_text())
    del meta["source"]
    (out / "by hand" / "meta.json").write_text(json.dumps(meta))
    (out / "4" / "notes.txt").write_text("mine")
    before = instances_of(out)
    for kind in ("rgb", "depth"):
        for number in (4, 5):
            (source / kind / f"{number}.png").unlink()
    if run is import_rows:
        monkeypatch.setattr("test_import_targets.NUM_FRAMES", 4)
    report = run(source, out)
    assert (report.leftovers, report.num_removed) == (["4", "5"], 0)
    assert report.command is not None
    assert instances_of(out) == before

    monkeypatch.chdir("/")
    output = typed(report.command)
    (printed,) = re.findall(r"to remove exactly these: (.*)", output)
    assert "4, 5" in output
    output = typed(printed)
    assert "2 instances that an earlier import left were removed" in output
    assert "Folders of removed instances that hold other files were left: 4" in output
    gone = {name for name in before if name.startswith(("4/", "5/")) and name != "4/notes.txt"}
    assert instances_of(out) == {name: data for name, data in before.items() if name not in gone}
    assert "to remove" not in typed(report.command)


def test_another_pattern_leaves_what_the_first_made_and_that_is_told(tmp_path: Path, out: Path) -> None:
    source = make_sequence(tmp_path / "source", 1, 12)
    import_folder(source, out)
    report = import_folder(source, out, image_glob="rgb/?.png", depth_glob="depth/?.png")
    assert report.leftovers == ["10", "11"]


def test_a_frame_that_cannot_be_read_this_time_is_no_leftover(tmp_path: Path, out: Path) -> None:
    source = make_sequence(tmp_path / "source", 1)
    import_folder(source, out)
    (source / "depth" / "3.png").write_bytes((source / "depth" / "3.png").read_bytes()[:60])
    report = import_folder(source, out, prune=True)
    assert (report.num_removed, [finding.instance for finding in report.skipped]) == (0, ["3"])
    assert (out / "3" / "meta.json").exists()


def test_sources_under_one_prefix_are_no_leftovers_of_each_other(tmp_path: Path, out: Path) -> None:
    first, second = make_sequence(tmp_path / "first", 1), make_sequence(tmp_path / "second", 2)
    for kind in ("rgb", "depth"):
        (second / kind).rename(second / "x")
        (second / "room").mkdir(exist_ok=True)
        (second / "x").rename(second / "room" / kind)
    import_folder(first, out)
    import_folder(second, out)
    report = import_folder(first, out, prune=True)
    assert (report.leftovers, report.num_removed) == ([], 0)
    assert len(index_dataset(out).instances) == 2 * NUM_FRAMES


def test_instances_that_were_copied_into_the_dataset_are_no_leftovers(tmp_path: Path, out: Path) -> None:
    source, second = make_sequence(tmp_path / "source", 1), make_sequence(tmp_path / "second", 2, 2 * NUM_FRAMES)
    import_folder(source, out)
    import_folder(second, tmp_path / "other")
    for number in range(NUM_FRAMES, 2 * NUM_FRAMES):
        shutil.copytree(tmp_path / "other" / str(number), out / str(number))
    report = import_folder(source, out, prune=True)
    assert (report.leftovers, report.num_removed) == ([], 0)
    assert len(index_dataset(out).instances) == 2 * NUM_FRAMES


@pytest.mark.parametrize("sample", [{"0": 5}, {"0": None}, {"0": ["a"]}, ["0"], None])
def test_a_damaged_line_of_the_log_ends_no_import(tmp_path: Path, out: Path, sample: object) -> None:
    source = make_sequence(tmp_path / "source", 1)
    import_folder(source, out)
    log = out / ".moge" / "import.jsonl"
    line = json.loads(log.read_text()) | {"sample": sample}
    log.write_text(json.dumps(line) + "\n")
    assert import_folder(source, out).num_written == 0


def test_what_a_user_wrote_into_meta_json_is_kept_or_told(tmp_path: Path, out: Path) -> None:
    source = make_sequence(tmp_path / "source", 1)
    import_folder(source, out)
    path = out / "0" / "meta.json"
    meta = json.loads(path.read_text())
    edited = json.dumps({**meta, "depth_unit": 0.5, "weather": "rain", "camera_to_world": np.eye(4).tolist()})
    path.write_text(edited)
    report = import_folder(source, out, max_depth=2.5)
    after = read_meta(path)
    assert (after["weather"], after["camera_to_world"], after["depth_unit"]) == ("rain", np.eye(4).tolist(), 1.0)
    assert any("camera_to_world, weather" in note and "1 of 6" in note for note in report.notes)
    assert any("1 replaced instances had been edited" in note for note in report.notes)
    (line,) = (out / ".moge" / "replaced_meta.jsonl").read_text().splitlines()
    assert json.loads(line) == {"instance": "0", "meta": edited}


def test_maps_of_an_earlier_import_and_other_files_in_a_replaced_instance_are_told(tmp_path: Path, out: Path) -> None:
    source = make_sequence(tmp_path / "source", 1)
    import_folder(source, out)
    cv2.imwrite(str(out / "0" / "mask.png"), np.zeros((H, W), np.uint8))
    (out / "1" / "depth_completed.png").write_bytes(b"x")
    notes = import_folder(source, out, max_depth=2.5).notes
    assert any("mask.png of replaced instances went" in note and "1 of 6" in note for note in notes)
    assert any("depth_completed.png" in note and "1 of 6" in note for note in notes)


@pytest.mark.parametrize(
    ("run", "options"),
    [
        (import_folder, {"invalid": [1500.0, 1501.0], "image_glob": "rgb/*.png", "depth_glob": "dep*/*.png"}),
        (import_folder, {"intrinsics": "cam era.txt", "intrinsics_size": (2 * W, 2 * H), "flip_y": True}),
        (import_folder, {"intrinsics": PixelIntrinsics(20.0, 21.0, 7.25, 5.5), "depth_unit": None}),
        (import_folder, {"preset": "icl-nuim", "intrinsics": CAMERA, "depth_scale": None, "max_depth": 0.5}),
        (import_rows, {"name_prefix": "a b/", "label_type": "lidar", "infinite": [1600.0], "infinite_from": 2.9}),
        (import_stacks, {"resolution": "image", "kind": "inverse", "scale": 2.5e3, "depth_unit": 1.0}),
    ],
)
def test_the_logged_command_makes_an_equal_dataset(
    tmp_path: Path,
    out: Path,
    run: Callable[..., ImportReport],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = make_sequence(tmp_path / "so'urce", 1)
    (tmp_path / "cam era.txt").write_text("40 0 15.5 0 42 11.5 0 0 1")
    monkeypatch.chdir(tmp_path)
    report = run(source.relative_to(tmp_path), Path("out"), **options)
    event = last_event(out)
    assert event["command"] == report.command
    assert event["versions"].keys() == {"moge", "python", "numpy", "opencv"}
    said = {name for name, value in options.items() if value is not None or name == "depth_unit"}
    assert said <= event["asked"].keys() | {"depth_unit"}
    monkeypatch.chdir("/")
    typed(event["command"], "-o", str(tmp_path / "again"))
    assert instances_of(tmp_path / "again") == instances_of(out)
    typed(event["command"])
    assert last_event(out)["written"] == 0


def records_of(source: Path, poses: list[tuple[float, ...] | None]) -> Iterator[Record]:
    for number, pose in enumerate(poses):
        depth = StoredDepth(source / "depth" / f"{number}.png", scale=1000)
        record = Record(str(number), Stored(source / "rgb" / f"{number}.png"), depth, PixelIntrinsics(20, 21, 7.5, 5.5))
        yield replace(record, pose=pose)


def test_a_pose_goes_into_meta_json_and_what_was_made_without_one_stays(tmp_path: Path, out: Path) -> None:
    source = make_sequence(tmp_path / "source", 1, 2)
    pose = (0.0, -1.0, 0.0, 0.1, 1.0, 0.0, 0.0, 0.2, 0.0, 0.0, 1.0, 0.3, 0.0, 0.0, 0.0, 1.0)

    def run(*poses: tuple[float, ...] | None) -> ImportReport:
        return run_import("x", source, out, records_of(source, list(poses)), ImportSettings())

    run(None, None)
    before = instances_of(out)
    report = run(pose, pose)
    assert (report.num_written, instances_of(out)) == (0, before)
    assert any("2 instances were made before poses were read" in note for note in report.notes)

    shutil.rmtree(out / "0")
    assert run(pose, pose).num_written == 1
    assert read_meta(out / "0" / "meta.json")["pose"] == np.reshape(pose, (4, 4)).tolist()
    assert run(pose, pose).num_written == 0
    moved = (*pose[:3], 0.5, *pose[4:])
    assert run(moved, pose).num_written == 1
    assert read_meta(out / "0" / "meta.json")["pose"][0][3] == 0.5


def test_a_note_of_a_beginning_import_that_leads_out_of_the_dataset_is_refused(tmp_path: Path, out: Path) -> None:
    (out / ".moge").mkdir(parents=True)
    (out / ".moge" / "import.begun.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="link"):
        import_folder(make_sequence(tmp_path / "source", 1), out)
    assert not (tmp_path / "elsewhere").exists()


def test_a_unit_that_was_said_goes_when_it_is_said_no_more(tmp_path: Path) -> None:
    source = make_sequence(tmp_path / "a", 1, 2)
    for name in ("0", "1"):
        depth = cv2.imread(str(source / "depth" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        np.save(source / "depth" / f"{name}.npy", 1000 / depth.astype(np.float32))
        (source / "depth" / f"{name}.png").unlink()
    options = {"depth_scale": None, "kind": "inverse"}
    for said, unit in (({"depth_unit": 1.0}, 1.0), ({}, None), ({"depth_unit": 1.0}, 1.0)):
        report = import_folder(source, tmp_path / "out", **options, **said)
        assert (report.num_written, report.depth_unit) == (2, unit)
        assert read_meta(tmp_path / "out/0/meta.json").get("depth_unit") == unit
        assert import_folder(source, tmp_path / "out", **options, **said).num_written == 0


def test_the_log_names_some_of_many_skipped_frames_and_counts_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_MOST_LOGGED", 3)
    source = make_sequence(tmp_path / "a", 1)
    for number in range(1, NUM_FRAMES):
        (source / "depth" / f"{number}.png").unlink()
    import_folder(source, tmp_path / "out")
    (event,), _ = read_import_log(tmp_path / "out")
    line = json.loads((tmp_path / "out/.moge/import.jsonl").read_text())
    assert (event.num_skipped, len(line["skipped"])) == (NUM_FRAMES - 1, 3)
