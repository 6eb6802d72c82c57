"""Poses that lie beside frames: read in every form, left out where they are wrong, and of use to `moge validate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from scipy.spatial.transform import Rotation

from moge_core.cli import cli
from moge_core.io import read_meta

Array = npt.NDArray[Any]
WIDTH, HEIGHT, FOCAL = 96, 72, 70.0
CAMERA = f"{FOCAL:g},{FOCAL:g},47.5,35.5"
ROOM = np.array([2.0, 1.4, 3.0])
OPENGL = np.diag([1.0, -1, -1, 1])
STAMPS = [1305031102.175304 + number / 10 for number in range(6)]


def pose_of(step: float) -> Array:
    """Camera to world on a way through a room, turned about all axes."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("yxz", [0.12 * step, 0.03 * step, 0.02 * step]).as_matrix()
    pose[:3, 3] = (0.25 * step - 0.5, 0.05 * step, -0.2 * step)
    return pose


POSES = [pose_of(step) for step in range(6)]


def depth_in_room(pose: Array) -> Array:
    """z of the walls of a box around the origin, seen from inside, in millimetres."""
    u = (np.arange(WIDTH) - 47.5) / FOCAL
    v = (np.arange(HEIGHT) - 35.5) / FOCAL
    directions = np.stack([*np.meshgrid(u, v), np.ones((HEIGHT, WIDTH))], -1) @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        reach = (np.sign(directions) * ROOM - pose[:3, 3]) / directions
    return np.round(1000 * reach.min(axis=-1)).astype(np.uint16)


def write_frames(source: Path, image: str, depth: str) -> list[Path]:
    """One frame a pose; {n} is its number with zeros, {i} without, {t} its stamp."""
    rng = np.random.default_rng(0)
    images = []
    for number, pose in enumerate(POSES):
        words = {"n": f"{number:06d}", "i": number, "t": f"{STAMPS[number]:.6f}"}
        for pattern, values in (
            (image, rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)),
            (depth, depth_in_room(pose)),
        ):
            path = source / pattern.format(**words)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(path.suffix, values)[1].tobytes())
        images.append(source / image.format(**words))
    return images


def matrix_text(pose: Array) -> str:
    return "\n".join(" ".join(f"{number:.8e}" for number in row) for row in pose)


def write_tum(source: Path, change: Callable[[int, Array], Array] = lambda number, pose: pose) -> None:
    """A trajectory at twenty times the rate of the frames, whose stamps are no frame's and are 2.1 ms late."""
    write_frames(source, "rgb/{t}.png", "depth/{t}.png")
    lines = ["# ground truth trajectory", "# timestamp tx ty tz qx qy qz qw"]
    for number in range(-10, 120):
        pose = change(number, pose_of(number / 20))
        numbers = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
        lines.append(f"{STAMPS[0] + number / 200 + 0.0021:.6f} " + " ".join(f"{one:.7f}" for one in numbers))
    (source / "groundtruth.txt").write_text("\n".join(lines))
    for kind in ("rgb", "depth"):
        listed = [f"{stamp:.6f} {kind}/{stamp:.6f}.png" for stamp in STAMPS]
        (source / f"{kind}.txt").write_text("# list\n" + "\n".join(listed))


def write_7scenes(source: Path) -> None:
    for number, path in enumerate(write_frames(source, "seq-01/frame-{n}.color.png", "seq-01/frame-{n}.depth.png")):
        path.with_name(f"frame-{number:06d}.pose.txt").write_text(matrix_text(POSES[number]))


def write_3dmatch(source: Path) -> None:
    write_7scenes(source)
    for path in [*source.glob("seq-01/*")]:
        path.rename(source / path.name)
    (source / "camera-intrinsics.txt").write_text(f"{FOCAL} 0 47.5\n0 {FOCAL} 35.5\n0 0 1")


def write_scannet(source: Path) -> None:
    write_frames(source, "color/{i}.jpg", "depth/{i}.png")
    (source / "pose").mkdir()
    for number, pose in enumerate(POSES):
        (source / f"pose/{number}.txt").write_text(matrix_text(pose))


