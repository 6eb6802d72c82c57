"""Presets: the layout that each was confirmed from imports by its name alone, exactly, and is told and documented."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import OpenEXR
import pytest
from click.testing import CliRunner, Result

from moge_core.cli import cli
from moge_core.datasets.importers import PRESETS
from moge_core.datasets.importers.presets import MISSING
from moge_core.io import read_depth, read_meta

Array = npt.NDArray[Any]
DOCS = Path(__file__).parents[2] / "docs" / "importing.md"
SIZE = (64, 48)
CAMERA = (60.0, 60.0, 31.5, 23.5)
MATRIX = [[60.0, 0, 31.5], [0, 60.0, 23.5], [0, 0, 1]]
BY_COLUMNS = [60.0, 0, 0, 0, 60.0, 0, 31.5, 23.5, 1]
STAMPS = ("1548339828.421990", "1548339828.521990")


def millimetres(z: Array) -> Array:
    return np.round(1000 * z).astype(np.uint16)


def turned_by_three(z: Array) -> Array:
    """SUN RGB-D's: the low three bits of a 16-bit number of millimetres came from above."""
    stored = millimetres(z)
    return ((stored << 3) | (stored >> 13)).astype(np.uint16)


def times(scale: float) -> Callable[[Array], Array]:
    return lambda z: np.round(scale * z).astype(np.uint16)


def with_far(scale: float, far: int) -> Callable[[Array], Array]:
    """The first rows hold a value that means more than it says."""

    def store(z: Array) -> Array:
        stored = times(scale)(z)
        stored[:6] = far
        return stored

    return store


def metres(z: Array) -> Array:
    return z.astype(np.float32)


def metres_and_zero(z: Array) -> Array:
    z = z.astype(np.float32)
    z[:6] = 0
    return z


def rays(z: Array) -> Array:
    """Distances from the camera; where nothing is, what Blender writes."""
    u, v = np.meshgrid((np.arange(64) - 31.5) / 60, (np.arange(48) - 23.5) / 60)
    z = z.astype(np.float32)
    z[:6] = 1e10
    return (z * np.sqrt(1 + u**2 + v**2)).astype(np.float32)


@dataclass(frozen=True)
class Layout:
    """What a source looks like: {n} of image and depth are the frames' names; {m} a name of depth alone.

    Attributes:
        store: from z in metres to what a file holds.
        files: what else lies there, as text, JSON or an array.
        options: what the preset wants.
        far: what the first six rows become, where `store` marks them.
        camera: fx, fy, cx, cy and the size that they refer to.
    """

    image: str
    depth: str
    store: Callable[[Array], Array] = millimetres
    files: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    frames: tuple[str, str] = ("000000", "000007")
    depth_frames: tuple[str, str] | None = None
    far: float | None = None
    camera: tuple[float, float, float, float] = CAMERA
    camera_size: tuple[int, int] = SIZE
    size: tuple[int, int] = SIZE
    label_type: str = "sfm"


