"""Presets of rgbd-folder: each known layout imports with its preset alone, and its geometry is exact.

Depth of ScanNet and of phones is smaller than the image. The instance has the size of the depth unless told otherwise;
intrinsics are normalised by the size that they were given for, so they hold for both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import OpenEXR
import pytest
from plane_frames import check_camera, check_is_plane, picture, plane_z

from moge_core.datasets import import_rgbd_folder
from moge_core.errors import InputError
from moge_core.io import read_depth, read_image_size, write_image

Array = npt.NDArray[Any]
Camera = tuple[float, float, float, float]


def scaled(camera: Camera, factor: float, factor_y: float | None = None) -> Camera:
    """The camera of an image that is so many times as large: pixel centres are at halves."""
    fx, fy, cx, cy = camera
    factor_y = factor_y or factor
    return fx * factor, fy * factor_y, (cx + 0.5) * factor - 0.5, (cy + 0.5) * factor_y - 0.5


def write_millimetres(path: Path, z: Array) -> Array:
    """A 16-bit PNG; returns what it holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.round(1000 * z).astype(np.uint16)
    cv2.imwrite(str(path), stored)
    return stored


def write_jpeg(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, picture(width, height))


def check_values(folder: Path, stored: Array, scale: float = 1000) -> None:
    """Every stored value is in the instance, at its place."""
    expected = np.where(stored == 0, np.nan, stored / scale)
    np.testing.assert_allclose(read_depth(folder / "depth.png"), expected, rtol=1e-4)


SCANNET: Camera = (1169.6, 1167.1, 646.3, 489.9)