def write_record3d(source: Path) -> None:
    write_frames(source, "rgb/{i}.jpg", "depth/{i}.png")
    rows = []
    for pose in POSES:
        opengl = pose @ OPENGL
        rows.append([*Rotation.from_matrix(opengl[:3, :3]).as_quat(), *opengl[:3, 3]])
    content = {"w": WIDTH, "h": HEIGHT, "K": [FOCAL, 0, 0, 0, FOCAL, 0, 47.5, 35.5, 1], "poses": rows}
    (source / "metadata.json").write_text(json.dumps(content))


def write_nerfstudio(source: Path, **more: Any) -> None:
    write_frames(source, "images/frame_{n}.png", "depths/frame_{n}.png")
    frames = [
        {"file_path": f"./images/frame_{number:06d}.png", "transform_matrix": (pose @ OPENGL).tolist(), **more}
        for number, pose in enumerate(POSES)
    ]
    (source / "transforms.json").write_text(json.dumps({"frames": frames[::-1]}))


def write_arkitscenes(source: Path) -> None:
    write_frames(source, "lowres_wide/41048190_{t}.png", "lowres_depth/41048190_{t}.png")
    lines = []
    for stamp, pose in zip(STAMPS, POSES, strict=True):
        to_camera = np.linalg.inv(pose)
        numbers = [*Rotation.from_matrix(to_camera[:3, :3]).as_rotvec(), *to_camera[:3, 3]]
        lines.append(f"{stamp + 0.003:.6f} " + " ".join(f"{one:.9f}" for one in numbers))
    (source / "lowres_wide.traj").write_text("\n".join(lines))


def write_colmap(source: Path, unit: float | None = None) -> None:
    """A model; with a unit, in metres, also points on the walls, half of which each image sees."""
    write_frames(source, "images/{n}.png", "depth/{n}.png")
    model = source / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} {FOCAL} {FOCAL} 48 36\n")
    size = 1.0 if unit is None else 1 / unit
    points = np.random.default_rng(0).uniform(-1, 1, (200, 3)) * ROOM
    points[:, 2] = ROOM[2]
    lines = []
    for number, pose in enumerate(POSES):
        to_camera = np.linalg.inv(pose)
        x, y, z, w = Rotation.from_matrix(to_camera[:3, :3]).as_quat()
        numbers = [w, x, y, z, *(to_camera[:3, 3] * size)]
        lines.append(f"{number + 1} " + " ".join(f"{one:.9f}" for one in numbers) + f" 1 {number:06d}.png")
        lines.append("" if unit is None else " ".join(f"1 1 {point}" for point in range(0, 200, 2)))
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    if unit is not None:
        rows = [f"{number} " + " ".join(map(str, point * size)) + " 9 9 9 0.5" for number, point in enumerate(points)]
        (model / "points3D.txt").write_text("\n".join(rows))


def write_3d_scanner_app(source: Path) -> None:
    for number, path in enumerate(write_frames(source, "frame_{n}.jpg", "depth_{n}.png")):
        content = {"cameraPoseARFrame": (POSES[number] @ OPENGL).ravel().tolist(), "intrinsics": [1] * 9, "time": 1.5}
        path.with_suffix(".json").write_text(json.dumps(content))
    (source / "info.json").write_text("{}")


def write_polycam(source: Path) -> None:
    write_frames(source, "keyframes/images/{n}.jpg", "keyframes/depth/{n}.png")
    (source / "keyframes/cameras").mkdir()
    for number, pose in enumerate(POSES):
        opengl = pose @ OPENGL
        content = {f"t_{row}{column}": opengl[row, column] for row in range(3) for column in range(4)}
        (source / f"keyframes/cameras/{number:06d}.json").write_text(json.dumps(content))


def write_stray_scanner(source: Path) -> None:
    write_frames(source, "rgb/{n}.jpg", "depth/{n}.png")
    lines = ["timestamp, frame, x, y, z, qx, qy, qz, qw"]
    for number, pose in enumerate(POSES):
        numbers = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
        lines.append(f"{number / 60}, {number:06d}, " + ", ".join(f"{one:.9f}" for one in numbers))
    (source / "odometry.csv").write_text("\n".join(lines))


