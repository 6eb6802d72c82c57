"""Pixel intrinsics as people have them: four numbers, or a file in one of the usual spellings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import FormatError, InputError

_MATRIX_KEYS = ("intrinsic_matrix", "camera_matrix", "intrinsics", "intrinsic", "K")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PixelIntrinsics:
    """Focal lengths and principal point in pixels, counted from the centre of the first pixel.

    Attributes:
        size: (width, height) of the image that they refer to, where that is known.
        depth_scale: units a metre, where the file says so; only compared with what the user says.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    size: tuple[int, int] | None = None
    depth_scale: float | None = None

    def matrix(self) -> npt.NDArray[np.float64]:
        """The 3x3 matrix in pixels."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)


def parse_intrinsics(source: str | Path, *, search_dir: Path | None = None) -> PixelIntrinsics:
    """Read `fx,fy,cx,cy`, or a file that holds them.

    Files: a text file with a 3x3 or 4x4 matrix or with the four numbers (ARKitScenes' .pincam has the size before
    them); JSON with the keys fx, fy, cx, cy (also one
    level down, as in Replica's cam_params.json) or with a matrix under `intrinsic_matrix` (Open3D, column by column),
    `camera_matrix`, `intrinsics` or `K`, row by row, nested or as OpenCV's {"rows", "cols", "data"}.

    Args:
        source: four numbers separated by commas or blanks, or a path.
        search_dir: second place to look for a relative path.

    Raises:
        InputError: neither four numbers nor a file.
        FormatError: the file holds no camera matrix, or more than a pinhole camera (skew).
    """
    numbers = _numbers(str(source))
    if numbers is not None:
        if len(numbers) != 4:
            fix = "Write decimals with a point." if len(numbers) > 4 else None
            raise InputError("intrinsics", "must be the four numbers fx,fy,cx,cy or a file", found=str(source), fix=fix)
        return _checked(numbers, "intrinsics")
    places = [Path(source), *([search_dir / source] if search_dir is not None else [])]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = " and ".join(str(place.absolute()) for place in places)
        raise InputError("intrinsics", "must be the four numbers fx,fy,cx,cy or a file", found=f"no file at {looked}")
    if path.stat().st_size > _MAX_BYTES:
        raise FormatError(path, f"a file of intrinsics is smaller than {_MAX_BYTES >> 20} MiB")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(path, "must be a text or JSON file with intrinsics", found=error) from error
    return _parse_json(text, path) if text.lstrip().startswith(("{", "[")) else _parse_text(text, path)


def intrinsics_from_matrix(value: Any, where: object) -> PixelIntrinsics:
    """Intrinsics of a 3x3 or 4x4 camera matrix in pixels, written row by row or column by column.

    Args:
        value: numbers, nested or 9 in a row.
        where: what errors name.

    Raises:
        FormatError: no camera matrix, or skew.
        InputError: focal lengths that are no pixels.
    """
    try:
        K = np.asarray(value, dtype=np.float64)
        K = K.reshape(3, 3) if K.size == 9 else K
    except (TypeError, ValueError) as error:
        raise FormatError(where, "must be a 3x3 matrix of numbers", found=error) from error
    if K.shape == (4, 4):
        K = K[:3, :3]
    if K.shape != (3, 3):
        raise FormatError(where, "must be a 3x3 matrix", found=f"shape {K.shape}")
    # A camera's last row is 0 0 1. Where its last column is, the matrix was written column by column.
    if not np.allclose(K[2], (0, 0, 1)):
        if not np.allclose(K[:, 2], (0, 0, 1)):
            raise FormatError(where, "must be a camera matrix, with 0 0 1 as its last row or column", found=K.tolist())
        K = K.T
    if abs(K[0, 1]) > 1e-6 * abs(K[0, 0]) or K[1, 0] != 0:
        raise FormatError(
            where,
            "must have no skew; instances are pinhole cameras",
            found=f"K[0][1] = {K[0, 1]:g}, K[1][0] = {K[1, 0]:g}",
        )
    return _checked([K[0, 0], K[1, 1], K[0, 2], K[1, 2]], where)


def _parse_text(text: str, path: Path) -> PixelIntrinsics:
    numbers = _numbers(text)
    if numbers is not None and len(numbers) == 4:
        return _checked(numbers, path)
    if numbers is not None and len(numbers) == 6 and min(numbers[:2]) >= 1 and path.suffix == ".pincam":
        return replace(_checked(numbers[2:], path), size=(round(numbers[0]), round(numbers[1])))
    if numbers is None or len(numbers) not in (9, 16):
        found = "other text" if numbers is None else f"{len(numbers)} numbers"
        raise FormatError(path, "must hold a 3x3 or 4x4 camera matrix or fx fy cx cy", found=found)
    side = math.isqrt(len(numbers))
    return intrinsics_from_matrix(np.array(numbers).reshape(side, side)[:3, :3], path)


def _parse_json(text: str, path: Path) -> PixelIntrinsics:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "must be JSON", found=error) from error
    if isinstance(value, list):
        return intrinsics_from_matrix(value, path)
    candidates = [value, *(inner for inner in value.values() if isinstance(inner, Mapping))]
    for camera in candidates:
        found = _from_mapping(camera, path)
        if found is not None:
            size = _size(camera) or _size(value)
            scale = next((_number(camera[key]) for key in ("scale", "depth_scale") if key in camera), None)
            return replace(found, size=size, depth_scale=scale)
    raise FormatError(
        path,
        f"must hold fx, fy, cx, cy or a matrix under one of {', '.join(_MATRIX_KEYS)}",
        found="the keys " + ", ".join(sorted(value)[:10]) if value else "no keys",
        fix="Give the four numbers instead: --intrinsics fx,fy,cx,cy.",
    )


def _from_mapping(camera: Mapping[str, Any], path: Path) -> PixelIntrinsics | None:
    if all(key in camera for key in ("fx", "fy", "cx", "cy")):
        return _checked([_number(camera[key]) for key in ("fx", "fy", "cx", "cy")], path)
    for key in _MATRIX_KEYS:
        if key in camera:
            matrix = camera[key]
            if isinstance(matrix, Mapping) and "data" in matrix:
                matrix = matrix["data"]
            if not isinstance(matrix, Mapping):
                return intrinsics_from_matrix(matrix, f"{path}: {key}")
    return None


def _checked(numbers: list[float], where: object) -> PixelIntrinsics:
    fx, fy, cx, cy = numbers
    text = f"fx = {fx:g}, fy = {fy:g}, cx = {cx:g}, cy = {cy:g}"
    if not all(math.isfinite(number) for number in numbers) or fx <= 0 or fy == 0:
        raise InputError(where, "must be finite pixel intrinsics with fx > 0 and fy not 0", found=text)
    if fx < 10 and 0 < cx < 1 and 0 < cy < 1:
        raise InputError(
            where,
            "must be intrinsics in pixels",
            found=f"{text}, which look normalised",
            fix="Multiply by the image size: fx * W, fy * H, cx * W - 0.5, cy * H - 0.5.",
        )
    return PixelIntrinsics(fx, fy, cx, cy)


def _numbers(text: str) -> list[float] | None:
    parts = [part for part in re.split(r"[\s,;]+", text.strip().strip("[]")) if part]
    try:
        return [float(part) for part in parts] or None
    except ValueError:
        return None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _size(camera: Mapping[str, Any]) -> tuple[int, int] | None:
    for names in (("width", "height"), ("w", "h")):
        width, height = (camera.get(name) for name in names)
        if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
            return width, height
    return None
