"""Every import: nothing is written outside its target or over its sources, and one bad frame costs only itself."""

from __future__ import annotations

import json
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from moge_core.datasets import index_dataset, validate_dataset
from moge_core.datasets.importers import ImportReport, import_rgbd_folder, import_table
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportSettings, Record, Stored, StoredDepth
from moge_core.datasets.importers.writing import run_import
from moge_core.datasets.parallel import num_cores
from moge_core.errors import DatasetError
from moge_core.io import read_depth, read_meta, write_image

W, H = 16, 12
CAMERA = {"fx": 20.0, "fy": 21.0, "cx": 7.5, "cy": 5.5}
STORED = 1000 + np.arange(W * H, dtype=np.uint16).reshape(H, W)

Run = Callable[..., ImportReport]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A picture and depth in millimetres."""
    folder = tmp_path / "source"
    folder.mkdir()
    write_image(folder / "image.jpg", np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8))
    cv2.imwrite(str(folder / "depth.png"), STORED)
    return folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Run:
    """Import the rows of a table; a row is what differs from a good one."""

    def run(*rows: dict[str, Any], out: Path | None = None) -> ImportReport:
        good = {"image": "image.jpg", "depth": "depth.png", "scale": 1000, **CAMERA}
        (source / "t.jsonl").write_text(
            "\n".join(json.dumps({"name": f"f{i}", **good, **row}) for i, row in enumerate(rows))
        )
        return import_table(source / "t.jsonl", out or tmp_path / "out")

    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("link", ["f0", "up", "f0/image.jpg", "f0/depth.png", "f0/normal.png", "dangling"])
def test_a_link_in_the_target_is_refused_and_what_it_leads_to_stays(run: Run, tmp_path: Path, link: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for name in ("meta.json", "image.jpg", "depth.png", "normal.png", ".x.tmp"):
        elsewhere.mkdir(exist_ok=True)
        (elsewhere / name).write_bytes(b"precious")
    out.mkdir()
    name = {"up": "up/f0", "dangling": "dangling/f0"}.get(link, "f0")
    if "/" in link:
        (out / "f0").mkdir()
        (out / link).symlink_to(elsewhere / Path(link).name)
    else:
        (out / link).symlink_to(elsewhere if link != "dangling" else tmp_path / "nowhere", target_is_directory=True)
    before = snapshot(elsewhere)
    report = run({"name": name}, {"name": "good"})
    assert report.instances == ["good"]
    assert "link" in report.skipped[0].evidence
    assert snapshot(elsewhere) == before
    assert not (tmp_path / "nowhere").exists()


def test_a_log_that_leads_out_of_the_target_is_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / ".moge").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(DatasetError, match="link"):
        run({})
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in out.iterdir()] == [".moge"]


def test_an_import_never_writes_over_what_it_reads(source: Path, run: Run) -> None:
    instance = source / "ds" / "f0"
    instance.mkdir(parents=True)
    cv2.imwrite(str(instance / "depth.png"), STORED)
    before = (instance / "depth.png").read_bytes()
    with pytest.raises(DatasetError, match="read from there"):
        run({"depth": str(instance / "depth.png")}, out=source / "ds")
    assert (instance / "depth.png").read_bytes() == before


def records_of(source: Path, read: Callable[[Path], Any], count: int = 3) -> Iterator[Record]:
    for number in range(count):
        depth = StoredDepth(source / "depth.png", read if number == 1 else None, scale=1000)
        yield Record(str(number), Stored(source / "image.jpg"), depth, PixelIntrinsics(20, 21, 7.5, 5.5))


@pytest.mark.parametrize("error", [tokenize.TokenError("x"), TypeError("x"), MemoryError("x"), ZeroDivisionError("x")])
def test_a_file_that_a_decoder_chokes_on_costs_only_its_frame(source: Path, tmp_path: Path, error: Exception) -> None:
    def choke(_: Path) -> Any:
        raise error

    report = run_import("x", source, tmp_path / "out", records_of(source, choke), ImportSettings())
    assert report.instances == ["0", "2"]
    assert type(error).__name__ in report.skipped[0].evidence


def test_records_are_taken_as_they_come_when_their_number_is_told(source: Path, tmp_path: Path) -> None:
    made, finished, ahead = [], [], []

    def records() -> Iterator[Record]:
        for record in records_of(source, lambda _: STORED, count=60):
            made.append(record.name)
            ahead.append(len(made) - len(finished))
            yield record

    def progress(done: int, total: int) -> None:
        assert total == 60
        finished.append(done)

    report = run_import("x", source, tmp_path / "out", records(), ImportSettings(), total=60, progress=progress)
    assert len(report.instances) == 60
    assert max(ahead) <= 4 * num_cores() + 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_one_pixel_and_one_row_are_images(source: Path, run: Run, shape: tuple[int, int]) -> None:
    height, width = shape
    write_image(source / "tiny.jpg", np.full((*shape, 3), 90, np.uint8))
    cv2.imwrite(str(source / "tiny.png"), np.full(shape, 2000, np.uint16))
    camera = {"fx": 1, "fy": 1, "cx": (width - 1) / 2, "cy": (height - 1) / 2}
    report = run({"image": "tiny.jpg", "depth": "tiny.png", **camera})
    np.testing.assert_allclose(read_depth(report.out_dir / "f0" / "depth.png"), np.full(shape, 2.0), rtol=1e-4)
    K = read_meta(report.out_dir / "f0" / "meta.json")["intrinsics"]
    np.testing.assert_allclose(K, [[1 / width, 0, 0.5], [0, 1 / height, 0.5], [0, 0, 1]], rtol=1e-6)


def test_normalised_intrinsics_are_told_from_pixels(run: Run) -> None:
    report = run({"fx": 1.25, "fy": 1.75, "cx": 0.5, "cy": 0.5}, {})
    assert report.instances == ["f1"]
    assert "normalised" in report.skipped[0].evidence


def test_a_frame_that_cannot_be_stored_leaves_the_target_as_it_was(source: Path, run: Run, tmp_path: Path) -> None:
    np.save(source / "ids.npy", np.zeros((H, W), np.int64))
    out = run({"segmentation": "ids.npy"}, {}).out_dir
    before = {name: data for name, data in snapshot(out).items() if not name.startswith(".moge")}
    np.save(source / "ids.npy", np.full((H, W), -1))
    report = run({"segmentation": "ids.npy"}, {}, {"segmentation": "ids.npy"})
    assert [finding.instance for finding in report.skipped] == ["f0", "f2"]
    after = {name: data for name, data in snapshot(out).items() if not name.startswith(".moge")}
    assert after == before
    assert index_dataset(out).instances == ["f0", "f1"]


@pytest.mark.parametrize(("kind", "outlier"), [("z", 1e-6), ("inverse", 1e-7), ("z", 3e8)])
def test_an_outlier_that_no_depth_file_holds_becomes_unknown_and_the_frame_stays(
    source: Path, run: Run, kind: str, outlier: float
) -> None:
    values = STORED.astype(np.float32) / 1000
    values[3, 4] = outlier
    np.save(source / "depth.npy", values)
    report = run({"depth": "depth.npy", "scale": 1, "kind": kind})
    assert np.argwhere(np.isnan(read_depth(report.out_dir / "f0" / "depth.png"))).tolist() == [[3, 4]]
    assert any("outliers" in note for note in report.notes)


def test_integer_arrays_without_a_scale_are_millimetres_and_that_is_said(source: Path, tmp_path: Path) -> None:
    (source / "depth.png").unlink()
    np.save(source / "image_depth.npy", STORED)
    report = import_rgbd_folder(source, tmp_path / "out", intrinsics="20,21,7.5,5.5")
    depth = read_depth(report.out_dir / report.instances[0] / "depth.png")
    np.testing.assert_allclose(depth, STORED / 1000, rtol=1e-4)
    assert any("millimetres" in note for note in report.notes)


def test_a_mask_of_another_shape_is_refused_and_a_smaller_one_of_the_same_shape_is_told(source: Path, run: Run) -> None:
    np.save(source / "turned.npy", np.ones((W, H), np.uint8))
    half = np.ones((H // 2, W // 2), np.uint8)
    half[0, 0] = 0
    np.save(source / "half.npy", half)
    report = run({"mask": "turned.npy"}, {"mask": "half.npy"})
    assert report.instances == ["f1"]
    assert "shape of the image" in report.skipped[0].evidence
    assert any("mask of 8x6" in note for note in report.notes)
    unknown = np.isnan(read_depth(report.out_dir / "f1" / "depth.png"))
    assert np.argwhere(unknown).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_depth_that_was_halved_with_rounding_belongs_to_its_image(source: Path, run: Run) -> None:
    write_image(source / "odd.jpg", np.zeros((9, 13, 3), np.uint8))
    cv2.imwrite(str(source / "odd.png"), np.full((4, 6), 2000, np.uint16))
    report = run({"image": "odd.jpg", "depth": "odd.png", "cx": 6, "cy": 4})
    assert read_depth(report.out_dir / "f0" / "depth.png").shape == (4, 6)


def test_ray_lengths_of_a_larger_map_are_those_of_the_pixels_that_were_picked(source: Path, run: Run) -> None:
    """A wall at z = 2 stays flat where its distances are given at twice the size of the image."""
    u = ((np.arange(2 * W) + 0.5) / 2 - 0.5 - CAMERA["cx"]) / CAMERA["fx"]
    v = ((np.arange(2 * H) + 0.5) / 2 - 0.5 - CAMERA["cy"]) / CAMERA["fy"]
    np.save(source / "rays.npy", 2 * np.sqrt(1 + u[None, :] ** 2 + v[:, None] ** 2))
    depth = read_depth(run({"depth": "rays.npy", "scale": 1, "kind": "ray"}).out_dir / "f0" / "depth.png")
    assert depth.shape == (H, W)
    np.testing.assert_allclose(depth, 2, rtol=1e-4)


def test_a_corrected_cell_makes_its_instance_again(source: Path, run: Run) -> None:
    run({}, {})
    cv2.imwrite(str(source / "better.png"), STORED + 1000)
    report = run({"depth": "better.png"}, {})
    assert (report.num_written, report.skipped) == (1, [])
    np.testing.assert_allclose(read_depth(report.out_dir / "f0" / "depth.png"), (STORED + 1000) / 1000, rtol=1e-4)


def test_names_that_differ_only_by_case_are_told(run: Run) -> None:
    report = run({"name": "room/A"}, {"name": "room/a"})
    assert report.instances == ["room/A", "room/a"]
    assert any("differ only by case" in note for note in report.notes)


@pytest.mark.parametrize("name", [".index.txt", ".moge/x", ".MOGE/x", ".hidden/x", "../x", "/x", "a/../b", "a\\b", ""])
def test_names_that_a_dataset_keeps_for_itself_or_that_leave_it_are_refused(run: Run, name: str) -> None:
    report = run({"name": name}, {})
    assert report.instances == ["f1"]
    assert validate_dataset(report.out_dir) == []


def test_a_broken_row_of_a_csv_costs_only_itself(source: Path, tmp_path: Path) -> None:
    row = "image.jpg,depth.png,20,21,7.5,5.5,1000"
    heading = "name,image,depth,fx,fy,cx,cy,scale"
    long_name = "x" * 300
    (source / "t.csv").write_text(
        f'\n\n{heading}\na,{row}\nb,"i"x.jpg,depth.png,20,21,7.5,5.5,1000\nc,{long_name},depth.png,20,21,7.5,5.5,1000\nd,{row}\n'
    )
    report = import_table(source / "t.csv", tmp_path / "out")
    assert report.instances == ["a", "d"]
    assert len(report.skipped) == 2