FORMS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "TUM": (write_tum, ()),
    "7-Scenes": (write_7scenes, ()),
    "3DMatch": (write_3dmatch, ()),
    "ScanNet": (write_scannet, ()),
    "Record3D": (write_record3d, ()),
    "nerfstudio": (write_nerfstudio, ()),
    "ARKitScenes": (write_arkitscenes, ()),
    "3D Scanner App": (write_3d_scanner_app, ()),
    "Polycam": (write_polycam, ()),
    "Stray Scanner": (write_stray_scanner, ()),
    "COLMAP, written from known poses": (write_colmap, ()),
    "COLMAP in metres": (partial(write_colmap, unit=1.0), ()),
    "COLMAP and depth without a unit": (partial(write_colmap, unit=1.0), ("--depth-unit", "none")),
}


def import_frames(source: Path, out: Path, *options: str, camera: str = CAMERA, scale: str = "1000") -> str:
    arguments = ["import", "rgbd-folder", str(source), "-o", str(out), "--intrinsics", camera, "--depth-scale", scale]
    result = CliRunner().invoke(cli, [*arguments, *options])
    assert result.exit_code == 0, result.output
    return result.output


def poses_in(out: Path) -> list[Any]:
    return [read_meta(path).get("pose") for path in sorted(out.rglob("meta.json"))]


def reprojects(out: Path) -> str:
    """What `moge validate` says of poses."""
    output = CliRunner().invoke(cli, ["validate", str(out)]).output
    return "\n".join(line for line in output.splitlines() if "miss its depth" in line or "reprojects" in line)


@pytest.mark.parametrize("form", FORMS)
def test_poses_of_every_form_are_camera_to_world_in_opencv_axes(tmp_path: Path, form: str) -> None:
    write, options = FORMS[form]
    write(tmp_path / "source")
    output = import_frames(tmp_path / "source", tmp_path / "out", *options)
    found = poses_in(tmp_path / "out")
    assert len(found) == len(POSES)
    # The trajectory of TUM's form is 2.1 ms late.
    expected = [pose_of(step - 0.021) for step in range(6)] if form == "TUM" else POSES
    np.testing.assert_allclose(np.array(found), expected, atol=2e-6)
    assert "6 of 6 images have a pose" in output
    assert reprojects(tmp_path / "out") == ""
    # An import that is repeated knows them.
    assert "0 instances written, 6 already there" in import_frames(tmp_path / "source", tmp_path / "out", *options)


@pytest.mark.parametrize("form", ["TUM", "7-Scenes"])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"camera": "91,91,47.5,35.5"}, "focal length 0.77 times as large"),
        ({"camera": "49,49,47.5,35.5"}, "focal length 1."),
        ({"scale": "500"}, "depth 0.5 times as large"),
        ({"scale": "2000"}, "depth 2 times as large"),
    ],
    ids=["long", "short", "twice", "half"],
)
def test_a_wrong_focal_length_or_scale_is_found_by_poses(
    tmp_path: Path, form: str, wrong: dict[str, str], told: str
) -> None:
    FORMS[form][0](tmp_path / "source")
    import_frames(tmp_path / "source", tmp_path / "out", **wrong)
    assert told in reprojects(tmp_path / "out")


def test_tum_as_published_imports_by_its_preset(tmp_path: Path) -> None:
    """Stamps of colour and depth differ, and lists tell which is which."""
    source = tmp_path / "rgbd_dataset_freiburg1_desk"
    write_tum(source)
    lines = ["# depth maps"]
    for stamp in STAMPS:
        later = f"{stamp + 0.0081:.6f}"
        (source / f"depth/{stamp:.6f}.png").rename(source / f"depth/{later}.png")
        lines.append(f"{later} depth/{later}.png")
    (source / "depth.txt").write_text("\n".join(lines))
    result = CliRunner().invoke(
        cli, ["import", "rgbd-folder", str(source), "-o", str(tmp_path / "out"), "--preset", "tum"]
    )
    assert result.exit_code == 0, result.output
    assert "6 instances written" in result.output
    assert None not in poses_in(tmp_path / "out")


def test_no_pose_is_taken_from_another_time(tmp_path: Path) -> None:
    write_tum(tmp_path / "source")
    path = tmp_path / "source/groundtruth.txt"
    lines = path.read_text().splitlines()
    # From 0.15 s on there is none.
    path.write_text("\n".join(line for line in lines if line[0] == "#" or float(line.split()[0]) < STAMPS[0] + 0.15))
    output = import_frames(tmp_path / "source", tmp_path / "out")
    assert [pose is not None for pose in poses_in(tmp_path / "out")] == [True, True, False, False, False, False]
    assert "2 of 6 images have a pose of groundtruth.txt" in output


