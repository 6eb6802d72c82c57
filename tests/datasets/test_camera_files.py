"""Files of intrinsics are understood in the spellings in which people have them, and what they say of lenses too."""

from __future__ import annotations

import json
import shlex
import struct
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pytest

from moge_core.datasets.importers.array_files import import_arrays
from moge_core.datasets.importers.distortion import FISHEYE, RADIAL_TANGENTIAL, Distortion
from moge_core.datasets.importers.intrinsics import parse_intrinsics, read_cameras
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.rgbd_folder import import_rgbd_folder
from moge_core.datasets.importers.table import import_table
from moge_core.errors import DatasetError, FormatError, InputError
from moge_core.io import read_meta, write_image

NUMBERS = (500.0, 510.0, 320.0, 240.0)
MATRIX = [[500, 0, 320], [0, 510, 240], [0, 0, 1]]
FLAT = [500, 0, 320, 0, 510, 240, 0, 0, 1]
BY_COLUMNS = [500, 0, 0, 0, 510, 0, 320, 240, 1]
FIVE = (-0.3, 0.1, 0.001, -0.002, 0.05)
BENT = Distortion(RADIAL_TANGENTIAL, FIVE)
ROUND = Distortion(FISHEYE, (0.05, 0.01, -0.02, 0.003))
SIZE = (640, 480)

OPENCV_YAML = """%YAML:1.0
---
image_width: 640
image_height: 480
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 500., 0., 320., 0., 510., 240., 0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data: [ -3.0e-01, 1e-01, 1e-03, -2e-03, 0.05 ]
"""
ORB_SLAM = """%YAML:1.0
Camera.type: "PinHole"
Camera.fx: 500.0
Camera.fy: 510.0
Camera.cx: 320.0
Camera.cy: 240.0
Camera.k1: -0.3
Camera.k2: 0.1
Camera.p1: 0.001
Camera.p2: -0.002
Camera.k3: 0.05
Camera.width: 640
Camera.height: 480
DepthMapFactor: 5000.0
"""
KALIBR = """cam0:
  camera_model: pinhole
  distortion_coeffs: [0.05, 0.01, -0.02, 0.003]
  distortion_model: equidistant
  intrinsics: [500.0, 510.0, 320.0, 240.0]
  resolution: [640, 480]
"""
ROS = {"width": 640, "height": 480, "distortion_model": "plumb_bob", "D": FIVE, "K": FLAT, "P": [*FLAT, 0, 0, 0]}
TRANSFORMS = {"fl_x": 500, "fl_y": 510, "cx": 320.5, "cy": 240.5, "w": 640, "h": 480}


def by_key(values: Any, model: str = "OPENCV") -> dict[str, Any]:
    """Coefficients as keys of a mapping."""
    names = ("k1", "k2", "k3", "k4") if "FISHEYE" in model else ("k1", "k2", "p1", "p2", "k3")
    return {"camera_model": model, **dict(zip(names, values, strict=True))}


