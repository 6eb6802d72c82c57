"""COLMAP models whose cameras have distortion: depth maps are of the undistorted pictures, points of any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from plane_frames import NORMAL, OFFSET, check_camera, check_is_plane, plane_z

from moge_core.datasets.importers.colmap import import_colmap
from moge_core.datasets.importers.colmap_model import ModelCamera
from moge_core.datasets.importers.colmap_undistortion import colmap_pinhole
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.undistortion import pixels_of_rays, rays_of_pixels
from moge_core.errors import DatasetError
from moge_core.io import read_depth, read_image, write_image

Array = npt.NDArray[Any]

W, H = 160, 120
CAMERAS = {
    "SIMPLE_RADIAL": (130.0, 81.5, 58.0, -0.12),
    "RADIAL": (130.0, 81.5, 58.0, -0.2, 0.05),
    "OPENCV": (130.0, 135.0, 81.5, 58.0, -0.25, 0.08, 0.001, -0.0005),
    "FULL_OPENCV": (130.0, 135.0, 81.5, 58.0, 0.1, 0.02, 0.001, -0.0005, 0.01, 0.2, 0.01, 0.0),
    "OPENCV_FISHEYE": (120.0, 125.0, 81.5, 58.0, 0.05, 0.01, -0.02, 0.003),
    "SIMPLE_RADIAL_FISHEYE": (120.0, 81.5, 58.0, 0.04),
}


def camera_of(model: str) -> PixelIntrinsics:
    return ModelCamera(model, W, H, CAMERAS[model]).in_pixels("test")


def write_model(folder: Path, camera: str, points: dict[int, tuple[float, float, float]] | None = None) -> None:
    """A model of one image at the origin that sees all points."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(f"1 {camera}\n")
    seen = " ".join(f"0 0 {number}" for number in points or {})
    (folder / "images.txt").write_text(f"1 1 0 0 0 0 0 0 1 a.png\n{seen}\n")
    lines = [f"{number} {x} {y} {z} 1 2 3 0.5 1 0\n" for number, (x, y, z) in (points or {}).items()]
    (folder / "points3D.txt").write_text("".join(lines))


def write_distorted(folder: Path, model: str) -> None:
    """The model, and a picture whose colours are the directions in which its camera sees them."""
    write_model(folder / "sparse", f"{model} {W} {H} {' '.join(map(str, CAMERAS[model]))}")
    pixels = np.stack(np.meshgrid(np.arange(W), np.arange(H)), -1).reshape(-1, 2).astype(np.float64)
    write_directions(folder / "images/a.png", rays_of_pixels(camera_of(model), pixels), W, H)


