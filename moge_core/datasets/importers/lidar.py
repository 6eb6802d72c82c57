"""What the layouts of driving data share: poses, LiDAR sweeps in the camera's axes, tables in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import StoredPoints
from moge_core.errors import FormatError, InputError
from moge_core.io import limits
from moge_core.io.files import read_bytes

Transform: TypeAlias = npt.NDArray[np.float64]
"""A rigid motion (4, 4) between two frames of axes, for points as columns."""


def transform(rotation: Any, translation: Any, where: object) -> Transform:
    """The motion x -> rotation x + translation.

    Args:
        rotation: a matrix (3, 3), or a quaternion w x y z of any length but zero.
        translation: three numbers.
        where: what errors name.

    Raises:
        FormatError: no rotation, or numbers that are not finite.
    """
    try:
        turn = np.asarray(rotation, np.float64)
        shift = np.asarray(translation, np.float64).reshape(3)
    except (TypeError, ValueError) as error:
        raise FormatError(where, "must be a pose of numbers", found=error) from error
    if turn.shape == (4,) and np.linalg.norm(turn) > 0:
        turn = _matrix_of_quaternion(turn / np.linalg.norm(turn))
    # Published rotations are rounded, some to six digits.
    if turn.shape != (3, 3) or not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) or not np.isfinite(shift).all():
        raise FormatError(where, "must be a rotation and a translation", found=f"{rotation} and {translation}")
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = turn, shift
    return moved


def inverse(motion: Transform) -> Transform:
    """The motion back."""
    back = np.eye(4)
    back[:3, :3] = motion[:3, :3].T
    back[:3, 3] = -motion[:3, :3].T @ motion[:3, 3]
    return back


def stored_sweep(
    path: Path, read: Callable[[Path], npt.NDArray[Any]], to_camera: Transform, *, own_radius: float = 0.0
) -> StoredPoints:
    """A sweep that is read in the camera's axes.

    Args:
        path: its file.
        read: gives the stored values (N, 3 or more), x y z of the sensor first.
        to_camera: from the sensor to the camera.
        own_radius: returns nearer to the sensor than this along its x and y axes are of the vehicle that carries it.
    """

    def read_in_camera(file: Path) -> npt.NDArray[np.float64]:
        stored = read(file)
        if stored.ndim != 2 or stored.shape[1] < 3 or stored.dtype.kind not in "iuf":
            found = f"{stored.dtype} of shape {stored.shape}"
            raise FormatError(file, "must hold points (N, 3 or more)", found=found)
        points = stored[:, :3].astype(np.float64)
        points = points[np.isfinite(points).all(axis=1)]
        points = points[np.abs(points[:, :2]).max(axis=1, initial=0.0) >= own_radius]
        moved: npt.NDArray[np.float64] = points @ to_camera[:3, :3].T + to_camera[:3, 3]
        return moved

    x, y, z = (float(value) for value in to_camera[:3, 3])
    return StoredPoints(path, read_in_camera, sensor=(x, y, z))


def read_float_rows(path: Path, num_columns: int) -> npt.NDArray[np.float32]:
    """Rows (N, num_columns) of a headerless file of little-endian 32-bit floats.

    Raises:
        FormatError: the file ends within a row, or is empty.
    """
    data = read_bytes(path, limit=limits.MAX_FILE_BYTES)
    if len(data) % (4 * num_columns):
        rule = f"must hold rows of {num_columns} 32-bit floats"
        raise FormatError(
            path, rule, found=f"{len(data):,} bytes, {len(data) % (4 * num_columns)} more than whole rows"
        )
    return np.frombuffer(data, "<f4").reshape(-1, num_columns).astype(np.float32)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        FormatError: no JSON.
        OSError: it cannot be read.
    """
    try:
        return json.loads(read_bytes(path, limit=limits.MAX_FILE_BYTES))
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "must be JSON", found=error) from error


def entry(table: Any, *keys: str | int, where: object) -> Any:
    """The value under a row of keys in nested JSON.

    Raises:
        FormatError: it is not there.
    """
    value = table
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            listed = f"keys {', '.join(sorted(value)[:8])}" if isinstance(value, Mapping) else type(value).__name__
            rule = f"must hold {'.'.join(map(str, keys))}"
            raise FormatError(where, rule, found=f"no {key} among {listed}") from None
    return value


def text(table: Any, *keys: str | int, where: object) -> str:
    """The string under a row of keys in nested JSON.

    Raises:
        FormatError: it is not there, or no string.
    """
    value = entry(table, *keys, where=where)
    if not isinstance(value, str):
        raise FormatError(where, f"{'.'.join(map(str, keys))} must be a string", found=f"{value!r:.80}")
    return value


def with_stated_size(camera: PixelIntrinsics, row: Mapping[str, Any]) -> PixelIntrinsics:
    """The camera with the image size that a table's row states, where it does."""
    width, height = row.get("width"), row.get("height")
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        return camera
    return replace(camera, size=(width, height))


def file_below(root: Path, name: Any, where: object) -> Path:
    """The file that a table names, below the data's folder.

    Raises:
        FormatError: no file name, one that leads out of the folder, or there is no such file.
    """
    if not isinstance(name, str) or not name:
        raise FormatError(where, "must name a file", found=repr(name))
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise FormatError(where, "must name a file inside the data's folder", found=repr(name))
    path = root / name
    if not path.is_file():
        raise FormatError(name, "must be a file of the data", found="no such file", fix="Get it, or ignore its frame.")
    return path


def folders_with(source: Path, pattern: str, *, depth: int = 2) -> list[Path]:
    """What `pattern` finds in the source and in folders up to `depth` below it, sorted; hidden ones are passed by."""
    found = [path for level in range(depth + 1) for path in source.glob("*/" * level + pattern)]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(source).parts))


def chosen(wanted: Sequence[str] | None, there: Sequence[str], option: str) -> list[str]:
    """The names to take: all that are there, or those that were asked for.

    Raises:
        InputError: one that is asked for is not there.
    """
    for name in wanted or ():
        if name not in there:
            raise InputError(option, f"must be one of {', '.join(there) or 'none'}", found=repr(name))
    return list(there) if not wanted else [name for name in there if name in wanted]


def _matrix_of_quaternion(quaternion: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