def write_scannet(source: Path) -> Array:
    """1296x968 colours, 640x480 depth: shapes that differ by 0.4 %."""
    write_jpeg(source / "color" / "0.jpg", 1296, 968)
    z = plane_z(640, 480, scaled(SCANNET, 640 / 1296, 480 / 968))
    z[:, 600:] = 0
    fx, fy, cx, cy = SCANNET
    matrix = f"{fx} 0.000000 {cx} 0.0\n0.0 {fy} {cy} 0.0\n0.0 0.0 1.0 0.0\n0.0 0.0 0.0 1.0\n"
    for folder, text in (
        ("intrinsic/intrinsic_color.txt", matrix),
        ("pose/0.txt", "1 0 0 9\n0 1 0 9\n0 0 1 9\n0 0 0 1"),
    ):
        (source / folder).parent.mkdir(parents=True, exist_ok=True)
        (source / folder).write_text(text)
    (source / "intrinsic" / "intrinsic_depth.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    return write_millimetres(source / "depth" / "0.png", z)


def test_scannet_has_the_size_of_its_depth_and_the_cameras_of_its_colours(tmp_path: Path) -> None:
    stored = write_scannet(tmp_path / "scene0000_00")
    report = import_rgbd_folder(tmp_path / "scene0000_00", tmp_path / "out", preset="scannet")
    assert report.instances == ["0"]
    folder = report.out_dir / "0"
    assert read_image_size(folder / "image.jpg") == (640, 480)
    check_values(folder, stored)
    check_is_plane(folder, tolerance=1e-3)
    check_camera(folder, SCANNET, 1296, 968)
    assert any("1296x968" in note and "640x480" in note for note in report.notes)


def test_depth_is_repeated_and_not_mixed_where_the_size_of_the_image_is_asked_for(tmp_path: Path) -> None:
    stored = write_scannet(tmp_path / "source")
    folder = (
        import_rgbd_folder(tmp_path / "source", tmp_path / "out", preset="scannet", resolution="image").out_dir / "0"
    )
    assert (folder / "image.jpg").read_bytes() == (tmp_path / "source/color/0.jpg").read_bytes()
    depth = read_depth(folder / "depth.png")
    assert depth.shape == (968, 1296)
    check_camera(folder, SCANNET, 1296, 968)
    rows = ((np.arange(968) + 0.5) * 480 / 968).astype(int)
    columns = ((np.arange(1296) + 0.5) * 640 / 1296).astype(int)
    expected = stored[rows][:, columns] / 1000
    np.testing.assert_allclose(depth, np.where(expected == 0, np.nan, expected), rtol=1e-4)


def test_7scenes_is_paired_by_frame_and_65535_is_unknown(tmp_path: Path) -> None:
    source = tmp_path / "chess"
    camera = (585.0, 585.0, 320.0, 240.0)
    stored = {}
    for number in (0, 7):
        stem = source / "seq-01" / f"frame-{number:06d}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_image(stem.with_name(stem.name + ".color.png"), picture(640, 480))
        z = plane_z(640, 480, camera)
        z[:9], z[9:20] = 65.535, 0
        stored[number] = write_millimetres(stem.with_name(stem.name + ".depth.png"), z)
        stem.with_name(stem.name + ".pose.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    report = import_rgbd_folder(source, tmp_path / "out", preset="7scenes")
    assert len(report.instances) == 2
    assert report.skipped == []
    for instance, values in zip(report.instances, stored.values(), strict=True):
        depth = check_is_plane(report.out_dir / instance, tolerance=1e-3)
        assert np.isnan(depth[:20]).all()
        check_values(report.out_dir / instance, np.where(values == 65535, 0, values))
        check_camera(report.out_dir / instance, camera, 640, 480)


def write_exr(path: Path, values: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"R": np.ascontiguousarray(values)}) as file:
        file.write(str(path))


def test_record3d_keeps_metres_of_small_depth_and_reads_columns_of_k(tmp_path: Path) -> None:
    source = tmp_path / "capture"
    camera: Camera = (1334.6, 1334.6, 717.2, 951.8)
    z = plane_z(192, 256, scaled(camera, 192 / 1440)).astype(np.float32)
    z[:5] = 0
    for number in range(2):
        write_jpeg(source / "rgb" / f"{number}.jpg", 1440, 1920)
        write_exr(source / "depth" / f"{number}.exr", z)
    fx, fy, cx, cy = camera
    meta = {"w": 1440, "h": 1920, "fps": 60, "K": [fx, 0, 0, 0, fy, 0, cx, cy, 1], "poses": [[0, 0, 0, 1, 9, 9, 9]] * 2}
    (source / "metadata.json").write_text(json.dumps(meta))
    report = import_rgbd_folder(source, tmp_path / "out", preset="record3d")
    assert report.instances == ["0", "1"]
    for instance in report.instances:
        folder = report.out_dir / instance
        assert read_image_size(folder / "image.jpg") == (192, 256)
        check_values(folder, z, scale=1)
        check_is_plane(folder)
        check_camera(folder, camera, 1440, 1920)


def write_frame_of_phone(
    source: Path, folders: Sequence[str], stem: str, camera: Camera, size: tuple[int, int]
) -> Array:
    """An image of this size and the plane in 64x48, in folders of images and of depth."""
    suffix = "png" if folders[0] == "lowres_wide" else "jpg"
    write_jpeg(source / folders[0] / f"{stem}.{suffix}", *size)
    return write_millimetres(source / folders[1] / f"{stem}.png", plane_z(64, 48, scaled(camera, 64 / size[0])))


def test_polycam_takes_each_frames_own_camera_and_tells_which_have_none(tmp_path: Path) -> None:
    source = tmp_path / "capture"
    folders = ("keyframes/images", "keyframes/depth")
    cameras: dict[str, Camera] = {}
    stored = {}
    (source / "keyframes" / "cameras").mkdir(parents=True)
    for i, stem in enumerate(("1671225871", "1671225872", "1671225873", "1671225874")):
        cameras[stem] = (190.0 + i, 191.0 + i, 126.5 + i, 94.25)
        stored[stem] = write_frame_of_phone(source, folders, stem, cameras[stem], (256, 192))
        fx, fy, cx, cy = cameras[stem]
        numbers = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "width": 256, "height": 192, "t_00": 1.0, "t_03": 9.0}
        (source / "keyframes/cameras" / f"{stem}.json").write_text(json.dumps(numbers))
    (source / "keyframes/cameras/1671225873.json").unlink()
    (source / "keyframes/cameras/1671225874.json").write_text("{}")
    report = import_rgbd_folder(source, tmp_path / "out", preset="polycam")
    assert report.instances == ["keyframes/1671225871", "keyframes/1671225872"]
    for instance in report.instances:
        stem = instance.removeprefix("keyframes/")
        check_is_plane(report.out_dir / instance, tolerance=1.5e-3)
        check_values(report.out_dir / instance, stored[stem])
        check_camera(report.out_dir / instance, cameras[stem], 256, 192)
    found = {Path(finding.instance).stem: finding for finding in report.skipped}
    assert set(found) == {"1671225873", "1671225874"}
    assert all(finding.severity == "error" for finding in report.skipped)
    assert "frame token" in found["1671225873"].evidence
    assert "fx, fy" in found["1671225874"].evidence


