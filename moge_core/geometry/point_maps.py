"""Between depth maps, point maps and image coordinates, through normalised intrinsics."""

from __future__ import annotations

from typing import Any

import numpy as np

from moge_core.errors import InputError
from moge_core.geometry._backend import Array, array_namespace, as_floating, cast_like, check_intrinsics, check_map


def depth_map_to_point_map(depth: Array, intrinsics: Array) -> Array:
    """The point that every pixel sees, K^-1 (u, v, 1)^T * depth.

    Args:
        depth: (..., H, W), z along the optical axis; NaN is unknown, +Inf infinitely far.
        intrinsics: (..., 3, 3), normalised; leading dimensions broadcast against those of `depth`.

    Returns:
        (..., H, W, 3) in the unit and type of `depth`. Unknown depth gives NaN; infinite depth gives infinite
        coordinates, and NaN in a coordinate whose ray component is exactly 0.

    Raises:
        InputError: shapes or types that do not fit, or values that are no camera's.
    """
    xp = array_namespace(depth=depth, intrinsics=intrinsics)
    points: Array = xp.stack(depth_map_to_planes(xp, depth, intrinsics), -1)
    return points


def depth_map_to_planes(xp: Any, depth: Any, intrinsics: Any) -> tuple[Any, Any, Any]:
    """`depth_map_to_point_map` as three maps x, y, z: (..., H, W), for work that is faster plane by plane."""
    depth = as_floating("depth", depth)
    check_map("depth", depth)
    height, width = depth.shape[-2:]
    u = cast_like(xp, xp.asarray(np.arange(0.5, width) / width), depth)
    v = cast_like(xp, xp.asarray(np.arange(0.5, height) / height), depth)
    return _unproject(xp, "depth", u, v[:, None], depth, intrinsics)


def project_points(points: Array, intrinsics: Array) -> tuple[Array, Array]:
    """Image coordinates and depth of points in camera space.

    Args:
        points: (..., N, 3).
        intrinsics: (..., 3, 3), normalised; leading dimensions broadcast against those of `points`.

    Returns:
        uv: (..., N, 2), 0 to 1 across the image; NaN or infinite for points of depth 0. A point behind the camera lands
        where its mirror image does: look at the sign of its depth.
        depth: (..., N).

    Raises:
        InputError: shapes or types that do not fit, or values that are no camera's.
    """
    xp = array_namespace(points=points, intrinsics=intrinsics)
    points = _check_list("points", points, 3)
    x, y, z = (points[..., axis] for axis in range(3))
    fx, fy, skew, cx, cy = _camera(xp, "points", intrinsics, z, num_free_dims=1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        ray_x, ray_y = x / z, y / z
        uv: Array = xp.stack([fx * ray_x + skew * ray_y + cx, fy * ray_y + cy], -1)
    depth: Array = xp.broadcast_to(z, uv.shape[:-1]) + 0  # a copy, not a view of the points
    return uv, depth


def unproject_points(uv: Array, depth: Array, intrinsics: Array) -> Array:
    """Points in camera space from image coordinates and depth; undoes `project_points`.

    Args:
        uv: (..., N, 2), 0 to 1 across the image.
        depth: (..., N), z along the optical axis.
        intrinsics: (..., 3, 3), normalised; leading dimensions broadcast against those of `uv`.

    Returns:
        (..., N, 3) in the unit of `depth`.

    Raises:
        InputError: shapes or types that do not fit, or values that are no camera's.
    """
    xp = array_namespace(uv=uv, depth=depth, intrinsics=intrinsics)
    uv, depth = _check_list("uv", uv, 2), as_floating("depth", depth)
    if tuple(uv.shape[:-1]) != tuple(depth.shape):
        raise InputError("depth", f"must have the shape {tuple(uv.shape[:-1])} of uv", found=tuple(depth.shape))
    points: Array = xp.stack(_unproject(xp, "uv", uv[..., 0], uv[..., 1], depth, intrinsics, num_free_dims=1), -1)
    return points


def _unproject(
    xp: Any, name: str, u: Any, v: Any, depth: Any, intrinsics: Any, num_free_dims: int = 2
) -> tuple[Any, Any, Any]:
    fx, fy, skew, cx, cy = _camera(xp, name, intrinsics, depth, num_free_dims)
    with np.errstate(over="ignore", invalid="ignore"):
        ray_y = (v - cy) / fy
        ray_x = (u - cx - skew * ray_y) / fx
        x, y = ray_x * depth, ray_y * depth
    return x, y, xp.broadcast_to(depth, x.shape)


def _camera(xp: Any, name: str, intrinsics: Any, like: Any, num_free_dims: int) -> tuple[Any, Any, Any, Any, Any]:
    """fx, fy, skew, cx, cy, each (..., 1 for every free dimension), ready to meet a map `like`."""
    intrinsics = as_floating("intrinsics", intrinsics)
    check_intrinsics(intrinsics)
    batch, cameras = tuple(like.shape[: like.ndim - num_free_dims]), tuple(intrinsics.shape[:-2])
    try:
        np.broadcast_shapes(batch, cameras)
    except ValueError:
        rule = f"must have leading dimensions that broadcast against {batch} of {name}"
        raise InputError("intrinsics", rule, found=tuple(intrinsics.shape)) from None
    entries = cast_like(xp, intrinsics, like)[(..., *[None] * num_free_dims, slice(None), slice(None))]
    return entries[..., 0, 0], entries[..., 1, 1], entries[..., 0, 1], entries[..., 0, 2], entries[..., 1, 2]


def _check_list(name: str, value: Any, channels: int) -> Any:
    if value.ndim < 2 or value.shape[-1] != channels:
        raise InputError(name, f"must have the shape (..., N, {channels})", found=tuple(value.shape))
    return as_floating(name, value)
