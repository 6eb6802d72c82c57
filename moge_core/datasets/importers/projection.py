"""From what a sensor measured to z in the camera: ray distances, disparities, point clouds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.occlusion import hidden_returns
from moge_core.datasets.importers.records import StoredDepth
from moge_core.geometry.rays import ray_lengths


def metric_z(
    stored: npt.NDArray[Any],
    depth: StoredDepth,
    intrinsics: npt.NDArray[np.floating[Any]],
    *,
    rows: npt.NDArray[np.int64] | None = None,
    columns: npt.NDArray[np.int64] | None = None,
    metres_a_unit: float = 1.0,
) -> npt.NDArray[np.float32]:
    """Depth along the optical axis from stored values.

    Markers (`invalid`, `infinite`, `far_from`) are compared with the stored values, before offset and scale.

    Args:
        stored: (H, W), integers or floats; decoded, where their encoding is not linear.
        depth: what the values mean.
        intrinsics: (3, 3), normalised.
        rows, columns: (h,) and (w,), the pixels to convert; by default all.
        metres_a_unit: of the returned depth, for `infinite_from`, which is in metres.

    Returns:
        z (h, w): NaN where unknown, +Inf where infinitely far; metres, or without unit for a disparity of unknown
        baseline (z = fx / (disparity + doffs)).
    """
    height, width = stored.shape
    rows = np.arange(height) if rows is None else rows
    columns = np.arange(width) if columns is None else columns
    if (rows.size, columns.size) != (height, width):
        stored = stored[rows[:, None], columns]
    infinite = marked(stored, depth.infinite)
    unknown = (np.isnan(stored) | marked(stored, depth.invalid)) & ~infinite
    if depth.offset == 0:
        unknown |= (stored == 0) & ~infinite
    with np.errstate(over="ignore"):
        values = (stored.astype(np.float64) - depth.offset) / scale_of(stored, depth)
    unknown |= np.isinf(values) & np.isfinite(stored)
    if depth.kind in {"z", "ray"}:
        z, distance = values, values
        if depth.kind == "ray":
            z = values / ray_lengths(height, width, intrinsics, rows=rows, columns=columns)
        if depth.far_from is not None:
            infinite |= (stored >= depth.far_from) & ~unknown
    else:
        with np.errstate(divide="ignore", over="ignore"):
            if depth.kind == "disparity":
                z = (depth.baseline or 1.0) * float(intrinsics[0, 0]) * width / (values + depth.doffs)
            else:
                z = 1.0 / values
                # An inverse of zero may be the far end, or what nobody measured.
                unknown |= np.isinf(z)
        unknown |= np.isinf(values)
        distance = z
    if depth.infinite_from is not None:
        infinite |= (distance * metres_a_unit >= depth.infinite_from) & ~unknown
    z = np.where(unknown | ~(z > 0), np.nan, z)
    z = np.where(infinite, np.inf, z)
    with np.errstate(over="ignore", under="ignore"):
        narrow = z.astype(np.float32)
    # What float32 cannot hold is no depth; only what was infinite is infinitely far.
    lost = (np.isinf(narrow) & np.isfinite(z)) | (narrow == 0)
    narrow[lost] = np.nan
    return narrow


def scale_of(stored: npt.NDArray[Any], depth: StoredDepth) -> float:
    """Stored units a metre: as was said, or else millimetres for integers of z and ray, and 1."""
    return depth.scale or (1000.0 if stored.dtype.kind in "iu" and depth.kind in {"z", "ray"} else 1.0)


def marked(stored: npt.NDArray[Any], markers: tuple[float, ...]) -> npt.NDArray[np.bool_]:
    """Where a stored value is one of the markers."""
    found: npt.NDArray[np.bool_] = np.zeros(stored.shape, np.bool_)
    for marker in markers:
        found |= _equals(stored, marker)
    return found


def project_points(
    points: npt.NDArray[np.floating[Any]],
    intrinsics: npt.NDArray[np.floating[Any]],
    width: int,
    height: int,
    *,
    drop_hidden: bool = True,
    sensor: tuple[float, float, float] | None = None,
) -> npt.NDArray[np.float32]:
    """Sparse depth map of a point cloud: the nearest point of each pixel.

    A LiDAR sits beside the camera and looks past the edges of near things at what the camera cannot see there. Such
    points would stand in the middle of the thing that hides them; `occlusion.hidden_returns` finds them.

    Args:
        points: (N, 3) in camera axes; those with z <= 0 or not finite are not seen.
        intrinsics: (3, 3), normalised.
        width, height: of the picture.
        drop_hidden: leave out points that nearer surfaces hide from the camera.
        sensor: where the LiDAR stood, in camera axes; without it only few of the hidden points can be told.

    Returns:
        depth (H, W), NaN where no point falls.
    """
    cloud: npt.NDArray[np.float64] = np.asarray(points, np.float64)
    cloud = cloud[np.isfinite(cloud).all(axis=1) & (cloud[:, 2] > 1e-6)]
    focal = float(intrinsics[0, 0]) * width, float(intrinsics[1, 1]) * height
    centre = float(intrinsics[0, 2]) * width, float(intrinsics[1, 2]) * height
    uv: npt.NDArray[np.float64] = cloud[:, :2] / cloud[:, 2:] * focal + centre
    seen = ((uv >= 0) & (uv < (width, height))).all(axis=1)
    cloud, uv = cloud[seen], uv[seen]
    if drop_hidden:
        place = None if sensor is None else np.asarray(sensor, np.float64)
        kept = ~hidden_returns(cloud, uv, width * height, focal, place)
        cloud, uv = cloud[kept], uv[kept]
    column, row = np.floor(uv).astype(np.int64).T
    depth = np.full(height * width, np.inf)
    np.minimum.at(depth, row * width + column, cloud[:, 2])
    return np.where(np.isinf(depth), np.nan, depth).reshape(height, width).astype(np.float32)


def _equals(stored: npt.NDArray[Any], marker: float) -> npt.NDArray[np.bool_]:
    """Where a stored value is a marker such as 65535, 1e10 or inf, as the file's own type holds it."""
    found: npt.NDArray[np.bool_]
    if np.isnan(marker):
        found = np.isnan(stored)
        return found
    if stored.dtype.kind in "iu":
        limits = np.iinfo(stored.dtype)
        is_held = limits.min <= marker <= limits.max and marker == int(marker)
    else:
        # Rounded first: the greatest float32 is typed 3.4028235e38, which is a little more.
        with np.errstate(over="ignore"):
            is_held = np.isinf(marker) or bool(np.isfinite(stored.dtype.type(marker)))
    # What the type cannot hold is nowhere.
    found = stored == stored.dtype.type(marker if is_held else 0)
    return found if is_held else np.zeros_like(found)