TEXT = "\n".join(" ".join(map(str, row)) for row in MATRIX)
LISTS = {
    f"{kind}.txt": "# list\n" + "".join(f"{stamp} {kind}/{stamp}.png\n" for stamp in STAMPS)
    for kind in ("rgb", "depth")
}
FOCAL = {"fx": 60, "fy": 60, "cx": 31.5, "cy": 23.5}
POLYCAM = {**FOCAL, "width": 64, "height": 48}
NINE = [60, 0, 31.5, 0, 60, 23.5, 0, 0, 1]
LAYOUTS: Mapping[str, Layout] = {
    "tum": Layout("rgb/{n}.png", "depth/{n}.png", times(5000), LISTS, frames=STAMPS, camera=(525, 525, 319.5, 239.5),
        camera_size=(640, 480)),
    "icl-nuim": Layout("rgb/{n}.png", "depth/{n}.png", times(5000), frames=("0", "7"),
        camera=(481.2, 480, 319.5, 239.5), camera_size=(640, 480)),
    "nyu": Layout("rgb_{n}.jpg", "sync_depth_{n}.png", camera=(518.8579, 519.46961, 325.58245, 253.73617),
        camera_size=(640, 480)),
    "3dmatch": Layout("frame-{n}.color.png", "frame-{n}.depth.png", with_far(1000, 65535),
        {"camera-intrinsics.txt": "585 0 320\n0 585 240\n0 0 1\n"}, far=np.nan, camera=(585, 585, 320, 240),
        camera_size=(640, 480)),
    "replica": Layout("results/frame{n}.jpg", "results/depth{n}.png", times(6553.5),
        {"cam_params.json": {"camera": {**FOCAL, "w": 64, "h": 48, "scale": 6553.5}}}),
    "kitti-depth": Layout("image/{n}.png", "groundtruth_depth/{n}.png", times(256),
        options=("--intrinsics", "60,60,31.5,23.5"), label_type="lidar"),
    "scannet": Layout("color/{n}.jpg", "depth/{n}.png", files={"intrinsic/intrinsic_color.txt": TEXT},
        frames=("0", "7")),
    "7scenes": Layout("seq-01/frame-{n}.color.png", "seq-01/frame-{n}.depth.png", with_far(1000, 65535), far=np.nan,
        camera=(585, 585, 320, 240), camera_size=(640, 480)),
    "record3d": Layout("rgb/{n}.jpg", "depth/{n}.exr", metres, {"metadata.json": {"w": 64, "h": 48, "K": BY_COLUMNS}},
        frames=("0", "7")),
    "polycam": Layout("keyframes/images/{n}.jpg", "keyframes/depth/{n}.png",
        files={f"keyframes/cameras/{stem}.json": POLYCAM for stem in ("1671225871", "1671225872")},
        frames=("1671225871", "1671225872")),
    "arkitscenes": Layout("lowres_wide/{n}.png", "lowres_depth/{n}.png",
        files={f"lowres_wide_intrinsics/41048190_3414.{n}.pincam": "64 48 60 60 31.5 23.5" for n in ("524", "724")},
        frames=("41048190_3414.524", "41048190_3414.724")),
    "sun-rgbd": Layout("xtion/sun3d/{n}/image/0000001-000000{n}.jpg", "xtion/sun3d/{n}/depth/0000002-00{n}7.png",
        turned_by_three,
        {f"xtion/sun3d/{n}/{file}": content for n in ("000000", "000007") for file, content in (
            ("intrinsics.txt", " ".join(TEXT.split())), ("depth_bfx/0000002-7.png", np.ones((48, 64), np.uint16)),
            ("fullres/intrinsics.txt", "1 2 3"))}),
    "realsense": Layout("color/{n}.jpg", "depth/{n}.png",
        files={"camera_intrinsic.json": {"width": 64, "height": 48, "intrinsic_matrix": BY_COLUMNS}}),
    "azure-kinect": Layout("color/{n}.jpg", "depth/{n}.png",
        files={"intrinsic.json": {"width": 64, "height": 48, "intrinsic_matrix": BY_COLUMNS, "color_mode": "MJPG_720P",
            "depth_mode": "NFOV_2X2BINNED", "serial_number_": "7", "stream_length_usec": 100}, "config.json": {"a": 1}},
        frames=("00000", "00007")),
    "graspnet": Layout("scene_0003/realsense/rgb/{n}.png", "scene_0003/realsense/depth/{n}.png",
        files={"scene_0003/realsense/camK.npy": np.array(MATRIX), "scene_0003/kinect/camK.npy": np.eye(3) * 9,
            "scene_0003/realsense/label/0000.png": np.ones((48, 64), np.uint8)}, frames=("0000", "0007")),
    "eth3d-slam": Layout("rgb/{n}.png", "depth/{n}.png", times(5000),
        {**LISTS, "calibration.txt": "60 60 31.5 23.5\n", "associated.txt": "".join(
            f"{stamp} rgb/{stamp}.png {stamp} depth/{stamp}.png\n" for stamp in STAMPS)}, frames=STAMPS),
    # Distortion leaves no depth at its place: see below.
    "bonn": Layout("rgb/{n}.png", "depth/{n}.png", times(5000), LISTS, ("--distortion", "ignore"), frames=STAMPS,
        camera=(542.822841, 542.57687, 315.59352, 237.756098), camera_size=(640, 480)),
    "stray-scanner": Layout("rgb/{n}.jpg", "depth/{n}.png",
        files={"camera_matrix.csv": "1800.0, 0.0, 960.0\n0.0, 1800.0, 720.0\n0.0, 0.0, 1.0\n",
            "confidence/000000.png": np.ones((48, 64), np.uint8), "odometry.csv": "timestamp, frame, x\n0, 000000, 1"},
        camera=(1800, 1800, 960, 720), camera_size=(1920, 1440)),
    "3d-scanner-app": Layout("frame_{n}.jpg", "depth_{n}.png",
        files={**{f"frame_{n}.json": {"intrinsics": NINE, "frame_index": 7,
            "cameraPoseARFrame": np.eye(4).ravel().tolist(), "projectionMatrix": [1.5] * 16}
            for n in ("00000", "00007")},
            "depth_00003.png": np.ones((48, 64), np.uint16), "conf_00000.png": np.ones((48, 64), np.uint8),
            "info.json": {"title": "scan"}}, frames=("00000", "00007")),
    "isaac": Layout("_out/rgb_{n}.png", "_out/distance_to_image_plane_{n}.npy", metres_and_zero,
        {f"_out/camera_params_{n}.json": {"cameraFocalLength": 18.0, "cameraAperture": [19.2, 15.3],
            "cameraApertureOffset": [0.0, 0.0], "cameraModel": "pinhole", "renderProductResolution": [64, 48],
            "cameraViewTransform": [1.0] * 16, "cameraProjection": [1.0] * 16} for n in ("0000", "0007")},
        frames=("0000", "0007"), far=np.inf, label_type="synthetic"),
    "blenderproc": Layout("train_pbr/000001/rgb/{n}.jpg", "train_pbr/000001/depth/{n}.png", with_far(10000, 65535),
        {"train_pbr/000001/scene_camera.json": {n: {"cam_K": NINE, "depth_scale": 0.1}
            for n in ("0", "7")}, "train_pbr/000001/mask/000000_000000.png": np.ones((48, 64), np.uint8)},
        ("--depth-scale", "10000"), far=np.nan, label_type="synthetic"),
    "kubric": Layout("rgba_{n}.png", "depth_{n}.tiff", rays, {"segmentation_00000.png": np.ones((48, 64), np.uint8)},
        ("--intrinsics", "60,60,31.5,23.5"), ("00000", "00007"), far=np.inf, label_type="synthetic"),
    "vkitti2": Layout("Scene01/fog/frames/rgb/Camera_0/rgb_{n}.jpg", "Scene01/fog/frames/depth/Camera_0/depth_{n}.png",
        with_far(100, 65535), {"Scene01/fog/intrinsic.txt": "frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]\n"},
        frames=("00000", "00007"), far=np.inf, camera=(725.0087, 725.0087, 620.5, 187), camera_size=(1242, 375),
        size=(414, 125), label_type="synthetic"),
}  # fmt: skip


