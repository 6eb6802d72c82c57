"""Point clouds that turn in a web page: what the page's script needs of each, and the script itself (README.md)."""

from __future__ import annotations

import base64
import functools
import math
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.geometry import depth_map_to_point_map, masked_nearest_resize

_INT16_MAX = 32767
# Points further than this many median depths are left out: they would cost the near ones their precision.
_FAR_FACTOR = 20


@functools.cache
def viewer_script() -> str:
    """The script of the viewer, three.js included."""
    return (resources.files(__name__) / "point_cloud_viewer.min.js").read_text(encoding="utf-8")


def pack_point_cloud(
    image: npt.NDArray[np.uint8],
    depth: npt.NDArray[np.float32],
    intrinsics: npt.NDArray[np.floating[Any]],
    *,
    caption: str,
    max_points: int,
) -> dict[str, Any] | None:
    """The cloud of one image as the viewer's script reads it, ready for JSON.

    Args:
        image: uint8 (H, W, 3).
        depth: (H, W); only finite values above 0 become points.
        intrinsics: (3, 3), normalised.
        caption: what is shown below the cloud.
        max_points: more are thinned out evenly over the picture.

    Returns:
        None where there is no point.
    """
    known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        return None
    pivot = float(np.median(depth[known]))
    near = known & (depth <= _FAR_FACTOR * pivot)
    with np.errstate(all="ignore"):
        points = depth_map_to_point_map(depth, intrinsics)
    near &= np.isfinite(points).all(axis=2)
    if not near.any():
        return None
    points, colors, rows = _thinned(points, image, near, max_points)
    # Cells are whole pixels of the picture: the widest gap decides how large points must be to close a surface.
    rows = depth.shape[0] / math.ceil(depth.shape[0] / rows)
    points = points.astype(np.float64) * (1, -1, -1)
    low, high = points.min(axis=0), points.max(axis=0)
    offset, scale = (low + high) / 2, np.maximum((high - low) / 2 / _INT16_MAX, np.finfo(np.float32).tiny)
    codes = np.rint((points - offset) / scale).astype("<i2")
    tan_x, tan_y = (0.5 / np.abs(np.array([intrinsics[0, 0], intrinsics[1, 1]], np.float64))).tolist()
    return {
        "caption": caption,
        "count": len(points),
        "rows": rows,
        "pivot": pivot,
        "tan_x": tan_x,
        "tan_y": tan_y,
        "scale": scale.tolist(),
        "offset": offset.tolist(),
        "data": base64.b64encode(codes.tobytes() + np.ascontiguousarray(colors).tobytes()).decode("ascii"),
    }


def _thinned(
    points: npt.NDArray[Any], image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], max_points: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8], int]:
    """At most `max_points` points with their colours, and the rows of the grid that they were taken from."""
    height, width = mask.shape
    if mask.sum() > max_points:
        # One point a cell of a grid, so that surfaces stay evenly covered.
        shrink = min(1.0, (max_points / float(mask.sum())) ** 0.5)
        size = (max(1, int(height * shrink)), max(1, int(width * shrink)))
        points, image, mask = masked_nearest_resize(points, image, mask=mask, size=size)
    chosen = np.flatnonzero(mask)
    if chosen.size > max_points:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, max_points, replace=False))
    return points.reshape(-1, 3)[chosen], image.reshape(-1, 3)[chosen], mask.shape[0]
