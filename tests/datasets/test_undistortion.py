"""Pictures of cameras with distortion become those of a pinhole, with the depth that this pinhole sees."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.datasets.importers.arrays import read_array
from moge_core.datasets.importers.distortion import FISHEYE, RADIAL_TANGENTIAL, Distortion
from moge_core.datasets.importers.frames import read_frame
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportSettings, Record, Stored, StoredDepth, StoredPoints
from moge_core.datasets.importers.rgbd_folder import import_rgbd_folder
from moge_core.datasets.importers.undistortion import pinhole_of, pixels_of_rays, rays_of_pixels
from moge_core.errors import DatasetError, InputError, InstanceError
from moge_core.io import read_depth, read_image, read_meta, write_image

Array = npt.NDArray[Any]

W, H = 160, 120
BENDS = {
    "barrel": Distortion(RADIAL_TANGENTIAL, (-0.31, 0.11, 0.0003, -0.0002, -0.018)),
    "pincushion": Distortion(RADIAL_TANGENTIAL, (0.2, 0.05)),
    "rational": Distortion(RADIAL_TANGENTIAL, (0.4, -0.1, 0.001, -0.0005, 0.02, 0.6, -0.05, 0.03)),
    "thin prism": Distortion(RADIAL_TANGENTIAL, (-0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.01, 0.0, -0.01)),
    "fisheye": Distortion(FISHEYE, (0.05, 0.01, -0.02, 0.003)),
    "equidistant": Distortion(FISHEYE),
}
CAMERAS = {
    "centred": PixelIntrinsics(128, 128, 79.5, 59.5, (W, H)),
    "off centre, oblong pixels": PixelIntrinsics(115, 130, 65.25, 70.5, (W, H)),
    "wide": PixelIntrinsics(65, 65, 79.5, 59.5, (W, H)),
}


def grid(camera: PixelIntrinsics) -> Array:
    """Every pixel (N, 2) of a camera."""
    width, height = camera.size or (0, 0)
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2).astype(np.float64)


@lru_cache(maxsize=32)
def seen_rays(camera: PixelIntrinsics) -> Array:
    """The direction (N, 2) of every pixel of a camera."""
    return rays_of_pixels(camera, grid(camera))


def z_of(rays: Array) -> tuple[Array, Array]:
    """z and surface of directions: a floor, a back wall, and a board before it with straight edges."""
    x, y = rays.T
    with np.errstate(divide="ignore"):
        floor = np.where(y > 0, 1.2 / y, np.inf)
    wall = 4 / (1 + 0.3 * x - 0.1 * y)
    z = np.minimum(floor, np.where(wall > 0, wall, np.inf))
    board = (np.abs(x * 2 + 0.3) < 0.25) & (np.abs(y * 2) < 0.3)
    surface = np.where(board, 2, z == floor)
    return np.where(board, 2.0, np.minimum(z, 60.0)), surface


def frame_of(camera: PixelIntrinsics, tmp_path: Path, kind: str = "z") -> Record:
    """A frame that the camera with its distortion saw; the picture has the direction's x and y as colours."""
    rays = seen_rays(camera)
    width, height = camera.size or (0, 0)
    z, surface = z_of(np.nan_to_num(rays))
    z[np.isnan(rays[:, 0])] = np.nan
    if kind == "ray":
        z = z * np.sqrt(1 + (rays**2).sum(axis=1))
    np.save(tmp_path / "depth.npy", z.reshape(height, width).astype(np.float32))
    np.save(tmp_path / "ids.npy", surface.reshape(height, width).astype(np.uint8))
    colours = np.stack([40 * rays[:, 0] + 128, 40 * rays[:, 1] + 128, np.full(len(rays), 99)], axis=1)
    image = np.clip(np.nan_to_num(colours), 0, 255).round().astype(np.uint8).reshape(height, width, 3)
    return Record(
        "a",
        Stored(tmp_path / "image.png", lambda path: image),
        StoredDepth(tmp_path / "depth.npy", kind=kind),  # type: ignore[arg-type]
        camera,
        segmentation=Stored(tmp_path / "ids.npy", read_array),
    )