FILES: dict[str, tuple[str, Any, Distortion | None, tuple[int, int] | None]] = {
    "keys": ("a.json", dict(zip(("fx", "fy", "cx", "cy"), NUMBERS, strict=True)), None, None),
    "keys as text": ("a.json", {"fx": "500", "fy": "510", "cx": "320", "cy": "240"}, None, None),
    "RealSense": (
        "a.json",
        {"width": 640, "height": 480, "ppx": 320, "ppy": 240, "fx": 500, "fy": 510}
        | {"model": "distortion.brown_conrady", "coeffs": FIVE},
        BENT,
        SIZE,
    ),
    "OpenCV's matrices": (
        "a.json",
        {"image_width": 640, "image_height": 480, "camera_matrix": {"rows": 3, "cols": 3, "data": FLAT}}
        | {"distortion_model": "plumb_bob", "distortion_coefficients": {"rows": 1, "cols": 5, "data": FIVE}},
        BENT,
        SIZE,
    ),
    "calibrateCamera": ("a.json", {"mtx": MATRIX, "dist": [list(FIVE)]}, BENT, None),
    "nested lens": (
        "a.json",
        {"color": {"intrinsics": dict(zip(("fx", "fy", "cx", "cy"), NUMBERS, strict=True))}}
        | {"distortion": {"model": "brown-conrady", "coefficients": FIVE}},
        BENT,
        None,
    ),
    "MATLAB": (
        "a.json",
        {"FocalLength": [500, 510], "PrincipalPoint": [320, 240], "ImageSize": [640, 480]}
        | {"RadialDistortion": [-0.3, 0.1, 0.05], "TangentialDistortion": [0.001, -0.002]},
        BENT,
        SIZE,
    ),
    "Open3D": ("a.json", {"width": 640, "height": 480, "intrinsic_matrix": BY_COLUMNS}, None, SIZE),
    "Open3D's parameters": (
        "a.json",
        {"class_name": "PinholeCameraParameters", "extrinsic": np.eye(4).ravel().tolist()}
        | {"intrinsic": {"width": 640, "height": 480, "intrinsic_matrix": BY_COLUMNS}},
        None,
        SIZE,
    ),
    "Record3D": ("metadata.json", {"K": BY_COLUMNS, "w": 640, "h": 480, "fps": 60, "poses": [[0] * 7]}, None, SIZE),
    "ROS message": ("a.json", ROS, BENT, SIZE),
    "ROS 2 message": ("a.json", {key.lower(): value for key, value in ROS.items()}, BENT, SIZE),
    "BOP": ("camera.json", {"cam_K": FLAT, "depth_scale": 0.1}, None, None),
    "transforms.json": ("transforms.json", {**TRANSFORMS, **by_key(FIVE), "frames": []}, BENT, SIZE),
    "transforms.json, fisheye": (
        "transforms.json",
        {**TRANSFORMS, **by_key(ROUND.coefficients, "OPENCV_FISHEYE"), "frames": [{"file_path": "a.png"}]},
        ROUND,
        SIZE,
    ),
    "Instant-NGP, fisheye": (
        "transforms.json",
        {**TRANSFORMS, **by_key(ROUND.coefficients, "FISHEYE"), "camera_model": None, "is_fisheye": True},
        ROUND,
        SIZE,
    ),
    "transforms.json, equal frames": (
        "transforms.json",
        {"frames": [{**TRANSFORMS, "file_path": f"{index}.png"} for index in range(3)]},
        None,
        SIZE,
    ),
    "OpenCV's YAML": ("a.yaml", OPENCV_YAML, BENT, SIZE),
    "ORB-SLAM": ("TUM1.yaml", ORB_SLAM, BENT, SIZE),
    "Kalibr": ("camchain.yaml", KALIBR, ROUND, SIZE),
    "text matrix": ("K.txt", "# of the colour camera\n500 0 320\n0 510 240\n0 0 1\n", None, None),
    "text matrix in brackets": ("K.txt", "[[500. 0. 320.]\n [0. 510. 240.]\n [0. 0. 1.]]", None, None),
    "text projection": ("K.txt", "500 0 320 0\n0 510 240 0\n0 0 1 0\n", None, None),
    "lines of text": ("K.txt", "fx = 500\nfy = 510\ncx = 320\ncy = 240\nk1 = 0\n", None, None),
    "rs-enumerate-devices": (
        "color.txt",
        "Width: 640\nHeight: 480\nPPX: 320\nPPY: 240\nFx: 500\nFy: 510\nDistortion: Brown Conrady\n"
        "Coeffs: -0.3 0.1 0.001 -0.002 0.05\n",
        BENT,
        SIZE,
    ),
    "NPY": ("K.npy", np.array(MATRIX, np.float32), None, None),
    "NPZ": ("calib.npz", {"mtx": np.array(MATRIX), "dist": np.array([FIVE]), "rvecs": np.zeros((9, 3))}, BENT, None),
}


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("kind", FILES)
def test_intrinsics_and_distortion_are_read_as_people_write_them(tmp_path: Path, kind: str) -> None:
    name, content, distortion, size = FILES[kind]
    camera = parse_intrinsics(write(tmp_path / name, content))
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx(NUMBERS)
    assert camera.size == size
    assert (camera.distortion and camera.distortion.model) == (distortion and distortion.model)
    if distortion is not None and camera.distortion is not None:
        assert camera.distortion.coefficients == pytest.approx(distortion.coefficients)


def test_numbers_that_are_said_twice_are_one_distortion_and_two_are_none(tmp_path: Path) -> None:
    named = {"fx": 500, "fy": 510, "cx": 320, "cy": 240, **by_key(FIVE)}
    assert parse_intrinsics(write(tmp_path / "a.json", {**named, "dist": FIVE})).distortion == BENT
    zeros = {**named, **by_key((0, 0, 0, 0, 0)), "dist": FIVE}
    assert parse_intrinsics(write(tmp_path / "a.json", zeros)).distortion == BENT
    with pytest.raises(FormatError, match="one set of distortion"):
        parse_intrinsics(write(tmp_path / "a.json", {**named, "dist": [0.1, 0.2, 0, 0, 0]}))


