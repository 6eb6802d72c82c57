"""Importing folders of images and 16-bit depth: what is read, what is refused, what a second run does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from moge_core.datasets import import_rgbd_folder, index_dataset
from moge_core.datasets.importers import ImportReport
from moge_core.datasets.importers.intrinsics import parse_intrinsics
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.errors import DatasetError, FormatError, InputError
from moge_core.io import read_depth, read_image, read_meta, write_image, write_meta
from moge_core.io.files import write_bytes

W, H = 16, 12
CAMERA = "20,21,7.5,5.5"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three frames: JPEG images and depth in millimetres, growing to the right and with the frame."""
    folder = tmp_path / "source"
    (folder / "rgb").mkdir(parents=True)
    (folder / "depth").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        write_image(folder / "rgb" / f"{i}.jpg", rng.integers(0, 255, (H, W, 3), dtype=np.uint8))
        write_values(folder / "depth" / f"{i}.png", 1000 * (i + 1) + stored_ramp())
    return folder


def stored_ramp() -> np.ndarray[Any, Any]:
    return np.tile(np.arange(W, dtype=np.uint16) * 10, (H, 1)) + np.arange(H, dtype=np.uint16)[:, None]


def write_values(path: Path, values: np.ndarray[Any, Any]) -> None:
    if path.suffix == ".pgm":
        height, width = values.shape
        path.write_bytes(b"P5\n# made here\n%d %d\n65535\n" % (width, height) + values.astype(">u2").tobytes())
    else:
        cv2.imwrite(str(path), values.astype(np.uint16))


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Callable[..., ImportReport]:
    def run(**options: Any) -> ImportReport:
        return import_rgbd_folder(source, tmp_path / "out", **{"intrinsics": CAMERA, "depth_scale": 1000, **options})

    return run


def test_depth_is_value_over_scale_and_pixel_centres_are_kept(run: Callable[..., ImportReport]) -> None:
    report = run()
    assert report.instances == ["0", "1", "2"]
    folder = report.out_dir / "1"
    np.testing.assert_allclose(read_depth(folder / "depth.png"), (2000 + stored_ramp()) / 1000, rtol=1e-4)
    expected = [[20 / W, 0, (7.5 + 0.5) / W], [0, 21 / H, (5.5 + 0.5) / H], [0, 0, 1]]
    np.testing.assert_allclose(read_meta(folder / "meta.json")["intrinsics"], expected, rtol=1e-6)
    assert index_dataset(report.out_dir).findings == []


def test_jpeg_images_are_copied_byte_for_byte_as_files_of_their_own(
    run: Callable[..., ImportReport], source: Path
) -> None:
    copied = run().out_dir / "0" / "image.jpg"
    assert copied.read_bytes() == (source / "rgb" / "0.jpg").read_bytes()
    assert not copied.is_symlink()
    assert copied.stat().st_nlink == 1


def test_png_images_become_jpeg_that_looks_the_same(run: Callable[..., ImportReport], source: Path) -> None:
    smooth = np.stack([np.tile(np.linspace(0, 255, W), (H, 1))] * 3, axis=-1).astype(np.uint8)
    (source / "rgb" / "0.jpg").unlink()
    write_image(source / "rgb" / "0.png", smooth)
    image_path = run().out_dir / "0" / "image.jpg"
    assert image_path.read_bytes()[:2] == b"\xff\xd8"
    assert np.abs(read_image(image_path).astype(int) - smooth).max() < 8


def test_pgm_is_read_most_significant_byte_first(run: Callable[..., ImportReport], source: Path) -> None:
    (source / "depth" / "0.png").unlink()
    write_values(source / "depth" / "0.pgm", 1000 + stored_ramp())
    np.testing.assert_allclose(read_depth(run().out_dir / "0" / "depth.png"), (1000 + stored_ramp()) / 1000, rtol=1e-4)


def test_invalid_values_and_zero_and_far_depth_are_unknown(run: Callable[..., ImportReport], source: Path) -> None:
    values = np.full((H, W), 2000)
    values[0, 0], values[0, 1], values[0, 2], values[0, 3] = 0, 65535, 9000, 8000
    write_values(source / "depth" / "0.png", values)
    depth = read_depth(run(invalid=[65535], max_depth=8.0).out_dir / "0" / "depth.png")
    assert np.isnan(depth[0]).tolist() == [True, True, True] + [False] * 13
    assert not np.isnan(depth[1:]).any()
    assert depth[0, 3] == pytest.approx(8, rel=1e-4)