def pinhole_rays(intrinsics: Array, width: int, height: int) -> Array:
    """Directions (N, 2) of the pixels of a normalised pinhole."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    K = np.asarray(intrinsics)
    return np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]], axis=-1).reshape(-1, 2)


@pytest.mark.parametrize(
    ("bend", "place", "kind"),
    [
        *((bend, "off centre, oblong pixels", "z") for bend in BENDS),
        *((bend, "wide", kind) for bend in ("barrel", "fisheye", "rational") for kind in ("z", "ray")),
    ],
)
def test_depth_and_picture_are_those_of_the_pinhole_that_is_written(
    tmp_path: Path, bend: str, place: str, kind: str
) -> None:
    record = frame_of(replace(CAMERAS[place], distortion=BENDS[bend]), tmp_path, kind)
    frame = read_frame(record, ImportSettings())
    rays = pinhole_rays(frame.intrinsics, W, H)
    true, surface = z_of(rays)
    error = np.abs(frame.depth.ravel() - true) / true
    # Where a model flattens at the border, the nearest pixel may have no direction.
    assert np.isfinite(frame.depth).mean() > (0.99 if place == "wide" else 0.99999)
    assert np.nanmedian(error) < 3e-4
    # Nothing stands between two surfaces: each pixel is of one of those within its own and the neighbouring pixels.
    same = frame.segmentation.ravel() == surface  # type: ignore[union-attr]
    assert same.mean() > 0.95
    assert np.nanquantile(error[same & (true < 60)], 0.99) < 0.03
    on_board = frame.segmentation.ravel() == 2  # type: ignore[union-attr]
    np.testing.assert_allclose(frame.depth.ravel()[on_board], 2.0, rtol=1e-6 if kind == "z" else 5e-3)
    # 40 grey levels a unit of direction: one level is 3.2 pixels at f = 128, so the mean over the picture is compared.
    for channel, direction in enumerate(rays.T):
        shown = (frame.image[..., channel].ravel() - 128.0) / 40
        inside = np.abs(direction) < 2.5
        assert abs(np.mean((shown - direction)[inside])) * 128 < 0.2


@pytest.mark.parametrize("bend", ["barrel", "fisheye"])
def test_points_are_seen_where_the_pinhole_projects_them(tmp_path: Path, bend: str) -> None:
    camera = replace(CAMERAS["off centre, oblong pixels"], distortion=BENDS[bend])
    points = np.array([[x, y] for x in (-0.35, 0, 0.3) for y in (-0.3, 0, 0.2)])
    image = np.zeros((H, W))
    for u, v in pixels_of_rays(camera, points):
        columns, rows = np.meshgrid(np.arange(W), np.arange(H))
        image += 200 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 5)
    write_image(tmp_path / "rgb.png", np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, 2))
    np.save(tmp_path / "depth.npy", np.full((H, W), 3.0, np.float32))
    record = Record("a", Stored(tmp_path / "rgb.png"), StoredDepth(tmp_path / "depth.npy"), camera)
    frame = read_frame(record, ImportSettings())
    K = np.diag([W, H, 1]) @ frame.intrinsics
    for x, y in points:
        u, v = K[0, 0] * x + K[0, 2] - 0.5, K[1, 1] * y + K[1, 2] - 0.5
        left, top = round(u) - 5, round(v) - 5
        window = frame.image[top : top + 11, left : left + 11, 0].astype(np.float64)
        rows, columns = np.mgrid[top : top + 11, left : left + 11]
        found = (columns * window).sum() / window.sum(), (rows * window).sum() / window.sum()
        assert np.hypot(found[0] - u, found[1] - v) < 0.1


@given(
    focal=st.floats(0.4, 3.0),
    centre=st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8)),
    k=st.lists(st.floats(-0.3, 0.3), min_size=2, max_size=2),
    p=st.lists(st.floats(-0.01, 0.01), min_size=2, max_size=2),
    size=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    fisheye=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_every_pixel_of_the_pinhole_was_seen_by_the_camera(
    focal: float,
    centre: tuple[float, float],
    k: list[float],
    p: list[float],
    size: tuple[int, int],
    fisheye: bool,
) -> None:
    width, height = size
    distortion = Distortion(FISHEYE, tuple(k)) if fisheye else Distortion(RADIAL_TANGENTIAL, (*k, *p))
    f = focal * max(size)
    camera = PixelIntrinsics(f, f * 1.1, centre[0] * width - 0.5, centre[1] * height - 0.5, size, distortion=distortion)
    pinhole, share = pinhole_of(camera)
    assert pinhole.size == size
    assert (pinhole.cx, pinhole.cy) == (camera.cx, camera.cy)
    assert 0 < share <= 1
    across, down = (np.linspace(-0.5, side - 0.5, 23) for side in size)
    corners = np.stack(np.meshgrid(across, down), -1).reshape(-1, 2)
    rays = (corners - (pinhole.cx, pinhole.cy)) / (pinhole.fx, pinhole.fy)
    points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)[:, None]
    project = cv2.fisheye.projectPoints if fisheye else cv2.projectPoints
    numbers = np.zeros(4)
    numbers[: len(distortion.coefficients)] = distortion.coefficients
    seen = project(points, np.zeros(3), np.zeros(3), camera.matrix(), numbers)[0].reshape(-1, 2)
    assert (seen > -0.51).all()
    assert (seen < (width - 0.49, height - 0.49)).all()
    assert np.abs(rays).max() <= np.tan(np.radians(60)) + 1e-6
    # The way back finds the same directions: each pixel is seen once.
    np.testing.assert_allclose(rays_of_pixels(camera, seen), rays, atol=1e-4)


def test_a_model_that_turns_back_within_the_picture_shows_nothing_twice() -> None:
    camera = PixelIntrinsics(250, 250, 319.5, 239.5, (640, 480), distortion=Distortion(RADIAL_TANGENTIAL, (-0.5,)))
    pinhole, _ = pinhole_of(camera)
    # r (1 - r^2 / 2) rises up to r^2 = 2 / 3, and by less than a tenth from r^2 = 0.6 on.
    assert np.hypot(320 / pinhole.fx, 240 / pinhole.fy) == pytest.approx(np.sqrt(0.6), abs=2e-3)


def test_a_distortion_that_fits_no_picture_is_refused() -> None:
    camera = PixelIntrinsics(1, 1, 319.5, 239.5, (640, 480), distortion=Distortion(RADIAL_TANGENTIAL, (-9.0,)))
    with pytest.raises(InstanceError, match="folds the middle"):
        pinhole_of(camera)


def test_depth_of_another_size_is_undistorted_in_its_own(tmp_path: Path) -> None:
    camera = replace(CAMERAS["centred"], distortion=BENDS["barrel"])
    record = frame_of(camera, tmp_path)
    write_image(tmp_path / "large.png", np.full((2 * H, 2 * W, 3), 77, np.uint8))
    large = replace(record, image=Stored(tmp_path / "large.png"), segmentation=None)
    frame = read_frame(large, ImportSettings())
    assert frame.depth.shape == (H, W)
    true, _ = z_of(pinhole_rays(frame.intrinsics, W, H))
    assert np.median(np.abs(frame.depth.ravel() - true) / true) < 3e-4


@pytest.mark.parametrize("kind", ["z", "ray"])
def test_sparse_depth_keeps_its_returns_where_they_fall(tmp_path: Path, kind: str) -> None:
    camera = replace(CAMERAS["off centre, oblong pixels"], distortion=BENDS["barrel"])
    record = frame_of(camera, tmp_path, kind)
    depth = np.load(tmp_path / "depth.npy")
    sparse = np.zeros_like(depth)
    sparse[::7, ::5] = depth[::7, ::5]
    np.save(tmp_path / "depth.npy", sparse)
    frame = read_frame(record, ImportSettings())
    pinhole, share = pinhole_of(camera)
    rays = seen_rays(camera).reshape(H, W, 2)[::7, ::5].reshape(-1, 2)
    places = rays * (pinhole.fx, pinhole.fy) + (pinhole.cx, pinhole.cy)
    inside = ((places > -0.5) & (places < (W - 0.5, H - 0.5))).all(axis=1)
    columns, rows = np.floor(places[inside] + 0.5).astype(int).T
    np.testing.assert_allclose(frame.depth[rows, columns], z_of(rays[inside])[0], rtol=1e-5)
    assert np.isfinite(frame.depth).sum() == inside.sum()
    assert inside.mean() == pytest.approx(share, abs=0.05)


def test_points_of_a_sweep_are_projected_through_the_pinhole(tmp_path: Path) -> None:
    camera = replace(CAMERAS["centred"], distortion=BENDS["fisheye"])
    cloud = np.array([[0.5, 0.4, 2.0], [-1.0, 0.2, 4.0]])
    write_image(tmp_path / "rgb.png", np.zeros((H, W, 3), np.uint8))
    points = StoredPoints(tmp_path / "rgb.png", lambda path: cloud, drop_hidden=False)
    frame = read_frame(Record("a", Stored(tmp_path / "rgb.png"), points, camera), ImportSettings())
    assert np.isfinite(frame.depth).sum() == len(cloud)
    for x, y, z in cloud:
        u = (frame.intrinsics[0, 0] * x / z + frame.intrinsics[0, 2]) * W
        v = (frame.intrinsics[1, 1] * y / z + frame.intrinsics[1, 2]) * H
        assert frame.depth[int(v), int(u)] == pytest.approx(z)


def test_normals_and_masks_are_picked_with_their_pixels(tmp_path: Path) -> None:
    camera = replace(CAMERAS["centred"], distortion=BENDS["fisheye"])
    record = frame_of(camera, tmp_path)
    ids = np.load(tmp_path / "ids.npy")
    normals = np.array([[0, 0, -1], [0, -1, 0], [0.6, 0, -0.8]], np.float32)[ids]
    np.save(tmp_path / "normal.npy", normals)
    np.save(tmp_path / "mask.npy", (ids != 1).astype(np.uint8))
    more = {name: Stored(tmp_path / f"{name}.npy", read_array) for name in ("normal", "mask")}
    frame = read_frame(replace(record, **more), ImportSettings())
    assert frame.segmentation is not None
    assert frame.normal is not None
    np.testing.assert_array_equal(
        frame.normal, np.array([[0, 0, -1], [0, -1, 0], [0.6, 0, -0.8]], np.float32)[frame.segmentation]
    )
    np.testing.assert_array_equal(np.isnan(frame.depth), frame.segmentation == 1)


def test_infinite_depth_stays_infinite_and_unknown_unknown(tmp_path: Path) -> None:
    camera = replace(CAMERAS["centred"], distortion=BENDS["pincushion"])
    record = frame_of(camera, tmp_path)
    depth = np.full((H, W), 3.0, np.float32)
    depth[:40], depth[100:] = np.inf, np.nan
    np.save(tmp_path / "depth.npy", depth)
    frame = read_frame(record, ImportSettings())
    middle = frame.depth[:, W // 2]
    assert np.isinf(middle[0])
    assert np.isnan(middle[-1])
    assert set(frame.depth[np.isfinite(frame.depth)]) == {3.0}


def test_one_pixel_can_be_undistorted(tmp_path: Path) -> None:
    camera = PixelIntrinsics(5, 5, 0, 0, (1, 1), distortion=BENDS["barrel"])
    frame = read_frame(frame_of(camera, tmp_path), ImportSettings())
    assert frame.depth.shape == (1, 1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of two frames, their depth in millimetres."""
    folder = tmp_path / "seq"
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    for index in range(2):
        write_image(folder / f"rgb/{index}.png", np.full((48, 64, 3), 90 + index, np.uint8))
        cv2.imwrite(str(folder / f"depth/{index}.png"), np.full((48, 64), 2000, np.uint16))
    return folder


