"""From a point map to a surface that does not smear across depth edges."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError
from moge_core.geometry import depth_map_edge, image_uv


class Mesh(NamedTuple):
    """Triangles in OpenCV camera axes.

    Attributes:
        vertices: float32 (N, 3).
        faces: int32 (F, 3), counter-clockwise as seen from the camera once y and z are turned for viewers.
        uv: float32 (N, 2), places in the image, (0, 0) its top left corner.
    """

    vertices: npt.NDArray[np.float32]
    faces: npt.NDArray[np.int32]
    uv: npt.NDArray[np.float32]


def without_edges(
    depth: npt.NDArray[Any], mask: npt.NDArray[np.bool_], threshold: float | None
) -> npt.NDArray[np.bool_]:
    """The mask (H, W) without pixels beside which the depth changes by more than `threshold` of itself."""
    if threshold is None:
        return mask
    known = np.where(mask, depth, np.nan)
    kept: npt.NDArray[np.bool_] = mask & ~depth_map_edge(known, rtol=threshold)
    return kept


def point_map_to_mesh(
    points: npt.NDArray[Any],
    depth: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_],
    *,
    threshold: float | None = 0.04,
    max_vertices: int = 1_000_000,
    wrap: bool = False,
) -> Mesh:
    """Two triangles for each 2x2 block of pixels that belong to one surface.

    Args:
        points: (H, W, 3).
        depth: (H, W), what tells surfaces apart.
        mask: (H, W) bool, pixels to use.
        threshold: relative change of depth to a neighbour that is an edge: no face spans one. None keeps all.
        max_vertices: larger maps are thinned to every so many rows and columns before edges are looked for.
        wrap: join the last column to the first, as in a panorama.

    Returns:
        The mesh; it may have no faces.

    Raises:
        InputError: shapes that do not fit, or a threshold that is not positive.
    """
    if points.shape != (*mask.shape, 3) or depth.shape != mask.shape:
        found = f"{points.shape}, {depth.shape} and {mask.shape}"
        raise InputError("points, depth and mask", "must be (H, W, 3), (H, W) and (H, W)", found=found)
    if threshold is not None and not threshold > 0:
        raise InputError("threshold", "must be positive, or None for no edges", found=threshold)
    height, width = mask.shape
    step = 1
    while (height // step + 1) * (width // step + 1) > max(max_vertices, 4):
        step += 1
    grid = (slice(None, None, step), slice(None, None, step))
    uv = image_uv(width, height, dtype=np.float32)[grid]
    points, depth, mask = points[grid], depth[grid], without_edges(depth[grid], mask[grid], threshold)
    mask = mask & np.isfinite(points).all(-1)
    if wrap:  # the first column once more, at the right end of the texture
        points, depth, mask = (np.concatenate([v, v[:, :1]], axis=1) for v in (points, depth, mask))
        uv = np.concatenate([uv, uv[:, :1] + np.array([1, 0], np.float32)], axis=1)
        if threshold is not None:
            mask &= without_edges(depth, mask, threshold)

    number = np.full(mask.shape, -1, dtype=np.int32)
    number[mask] = np.arange(np.count_nonzero(mask), dtype=np.int32)
    corners = [number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]]
    whole = np.logical_and.reduce([corner >= 0 for corner in corners])
    top_left, bottom_left, bottom_right, top_right = (corner[whole] for corner in corners)
    faces = np.concatenate(
        [np.stack([top_left, bottom_left, bottom_right], -1), np.stack([top_left, bottom_right, top_right], -1)]
    )
    return Mesh(points[mask].astype(np.float32), faces.astype(np.int32), uv[mask].astype(np.float32))