def test_wrong_poses_are_told_and_left_out(tmp_path: Path) -> None:
    write_scannet(tmp_path / "source")
    (tmp_path / "source/pose/1.txt").write_text("-inf -inf -inf -inf\n" * 4)
    (tmp_path / "source/pose/2.txt").write_text(matrix_text(np.diag([2.0, 2, 2, 1])))
    (tmp_path / "source/pose/3.txt").write_text(matrix_text(np.diag([1.0, 1, -1, 1])))
    (tmp_path / "source/pose/4.txt").write_text("no numbers")
    output = import_frames(tmp_path / "source", tmp_path / "out")
    assert [pose is not None for pose in poses_in(tmp_path / "out")] == [True, False, False, False, False, True]
    assert "4 of 6 poses" in output
    assert "color/1.jpg" in output


def test_poses_that_are_all_the_same_are_none(tmp_path: Path) -> None:
    write_tum(tmp_path / "source", lambda _number, _pose: np.eye(4))
    output = import_frames(tmp_path / "source", tmp_path / "out")
    assert poses_in(tmp_path / "out") == [None] * 6
    assert "are the same" in output


@pytest.mark.parametrize(
    ("form", "options", "told"),
    [
        ("COLMAP of another unit", (), "is 0.37 m of depth"),
        ("nerfstudio", ("--depth-unit", "none"), "metres and depth has no unit"),
        ("TUM", ("--depth-unit", "none"), "metres and depth has no unit"),
        ("ScanNet", ("--depth-unit", "none"), "metres and depth has no unit"),
        ("Polycam", ("--kind", "disparity"), "metres and depth has no unit"),
        ("7-Scenes", ("--flip-y",), "--flip-y"),
    ],
)
def test_poses_that_do_not_go_with_depth_are_left_out(
    tmp_path: Path, form: str, options: tuple[str, ...], told: str
) -> None:
    write = partial(write_colmap, unit=0.37) if form == "COLMAP of another unit" else FORMS[form][0]
    write(tmp_path / "source")
    output = import_frames(tmp_path / "source", tmp_path / "out", *options)
    assert poses_in(tmp_path / "out") == [None] * 6
    assert told in output


@pytest.mark.parametrize("key", ["colmap_im_id", "sharpness"])
def test_poses_of_pictures_alone_have_no_unit_in_transforms_json_either(tmp_path: Path, key: str) -> None:
    write_nerfstudio(tmp_path / "source", **{key: 1})
    assert "no unit" in import_frames(tmp_path / "source", tmp_path / "out")
    assert poses_in(tmp_path / "out") == [None] * 6


def test_depth_that_a_transforms_json_names_has_the_unit_of_its_poses(tmp_path: Path) -> None:
    write_nerfstudio(tmp_path / "source", colmap_im_id=1, depth_file_path="./depths/frame.png")
    import_frames(tmp_path / "source", tmp_path / "out")
    np.testing.assert_allclose(np.array(poses_in(tmp_path / "out")), POSES, atol=1e-9)


def test_damaged_files_of_poses_cost_no_frame(tmp_path: Path) -> None:
    write_frames(tmp_path / "source", "rgb/{t}.png", "depth/{t}.png")
    for name, text in (
        ("groundtruth.txt", "1 2 3\n"),
        ("metadata.json", "{"),
        ("transforms.json", '{"frames": [{"file_path": "a", "transform_matrix": "x"}]}'),
        ("a.traj", "\x00"),
        ("odometry.csv", "a, b\n1, 2, 3"),
        ("cameras/0.json", "[]"),
    ):
        path = tmp_path / "source" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    output = import_frames(tmp_path / "source", tmp_path / "out")
    assert "6 instances written" in output
    assert output.count("No poses were read of") == 5


def test_a_trajectory_serves_its_own_sequence(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tum(tmp_path / "source" / name)
    (tmp_path / "source/two/groundtruth.txt").unlink()
    import_frames(tmp_path / "source", tmp_path / "out")
    assert [pose is None for pose in poses_in(tmp_path / "out")] == [False] * 6 + [True] * 6