def with_camera(source: Path, **more: Any) -> Path:
    camera: Mapping[str, Any] = {"fx": 60, "fy": 60, "cx": 31.5, "cy": 23.5, **more}
    (source / "camera.json").write_text(json.dumps(camera))
    return source / "camera.json"


def test_distortion_of_a_file_is_obeyed_and_told(source: Path, tmp_path: Path) -> None:
    camera = with_camera(source, distortion_model="plumb_bob", D=[-0.3, 0.1, 0, 0, 0])
    report = import_rgbd_folder(source, tmp_path / "out", intrinsics=camera, depth_scale=1000)
    told = "\n".join(report.notes)
    assert "undistorted onto a pinhole; the model is radial-tangential" in told
    assert "% of their pixels in 2 of 2 frames" in told
    assert "horizontal field of view of 5" in told
    assert read_depth(report.out_dir / "0/depth.png").shape == (48, 64)
    assert read_meta(report.out_dir / "0/meta.json")["intrinsics"][0][0] != pytest.approx(60 / 64, rel=0.01)


def test_distortion_that_is_zero_is_no_distortion(source: Path, tmp_path: Path) -> None:
    plain = with_camera(source)
    import_rgbd_folder(source, tmp_path / "out", intrinsics=plain, depth_scale=1000)
    camera = with_camera(source, distortion_model="plumb_bob", D=[0, 0, 0, 0, 0])
    again = import_rgbd_folder(source, tmp_path / "out", intrinsics=camera, depth_scale=1000)
    assert again.num_written == 0


