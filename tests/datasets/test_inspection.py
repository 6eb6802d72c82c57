"""Point clouds and depth pictures that a person can trust."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moge_core.datasets import index_dataset, inspect_dataset
from moge_core.datasets.inspection import require_display
from moge_core.errors import DatasetError, InputError, MissingDependencyError
from moge_core.geometry import depth_map_to_point_map
from moge_core.io import read_depth, read_image, read_meta, read_ply

Write = Callable[..., Path]


def test_vertices_are_x_minus_y_minus_z_with_the_colours_of_their_pixels(write_instance: Write) -> None:
    depth = np.random.default_rng(0).uniform(1, 5, (12, 16)).astype(np.float32)
    depth[0], depth[1] = np.nan, np.inf
    folder = write_instance("x", depth=depth, intrinsics=[[0.8, 0, 0.4], [0, 1, 0.7], [0, 0, 1]])
    (inspection,) = inspect_dataset(folder)
    assert inspection.problem is None
    cloud = read_ply(folder / "pointcloud.ply")
    stored = read_depth(folder / "depth.png")
    mask = np.isfinite(stored)
    points = depth_map_to_point_map(stored, read_meta(folder / "meta.json")["intrinsics"])[mask]
    np.testing.assert_array_equal(cloud.points, points * [1, -1, -1])
    np.testing.assert_array_equal(cloud.colors, read_image(folder / "image.jpg")[mask])
    assert (cloud.points[:, 2] < 0).all()
    assert cloud.normals is None
    assert inspection.num_points == len(cloud.points) == 10 * 16
    assert any("(X, -Y, -Z)" in comment for comment in cloud.comments)
    header = (folder / "pointcloud.ply").read_bytes().split(b"end_header")[0]
    assert b"alpha" not in header
    assert header.count(b"property") == 6


@pytest.mark.parametrize(
    ("meta", "depth_unit", "unit", "scale"),
    [({}, None, "unknown", 1), ({"depth_unit": 1.0}, None, "metres", 1), ({"depth_unit": 1.0}, 2.5, "metres", 2.5)],
)
def test_the_header_says_metres_only_when_the_depth_is_metric(
    write_instance: Write, meta: dict[str, float], depth_unit: float | None, unit: str, scale: float
) -> None:
    folder = write_instance("x", meta=meta, depth=np.full((12, 16), 2, np.float32))
    inspect_dataset(folder, depth_unit=depth_unit)
    cloud = read_ply(folder / "pointcloud.ply")
    assert next(comment for comment in cloud.comments if comment.startswith("unit:")).startswith(f"unit: {unit}")
    np.testing.assert_allclose(-cloud.points[:, 2], 2 * scale, rtol=1e-4)


def test_normals_look_towards_the_camera(write_instance: Write) -> None:
    folder = write_instance("x", depth=np.full((12, 16), 2, np.float32))
    inspect_dataset(folder, normals=True)
    cloud = read_ply(folder / "pointcloud.ply")
    assert cloud.normals is not None
    np.testing.assert_allclose(cloud.normals, np.tile([0, 0, 1], (len(cloud.points), 1)), atol=1e-4)


def test_equal_names_in_different_scenes_never_collide(data: Path, write_instance: Write, tmp_path: Path) -> None:
    for scene in "ab":
        write_instance(f"{scene}/0", depth=np.full((12, 16), 1 + ord(scene), np.float32))
    index_dataset(data)
    inspect_dataset(data, output_dir=tmp_path / "all")
    for scene in "ab":
        inspect_dataset(data / scene / "0", output_dir=tmp_path / "single")
    for out in ("all", "single"):
        for scene in "ab":
            cloud = read_ply(tmp_path / out / scene / "0" / "pointcloud.ply")
            np.testing.assert_allclose(-cloud.points[:, 2], 1 + ord(scene), rtol=1e-4)
            assert read_image(tmp_path / out / scene / "0" / "depth_vis.png").shape == (12, 16, 3)
    assert not (data / "a" / "0" / "pointcloud.ply").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("normals", [False, True])
def test_depth_without_a_known_pixel_is_said_and_does_not_crash(
    write_instance: Write, value: float, normals: bool
) -> None:
    folder = write_instance("x", depth=np.full((12, 16), value, np.float32))
    (folder / "pointcloud.ply").write_bytes(b"of an earlier depth map")
    (inspection,) = inspect_dataset(folder, normals=normals, max_depth=5, show_infinity=True)
    assert inspection.problem is not None
    assert "no pixel has a finite depth" in inspection.problem
    assert inspection.ply_path is None
    assert not (folder / "pointcloud.ply").exists()
    assert (folder / "depth_vis.png").exists()


def test_one_pixel_gives_one_point(write_instance: Write) -> None:
    folder = write_instance("x", image=np.zeros((1, 1, 3), np.uint8), depth=np.full((1, 1), 3, np.float32))
    assert inspect_dataset(folder)[0].num_points == 1


def test_a_broken_instance_does_not_keep_the_others_from_being_seen(data: Path, write_instance: Write) -> None:
    write_instance("a")
    (write_instance("b") / "image.jpg").write_bytes(b"no")
    write_instance("c", depth=np.ones((3, 3), np.float32))
    a, b, c = inspect_dataset(data)
    assert a.problem is None
    assert "image.jpg" in str(b.problem)
    assert "same size" in str(c.problem)


def test_max_depth_keeps_what_is_nearer_than_that_many_times_the_nearest(write_instance: Write) -> None:
    depth = np.full((12, 16), 10, np.float32)
    depth[:6] = 1
    assert inspect_dataset(write_instance("x", depth=depth), max_depth=5)[0].num_points == 6 * 16


def test_infinity_is_shown_when_asked(write_instance: Write) -> None:
    depth = np.full((12, 16), 2, np.float32)
    depth[0], depth[1] = np.inf, np.nan
    folder = write_instance("x", depth=depth)
    inspect_dataset(folder)
    plain = read_image(folder / "depth_vis.png")
    inspect_dataset(folder, show_infinity=True)
    shown = read_image(folder / "depth_vis.png")
    np.testing.assert_array_equal(plain[0], plain[1])
    assert not np.array_equal(shown[0], shown[1])
    np.testing.assert_array_equal(plain[1:], shown[1:])


def test_a_given_field_of_view_replaces_the_intrinsics(write_instance: Write) -> None:
    folder = write_instance("x", depth=np.ones((12, 16), np.float32), intrinsics=[[9, 0, 0.1], [0, 9, 0.1], [0, 0, 1]])
    (inspection,) = inspect_dataset(folder, fov_x_deg=90)
    assert inspection.fov_x_deg == pytest.approx(90)
    assert read_ply(folder / "pointcloud.ply").points[:, 0].max() == pytest.approx(1 - 1 / 16, rel=1e-4)


@pytest.mark.parametrize("options", [{"fov_x_deg": 180}, {"fov_x_deg": 0}, {"max_depth": 1}, {"depth_unit": -1}])
def test_options_outside_their_domain_are_refused(write_instance: Write, options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        inspect_dataset(write_instance("x"), **options)  # type: ignore[arg-type]


def test_a_folder_without_instances_is_refused(data: Path) -> None:
    with pytest.raises(DatasetError, match="none"):
        inspect_dataset(data)
    with pytest.raises(DatasetError, match="no such folder"):
        inspect_dataset(data / "nowhere")


def test_a_window_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(MissingDependencyError, match=r"--ply"):
        require_display()