@pytest.mark.parametrize(
    "lens",
    [
        {"lens": {"k1": -0.3, "k2": 0.1, "p1": 0.001, "p2": -0.002, "k3": 0.05}},
        {"brown": {"k1": -0.3, "k2": 0.1, "p1": 0.001, "p2": -0.002, "k3": 0.05}},
        {"radial": [-0.3, 0.1, 0.05], "tangential": [0.001, -0.002]},
    ],
)
def test_coefficients_in_a_mapping_by_any_name_are_those_of_the_camera_beside_or_around_it(
    tmp_path: Path, lens: dict[str, Any]
) -> None:
    camera = {"fx": 500, "fy": 510, "cx": 320, "cy": 240}
    assert parse_intrinsics(write(tmp_path / "beside.json", {"camera": camera, **lens})).distortion == BENT
    assert parse_intrinsics(write(tmp_path / "around.json", {**camera, **lens})).distortion == BENT


def test_the_lenses_of_two_cameras_beside_one_are_refused(tmp_path: Path) -> None:
    content = {"intrinsics": {"K": FLAT}, "left": {"k1": -0.3}, "right": {"k1": -0.2}}
    with pytest.raises(FormatError, match="one set of distortion"):
        parse_intrinsics(write(tmp_path / "a.json", content))


def test_opencv_reads_the_same_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", OPENCV_YAML)
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    camera = parse_intrinsics(path)
    np.testing.assert_allclose(storage.getNode("camera_matrix").mat(), camera.matrix())
    assert camera.distortion is not None
    np.testing.assert_allclose(storage.getNode("distortion_coefficients").mat()[0], camera.distortion.coefficients)


def test_large_files_are_read(tmp_path: Path) -> None:
    frames = [{"file_path": f"images/{index}.png", "note": "x" * 1000} for index in range(2000)]
    path = write(tmp_path / "transforms.json", {**TRANSFORMS, "frames": frames})
    assert path.stat().st_size > 2_000_000
    assert parse_intrinsics(path).fx == 500


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"camera_model": "EQUIRECTANGULAR", **TRANSFORMS}, "EQUIRECTANGULAR"),
        ({"camera_model": "FISHEYE624", **TRANSFORMS}, "FISHEYE624"),
        ({"camera_model": "THIN_PRISM_FISHEYE", **TRANSFORMS, "k1": 0.1, "sx1": 0.1}, "THIN_PRISM_FISHEYE"),
        ({"K": FLAT, "distortion_model": "fov", "D": [0.9]}, "fov"),
        ({"K": FLAT, "distortion_model": "division", "D": [0.1]}, "division"),
        ({"K": FLAT, "model": "distortion.inverse_brown_conrady", "coeffs": [0.1, 0, 0, 0, 0]}, "inverse_brown"),
        ({"K": FLAT, "model": "modified_brown_conrady", "coeffs": [0.1, 0, 0, 0, 0]}, "modified_brown"),
        ({"K": FLAT, "lensDistortionLookupTable": "AAAA" * 20}, "lensdistortionlookuptable"),
    ],
)
def test_other_models_keep_their_name(tmp_path: Path, content: dict[str, Any], found: str) -> None:
    camera = parse_intrinsics(write(tmp_path / "a.json", content))
    assert camera.distortion is not None
    assert not camera.distortion.is_obeyed
    assert found in camera.distortion.model


