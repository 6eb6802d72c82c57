"""`moge import --dry-run` tells what would be understood of a source, of every importer, and writes nothing into it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from test_import_targets import make_sequence
from test_imports_of_before import CASES, GOLDEN

from moge_core.cli import cli
from moge_core.datasets import import_rgbd_folder
from moge_core.datasets.importers import dry_run
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportSettings, Record, Stored, StoredDepth
from moge_core.datasets.importers.stored_values import StoredValues
from moge_core.datasets.importers.writing import Repeatable, run_import
from moge_core.errors import InputError
from moge_core.io import read_image

H, W = 48, 64


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["import", *(str(argument) for argument in arguments)])
    assert result.exit_code == code, result.output
    return result.output


def picture_of(output: str) -> Path:
    (path,) = re.findall(r"^Picture: (.*?\.png):", output, re.MULTILINE)
    return Path(path)


def shown_command(output: str) -> list[str]:
    program, *arguments = shlex.split(output.rstrip().splitlines()[-1])
    assert program == "moge"
    return arguments


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "sources", tmp_path / "sources"))


@pytest.fixture(autouse=True)
def _temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@pytest.mark.parametrize("case", CASES)
def test_every_importer_tells_what_it_understands_and_touches_nothing(case: str, sources: Path, tmp_path: Path) -> None:
    what, out = CASES[case], tmp_path / "out"
    command = [what["importer"], sources / what["source"], "-o", out, *what["options"]]
    before = tree(sources)
    output = run(*command, "--dry-run")
    assert not out.exists()
    assert tree(sources) == before
    assert re.search(r"^Frames: \d+ pairs", output, re.MULTILINE)
    assert re.search(r"^Sizes of images: \d+x\d+ \(\d", output, re.MULTILINE)
    assert re.search(r"^Camera: fx .* field of view [\d.]+ x [\d.]+ degrees", output, re.MULTILINE)
    assert re.search(r"^Depth as it would be written: median [\d.]+ (m|without unit)", output, re.MULTILINE)
    assert ("Stored values:" in output) == (case != "kitti")
    picture = picture_of(output)
    assert picture.is_relative_to(tmp_path / "tmp")
    assert min(read_image(picture).shape[:2]) > 100

    arguments = shown_command(output)
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("meta.json"))
    assert made == sorted(
        path.relative_to(GOLDEN / "datasets" / case).as_posix()
        for path in (GOLDEN / "datasets" / case).rglob("meta.json")
    )
    assert "--dry-run" not in arguments


def test_a_folder_of_which_nothing_is_known_yet_shows_what_to_give(tmp_path: Path) -> None:
    """Neither the scale nor the camera is given; both are what a dry run is for."""
    source = make_sequence(tmp_path / "source", 1, 3)
    output = run("rgbd-folder", source, "-o", tmp_path / "out", "--dry-run")
    assert "Camera: unknown; say it with --intrinsics" in output
    assert re.search(r"^ +1000 +[12]\.\d+ m +plausible for a room$", output, re.MULTILINE)
    assert re.search(r"^ +1 +\d+(e\+\d+)? m$", output, re.MULTILINE)
    assert "To import, with --intrinsics and --scale added:" in output
    again = run("rgbd-folder", source, "-o", tmp_path / "out", "--dry-run", "--depth-scale", "2000")
    assert "To import, with --intrinsics added:" in again
    known = [*shown_command(again)[1:], "--intrinsics", "20,21,7.5,5.5"]
    assert "To import:" in run(*known, "--dry-run")
    assert "3 instances written" in run(*known)
    assert re.search(r"^ +2000 +0?[01]\.\d+ m +plausible for a (room|table top), given$", again, re.MULTILINE)
    assert "fx 20" in run("rgbd-folder", source, "-o", tmp_path / "out", "--dry-run", "--intrinsics", "20,21,7.5,5.5")


def test_a_disparity_without_a_camera_shows_what_to_give(sources: Path, tmp_path: Path) -> None:
    patterns = ("--left", "*/im0.png", "--disparity", "*/disp0.pfm")
    output = run("stereo", sources / "stereo", "-o", tmp_path / "out", *patterns, "--dry-run")
    assert "Camera: unknown; say it with --intrinsics" in output
    assert "if the camera sees 60 degrees" in output
    assert "Without --baseline the depth has no unit" in output


def test_what_stays_over_and_cannot_be_read_is_told(tmp_path: Path) -> None:
    source = make_sequence(tmp_path / "source", 1, 4)
    (source / "depth" / "3.png").unlink()
    (source / "depth" / "1.png").write_bytes((source / "depth" / "1.png").read_bytes()[:50])
    command = ("rgbd-folder", source, "-o", tmp_path / "out", "--intrinsics", "20,21,7.5,5.5", "--depth-scale", "1000")
    output = run(*command, "--dry-run")
    assert "Frames: 3 pairs" in output
    assert "rgb/3.png: no depth map has its frame token" in output
    assert "error importable: 1 file" in output
    run(*command, "--dry-run", "--strict", code=1)


def test_depth_that_has_no_unit_is_told_without_one(tmp_path: Path) -> None:
    source = make_sequence(tmp_path / "source", 1, 3)
    for number, path in enumerate(sorted((source / "depth").glob("*.png"))):
        values = np.random.default_rng(number).random((12, 16), np.float32)
        values[0, :2] = 0, 1
        np.save(path.with_suffix(".npy"), values)
        path.unlink()
    command = ("rgbd-folder", source, "-o", tmp_path / "out", "--intrinsics", "20,21,7.5,5.5")
    assert re.search(r"as it would be written: median 0\.\d+ without unit", run(*command, "--dry-run"))
    assert "without unit" in run(*command)


def test_where_nothing_can_be_imported_no_command_is_offered(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("name,image,depth,fx,fy,cx,cy\na,gone.png,gone.png,20,20,7.5,5.5\n")
    output = run("table", tmp_path / "t.csv", "-o", tmp_path / "out", "--dry-run")
    assert "Frames: 0 pairs" in output
    assert "To import" not in output


def test_an_import_that_would_be_refused_is_told_so(tmp_path: Path) -> None:
    options = {"intrinsics": "20,21,7.5,5.5", "depth_scale": 1000.0}
    import_rgbd_folder(make_sequence(tmp_path / "first", 1), tmp_path / "out", **options)
    second = make_sequence(tmp_path / "second", 2)
    report = import_rgbd_folder(second, tmp_path / "out", dry_run=True, **options)
    assert any("would be refused" in note and "--name-prefix second/" in note for note in report.notes)


def test_the_picture_goes_where_it_is_wanted_but_never_into_the_dataset(tmp_path: Path) -> None:
    source, out = make_sequence(tmp_path / "source", 1, 2), tmp_path / "out"
    command = ("rgbd-folder", source, "-o", out, "--dry-run")
    output = run(*command, "--dry-run-picture", tmp_path / "look.png")
    assert picture_of(output) == tmp_path / "look.png"
    assert read_image(tmp_path / "look.png").ndim == 3
    for wrong in (out / "look.png", tmp_path / "look.gif"):
        assert "dry_run_picture: must" in run(*command, "--dry-run-picture", wrong, code=2)
    with pytest.raises(InputError, match="--dry-run"):
        ImportSettings(dry_run_picture="look.png")


def test_edges_of_depth_lie_where_its_step_is(tmp_path: Path) -> None:
    for kind in ("rgb", "depth"):
        (tmp_path / "source" / kind).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "source" / "rgb" / "0.png"), np.full((H, W, 3), 200, np.uint8))
    depth = np.full((H, W), 1000, np.uint16)
    depth[:, 40:] = 3000
    cv2.imwrite(str(tmp_path / "source" / "depth" / "0.png"), depth)
    path = tmp_path / "look.png"
    run("rgbd-folder", tmp_path / "source", "-o", tmp_path / "out", "--dry-run", "--dry-run-picture", path)
    picture = read_image(path).astype(int)
    marked = (picture[..., 0] > 200) & (picture[..., 1] < 60)
    columns = np.flatnonzero(marked.any(axis=0))
    # One tile with its frame of six pixels; the picture is 64 columns wide in it.
    place = (columns - 6) / (picture.shape[1] - 12) * W
    assert place.min() >= 38.5
    assert place.max() <= 41.5


def records_of(source: Path, opened: list[str], count: int) -> Iterator[Record]:
    def read(path: Path) -> Any:
        opened.append(path.name)
        return np.full((12, 16), 1500, np.uint16)

    for number in range(count):
        depth = StoredDepth(source / "depth" / "0.png", read, scale=1000, part=str(number))
        yield Record(str(number), Stored(source / "rgb" / "0.png"), depth, PixelIntrinsics(20, 21, 7.5, 5.5))


def test_of_very_many_frames_a_few_are_decoded_and_few_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_sequence(tmp_path / "source", 1, 1)
    opened: list[str] = []
    chosen: list[list[Record]] = []
    evenly = dry_run._evenly

    def remember(records: Any) -> Any:
        count, kept = evenly(records)
        chosen.append(kept)
        return count, kept

    monkeypatch.setattr(dry_run, "_evenly", remember)
    settings = ImportSettings(dry_run=True, dry_run_picture=tmp_path / "look.png")
    records = Repeatable(lambda: records_of(source, opened, 5000))
    report = run_import("x", source, tmp_path / "out", records, settings, total=5000)
    assert report.understood is not None
    assert (report.understood.num_frames, report.understood.num_looked_at) == (5000, 12)
    places = [int(record.name) for record in chosen[0]]
    assert places[0] == 0
    assert places[-1] > 4500
    assert max(np.diff(places)) < 2 * 5000 / 12
    # Once as stored and once as a frame.
    assert len(opened) == 2 * 12


def test_a_dry_run_enters_no_digest() -> None:
    plain = ImportSettings()
    assert repr(ImportSettings(dry_run=True, dry_run_picture="look.png", prune=True)) == repr(plain)


def scene(dtype: type = np.uint16) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.integers(600, 4000, (H, W)).astype(dtype)


ANY = StoredDepth(Path("depth.png"))


def test_a_constant_in_the_upper_part_is_offered_as_infinitely_far_and_another_as_unknown() -> None:
    sky, holes = scene(), scene()
    sky[:12, :50] = 65535
    holes[10:40, 10:20] = 20000
    (constant,) = StoredValues.of([sky]).constants
    assert (constant.value, constant.is_above) == (65535, True)
    assert any("--infinite 65535" in line for line in StoredValues.of([sky]).lines(ANY))
    (constant,) = StoredValues.of([holes]).constants
    assert (constant.value, constant.is_above) == (20000, False)
    assert any("--invalid 20000" in line for line in StoredValues.of([holes]).lines(ANY))
    assert StoredValues.of([scene()]).constants == ()
    for said in ({"infinite": (65535.0,)}, {"far_from": 60000.0}, {"invalid": (65535.0,)}):
        lines = StoredValues.of([sky]).lines(replace(ANY, **said))
        assert any("it is read as" in line for line in lines)
        assert not any("--in" in line for line in lines)
    # What is no measurement has no part in the median.
    assert StoredValues.of([sky]).typical == pytest.approx(np.median(scene()), rel=0.05)


def test_multiples_are_found_and_told() -> None:
    assert StoredValues.of([scene() * 8]).step == 8
    assert any("rotated3" in line for line in StoredValues.of([scene() * 8]).lines(ANY))
    assert StoredValues.of([scene()]).step == 1
    assert StoredValues.of([np.full((H, W), 1000, np.uint16)]).step == 1


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((1, 1), np.uint16),
        np.full((5, 7), np.nan, np.float32),
        np.full((5, 7), np.inf, np.float32),
        np.array([[-1.0, 3.4e38, 1e-30, np.inf, np.nan, 0.0]], np.float32),
        np.full((5, 7), 1234, np.uint16),
        np.array([[1e10] * 9 + [1, 2, 3, 4, 5, 6, 7.5, 8]], np.float64),
        np.array([[1018, 1009]], np.uint16),
    ],
)
def test_maps_without_anything_to_measure_have_lines_too(values: np.ndarray[Any, Any]) -> None:
    found = StoredValues.of([values])
    assert len(found.lines(ANY)) >= 1
    assert found.num_pixels == values.size
    assert sum(share for _, share in found.bars) <= 1 + 1e-9
