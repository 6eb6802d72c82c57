"""A tilted plane before a known camera: what importers read, and whether what they wrote is that plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from moge_core.geometry import depth_map_to_point_map
from moge_core.io import read_depth, read_image_size, read_meta

Array = npt.NDArray[Any]

NORMAL = np.array([0.3, -0.2, 0.8]) / np.linalg.norm([0.3, -0.2, 0.8])
OFFSET = 2.0


def plane_z(width: int, height: int, camera: Sequence[float]) -> Array:
    """z (H, W) of the plane NORMAL . X = OFFSET; `camera` is fx, fy, cx, cy from the centre of the first pixel."""
    fx, fy, cx, cy = camera
    u = (np.arange(width) - cx) / fx
    v = (np.arange(height) - cy) / fy
    return OFFSET / (NORMAL[0] * u[None, :] + NORMAL[1] * v[:, None] + NORMAL[2])


def ray_distance(z: Array, camera: Sequence[float]) -> Array:
    """Distance to the camera (H, W) of points at depth z."""
    fx, fy, cx, cy = camera
    u = (np.arange(z.shape[1]) - cx) / fx
    v = (np.arange(z.shape[0]) - cy) / fy
    return z * np.sqrt(1 + u[None, :] ** 2 + v[:, None] ** 2)


def picture(width: int, height: int) -> Array:
    """A smooth image (H, W, 3) that has neither symmetry."""
    x, y = np.linspace(0, 1, width)[None, :], np.linspace(0, 1, height)[:, None]
    return np.stack([200 * x + 0 * y, 180 * y + 0 * x, 60 + 100 * x * y], axis=-1).astype(np.uint8)


def check_is_plane(folder: Path, *, unit: float | None = 1.0, tolerance: float = 4e-4) -> Array:
    """The instance's points lie on the plane, all pixels known unless it was told otherwise; returns its depth."""
    depth, meta = read_depth(folder / "depth.png"), read_meta(folder / "meta.json")
    assert read_image_size(folder / "image.jpg") == depth.shape[::-1]
    assert meta.get("depth_unit") == unit
    known = np.isfinite(depth)
    assert known.any()
    points = depth_map_to_point_map(depth, meta["intrinsics"])[known].astype(np.float64)
    assert np.abs(points @ NORMAL - OFFSET).max() < tolerance * OFFSET
    return depth


def check_camera(folder: Path, camera: Sequence[float], width: int, height: int) -> None:
    """meta.json has this camera, normalised by the size that it refers to."""
    fx, fy, cx, cy = camera
    expected = [[fx / width, 0, (cx + 0.5) / width], [0, fy / height, (cy + 0.5) / height], [0, 0, 1]]
    assert np.array(read_meta(folder / "meta.json")["intrinsics"]) == pytest.approx(np.array(expected), abs=1e-7)
