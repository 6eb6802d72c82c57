"""From what a sensor measured to z in the camera: ray distances, disparities, point clouds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.records import StoredDepth

# A point is hidden where this share of the returns around it is nearer by more than that share of its depth. Beside a
# straight edge half of them are. Foliage scatters by less.
_HIDING_NEIGHBOURS, _HIDING_STEP = 0.85, 0.25
_NEIGHBOURS = 16


def metric_z(
    stored: npt.NDArray[Any], depth: StoredDepth, intrinsics: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float32]:
    """Depth along the optical axis from stored values.

    Args:
        stored: (H, W), integers or floats.
        depth: what the values mean.
        intrinsics: (3, 3), normalised.

    Returns:
        z (H, W): NaN where unknown, +Inf where infinitely far; metres, or without unit for a disparity of unknown
        baseline (z = fx / (disparity + doffs)).
    """
    height, width = stored.shape
    is_integer = stored.dtype.kind in "iu"
    scale = depth.scale or (1000.0 if is_integer and depth.kind in {"z", "ray"} else 1.0)
    values = stored.astype(np.float64) / scale
    unknown = (stored == 0) | np.isnan(values)
    for marker in depth.invalid:
        unknown |= np.isinf(values) if np.isinf(marker) else (stored == _as_stored(marker, stored.dtype))
    if depth.kind in {"z", "ray"}:
        z = values
        if depth.kind == "ray":
            z = values / ray_lengths(height, width, intrinsics)
        if depth.far_from is not None:
            z = np.where(values * scale >= depth.far_from, np.inf, z)
    else:
        with np.errstate(divide="ignore"):
            if depth.kind == "disparity":
                z = (depth.baseline or 1.0) * float(intrinsics[0, 0]) * width / (values + depth.doffs)
            else:
                z = 1.0 / values
        unknown |= np.isinf(values)
    z = np.where(unknown | ~(z > 0), np.nan, z)
    with np.errstate(over="ignore"):
        return z.astype(np.float32)


def ray_lengths(height: int, width: int, intrinsics: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Length (H, W) of each pixel's viewing ray up to z = 1: distance along the ray over z."""
    u = ((np.arange(width) + 0.5) / width - intrinsics[0, 2]) / intrinsics[0, 0]
    v = ((np.arange(height) + 0.5) / height - intrinsics[1, 2]) / intrinsics[1, 1]
    lengths: npt.NDArray[np.float64] = np.sqrt(1 + u[None, :] ** 2 + v[:, None] ** 2)
    return lengths


def project_points(
    points: npt.NDArray[np.floating[Any]],
    intrinsics: npt.NDArray[np.floating[Any]],
    width: int,
    height: int,
    *,
    drop_hidden: bool = True,
) -> npt.NDArray[np.float32]:
    """Sparse depth map of a point cloud: the nearest point of each pixel.

    A LiDAR sits beside the camera and looks past the edges of near things at what the camera cannot see there. Such
    points would stand in the middle of the thing that hides them. With `drop_hidden` a point goes where nearly all
    others around it are much nearer: a far return among those of a near surface is behind that surface.

    Args:
        points: (N, 3) in camera axes; those with z <= 0 or not finite are not seen.
        intrinsics: (3, 3), normalised.
        width, height: of the picture.
        drop_hidden: see above.

    Returns:
        depth (H, W), NaN where no point falls.
    """
    points = np.asarray(points, np.float64)
    points = points[np.isfinite(points).all(axis=1) & (points[:, 2] > 1e-6)]
    x, y, z = points.T
    column = np.floor((x / z * intrinsics[0, 0] + intrinsics[0, 2]) * width)
    row = np.floor((y / z * intrinsics[1, 1] + intrinsics[1, 2]) * height)
    seen = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    depth = np.full(height * width, np.inf)
    np.minimum.at(depth, (row[seen] * width + column[seen]).astype(np.int64), z[seen])
    sparse = depth.reshape(height, width)
    if drop_hidden:
        sparse[_hidden(sparse)] = np.inf
    return np.where(np.isinf(sparse), np.nan, sparse).astype(np.float32)


def _hidden(depth: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Where a return (finite) lies behind most of the returns in the square around it."""
    hidden = np.zeros(depth.shape, bool)
    rows, columns = np.nonzero(np.isfinite(depth))
    if not rows.size:
        return hidden
    # The square holds about so many neighbours where returns are spread as on average.
    reach = int(np.clip(np.sqrt(_NEIGHBOURS * depth.size / rows.size) / 2, 1, max(1, min(depth.shape) // 8)))
    padded = np.pad(depth, reach, constant_values=np.inf)
    limit = (1 - _HIDING_STEP) * depth[rows, columns]
    num_around, num_nearer = np.zeros(rows.size, np.int32), np.zeros(rows.size, np.int32)
    for row in range(2 * reach + 1):
        for column in range(2 * reach + 1):
            around = padded[rows + row, columns + column]
            num_around += np.isfinite(around)
            num_nearer += around < limit
    # The return itself is among those around it.
    hidden[rows, columns] = num_nearer >= np.maximum(_HIDING_NEIGHBOURS * (num_around - 1), 3)
    return hidden


def _as_stored(marker: float, dtype: np.dtype[Any]) -> Any:
    # A marker like 65535 or 1e10 is compared as the file's own type holds it; one that integers cannot hold is nowhere.
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return dtype.type(marker) if limits.min <= marker <= limits.max and marker == int(marker) else None
    return dtype.type(marker)