def write_directions(path: Path, rays: Array, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.stack([128 + 100 * rays[:, 0], 128 + 100 * rays[:, 1], np.full(len(rays), 50)], axis=1)
    write_image(path, np.clip(colours.round(), 0, 255).reshape(height, width, 3).astype(np.uint8))


def write_depth_map(folder: Path, values: Array) -> None:
    path = folder / "stereo/depth_maps/a.png.geometric.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"%d&%d&1&" % values.shape[::-1] + values.astype("<f4").tobytes())


def numbers(camera: PixelIntrinsics) -> tuple[float, float, float, float]:
    return camera.fx, camera.fy, camera.cx, camera.cy


def size_of(camera: PixelIntrinsics) -> tuple[int, int]:
    assert camera.size is not None
    return camera.size


def check_shows_directions(folder: Path, camera: PixelIntrinsics) -> None:
    """The picture shows each direction in the pixel into which the pinhole projects it, but for its compression."""
    image = read_image(folder / "image.jpg").astype(np.float64)
    height, width = image.shape[:2]
    shown = (image[..., :2] - 128) / 100
    x = (np.arange(width) - camera.cx) / camera.fx
    y = (np.arange(height) - camera.cy) / camera.fy
    assert abs(np.median(shown[..., 0] - x[None, :])) * camera.fx < 0.2
    assert abs(np.median(shown[..., 1] - y[:, None])) * camera.fy < 0.2
    assert np.abs(shown[..., 0] - x[None, :]).max() * camera.fx < 6


@pytest.mark.parametrize("model", CAMERAS)
def test_colmaps_undistorted_picture_has_no_blank_pixel_and_is_as_large_as_that_allows(model: str) -> None:
    camera = camera_of(model)
    pinhole = colmap_pinhole(camera)
    assert (pinhole.fx, pinhole.fy) == (camera.fx, camera.fy)
    width, height = size_of(pinhole)
    across, down = np.arange(width), np.arange(height)
    left, top = ((-pinhole.cx / pinhole.fx), (-pinhole.cy / pinhole.fy))
    right, bottom = (width - 1 - pinhole.cx) / pinhole.fx, (height - 1 - pinhole.cy) / pinhole.fy
    x, y = (across - pinhole.cx) / pinhole.fx, (down - pinhole.cy) / pinhole.fy
    margins = []
    for side, rays in enumerate(
        (
            np.stack([np.full(height, left), y], 1),
            np.stack([x, np.full(width, top)], 1),
            np.stack([np.full(height, right), y], 1),
            np.stack([x, np.full(width, bottom)], 1),
        )
    ):
        seen = pixels_of_rays(camera, rays)
        margins.append(seen[:, side % 2].min() if side < 2 else ((W, H)[side % 2] - 1 - seen[:, side % 2]).min())
    assert min(margins) > -1.5
    assert min(margins) < 1.5


@pytest.mark.parametrize("model", CAMERAS)
def test_depth_maps_are_of_the_undistorted_picture(tmp_path: Path, model: str) -> None:
    write_distorted(tmp_path / "work", model)
    pinhole = colmap_pinhole(camera_of(model))
    write_depth_map(tmp_path / "work", plane_z(*size_of(pinhole), numbers(pinhole)))
    report = import_colmap(tmp_path / "work", tmp_path / "out")
    assert "undistorted as COLMAP does" in " ".join(report.notes)
    depth = check_is_plane(report.out_dir / "a", unit=None)
    assert np.isfinite(depth).all()
    check_camera(report.out_dir / "a", numbers(pinhole), *size_of(pinhole))
    check_shows_directions(report.out_dir / "a", pinhole)


def test_pictures_that_are_undistorted_already_stay_as_they_are(tmp_path: Path) -> None:
    write_distorted(tmp_path / "work", "OPENCV")
    pinhole = colmap_pinhole(camera_of("OPENCV"))
    width, height = size_of(pinhole)
    x, y = (np.arange(width) - pinhole.cx) / pinhole.fx, (np.arange(height) - pinhole.cy) / pinhole.fy
    rays = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    write_directions(tmp_path / "work/images/a.png", rays, width, height)
    write_depth_map(tmp_path / "work", plane_z(width, height, numbers(pinhole)))
    report = import_colmap(tmp_path / "work", tmp_path / "out")
    assert "were taken as such" in " ".join(report.notes)
    check_is_plane(report.out_dir / "a", unit=None)
    check_shows_directions(report.out_dir / "a", pinhole)


def test_depth_maps_that_are_of_no_undistorted_picture_are_refused_unless_distortion_is_ignored(tmp_path: Path) -> None:
    write_distorted(tmp_path / "work", "OPENCV")
    camera = camera_of("OPENCV")
    write_depth_map(tmp_path / "work", plane_z(W, H, numbers(camera)))
    with pytest.raises(DatasetError, match=r"undistorted picture.*160x120.*--distortion ignore"):
        import_colmap(tmp_path / "work", tmp_path / "out")
    report = import_colmap(tmp_path / "work", tmp_path / "out", distortion="ignore")
    check_is_plane(report.out_dir / "a", unit=None)
    check_camera(report.out_dir / "a", numbers(camera), W, H)


def test_a_project_with_a_dense_workspace_in_it_is_read_from_there(tmp_path: Path) -> None:
    project = tmp_path / "project"
    write_distorted(project, "OPENCV")
    (project / "sparse").rename(project / "model")
    (project / "sparse").mkdir()
    (project / "model").rename(project / "sparse/0")
    dense = project / "dense/0"
    write_model(dense / "sparse", f"PINHOLE {W} {H} 140 141 80 60")
    (dense / "images").mkdir(parents=True)
    write_image(dense / "images/a.png", np.full((H, W, 3), 90, np.uint8))
    write_depth_map(dense, plane_z(W, H, (140, 141, 79.5, 59.5)))
    report = import_colmap(project, tmp_path / "out")
    assert "are in dense/0" in " ".join(report.notes)
    check_is_plane(report.out_dir / "a", unit=None)
    check_camera(report.out_dir / "a", (140, 141, 79.5, 59.5), W, H)


@pytest.mark.parametrize("model", ["SIMPLE_RADIAL", "OPENCV", "OPENCV_FISHEYE"])
def test_sparse_points_are_seen_by_the_pinhole(tmp_path: Path, model: str) -> None:
    write_distorted(tmp_path / "work", model)
    rays = np.array([[x, y] for x in (-0.3, 0.0, 0.31) for y in (-0.2, 0.05, 0.2)])
    z = OFFSET / (rays @ NORMAL[:2] + NORMAL[2])
    points = {number: (x * d, y * d, d) for number, ((x, y), d) in enumerate(zip(rays, z, strict=True), start=1)}
    write_model(tmp_path / "work/sparse", f"{model} {W} {H} {' '.join(map(str, CAMERAS[model]))}", points)
    report = import_colmap(tmp_path / "work", tmp_path / "out", sparse_points=True)
    depth = check_is_plane(report.out_dir / "a", unit=None, tolerance=0.02)
    assert np.isfinite(depth).sum() == len(points)
    assert sorted(read_depth(report.out_dir / "a/depth.png")[np.isfinite(depth)]) == pytest.approx(sorted(z), rel=1e-4)


def test_pictures_of_colmap_are_read_as_they_are_stored(tmp_path: Path) -> None:
    write_distorted(tmp_path / "work", "OPENCV")
    pinhole = colmap_pinhole(camera_of("OPENCV"))
    write_depth_map(tmp_path / "work", plane_z(*size_of(pinhole), numbers(pinhole)))
    plain = tmp_path / "work/images/a.png"
    with Image.open(plain) as picture:
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(plain, exif=exif)
    report = import_colmap(tmp_path / "work", tmp_path / "out")
    check_is_plane(report.out_dir / "a", unit=None)
    check_shows_directions(report.out_dir / "a", pinhole)