def test_a_negative_fy_is_taken_positive_and_nothing_is_flipped_unless_asked(
    run: Callable[..., ImportReport], source: Path
) -> None:
    report = run(intrinsics="20,-21,7.5,4")
    assert any("-21" in note and "left as they are" in note for note in report.notes)
    K = read_meta(report.out_dir / "0" / "meta.json")["intrinsics"]
    np.testing.assert_allclose(K[1], [0, 21 / H, 4.5 / H], rtol=1e-6)
    kept = read_depth(report.out_dir / "0" / "depth.png")
    np.testing.assert_allclose(kept, (1000 + stored_ramp()) / 1000, rtol=1e-4)

    flipped = run(intrinsics="20,-21,7.5,4", flip_y=True)
    assert flipped.num_written == 3
    K = read_meta(flipped.out_dir / "0" / "meta.json")["intrinsics"]
    np.testing.assert_allclose(K[1], [0, 21 / H, (H - 1 - 4 + 0.5) / H], rtol=1e-6)
    np.testing.assert_array_equal(read_depth(flipped.out_dir / "0" / "depth.png"), kept[::-1])
    image = read_image(flipped.out_dir / "0" / "image.jpg").astype(int)
    original = read_image(source / "rgb" / "0.jpg")[::-1]
    assert np.abs(image - original).mean() < 12


def test_intrinsics_of_another_resolution_are_scaled_and_that_is_said(run: Callable[..., ImportReport]) -> None:
    same = read_meta(run().out_dir / "0" / "meta.json")["intrinsics"]
    report = run(intrinsics="40,42,15.5,11.5", intrinsics_size=(2 * W, 2 * H))
    np.testing.assert_allclose(read_meta(report.out_dir / "0" / "meta.json")["intrinsics"], same, rtol=1e-6)
    assert any("32x24" in note for note in report.notes)
    with pytest.raises(DatasetError, match="33x10"):
        run(intrinsics="40,42,15.5,5", intrinsics_size=(33, 10))


def test_intrinsics_that_cannot_be_of_this_image_are_refused(run: Callable[..., ImportReport]) -> None:
    with pytest.raises(DatasetError, match="--intrinsics-size"):
        run(intrinsics="40,42,31,23")
    assert any("far from its centre" in note for note in run(intrinsics="20,21,12,5.5").notes)


def test_a_second_run_does_only_what_is_new(run: Callable[..., ImportReport], source: Path) -> None:
    first = run()
    before = {path: path.stat().st_mtime_ns for path in first.out_dir.rglob("*.*") if ".moge" not in path.parts}
    assert run().num_written == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())

    assert run(depth_scale=500).num_written == 3


def test_a_changed_source_is_imported_again_even_of_equal_size_and_old_date(
    run: Callable[..., ImportReport], source: Path
) -> None:
    (source / "depth" / "1.png").unlink()
    path = source / "depth" / "1.pgm"
    write_values(path, 1000 + stored_ramp())
    out = run().out_dir
    size = path.stat().st_size
    write_values(path, 5000 + stored_ramp())
    os.utime(path, ns=(1, 1))
    assert path.stat().st_size == size
    assert run().num_written == 1
    assert read_depth(out / "1" / "depth.png")[0, 0] == pytest.approx(5, rel=1e-4)


def test_equal_imports_give_equal_datasets(source: Path, tmp_path: Path, run: Callable[..., ImportReport]) -> None:
    first = index_dataset(run().out_dir)
    os.utime(source / "rgb" / "0.jpg")
    other = import_rgbd_folder(source, tmp_path / "other", intrinsics=CAMERA, depth_scale=1000)
    assert index_dataset(other.out_dir).digest == first.digest