def plane(size: tuple[int, int]) -> Array:
    """Depth between two and four metres that says where each pixel is."""
    width, height = size
    z: Array = 2 + np.linspace(0, 1.5, width)[None, :] + np.linspace(0, 0.5, height)[:, None]
    return z


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray) and path.suffix == ".npy":
        np.save(path, content)
    elif isinstance(content, np.ndarray) and path.suffix == ".exr":
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        with OpenEXR.File(header, {"R": content}) as file:
            file.write(str(path))
    elif isinstance(content, np.ndarray):
        path.write_bytes(cv2.imencode(path.suffix, content)[1].tobytes())
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_layout(source: Path, layout: Layout) -> None:
    rng = np.random.default_rng(0)
    width, height = layout.size
    picture = cv2.resize(rng.integers(0, 255, (5, 7, 3), dtype=np.uint8), (width, height))
    stored = layout.store(plane(layout.size))
    for name in layout.frames:
        is_rgba = "rgba" in layout.image
        write(source / layout.image.format(n=name), cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA) if is_rgba else picture)
        write(source / layout.depth.format(n=name), stored)
    for name, content in layout.files.items():
        write(source / name, content)


def import_preset(preset: str, source: Path, out: Path, *options: str) -> Result:
    arguments = ["import", "rgbd-folder", str(source), "-o", str(out), "--preset", preset, *options]
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_layout_that_a_preset_is_for_imports_exactly(tmp_path: Path, preset: str) -> None:
    layout = LAYOUTS[preset]
    write_layout(tmp_path / "source", layout)
    result = import_preset(preset, tmp_path / "source", tmp_path / "out", *layout.options)
    assert result.exit_code == 0, result.output
    folders = sorted(path.parent for path in (tmp_path / "out").rglob("meta.json"))
    assert len(folders) == 2, result.output
    expected = plane(layout.size)
    if layout.far is not None:
        expected[:6] = layout.far
    fx, fy, cx, cy = layout.camera
    width, height = layout.camera_size
    intrinsics = [[fx / width, 0, (cx + 0.5) / width], [0, fy / height, (cy + 0.5) / height], [0, 0, 1]]
    for folder in folders:
        np.testing.assert_allclose(read_depth(folder / "depth.png"), expected, rtol=3e-3)
        meta = read_meta(folder / "meta.json")
        np.testing.assert_allclose(np.array(meta["intrinsics"]), intrinsics, atol=1e-7)
        assert meta["label_type"] == layout.label_type
        assert meta["depth_unit"] == 1.0