def test_arkitscenes_takes_the_pincam_of_each_frame(tmp_path: Path) -> None:
    source = tmp_path / "41048190"
    folders = ("lowres_wide", "lowres_depth")
    cameras: dict[str, Camera] = {}
    (source / "lowres_wide_intrinsics").mkdir(parents=True)
    (source / "lowres_wide.traj").write_text("3414.5 0 0 0 9 9 9\n")
    for i, stem in enumerate(("41048190_3414.524", "41048190_3414.624", "41048190_3414.724")):
        cameras[stem] = (211.9 + i, 212.0 + i, 127.9, 95.6 + i)
        # Images half as large as the file of intrinsics says: it is the file that counts.
        write_frame_of_phone(source, folders, stem, scaled(cameras[stem], 0.5), (128, 96))
        (source / "lowres_wide_intrinsics" / f"{stem}.pincam").write_text(
            " ".join(map(str, (256, 192, *cameras[stem]))) + "\n"
        )
    (source / "lowres_wide_intrinsics" / "41048190_3414.724.pincam").unlink()
    report = import_rgbd_folder(source, tmp_path / "out", preset="arkitscenes")
    assert len(report.instances) == 2
    for instance, stem in zip(report.instances, cameras, strict=False):
        check_is_plane(report.out_dir / instance, tolerance=1.5e-3)
        check_camera(report.out_dir / instance, cameras[stem], 256, 192)
    (finding,) = report.skipped
    assert "3414.724" in finding.instance
    assert "intrinsics" in finding.fix


def test_cameras_of_other_frames_are_refused_with_the_pattern(tmp_path: Path) -> None:
    write_frame_of_phone(
        tmp_path / "source", ("lowres_wide", "lowres_depth"), "7", (211.0, 212.0, 127.9, 95.6), (256, 192)
    )
    (tmp_path / "source" / "lowres_wide_intrinsics").mkdir()
    (tmp_path / "source" / "lowres_wide_intrinsics" / "8.pincam").write_text("256 192 211 212 127.9 95.6")
    with pytest.raises(InputError, match=r"pincam.*frame tokens"):
        import_rgbd_folder(tmp_path / "source", tmp_path / "out", preset="arkitscenes")
    (tmp_path / "source" / "lowres_wide_intrinsics" / "8.pincam").unlink()
    with pytest.raises(InputError, match="none like"):
        import_rgbd_folder(tmp_path / "source", tmp_path / "out", preset="arkitscenes")


def test_poses_change_neither_image_nor_depth(tmp_path: Path) -> None:
    write_scannet(tmp_path / "source")
    first = import_rgbd_folder(tmp_path / "source", tmp_path / "a", preset="scannet").out_dir
    (tmp_path / "source/pose/0.txt").write_text("-1 -1 -1 -1\n" * 4)
    second = import_rgbd_folder(tmp_path / "source", tmp_path / "b", preset="scannet").out_dir
    for name in ("image.jpg", "depth.png"):
        assert (first / "0" / name).read_bytes() == (second / "0" / name).read_bytes()


def test_a_second_run_of_a_preset_does_only_what_is_new_and_sees_a_new_camera(tmp_path: Path) -> None:
    write_scannet(tmp_path / "source")
    options = {"preset": "scannet"}
    assert import_rgbd_folder(tmp_path / "source", tmp_path / "out", **options).num_written == 1
    assert import_rgbd_folder(tmp_path / "source", tmp_path / "out", **options).num_written == 0
    path = tmp_path / "source/intrinsic/intrinsic_color.txt"
    path.write_text(path.read_text().replace("1169.6", "1170.6"))
    assert import_rgbd_folder(tmp_path / "source", tmp_path / "out", **options).num_written == 1


def test_what_is_said_goes_before_the_preset(tmp_path: Path) -> None:
    write_scannet(tmp_path / "source")
    report = import_rgbd_folder(
        tmp_path / "source", tmp_path / "out", preset="scannet", intrinsics="500,500,319.5,239.5", depth_scale=2000,
        intrinsics_size=(640, 480),
    )  # fmt: skip
    check_camera(report.out_dir / "0", (500, 500, 319.5, 239.5), 640, 480)
    assert report.median_depth_m == pytest.approx(np.median(plane_z(640, 480, scaled(SCANNET, 0.495))) / 2, rel=0.1)