def test_an_interrupted_instance_is_none_and_is_made_by_the_next_run(
    run: Callable[..., ImportReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moge_core.datasets.importers import writing

    class Killed(BaseException):
        pass

    def die(path: Path, data: bytes) -> None:
        if path.name == "meta.json":
            raise Killed
        write_bytes(path, data)

    out = run(name_prefix="finished/").out_dir
    for options in ({}, {"depth_scale": 500}):
        with monkeypatch.context() as patch:
            patch.setattr(writing, "write_bytes", die)
            with pytest.raises(Killed):
                run(**options)
        # Neither the new depth without a camera, nor with the record of what it was before.
        assert "0" not in index_dataset(out).instances
        assert run(**options).instances == ["0", "1", "2"]
    assert read_depth(out / "0" / "depth.png")[0, 0] == pytest.approx(2, rel=1e-4)


def test_an_unlikely_scale_is_pointed_out(run: Callable[..., ImportReport]) -> None:
    assert any("check --depth-scale" in note for note in run(depth_scale=1).notes)
    assert run(depth_scale=1000).notes == []


def test_another_makers_instance_is_not_overwritten(run: Callable[..., ImportReport], tmp_path: Path) -> None:
    folder = tmp_path / "out" / "1"
    folder.mkdir(parents=True)
    write_meta(folder / "meta.json", {"intrinsics": [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]})
    before = (folder / "meta.json").read_bytes()
    report = run()
    assert report.instances == ["0", "2"]
    assert [finding.instance for finding in report.skipped] == ["1"]
    assert (folder / "meta.json").read_bytes() == before
    assert run(name_prefix="second/").instances == ["second/0", "second/1", "second/2"]


def test_what_cannot_be_imported_is_named_and_logged_and_the_rest_goes_on(
    run: Callable[..., ImportReport], source: Path
) -> None:
    (source / "rgb" / "0.jpg").write_bytes(b"\xff\xd8 no image")
    write_values(source / "depth" / "1.png", np.full((H + 1, W), 2000))
    (source / "depth" / "2.png").rename(source / "depth" / "9.png")
    write_image(source / "rgb" / "3.jpg", np.zeros((H, W, 3), np.uint8))
    write_values(source / "depth" / "3.png", 1000 + stored_ramp())
    report = run()
    assert report.instances == ["3"]
    found = {finding.instance: finding for finding in report.skipped}
    assert set(found) == {"0", "1", "rgb/2.jpg", "depth/9.png"}
    assert "same size" in found["1"].evidence
    assert "16x13" in found["1"].evidence
    (event,) = [json.loads(line) for line in report.log_path.read_text().splitlines()]
    assert {entry["file"] for entry in event["skipped"]} == set(found)


def test_an_8_bit_picture_of_depth_is_refused_with_the_reason(run: Callable[..., ImportReport], source: Path) -> None:
    for i in range(3):
        cv2.imwrite(str(source / "depth" / f"{i}.png"), np.full((H, W), 200, np.uint8))
    with pytest.raises(DatasetError, match="16-bit"):
        run()
    with pytest.raises(DatasetError, match=r"8-bit grey.*measured values"):
        run(depth_glob="depth/*.png")


def test_a_depth_map_without_a_known_pixel_is_imported_and_said(run: Callable[..., ImportReport], source: Path) -> None:
    write_values(source / "depth" / "0.png", np.zeros((H, W)))
    report = run()
    assert any("no known pixel" in note for note in report.notes)
    assert index_dataset(report.out_dir).instances == ["1", "2"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"depth_scale": 0}, "depth_scale"),
        ({"depth_scale": float("nan")}, "depth_scale"),
        ({"max_depth": -1}, "max_depth"),
        ({"invalid": [70000]}, "invalid"),
        ({"name_prefix": "../x"}, "name_prefix"),
        ({"name_prefix": "/x"}, "name_prefix"),
        ({"image_glob": "../*"}, "image"),
        ({"intrinsics": "1,2,3"}, "intrinsics"),
        ({"intrinsics": "nan,20,7,5"}, "intrinsics"),
        ({"intrinsics": "nowhere.json"}, "nowhere"),
        ({"intrinsics": "0.8,0.9,0.5,0.5"}, "normalised"),
        ({"intrinsics_size": (0, 4)}, "intrinsics_size"),
    ],
)
def test_options_outside_their_domain_are_refused_by_name(
    run: Callable[..., ImportReport], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        run(**options)


def test_the_source_cannot_be_the_dataset(source: Path, tmp_path: Path) -> None:
    for out in (source, tmp_path):
        with pytest.raises(InputError, match="out_dir"):
            import_rgbd_folder(source, out, intrinsics=CAMERA, depth_scale=1000)
    inside = import_rgbd_folder(source, source / "out", intrinsics=CAMERA, depth_scale=1000)
    assert import_rgbd_folder(source, source / "out", intrinsics=CAMERA, depth_scale=1000).instances == inside.instances


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("K.txt", "500 0 320\n0 510 240\n0 0 1\n"),
        ("K.txt", "500 0 320 0\n0 510 240 0\n0 0 1 0\n0 0 0 1"),
        ("K.txt", "500, 510, 320, 240"),
        ("a.json", '{"fx": 500, "fy": 510, "cx": 320, "cy": 240}'),
        ("a.json", '{"camera": {"w": 640, "h": 480, "fx": 500, "fy": 510, "cx": 320, "cy": 240, "scale": 5000}}'),
        ("a.json", '{"width": 640, "height": 480, "intrinsic_matrix": [500, 0, 0, 0, 510, 0, 320, 240, 1]}'),
        ("a.json", '{"K": [[500, 0, 320], [0, 510, 240], [0, 0, 1]]}'),
        ("a.json", '{"camera_matrix": {"rows": 3, "cols": 3, "data": [500, 0, 320, 0, 510, 240, 0, 0, 1]}}'),
        ("a.json", "[[500, 0, 320], [0, 510, 240], [0, 0, 1]]"),
    ],
)
def test_intrinsics_are_read_from_the_usual_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = parse_intrinsics(name, search_dir=tmp_path)
    assert (found.fx, found.fy, found.cx, found.cy) == (500, 510, 320, 240)
    assert found.size == ((640, 480) if "480" in text else None)
    assert found.depth_scale == (5000 if "scale" in text else None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 2 3",
        "hello",
        "{",
        "{}",
        '{"K": 5}',
        '{"K": [[500, 3, 320], [0, 510, 240], [0, 0, 1]]}',
        "1 0 0\n0 1 0\n9 9 9",
    ],
)
def test_files_without_a_pinhole_camera_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "K.txt").write_text(text)
    with pytest.raises((FormatError, InputError), match=r"K\.txt"):
        parse_intrinsics(tmp_path / "K.txt")


def test_a_scale_that_contradicts_the_file_is_pointed_out(run: Callable[..., ImportReport]) -> None:
    camera = PixelIntrinsics(20, 21, 7.5, 5.5, depth_scale=6553.5)
    assert any("6553.5" in note for note in run(intrinsics=camera).notes)