def test_what_a_user_says_goes_before_a_preset(tmp_path: Path) -> None:
    write_layout(tmp_path / "source", LAYOUTS["vkitti2"])
    said = ("--invalid", "65535", "--label-type", "sfm", "--depth-scale", "50", "--kind", "z")
    result = import_preset("vkitti2", tmp_path / "source", tmp_path / "out", *said)
    assert result.exit_code == 0, result.output
    (folder, _) = sorted(path.parent for path in (tmp_path / "out").rglob("meta.json"))
    depth = read_depth(folder / "depth.png")
    assert np.isnan(depth[:6]).all()
    np.testing.assert_allclose(depth[6:], 2 * plane((414, 125))[6:], rtol=3e-3)
    assert read_meta(folder / "meta.json")["label_type"] == "sfm"


def test_the_lens_of_bonn_is_undistorted_and_its_markers_are_no_poses(tmp_path: Path) -> None:
    write_layout(tmp_path / "source", LAYOUTS["bonn"])
    result = import_preset("bonn", tmp_path / "source", tmp_path / "out")
    assert "undistorted" in result.output
    assert "markers" in result.output


@pytest.mark.parametrize(
    ("preset", "lacking", "told"),
    [
        ("stray-scanner", "rgb", "ffmpeg -noautorotate -i"),
        ("azure-kinect", "color", "azure_kinect_mkv_reader.py"),
        ("kubric", "--intrinsics", "focal_length / sensor_width"),
        ("kitti-depth", "--intrinsics", "calib_cam_to_cam.txt"),
        ("blenderproc", "--depth-scale", "scene_camera.json"),
        ("isaac", "*/camera_params*", "--intrinsics fx,fy,cx,cy"),
    ],
)
def test_what_a_preset_wants_is_told_where_it_lacks(tmp_path: Path, preset: str, lacking: str, told: str) -> None:
    layout = LAYOUTS[preset]
    write_layout(tmp_path, layout)
    for path in tmp_path.glob(lacking if "*" in lacking else f"{lacking}/*"):
        path.unlink()
    result = import_preset(preset, tmp_path, tmp_path / "out", *([] if lacking.startswith("--") else layout.options))
    assert result.exit_code != 0
    assert told in result.output