def test_pictures_that_are_undistorted_already_are_left_as_they_are(source: Path, tmp_path: Path) -> None:
    camera = with_camera(source, model="inverse_brown_conrady", coeffs=[-0.055, 0.066, 0, 0, -0.02])
    with pytest.raises(InputError, match=r"inverse_brown_conrady.*--distortion ignore"):
        import_rgbd_folder(source, tmp_path / "out", intrinsics=camera, depth_scale=1000)
    report = import_rgbd_folder(source, tmp_path / "out", intrinsics=camera, depth_scale=1000, distortion="ignore")
    assert "was ignored (--distortion ignore)" in "\n".join(report.notes)
    assert read_meta(report.out_dir / "0/meta.json")["intrinsics"][0][0] == pytest.approx(60 / 64)


def test_pictures_that_no_pinhole_can_show_are_refused_whatever_is_said(source: Path, tmp_path: Path) -> None:
    camera = with_camera(source, camera_model="EQUIRECTANGULAR")
    for how in ("undistort", "ignore"):
        with pytest.raises(InputError, match="EQUIRECTANGULAR"):
            import_rgbd_folder(
                source,
                tmp_path / "out",
                intrinsics=camera,
                depth_scale=1000,
                distortion=how,  # type: ignore[arg-type]
            )