@pytest.mark.parametrize(
    "content",
    [
        {"K": FLAT, "dist": [0, 0, 0, 0, 0]},
        {"K": FLAT, "k1": 0, "k2": 0.0, "p1": 0},
        {"K": FLAT, "model": "inverse_brown_conrady", "coeffs": [0, 0, 0, 0, 0]},
        {"K": FLAT, "distortion": None},
        {"K": FLAT, "model": "iPhone 12 Pro", "distortion_center": [320, 240]},
        {"K": FLAT, "distortion_model": "none", "D": []},
        {"K": FLAT, "tx": 0.1, "ty": 0.2, "tz": 1},
    ],
)
def test_no_distortion_is_none(tmp_path: Path, content: dict[str, Any]) -> None:
    assert parse_intrinsics(write(tmp_path / "a.json", content)).distortion is None


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"K": FLAT, "k1": 0.1, "k2": 0.1, "k3": 0.1, "k4": 0.1}, "k4 must come with"),
        ({"K": FLAT, "D": [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}, "7 numbers"),
        ({"K": FLAT, "camera_model": "fisheye", "D": [0.1, 0.1, 0.1, 0.1, 0.1]}, "k1 to k4"),
        ({"K": FLAT, "k1": 0.1, "xi": 1.2}, "xi"),
        ({"fx": "500,5", "fy": "500,5", "cx": "320", "cy": "240"}, r"a.json: fx.*500,5"),
        ({"K": FLAT, "D": [float("nan")] * 5}, "finite"),
        ({"intrinsics": [1.1, 500, 510, 320, 240], "camera_model": "omni"}, "omnidirectional"),
        ({"fov": 60, "width": 640, "height": 480}, "which field of view"),
        ({"fov_x": 60}, "--intrinsics-size"),
        ({"focal_length": 35, "sensor_width": 36, "width": 640, "height": 480}, "millimetres"),
        ({"focal_length": 35, "cx": 320, "cy": 240}, "millimetres"),
        ({"fx": 0.8, "fy": 1.1, "cx": 0.5, "cy": 0.5}, "normalised"),
        ({"fx": 500, "fy": 510}, "principal point"),
        ({"fx": None, "fy": 510, "cx": 1, "cy": 1}, "finite"),
    ],
)
def test_what_has_several_meanings_is_refused(tmp_path: Path, content: dict[str, Any], named: str) -> None:
    with pytest.raises((FormatError, InputError), match=named):
        parse_intrinsics(write(tmp_path / "a.json", content))


def test_a_field_of_view_is_taken_where_a_size_is_known(tmp_path: Path) -> None:
    angle = 2 * np.arctan(320 / 500)
    for content, size in (
        ({"camera_angle_x": angle, "w": 640, "h": 480}, None),
        ({"hfov": np.degrees(angle)}, (640, 480)),
    ):
        camera = parse_intrinsics(write(tmp_path / "a.json", content), size=size)
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((500, 500, 319.5, 239.5))
        assert "field of view" in " ".join(camera.notes)
    write_image(tmp_path / "r_0.png", np.zeros((480, 640, 3), np.uint8))
    synthetic = {"camera_angle_x": angle, "frames": [{"file_path": "./r_0", "transform_matrix": np.eye(4).tolist()}]}
    assert parse_intrinsics(write(tmp_path / "transforms.json", synthetic)).fx == pytest.approx(500)


def test_several_cameras_must_be_chosen_from_by_what_is_printed(tmp_path: Path) -> None:
    def camera(fx: float) -> dict[str, float]:
        return {"fx": fx, "fy": fx, "cx": 320, "cy": 240}

    path = write(tmp_path / "two words.json", {"depth": {"intrinsics": camera(385)}, "color": camera(615)})
    with pytest.raises(InputError, match="2 cameras, depth, color") as error:
        parse_intrinsics(path)
    typed = shlex.split(str(error.value.fix).partition("--intrinsics ")[2])[0]
    assert parse_intrinsics(typed).fx == 615
    assert parse_intrinsics("two words.json:depth", search_dir=tmp_path).fx == 385
    with pytest.raises(InputError, match=r"'left'; 2 cameras.*:color"):
        parse_intrinsics(f"{path}:left")
    stereo = write(tmp_path / "stereo.yaml", "%YAML:1.0\nK1: [500,0,320,0,510,240,0,0,1]\nK2: [600,0,3,0,6,2,0,0,1]\n")
    assert parse_intrinsics(f"{stereo}:1").fx == 500


def test_a_camera_a_frame_is_found_by_path_name_and_number() -> None:
    images = [PurePosixPath(f"rgb/frame_{index:06d}.jpg") for index in (0, 10, 20)]
    cameras: dict[str, Any] = {
        "frame_000000": PixelIntrinsics(1, 1, 1, 1),
        "images/frame_000010.jpg": PixelIntrinsics(2, 2, 2, 2),
        "frame_000099": PixelIntrinsics(3, 3, 3, 3),
    }
    found = read_cameras("1,1,1,1").__class__(Path("a.json"), cameras).of_frames(images)
    assert found == {images[0]: cameras["frame_000000"], images[1]: cameras["images/frame_000010.jpg"]}
    numbered = {"0": PixelIntrinsics(1, 1, 1, 1), "1": PixelIntrinsics(2, 2, 2, 2)}
    stamped = [PurePosixPath("000000.png"), PurePosixPath("000001.png")]
    found = read_cameras("1,1,1,1").__class__(Path("a.json"), numbered).of_frames(stamped)
    assert found == {stamped[0]: numbered["0"], stamped[1]: numbered["1"]}


