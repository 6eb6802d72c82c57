"""Surface normals of point maps and depth maps from the differences between neighbouring pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moge_core.errors import InputError
from moge_core.geometry._backend import Array, array_namespace, as_floating, check_map, check_mask
from moge_core.geometry.point_maps import depth_map_to_planes

# Pixels that one numpy pass works on: its planes then stay in the processor's cache.
_BAND_PIXELS = 1 << 14
# Unit normals that cancel to less than this leave a direction that is rounding error.
_LEAST_SUM = 1e-6


def point_map_to_normal_map(
    points: Array, mask: Array | None = None, edge_threshold: float | None = None
) -> tuple[Array, Array]:
    """Unit normals, looking towards the camera, of the surface that a point map samples.

    Each pixel spans up to four triangles with two adjacent neighbours (up and left, left and down, ...). A triangle
    counts where its three pixels are valid and, with `edge_threshold`, where it is not seen edge-on. The normal is
    the direction of the sum of the unit normals that count; what does not count never enters the sum.

    Args:
        points: (..., H, W, 3), OpenCV axes.
        mask: (..., H, W) boolean, pixels to use; points that are not finite are never used.
        edge_threshold: degrees; triangles whose normal is this far or further from the view ray do not count.

    Returns:
        normals: (..., H, W, 3), 0 where invalid.
        mask: (..., H, W) boolean, where at least one triangle counted. Normals are finite there.

    Raises:
        InputError: shapes or types that do not fit, or a threshold outside 0 to 90 degrees.
    """
    xp = array_namespace(points=points, mask=mask)
    points = as_floating("points", points)
    check_map("points", points, channels=3)
    planes = (points[..., 0], points[..., 1], points[..., 2])
    normals, valid = _normal_map(xp, planes, mask, "points", edge_threshold)
    return normals, valid


def depth_map_to_normal_map(
    depth: Array, intrinsics: Array, mask: Array | None = None, edge_threshold: float | None = None
) -> tuple[Array, Array]:
    """`point_map_to_normal_map` of the points that a depth map describes.

    Args:
        depth: (..., H, W), z along the optical axis; NaN and +Inf have no normal.
        intrinsics: (..., 3, 3), normalised; leading dimensions broadcast against those of `depth`.
        mask: (..., H, W) boolean, pixels to use.
        edge_threshold: degrees; triangles whose normal is this far or further from the view ray do not count.

    Returns:
        normals: (..., H, W, 3), 0 where invalid.
        mask: (..., H, W) boolean, where at least one triangle counted. Normals are finite there.

    Raises:
        InputError: shapes or types that do not fit, no camera's values, or a threshold outside 0 to 90 degrees.
    """
    xp = array_namespace(depth=depth, intrinsics=intrinsics, mask=mask)
    normals, valid = _normal_map(xp, depth_map_to_planes(xp, depth, intrinsics), mask, "depth", edge_threshold)
    return normals, valid


def _normal_map(
    xp: Any, planes: tuple[Any, Any, Any], mask: Any, name: str, edge_threshold: float | None
) -> tuple[Any, Any]:
    if edge_threshold is not None and not 0 < edge_threshold <= 90:
        raise InputError("edge_threshold", "must be greater than 0 and at most 90 degrees", found=edge_threshold)
    least_cosine = None if edge_threshold is None else math.cos(math.radians(edge_threshold))
    if mask is not None:
        check_mask(mask, tuple(planes[0].shape), name)
    if xp is not np:
        x, y, z, valid = _normals_of_planes(xp, *planes, mask, least_cosine)
        return xp.stack([x, y, z], -1), valid
    return _normal_map_in_bands(planes, mask, least_cosine)


def _normal_map_in_bands(planes: tuple[Any, Any, Any], mask: Any, least_cosine: float | None) -> tuple[Any, Any]:
    height, width = planes[0].shape[-2:]
    normals = np.empty((*planes[0].shape, 3), planes[0].dtype)
    valid = np.empty(planes[0].shape, bool)
    band = max(_BAND_PIXELS // width, 4)
    with np.errstate(all="ignore"):
        for image in np.ndindex(planes[0].shape[:-2]):
            for top in range(0, height, band):
                # One row more on either side, so that the band's own rows see their neighbours.
                rows = slice(max(top - 1, 0), min(top + band + 1, height))
                own = slice(top - rows.start, top - rows.start + min(band, height - top))
                part_x, part_y, part_z = (np.ascontiguousarray(plane[image][rows]) for plane in planes)
                part_mask = None if mask is None else mask[image][rows]
                *components, counted = _normals_of_planes(np, part_x, part_y, part_z, part_mask, least_cosine)
                for axis, component in enumerate(components):
                    normals[(*image, slice(top, top + band), slice(None), axis)] = component[own]
                valid[(*image, slice(top, top + band))] = counted[own]
    return normals, valid


def _normals_of_planes(
    xp: Any, x: Any, y: Any, z: Any, mask: Any, least_cosine: float | None
) -> tuple[Any, Any, Any, Any]:
    """The components of the normals, and where any triangle counted; all (..., H, W)."""
    largest = _largest_component(xp, x, y, z)
    # NaN compares as false; the quarter keeps differences and sums of two values finite, `tiny` quotients.
    valid, tiny = largest < xp.finfo(x.dtype).max / 4, xp.finfo(x.dtype).tiny
    if mask is not None:
        valid = valid & mask
    x, y, z = (xp.where(valid, plane, 0) for plane in (x, y, z))
    across = _steps(xp, (x, y, z), valid, (..., slice(None), _FIRSTS), (..., slice(None), _SECONDS))
    down = _steps(xp, (x, y, z), valid, (..., _FIRSTS, slice(None)), (..., _SECONDS, slice(None)))
    if least_cosine is not None:
        x, y, z, _ = _rescaled(xp, (x, y, z), valid, largest)
        bound = least_cosine * _length(xp, x, y, z)
    total_x, total_y, total_z = xp.zeros_like(x), xp.zeros_like(x), xp.zeros_like(x)
    counted = xp.zeros_like(valid)
    # The step from row i to row i + 1 leads down from the one and, negated, up from the other; likewise left and right.
    # The signs cancel: up x left, left x down, down x right and right x up are all (step down) x (step right).
    for rows in (_SECONDS, _FIRSTS):
        for columns in (_SECONDS, _FIRSTS):
            here = (..., rows, columns)
            ax, ay, az, has_vertical = (plane[..., columns] for plane in down)
            bx, by, bz, has_horizontal = (plane[..., rows, :] for plane in across)
            nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
            length = _length(xp, nx, ny, nz)
            counts = has_vertical & has_horizontal & (length > 0)
            if least_cosine is not None:
                counts &= abs(nx * x[here] + ny * y[here] + nz * z[here]) > length * bound[here]
            share = counts / (length + tiny)
            total_x[here] += nx * share
            total_y[here] += ny * share
            total_z[here] += nz * share
            counted[here] |= counts
    length = _length(xp, total_x, total_y, total_z)
    counted &= length > _LEAST_SUM
    share = counted / (length + tiny)
    return total_x * share, total_y * share, total_z * share, counted


# Along an axis: the first and the second of each pair of neighbours.
_FIRSTS, _SECONDS = slice(None, -1), slice(1, None)


def _steps(xp: Any, planes: tuple[Any, ...], valid: Any, firsts: Any, seconds: Any) -> tuple[Any, Any, Any, Any]:
    """The steps between neighbours, and whether both ends are valid and differ.

    Only the directions of steps matter, and rescaled ones have products that neither overflow nor vanish.
    """
    dx, dy, dz = (plane[seconds] - plane[firsts] for plane in planes)
    return _rescaled(xp, (dx, dy, dz), valid[firsts] & valid[seconds], _largest_component(xp, dx, dy, dz))


def _rescaled(xp: Any, planes: tuple[Any, ...], valid: Any, largest: Any) -> tuple[Any, Any, Any, Any]:
    """Finite vectors scaled to a largest component of 1, 0 where invalid or too short, and where they are neither."""
    tiny = xp.finfo(largest.dtype).tiny
    valid = valid & (largest > tiny)
    scale = valid / (largest + tiny)
    x, y, z = (plane * scale for plane in planes)
    return x, y, z, valid


def _largest_component(xp: Any, x: Any, y: Any, z: Any) -> Any:
    return xp.maximum(xp.maximum(abs(x), abs(y)), abs(z))


def _length(xp: Any, x: Any, y: Any, z: Any) -> Any:
    return xp.sqrt(x * x + y * y + z * z)