def test_another_scale_of_a_realsense_is_told_until_it_is_said(tmp_path: Path) -> None:
    write_layout(tmp_path / "source", LAYOUTS["realsense"])
    assert "D405" in import_preset("realsense", tmp_path / "source", tmp_path / "a").output
    said = import_preset("realsense", tmp_path / "source", tmp_path / "b", "--depth-scale", "10000")
    assert "D405" not in said.output


def test_the_command_tells_of_each_preset_what_it_sets_wants_and_where_from() -> None:
    every = CliRunner().invoke(cli, ["import", "presets"])
    assert every.exit_code == 0
    for name, preset in PRESETS.items():
        one = CliRunner().invoke(cli, ["import", "presets", name]).output
        assert one in every.output
        for text in (preset.options(), preset.wants, preset.note, preset.source):
            assert text in one
        assert "http" in preset.source
    assert all(name in every.output for name in MISSING)
    unknown = CliRunner().invoke(cli, ["import", "presets", "nothing"])
    assert unknown.exit_code != 0
    assert "must be one of tum" in unknown.output


def test_what_a_preset_sets_can_be_typed_instead(tmp_path: Path) -> None:
    write_layout(tmp_path / "source", LAYOUTS["vkitti2"])
    by_name = import_preset("vkitti2", tmp_path / "source", tmp_path / "a")
    typed = ["import", "rgbd-folder", str(tmp_path / "source"), "-o", str(tmp_path / "b")]
    in_words = CliRunner().invoke(cli, [*typed, *shlex.split(PRESETS["vkitti2"].options())])
    assert by_name.exit_code == in_words.exit_code == 0
    for path in (tmp_path / "a").rglob("meta.json"):
        other = tmp_path / "b" / path.parent.relative_to(tmp_path / "a")
        for name in ("image.jpg", "depth.png"):
            assert (path.parent / name).read_bytes() == (other / name).read_bytes()
        meta, other_meta = json.loads(path.read_text()), json.loads((other / "meta.json").read_text())
        # A digest tells 100 from 100.0.
        assert {**meta, "source": None} == {**other_meta, "source": None}


def test_hdf5_of_blenderproc_imports_by_the_command_that_its_preset_names(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    depth = metres(plane(SIZE))
    depth[:6] = 1e10
    for number in range(2):
        with h5py.File(tmp_path / f"{number}.hdf5", "w") as file:
            file["colors"], file["depth"] = np.full((48, 64, 3), 90, np.uint8), depth
    (command,) = re.findall("`moge (.*)`", PRESETS["blenderproc"].wants)
    words = command.replace("SOURCE", str(tmp_path)).replace("OUT", str(tmp_path / "out"))
    result = CliRunner().invoke(cli, shlex.split(words.replace("fx,fy,cx,cy", "60,60,31.5,23.5")))
    assert result.exit_code == 0, result.output
    first, *_ = sorted(path.parent for path in (tmp_path / "out").rglob("meta.json"))
    expected = plane(SIZE)
    expected[:6] = np.inf
    np.testing.assert_allclose(read_depth(first / "depth.png"), expected, rtol=3e-4)


def test_the_documentation_has_the_table_of_presets() -> None:
    text = DOCS.read_text()
    for name, preset in PRESETS.items():
        wants = f"{preset.wants}. {preset.note}".strip(". ") if preset.note else preset.wants
        row = f"| `{name}` | {preset.layout} | `{preset.options()}` | {wants} | {preset.source} |"
        assert row in text, row
    for what, why in MISSING.items():
        assert f"- {what}: {why}." in text