def folder(tmp_path: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    source = tmp_path / "seq"
    for name in ("rgb", "depth"):
        (source / name).mkdir(parents=True)
    for name, (width, height) in sizes.items():
        write_image(source / f"rgb/{name}.png", np.full((height, width, 3), 90, np.uint8))
        cv2.imwrite(str(source / f"depth/{name}.png"), np.full((height, width), 2000, np.uint16))
    return source


def test_frames_named_in_one_file_get_their_own_cameras(tmp_path: Path) -> None:
    source = folder(tmp_path, dict.fromkeys(("frame_000000", "frame_000010", "frame_000020"), (64, 48)))
    focals = {"frame_000000": 140, "frame_000010": 150}
    cameras = {
        name: {"pose": np.eye(4).tolist(), "intrinsic": [[f, 0, 95.5], [0, f, 71.5], [0, 0, 1]]}
        for name, f in focals.items()
    }
    write(source / "pose_intrinsic_imu.json", cameras)
    report = import_rgbd_folder(
        source,
        tmp_path / "out",
        intrinsics="pose_intrinsic_imu.json",
        intrinsics_size=(192, 144),
        depth_scale=1000,
    )
    assert report.instances == ["frame_000000", "frame_000010"]
    for name, focal in focals.items():
        found = read_meta(report.out_dir / name / "meta.json")["intrinsics"]
        assert np.array(found)[0] == pytest.approx([focal / 192, 0, 0.5])
    (lone,) = report.skipped
    assert "holds no camera of this name" in lone.evidence


def test_a_rig_in_one_file_is_never_taken_at_random(tmp_path: Path) -> None:
    source = folder(tmp_path, {"0000": (64, 48), "0001": (64, 48)})
    rig = {name: {"fx": fx, "fy": fx, "cx": 31.5, "cy": 23.5} for name, fx in (("depth", 40), ("color", 60))}
    write(source / "rig.json", rig)
    with pytest.raises(InputError, match="2 cameras, depth, color"):
        import_rgbd_folder(source, tmp_path / "out", intrinsics="rig.json", depth_scale=1000)
    report = import_rgbd_folder(source, tmp_path / "out", intrinsics="rig.json:color", depth_scale=1000)
    assert read_meta(report.out_dir / "0000/meta.json")["intrinsics"][0][0] == pytest.approx(60 / 64)


def test_cameras_that_are_named_after_folders_are_those_of_their_images(tmp_path: Path) -> None:
    rig = {name: {"fx": fx, "fy": fx, "cx": 320, "cy": 240} for name, fx in (("cam0", 500), ("cam1", 600))}
    file = read_cameras(write(tmp_path / "rig.json", rig))
    images = [PurePosixPath(f"{camera}/rgb/{number}.png") for camera in rig for number in range(2)]
    found = file.of_frames(images)
    assert found is not None
    assert [found[image].fx for image in images] == [500, 500, 600, 600]  # type: ignore[union-attr]
    # One folder of one name says nothing, and neither does a rig of which a folder is unknown.
    assert file.of_frames(images[:2]) is None
    assert file.of_frames([*images, PurePosixPath("cam2/rgb/0.png")]) is None


def test_pictures_of_several_sizes_under_one_camera_are_refused_with_counts(tmp_path: Path) -> None:
    source = folder(tmp_path, {"0": (64, 48), "1": (64, 48), "2": (48, 64)})
    with pytest.raises(DatasetError, match=r"2 of 64x48 \(landscape\), 1 of 48x64 \(portrait\)"):
        import_rgbd_folder(source, tmp_path / "out", intrinsics="60,60,23.5,23.5", depth_scale=1000)
    assert not list((tmp_path / "out").rglob("meta.json"))
    # Where the camera says its size, those that fit are imported and the others told.
    report = import_rgbd_folder(
        source, tmp_path / "out", intrinsics="60,60,23.5,23.5", intrinsics_size=(64, 48), depth_scale=1000
    )
    assert report.instances == ["0", "1"]
    assert "64x48" in report.skipped[0].evidence


def table(tmp_path: Path, text: str) -> Path:
    folder(tmp_path, {"0": (64, 48), "1": (64, 48), "2": (32, 24)})
    (tmp_path / "frames.csv").write_text(text)
    return tmp_path / "frames.csv"


def test_rows_of_other_sizes_with_the_very_same_camera_are_refused(tmp_path: Path) -> None:
    rows = "".join(f"{i},seq/rgb/{i}.png,seq/depth/{i}.png,60,60,15.5,11.5\n" for i in range(3))
    path = table(tmp_path, "name,image,depth,fx,fy,cx,cy\n" + rows)
    report = import_table(path, tmp_path / "out", scale=1000)
    assert report.instances == ["0", "1"]
    assert "the picture is 32x24 (landscape)" in report.skipped[0].evidence


def test_a_table_says_distortion_in_columns(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "name,image,depth,fx,fy,cx,cy,camera_model,k1,k2\n"
        "0,seq/rgb/0.png,seq/depth/0.png,60,60,31.5,23.5,,-0.2,0.1\n"
        "1,seq/rgb/1.png,seq/depth/1.png,60,60,31.5,23.5,,,\n",
    )
    report = import_table(path, tmp_path / "out", scale=1000)
    told = " ".join(report.notes)
    assert "not known" not in told
    assert "of their pixels in 1 of 2 frames" in told
    focals = [read_meta(report.out_dir / name / "meta.json")["intrinsics"][0][0] for name in ("0", "1")]
    assert focals[1] == pytest.approx(60 / 64)
    assert focals[0] != pytest.approx(60 / 64, rel=1e-3)


@pytest.mark.parametrize("model", [None, "OPENCV_FISHEYE"])
def test_arrays_say_distortion_beside_the_camera(tmp_path: Path, model: str | None) -> None:
    arrays = {
        "images": np.full((2, 24, 32, 3), 80, np.uint8),
        "depths": np.full((2, 24, 32), 2.0, np.float32),
        "K": np.array([[30, 0, 15.5], [0, 30, 11.5], [0, 0, 1.0]]),
        "dist": np.array([-0.2, 0.1, 0, 0]),
    }
    given = None
    if model is not None:
        arrays["camera_model"] = np.array(model)
        camera = {"K": arrays["K"].tolist(), "camera_model": model, "dist": arrays["dist"].tolist()}
        given = write(tmp_path / "camera.json", camera)
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    if model is not None:
        with pytest.raises(DatasetError, match=r"camera_model.*--intrinsics camera\.json"):
            import_arrays(tmp_path / "a.npz", tmp_path / "out")
    told = " ".join(import_arrays(tmp_path / "a.npz", tmp_path / "out", intrinsics=given).notes)
    assert f"the model is {'fisheye' if model else 'radial-tangential'}" in told


def test_colmaps_cameras_are_those_of_their_images(tmp_path: Path) -> None:
    cameras = "1 SIMPLE_RADIAL 640 480 500 320.5 240.5 -0.1\n2 OPENCV_FISHEYE 640 480 300 300 320.5 240.5 .1 0 0 0\n"
    (tmp_path / "cameras.txt").write_text("# Camera list\n" + cameras)
    chosen = parse_intrinsics(f"{tmp_path}/cameras.txt:camera2")
    assert (chosen.fx, chosen.cx, chosen.distortion) == (300, 320, Distortion(FISHEYE, (0.1,)))
    images = "".join(f"{n} 1 0 0 0 0 0 0 {n} 000{n}.png\n\n" for n in (1, 2))
    (tmp_path / "images.txt").write_text(images)
    found = read_cameras(tmp_path / "cameras.txt").of_frames([PurePosixPath("rgb/0001.png"), PurePosixPath("0002.png")])
    assert found is not None
    assert [camera.fx for camera in found.values() if isinstance(camera, PixelIntrinsics)] == [500, 300]
    data = struct.pack("<QIiQQ4d", 1, 1, 2, 640, 480, 500, 320.5, 240.5, -0.1)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/cameras.bin").write_bytes(data)
    assert parse_intrinsics(tmp_path / "one/cameras.bin").distortion == Distortion(RADIAL_TANGENTIAL, (-0.1,))
