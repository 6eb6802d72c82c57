"""Files of camera poses, in the forms in which recordings have them. All become camera to world in OpenCV's axes.

form                    what it holds                                                        axes of its camera
TUM, groundtruth.txt    time tx ty tz qx qy qz qw, camera to world                           OpenCV
ARKitScenes, *.traj     time, rotation vector, translation, world to camera                  OpenCV
7-Scenes, ScanNet, ...  a 4x4 matrix a file, camera to world                                 OpenCV
Record3D                qx qy qz qw tx ty tz a frame, camera to world                        OpenGL
nerfstudio              transform_matrix a frame, camera to world                            OpenGL
3D Scanner App          cameraPoseARFrame, 16 numbers a file, camera to world                OpenGL
Polycam                 t_00 to t_23 a file, camera to world                                 OpenGL
Stray Scanner           odometry.csv: time, frame, x, y, z, qx, qy, qz, qw, camera to world  OpenCV
COLMAP                  qw qx qy qz tx ty tz a picture, world to camera                      OpenCV

TUM: https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats; ARKitScenes: threedod/benchmark_scripts of
https://github.com/apple/ARKitScenes; 7-Scenes: https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes/;
ScanNet: SensReader of https://github.com/ScanNet/ScanNet; Record3D: process_data/record3d_utils.py of
https://github.com/nerfstudio-project/nerfstudio; nerfstudio: https://docs.nerf.studio/quickstart/data_conventions.html;
3D Scanner App: psegs/datasets/ios_lidar.py of https://github.com/pwais/psegs; Polycam: https://github.com/PolyCam/polyform;
Stray Scanner: https://github.com/kekeblom/StrayVisualizer; COLMAP: https://colmap.github.io/format.html.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.colmap_model import model_file, read_images
from moge_core.datasets.importers.frame_lists import words_of_lines
from moge_core.datasets.importers.stamps import to_nanoseconds
from moge_core.errors import FormatError
from moge_core.io import limits
from moge_core.io.files import read_bytes

Poses: TypeAlias = npt.NDArray[np.float64]
"""Camera to world, (N, 4, 4)."""

# y up and z backward become y down and z forward.
_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
# How far a matrix may be from a rotation: published ones are rounded.
_MOST_SKEW = 5e-3
# What nerfstudio and Instant-NGP write into a transforms.json that they made of a reconstruction, and of depth.
_OF_RECONSTRUCTIONS = frozenset({"colmap_im_id", "sharpness"})
_OF_DEPTH = frozenset({"depth_file_path", "depth_path", "integer_depth_scale"})
# A file of one matrix is no larger, nor is what an app writes of one frame.
_MOST_MATRIX_BYTES = 1 << 14
_MOST_FRAME_BYTES = 1 << 18


def are_rigid(poses: Poses) -> npt.NDArray[np.bool_]:
    """Which of the matrices (N, 4, 4) are motions of a rigid body: finite, not scaled, not mirrored. (N,)"""
    finite = np.asarray(np.isfinite(poses).all(axis=(1, 2)))
    known = np.where(finite[:, None, None], poses, np.eye(4))
    turns = known[:, :3, :3]
    skew = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    last_row = np.abs(known[:, 3] - [0, 0, 0, 1]).max(axis=1)
    rigid: npt.NDArray[np.bool_] = finite & (skew < _MOST_SKEW) & (last_row < 1e-6) & (np.linalg.det(turns) > 0)
    return rigid


@dataclass(frozen=True)
class Trajectory:
    """Poses by time, in the order of time.

    Attributes:
        times: nanoseconds (N,).
        poses: (N, 4, 4).
    """

    times: npt.NDArray[np.int64]
    poses: Poses

    def at(self, times: npt.NDArray[np.int64], most: int) -> tuple[Poses, npt.NDArray[np.bool_]]:
        """Poses (M, 4, 4) at other times (M,), and for which there are any.

        Between two poses that are both near enough it is interpolated, as ETH3D's and ARKitScenes' tools do; else it is
        the nearest of those that are.

        Args:
            times: nanoseconds.
            most: nanoseconds to a pose that is near enough.
        """
        from scipy.spatial.transform import Rotation, Slerp  # type: ignore[import-untyped]

        if not len(self.times):
            return np.empty((len(times), 4, 4)), np.zeros(len(times), bool)
        after = np.searchsorted(self.times, times).clip(0, len(self.times) - 1)
        before = np.where(self.times[after] > times, after - 1, after).clip(0)
        gap_before, gap_after = (np.abs(self.times[index] - times) for index in (before, after))
        nearest = np.where(gap_before <= gap_after, before, after)
        found = self.poses[nearest].copy()
        between = (before < after) & (gap_before <= most) & (gap_after <= most)
        if between.any():
            # Relative to the first, so that seconds keep their nanoseconds.
            seconds = (self.times - self.times[0]) / 1e9
            wanted = (times[between] - self.times[0]) / 1e9
            turns = Slerp(seconds, Rotation.from_matrix(self.poses[:, :3, :3]))
            found[between, :3, :3] = turns(wanted).as_matrix()
            for axis in range(3):
                found[between, axis, 3] = np.interp(wanted, seconds, self.poses[:, axis, 3])
        return found, np.minimum(gap_before, gap_after) <= most


def read_trajectory(path: Path) -> tuple[Trajectory, int]:
    """A trajectory in TUM's form, or in ARKitScenes' if its suffix is .traj; and how many lines hold no pose.

    Raises:
        FormatError: lines of other than 8 (.traj: 7) numbers.
    """
    from scipy.spatial.transform import Rotation

    of_arkit = path.suffix == ".traj"
    columns = 7 if of_arkit else 8
    times: list[int] = []
    rows: list[list[float]] = []
    for words in words_of_lines(path):
        time = to_nanoseconds(words[0])
        try:
            numbers = [float(word) for word in words[1:]]
        except ValueError:
            numbers = []
        if time is None or len(numbers) != columns - 1:
            rule = f"must have lines of a time and {columns - 1} numbers"
            raise FormatError(path, rule, found=" ".join(words)[:80])
        times.append(time)
        rows.append(numbers)
    values = np.array(rows, np.float64).reshape(-1, columns - 1)
    turn, shift = (values[:, :3], values[:, 3:]) if of_arkit else (values[:, 3:], values[:, :3])
    usable = np.isfinite(values).all(axis=1) & (of_arkit | (np.linalg.norm(turn, axis=1) > 0))
    poses = np.tile(np.eye(4), (int(usable.sum()), 1, 1))
    if usable.any():
        kept = turn[usable]
        poses[:, :3, :3] = (Rotation.from_rotvec(kept) if of_arkit else Rotation.from_quat(kept)).as_matrix()
    poses[:, :3, 3] = shift[usable]
    to_world = np.asarray(np.linalg.inv(poses) if of_arkit else poses, np.float64)
    known = np.array(times, np.int64)[usable]
    # Of lines with one stamp the first counts.
    ordered, first = np.unique(known, return_index=True)
    return Trajectory(ordered, to_world[first]), int((~usable).sum())


def read_matrix(path: Path) -> Poses:
    """The 4x4 matrix of a text file, (1, 4, 4); its last row may be missing.

    Raises:
        FormatError: other than 16 or 12 numbers.
    """
    try:
        words = read_bytes(path, limit=_MOST_MATRIX_BYTES).decode("utf-8-sig").replace(",", " ").split()
        numbers = [float(word) for word in words]
    except (UnicodeDecodeError, ValueError) as error:
        raise FormatError(path, "must hold a 4x4 matrix of numbers", found=error) from error
    if len(numbers) not in {12, 16}:
        raise FormatError(path, "must hold a 4x4 matrix", found=f"{len(numbers)} numbers")
    return np.array([*numbers, 0, 0, 0, 1][:16], np.float64).reshape(1, 4, 4)


def read_frame_json(path: Path) -> Poses:
    """The pose of a JSON file of one frame, as 3D Scanner App and Polycam write it, (1, 4, 4).

    Raises:
        FormatError: no such file.
    """
    try:
        content = json.loads(read_bytes(path, limit=_MOST_FRAME_BYTES))
        numbers = content.get("cameraPoseARFrame") or [
            content[f"t_{row}{column}"] for row in "012" for column in "0123"
        ]
        pose = np.array([*numbers, 0, 0, 0, 1][:16], np.float64).reshape(1, 4, 4)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(path, "must hold cameraPoseARFrame or t_00 to t_23", found=error) from error
    return pose @ _FROM_OPENGL


@dataclass(frozen=True)
class NamedPoses:
    """Poses by the names of their pictures, or by their numbers.

    Attributes:
        names: as the file has them.
        poses: (N, 4, 4).
        has_unit: whether they are in metres; a reconstruction from pictures alone has no unit.
    """

    names: list[str]
    poses: Poses
    has_unit: bool


def read_odometry(path: Path) -> NamedPoses:
    """Poses of Stray Scanner's odometry.csv, by the numbers of frames.

    Raises:
        FormatError: lines of other than nine columns.
    """
    from scipy.spatial.transform import Rotation

    rows = [*words_of_lines(path)][1:]
    try:
        values = np.array([[float(word) for word in words[2:]] for words in rows], np.float64).reshape(len(rows), 7)
    except ValueError as error:
        raise FormatError(path, "must have lines of time, frame, x, y, z, qx, qy, qz, qw", found=error) from error
    poses = np.full((len(values), 4, 4), np.nan)
    usable = np.isfinite(values).all(axis=1) & (np.linalg.norm(values[:, 3:], axis=1) > 0)
    poses[usable] = np.eye(4)
    if usable.any():
        poses[usable, :3, :3] = Rotation.from_quat(values[usable, 3:]).as_matrix()
    poses[usable, :3, 3] = values[usable, :3]
    return NamedPoses([words[1] for words in rows], poses, has_unit=True)


def read_json_poses(path: Path) -> NamedPoses | None:
    """Poses of Record3D's metadata or of a transforms.json; None of a file that holds none.

    Raises:
        FormatError: no JSON, or poses of another form.
    """
    try:
        content = json.loads(read_bytes(path, limit=limits.MAX_FILE_BYTES))
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "must be JSON", found=error) from error
    if not isinstance(content, Mapping):
        return None
    try:
        if isinstance(content.get("poses"), list):
            return _of_record3d(content["poses"])
        if isinstance(content.get("frames"), list):
            return _of_transforms(content)
    except (TypeError, ValueError, KeyError) as error:
        raise FormatError(path, "must have poses of numbers", found=error) from error
    return None


def _of_record3d(rows: list[Any]) -> NamedPoses:
    from scipy.spatial.transform import Rotation

    values = np.array(rows, np.float64).reshape(-1, 7)
    poses = np.full((len(values), 4, 4), np.nan)
    usable = np.isfinite(values).all(axis=1) & (np.linalg.norm(values[:, :4], axis=1) > 0)
    poses[usable] = np.eye(4)
    if usable.any():
        poses[usable, :3, :3] = Rotation.from_quat(values[usable, :4]).as_matrix()
    poses[usable, :3, 3] = values[usable, 4:]
    return NamedPoses([str(number) for number in range(len(values))], poses @ _FROM_OPENGL, has_unit=True)


def _of_transforms(content: Mapping[str, Any]) -> NamedPoses | None:
    frames = [
        one for one in content["frames"] if isinstance(one, Mapping) and {"transform_matrix", "file_path"} <= one.keys()
    ]
    if not frames:
        return None
    poses = np.array([one["transform_matrix"] for one in frames], np.float64)
    if poses.shape[1:] == (3, 4):
        poses = np.concatenate([poses, np.tile([[[0.0, 0, 0, 1]]], (len(poses), 1, 1))], axis=1)
    poses = poses.reshape(-1, 4, 4) @ _FROM_OPENGL
    poses[:, :3, 3] /= float(content.get("applied_scale", 1.0))
    # Depth that a file names beside its poses has their unit.
    keys = {key for one in (content, *frames) for key in one}
    from_pictures = bool(keys & _OF_RECONSTRUCTIONS) and not keys & _OF_DEPTH
    return NamedPoses([str(one["file_path"]) for one in frames], poses, has_unit=not from_pictures)


def read_colmap_poses(folder: Path) -> NamedPoses | None:
    """Poses of a COLMAP model; None where there is none in the folder.

    Raises:
        FormatError: damaged.
    """
    path = model_file(folder, "images")
    if path is None or model_file(folder, "cameras") is None:
        return None
    named = [(image.name, colmap_pose(image.rotation, image.translation)) for image in read_images(path)]
    poses = np.array([pose for _, pose in named]).reshape(-1, 4, 4)
    return NamedPoses([name for name, _ in named], poses, has_unit=False)


def colmap_pose(rotation: npt.NDArray[np.float64], translation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Camera to world (4, 4) of COLMAP's rotation (3, 3) and translation (3,), which are world to camera."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ translation
    return pose


def colmap_folders(folder: Path) -> Iterator[Path]:
    """Where a COLMAP model of pictures in or below a folder may be."""
    for inner in ("", "sparse", "sparse/0", "colmap", "colmap/sparse", "colmap/sparse/0"):
        yield folder / inner
