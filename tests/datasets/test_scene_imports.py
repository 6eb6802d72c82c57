"""Importing rendered scenes, Hypersim and TartanAir: rays become z, radiance becomes an image, the sky is infinite."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from plane_frames import NORMAL, check_camera, check_is_plane, picture, plane_z, ray_distance

from moge_core.datasets import index_dataset
from moge_core.datasets.importers.frames import normalised_intrinsics
from moge_core.datasets.importers.hypersim import (
    CAMERA_TABLE,
    DEFAULT_CAMERA,
    SceneCamera,
    import_hypersim,
    read_camera_table,
    read_hypersim_depth,
    tone_map,
)
from moge_core.datasets.importers.tartanair import import_tartanair, read_packed_depth
from moge_core.errors import DatasetError, FormatError, ImageTooLargeError, InputError
from moge_core.geometry import depth_map_to_point_map
from moge_core.io import limits, read_depth, read_image, read_meta, read_normal, write_image

W, H = 64, 48
F = 32 / math.tan(math.radians(30))
HYPERSIM_CAMERA = (F, F, 31.5, 23.5)


def write_hdf5(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=values, compression="gzip")


def write_hypersim_frame(
    source: Path, scene: str = "ai_001_001", frame: int = 0, camera: Any = HYPERSIM_CAMERA, image: str = "preview"
) -> Path:
    """A frame of the plane; returns its folder of geometry."""
    images = source / scene / "images"
    geometry = images / "scene_cam_00_geometry_hdf5"
    distance = ray_distance(plane_z(W, H, camera), camera)
    write_hdf5(geometry / f"frame.{frame:04d}.depth_meters.hdf5", distance.astype(np.float32))
    if image == "preview":
        (images / "scene_cam_00_final_preview").mkdir(exist_ok=True)
        write_image(images / "scene_cam_00_final_preview" / f"frame.{frame:04d}.tonemap.jpg", picture(W, H))
    elif image == "color":
        linear = (picture(W, H) / 255.0) ** 2.2 * 7
        write_hdf5(images / "scene_cam_00_final_hdf5" / f"frame.{frame:04d}.color.hdf5", linear.astype(np.float16))
    return geometry


def write_table(path: Path, matrices: dict[str, Any]) -> None:
    columns = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scene_name", "settings_output_img_height", "settings_output_img_width", *columns])
        for scene, M in matrices.items():
            writer.writerow([scene, "768.0", "1024.0", *np.ravel(M)])


def test_ray_distances_become_z_of_a_flat_plane(tmp_path: Path) -> None:
    write_hypersim_frame(tmp_path / "source")
    report = import_hypersim(tmp_path / "source", tmp_path / "out")
    assert report.instances == ["ai_001_001/cam_00/frame.0000"]
    folder = report.out_dir / report.instances[0]
    check_is_plane(folder)
    check_camera(folder, HYPERSIM_CAMERA, W, H)
    assert report.fov_x_deg == pytest.approx(60, abs=1e-4)
    assert (report.label_type, report.metric) == ("synthetic", True)
    assert read_meta(folder / "meta.json")["label_type"] == "synthetic"
    assert any("60 degrees" in note for note in report.notes)


def test_a_published_preview_is_copied_and_unknown_depth_stays_unknown(tmp_path: Path) -> None:
    geometry = write_hypersim_frame(tmp_path / "source")
    distance = ray_distance(plane_z(W, H, HYPERSIM_CAMERA), HYPERSIM_CAMERA).astype(np.float16)
    distance[:5] = np.nan
    write_hdf5(geometry / "frame.0000.depth_meters.hdf5", distance)
    folder = import_hypersim(tmp_path / "source" / "ai_001_001", tmp_path / "out").out_dir
    folder /= "ai_001_001/cam_00/frame.0000"
    preview = tmp_path / "source/ai_001_001/images/scene_cam_00_final_preview/frame.0000.tonemap.jpg"
    assert (folder / "image.jpg").read_bytes() == preview.read_bytes()
    depth = check_is_plane(folder, tolerance=2e-3)
    assert np.isnan(depth[:5]).all()
    assert np.isfinite(depth[5:]).all()


def test_an_image_in_high_dynamic_range_is_tone_mapped_by_the_published_rule(tmp_path: Path) -> None:
    geometry = write_hypersim_frame(tmp_path / "source", image="color")
    linear = np.random.default_rng(0).uniform(0, 9, (H, W, 3)).astype(np.float32)
    linear[:10] = 1000  # a window that nothing was rendered in
    entities = np.ones((H, W), np.int32)
    entities[:10] = -1
    color = geometry.with_name("scene_cam_00_final_hdf5") / "frame.0000.color.hdf5"
    write_hdf5(color, linear)
    write_hdf5(geometry / "frame.0000.render_entity_id.hdf5", entities)

    image = tone_map(linear, entities != -1)
    # The rule, said anew: the 90th percentile of the brightness of what was rendered is 0.8 in the picture.
    brightness = np.sort((linear * [0.3, 0.59, 0.11]).sum(axis=2)[10:].ravel())
    bright = brightness[int(0.9 * (brightness.size - 1))]
    expected = 255 * np.clip(0.8 * (linear / bright) ** (1 / 2.2), 0, 1)
    assert np.abs(image - expected).max() < 1
    assert (image[:10] == 255).all()

    folder = import_hypersim(tmp_path / "source", tmp_path / "out").out_dir / "ai_001_001/cam_00/frame.0000"
    smooth = tone_map((picture(W, H) / 255.0) ** 2.2 * 7)
    assert np.abs(read_image(folder / "image.jpg").astype(int) - image).mean() < 40
    write_hdf5(color, (picture(W, H) / 255.0) ** 2.2 * 7)
    write_hdf5(geometry / "frame.0000.render_entity_id.hdf5", np.ones((H, W), np.int32))
    assert import_hypersim(tmp_path / "source", tmp_path / "out").num_written == 1
    assert np.abs(read_image(folder / "image.jpg").astype(int) - smooth).mean() < 3

    # Which pixels count is a part of what the picture was made from.
    entities = np.where(np.arange(W) < W // 4, 1, -1) * np.ones((H, 1), np.int32)
    write_hdf5(geometry / "frame.0000.render_entity_id.hdf5", entities.astype(np.int32))
    assert import_hypersim(tmp_path / "source", tmp_path / "out").num_written == 1
    assert read_image(folder / "image.jpg").mean() > smooth.mean() + 10


def test_tone_mapping_takes_black_images_and_what_is_no_number() -> None:
    assert (tone_map(np.full((4, 4, 3), 1e-6, np.float32)) == 0).all()
    color = np.ones((4, 4, 3), np.float32)
    color[0, 0], color[0, 1] = np.nan, np.inf
    image = tone_map(color)
    assert image[0, 0].tolist() == [0, 0, 0]
    assert image[0, 1].tolist() == [255, 255, 255]
    assert (image[1:] == round(0.8 * 255)).all()
    # Where nothing was rendered, radiance is shown as it is.
    assert (tone_map(color, np.zeros((4, 4), bool))[1:] == 255).all()


def test_normals_are_turned_to_opencv_axes(tmp_path: Path) -> None:
    geometry = write_hypersim_frame(tmp_path / "source")
    # The plane faces the camera: -NORMAL in OpenCV axes. The renderer has y up and z backwards.
    normal = np.tile((-NORMAL * [1, -1, -1]).astype(np.float16), (H, W, 1))
    normal[0, 0], normal[0, 1] = 0, np.nan
    write_hdf5(geometry / "frame.0000.normal_cam.hdf5", normal)
    folder = import_hypersim(tmp_path / "source", tmp_path / "out").out_dir / "ai_001_001/cam_00/frame.0000"
    read = read_normal(folder / "normal.png")
    assert np.isnan(read[0, :2]).all()
    assert np.abs(read[1:] + NORMAL).max() < 2e-3


def test_a_scenes_own_camera_is_taken_from_the_table(tmp_path: Path) -> None:
    # x = 0.5 u + 0.1, y up = 0.4 v - 0.06, z back = -1: a shifted lens.
    write_table(tmp_path / "t.csv", {"ai_001_001": [[0.5, 0, 0.1], [0, 0.4, -0.06], [0, 0, -1]]})
    fx, fy = W / (2 * 0.5), H / (2 * 0.4)
    camera = (fx, fy, W / 2 * (1 - 0.2) - 0.5, H / 2 * (1 - 0.15) - 0.5)
    write_hypersim_frame(tmp_path / "source", camera=camera)
    report = import_hypersim(tmp_path / "source", tmp_path / "out", camera_parameters=tmp_path / "t.csv")
    folder = report.out_dir / report.instances[0]
    check_is_plane(folder)
    check_camera(folder, camera, W, H)
    assert not any("60 degrees" in note for note in report.notes)

    # The rays of the table, said anew: the middle of each pixel, v upwards.
    K = read_meta(folder / "meta.json")["intrinsics"]
    u, v = 2 * (3 + 0.5) / W - 1, 1 - 2 * (40 + 0.5) / H
    x, y = ((3 + 0.5) / W - K[0, 2]) / K[0, 0], ((40 + 0.5) / H - K[1, 2]) / K[1, 1]
    assert (x, y) == pytest.approx((0.5 * u + 0.1, -(0.4 * v - 0.06)), abs=1e-6)

    write_table(tmp_path / "source" / CAMERA_TABLE, {"ai_001_001": [[0.6, 0, 0], [0, 0.45, 0], [0, 0, -1]]})
    beside = import_hypersim(tmp_path / "source", tmp_path / "out", name_prefix="beside/")
    assert beside.fov_x_deg == pytest.approx(2 * math.degrees(math.atan(0.6)), abs=1e-4)


def test_a_tilted_lens_is_read_about_the_axis_that_is_square_to_its_image(tmp_path: Path) -> None:
    # Shifted and tilted, like ai_037_002; rays in the renderer's axes, from the middle of each pixel.
    M = np.array([[0.58, 0, -0.07], [0, 0.435, 0.093], [0, 0.05, -1.004]])
    u, v = np.meshgrid(2 * (np.arange(W) + 0.5) / W - 1, 1 - 2 * (np.arange(H) + 0.5) / H)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ M.T * [1, -1, -1]
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    distance = 2 / (rays @ NORMAL)
    geometry = write_hypersim_frame(tmp_path / "source")
    write_hdf5(geometry / "frame.0000.depth_meters.hdf5", distance.astype(np.float32))
    write_hdf5(geometry / "frame.0000.normal_cam.hdf5", np.tile((-NORMAL * [1, -1, -1]).astype(np.float32), (H, W, 1)))
    write_table(tmp_path / "source" / CAMERA_TABLE, {"ai_001_001": M})
    report = import_hypersim(tmp_path / "source", tmp_path / "out")
    assert any("tilted" in note for note in report.notes)
    folder = report.out_dir / report.instances[0]

    # Turned back, the points are those that were rendered, and so is the normal.
    camera = read_camera_table(tmp_path / "source" / CAMERA_TABLE)["ai_001_001"]
    assert isinstance(camera, SceneCamera)
    turn = np.array(camera.rotation)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.degrees(np.arccos(turn[2, 2])) == pytest.approx(np.degrees(np.arctan(0.05 / 0.435)), abs=1e-6)
    K = read_meta(folder / "meta.json")["intrinsics"]
    points = depth_map_to_point_map(read_depth(folder / "depth.png"), K) @ turn
    np.testing.assert_allclose(points, rays * distance[..., None], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(read_normal(folder / "normal.png") @ turn, np.tile(-NORMAL, (H, W, 1)), atol=2e-4)


def test_scenes_whose_image_is_skewed_are_left_out_with_the_reason(tmp_path: Path) -> None:
    for scene in ("ai_001_001", "ai_001_002"):
        write_hypersim_frame(tmp_path / "source", scene)
    straight = [[0.577, 0, 0], [0, 0.433, 0], [0, 0, -1]]
    skewed = [[0.577, 0.05, 0], [0, 0.433, 0], [0, 0, -1]]
    write_table(tmp_path / "source" / CAMERA_TABLE, {"ai_001_001": straight, "ai_001_002": skewed})
    report = import_hypersim(tmp_path / "source", tmp_path / "out")
    assert report.instances == ["ai_001_001/cam_00/frame.0000"]
    (finding,) = report.skipped
    assert (finding.instance, finding.severity) == ("ai_001_002/cam_00/frame.0000", "error")
    assert "6.6 degrees" in finding.evidence


@pytest.mark.parametrize("text", ["", "scene_name\nai_001_001\n", "\0\0\0", "a" * 100])
def test_a_table_without_cameras_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(FormatError, match=r"t\.csv"):
        read_camera_table(tmp_path / "t.csv")


def test_rows_without_numbers_leave_their_scene_without_a_camera(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", {"a": [["nan"] * 3] * 3, "b": [[0] * 3] * 3, "c": [["x"] * 3] * 3})
    assert all(isinstance(camera, str) for camera in read_camera_table(tmp_path / "t.csv").values())


def test_hypersim_frames_that_cannot_be_read_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for frame in range(6):
        geometry = write_hypersim_frame(source, frame=frame)
    preview = geometry.with_name("scene_cam_00_final_preview")
    (geometry / "frame.0001.depth_meters.hdf5").write_bytes(b"\x89HDF no file")
    data = (geometry / "frame.0002.depth_meters.hdf5").read_bytes()
    (geometry / "frame.0002.depth_meters.hdf5").write_bytes(data[: len(data) // 2])
    (preview / "frame.0003.tonemap.jpg").unlink()
    (geometry / "frame.0004.depth_meters.hdf5").unlink()
    with h5py.File(geometry / "frame.0005.depth_meters.hdf5", "w") as file:
        file.create_dataset("dataset", shape=(1 << 20, 1 << 20), dtype="f4", chunks=(64, 64))
    report = import_hypersim(source, tmp_path / "out")
    assert report.instances == ["ai_001_001/cam_00/frame.0000"]
    found = {finding.instance[-4:]: finding for finding in report.skipped}
    assert set(found) == {"0001", "0002", "0003", "0004", "0005"}
    assert "tonemap.jpg" in found["0003"].evidence
    assert found["0004"].severity == "warning"
    assert "1048576" in found["0005"].evidence


def test_a_second_hypersim_run_does_only_what_is_new(tmp_path: Path) -> None:
    for frame in range(2):
        write_hypersim_frame(tmp_path / "source", frame=frame, image="color")
    assert import_hypersim(tmp_path / "source", tmp_path / "out").num_written == 2
    assert import_hypersim(tmp_path / "source", tmp_path / "out").num_written == 0
    write_hypersim_frame(tmp_path / "source", frame=2)
    again = import_hypersim(tmp_path / "source", tmp_path / "out")
    assert (again.num_written, len(again.instances)) == (1, 3)
    assert index_dataset(tmp_path / "out").num_broken == 0


def test_a_folder_without_scenes_is_refused_with_the_layout(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(DatasetError, match="depth_meters"):
        import_hypersim(tmp_path / "source", tmp_path / "out")
    with pytest.raises(DatasetError, match="image_lcam_front"):
        import_tartanair(tmp_path / "source", tmp_path / "out")
    with pytest.raises(InputError, match="camera_parameters"):
        import_hypersim(tmp_path / "source", tmp_path / "out", camera_parameters=tmp_path / "no.csv")


def test_the_real_hypersim_frame_has_planes_flat_within_8_mm_after_ray_conversion(samples_dir: Path) -> None:
    (path,) = (samples_dir / "hypersim_depth_only").rglob("*.depth_meters.hdf5")
    with h5py.File(path) as file:
        distance = file["dataset"][()].astype(np.float32)
    z = read_hypersim_depth(path)
    assert z.shape == (768, 1024)
    np.testing.assert_array_equal(np.isnan(z), np.isnan(distance))
    K = np.array([[886.81 / 1024, 0, 0.5], [0, 886.81 / 768, 0.5], [0, 0, 1]], np.float32)
    converted, taken_as_z = (plane_residual_mm(depth_map_to_point_map(depth, K)) for depth in (z, distance))
    assert converted < 8
    assert taken_as_z > 2 * converted


def test_the_real_hypersim_frame_is_flatter_and_squarer_with_its_own_tilted_camera(
    samples_dir: Path, tmp_path: Path
) -> None:
    (path,) = (samples_dir / "hypersim_depth_only").rglob("*.depth_meters.hdf5")
    # The published row of ai_037_002.
    M = [[0.57960725, 0, -0.06955287], [0, 0.43468653, 0.09273313], [0, 0.00405413, -1.00390917]]
    write_table(tmp_path / "t.csv", {"ai_037_002": M})
    camera = read_camera_table(tmp_path / "t.csv")["ai_037_002"]
    assert isinstance(camera, SceneCamera)
    residuals = []
    for intrinsics in (None, camera.intrinsics):
        used = intrinsics or DEFAULT_CAMERA
        z = read_hypersim_depth(path, intrinsics)
        K, _ = normalised_intrinsics(used, 1024, 768)
        residuals.append(plane_residual_mm(depth_map_to_point_map(z, K)))
    assert residuals[1] < 4 < residuals[0] < 8


def plane_residual_mm(points: Any) -> float:
    """RMS distance from the largest plane of the points that are within 0.5 % of their depth of it."""
    points = points[np.isfinite(points).all(axis=2)].astype(np.float64)
    rng = np.random.default_rng(0)
    sample = points[rng.choice(len(points), 4000, replace=False)]
    corners = sample[rng.integers(len(sample), size=(1500, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    corners, normals = corners[lengths > 0], normals[lengths > 0] / lengths[lengths > 0, None]
    offsets = np.einsum("ij,ij->i", normals, corners[:, 0])
    best = (np.abs(normals @ sample.T - offsets[:, None]) < 0.005 * sample[:, 2]).sum(axis=1).argmax()
    normal, offset = normals[best], offsets[best]
    for _ in range(10):
        near = points[np.abs(points @ normal - offset) < 0.005 * points[:, 2]]
        centre = near.mean(axis=0)
        normal = np.linalg.eigh((near - centre).T @ (near - centre))[1][:, 0]
        offset = normal @ centre
    return float(1000 * np.sqrt(np.mean((near @ normal - offset) ** 2)))


def write_tartan_frame(trajectory: Path, view: str, number: int, *, packed: bool) -> Path:
    """A frame of the plane with a strip of sky; returns its depth file."""
    height = W if packed else H
    z = plane_z(W, height, tartan_camera(packed))
    z[:4] = 10000
    image, depth = trajectory / f"image_{view}", trajectory / f"depth_{view}"
    image.mkdir(parents=True, exist_ok=True)
    depth.mkdir(exist_ok=True)
    write_image(image / f"{number:06d}_{view}.png", picture(W, height))
    path = depth / f"{number:06d}_{view}_depth.{'png' if packed else 'npy'}"
    if packed:
        cv2.imwrite(str(path), z.astype("<f4")[..., None].view(np.uint8))
    else:
        np.save(path, z.astype(np.float32))
    return path


def tartan_camera(packed: bool) -> tuple[float, ...]:
    # 90 degrees across, symmetric: f is half the width.
    return (W / 2, W / 2, (W - 1) / 2, ((W if packed else H) - 1) / 2)


@pytest.mark.parametrize(
    ("place", "view", "packed"),
    [
        ("office/Easy/P000", "left", False),
        ("office/Hard/P001", "right", False),
        ("A/Data_easy/P000", "lcam_front", True),
    ],
)
def test_tartanair_is_read_exactly_and_its_sky_is_infinite(tmp_path: Path, place: str, view: str, packed: bool) -> None:
    write_tartan_frame(tmp_path / "source" / place, view, 7, packed=packed)
    report = import_tartanair(tmp_path / "source", tmp_path / "out")
    assert report.instances == [f"{place}/{view}/000007"]
    folder = report.out_dir / report.instances[0]
    depth = check_is_plane(folder)
    assert np.isposinf(depth[:4]).all()
    assert np.isfinite(depth[4:]).all()
    check_camera(folder, tartan_camera(packed), W, W if packed else H)
    assert report.fov_x_deg == pytest.approx(90, abs=1e-4)
    assert import_tartanair(tmp_path / "source", tmp_path / "out").num_written == 0
    assert (report.label_type, report.metric) == ("synthetic", True)


def test_where_the_sky_begins_can_be_said(tmp_path: Path) -> None:
    write_tartan_frame(tmp_path / "source" / "P000", "left", 0, packed=False)
    depth = read_depth(
        import_tartanair(tmp_path / "source", tmp_path / "out", sky_from=20000).out_dir / "P000/left/000000/depth.png"
    )
    assert depth[0, 0] == pytest.approx(10000, rel=1e-3)


def test_packed_depth_has_the_bytes_of_floats_in_opencvs_order(tmp_path: Path) -> None:
    values = np.array([[1.5, 3.25], [1000.125, np.inf]], "<f4")
    cv2.imwrite(str(tmp_path / "d.png"), values[..., None].view(np.uint8))
    np.testing.assert_array_equal(read_packed_depth(tmp_path / "d.png"), values)
    cv2.imwrite(str(tmp_path / "g.png"), np.ones((4, 4), np.uint16))
    with pytest.raises(FormatError, match="four channels"):
        read_packed_depth(tmp_path / "g.png")


def test_tartanair_frames_that_cannot_be_read_are_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory = tmp_path / "source" / "P000"
    depths = [write_tartan_frame(trajectory, "left", number, packed=False) for number in range(7)]
    np.save(depths[1], np.array([[{}] * W] * H), allow_pickle=True)
    depths[2].write_bytes(depths[2].read_bytes()[:200])
    depths[3].unlink()
    (trajectory / "image_left" / "000004_left.png").unlink()
    with depths[5].open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
        )
    depths[6].write_bytes(b"no array")
    (trajectory / "image_lcam_fish").mkdir()
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 1 << 24)
    report = import_tartanair(tmp_path / "source", tmp_path / "out")
    assert report.instances == ["P000/left/000000"]
    found = {finding.instance.removeprefix("P000/"): finding for finding in report.skipped}
    assert set(found) == {f"left/00000{number}" for number in range(1, 7)} | {"image_lcam_fish"}
    assert "objects" in found["left/000001"].evidence
    assert "truncated" in found["left/000002"].evidence


def test_a_huge_packed_depth_map_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(tmp_path / "d.png"), np.zeros((64, 64, 4), np.uint8))
    monkeypatch.setattr(limits, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageTooLargeError):
        read_packed_depth(tmp_path / "d.png")