def test_disparity_of_a_camera_with_distortion_is_refused(source: Path, tmp_path: Path) -> None:
    camera = with_camera(source, k1=-0.2, p1=0)
    with pytest.raises(DatasetError, match=r"rectified.*--distortion ignore"):
        import_rgbd_folder(source, tmp_path / "out", intrinsics=camera, depth_scale=16, kind="disparity", baseline=0.1)


def test_a_jpeg_that_was_undistorted_is_not_copied(source: Path, tmp_path: Path) -> None:
    for index in range(2):
        image = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (48, 1, 3))
        (source / f"rgb/{index}.png").unlink()
        write_image(source / f"rgb/{index}.jpg", image)
    camera = with_camera(source, k1=-0.4, p1=0)
    report = import_rgbd_folder(source, tmp_path / "out", intrinsics=camera, depth_scale=1000)
    written = read_image(report.out_dir / "0/image.jpg")
    assert np.abs(written.astype(int) - image.astype(int)).max() > 10


def test_depth_is_infinite_from_where_it_is_said_in_metres(tmp_path: Path) -> None:
    camera = replace(CAMERAS["centred"], distortion=BENDS["barrel"])
    record = frame_of(camera, tmp_path)
    assert isinstance(record.depth, StoredDepth)
    far = replace(record, depth=replace(record.depth, infinite_from=1.5, scale=1.0), depth_unit=0.5)
    depth = read_frame(far, ImportSettings()).depth
    assert np.isinf(depth).any()
    assert 2.5 < depth[np.isfinite(depth)].max() < 3.0
