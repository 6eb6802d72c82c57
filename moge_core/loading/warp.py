"""Resampling an image, depth map or normal map as another camera at the same place would see it.

A transform here is a `(3, 3)` matrix from the source's normalised image coordinates to the target's; sizes are
`(height, width)`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from moge_core.geometry import masked_nearest_resize
from moge_core.io.opencv import cv2
from moge_core.loading.view import View, checked_intrinsics

Matrix = npt.NDArray[np.float64]
Size = tuple[int, int]

# Lanczos reduces first where the warp would shrink further than this, keeping 1.25 source pixels per target pixel.
_REDUCE_BELOW = 0.8
_SMALLEST_SIDE = 16


def view_transform(intrinsics: npt.NDArray[Any], view: View) -> Matrix:
    """The transform `K_view @ R @ K^-1` from a source with `intrinsics` `(3, 3)` to `view`."""
    matrix: Matrix = view.intrinsics.astype(np.float64) @ view.rotation @ np.linalg.inv(checked_intrinsics(intrinsics))
    return matrix


def warp_image(
    image: npt.NDArray[np.uint8],
    transform: Matrix,
    size: Size,
    interpolation: Literal["lanczos", "bilinear"] = "lanczos",
) -> npt.NDArray[np.uint8]:
    """Warp an image `(H, W, 3)` to `size`; outside the source it is black.

    `lanczos` shrinks the source first where one target pixel covers several of its pixels.
    """
    source: Size = image.shape[:2]
    if interpolation == "lanczos":
        scale_y, scale_x = _scale_at_center(transform, source, size)
        if min(scale_x, scale_y) < _REDUCE_BELOW:
            source = _scaled_size(source, scale_y / _REDUCE_BELOW, scale_x / _REDUCE_BELOW)
            reduced = Image.fromarray(image).resize(source[::-1], Image.Resampling.LANCZOS)
            image = np.asarray(reduced)
    flag = cv2.INTER_LANCZOS4 if interpolation == "lanczos" else cv2.INTER_LINEAR
    return _warp(image, transform, source, size, flag)


def warp_depth(
    depth: npt.NDArray[np.float32], transform: Matrix, size: Size, smooth: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Depth `(H, W)` as the target camera measures it, along its own z axis, NaN from outside the source.

    Where all source pixels around a target pixel are `smooth` (known, finite, not at a depth edge) the inverse depth is
    interpolated, elsewhere the nearest pixel is taken.

    Args:
        depth: `(H, W)` float32, NaN unknown, +Inf infinitely far.
        transform: from the source's normalised coordinates to the target's.
        size: `(height, width)` of the result.
        smooth: `(H, W)` bool, finite depth only.
    """
    warped = warp_nearest(depth, transform, size)
    inverse = warp_inverse_depth(depth, transform, size)
    weight = _warp(smooth.astype(np.float32), transform, depth.shape, size, cv2.INTER_LINEAR)
    with np.errstate(divide="ignore"):
        np.divide(1, inverse, out=warped, where=(weight == 1) & (inverse > 0))
    warped /= z_ratio(transform, size)
    return warped


def warp_nearest(depth: npt.NDArray[np.float32], transform: Matrix, size: Size) -> npt.NDArray[np.float32]:
    """The source's value nearest to each target pixel `(H, W)`, NaN from outside the source.

    Where the warp shrinks, known values (+Inf is one) win over unknown ones, so that sparse depth survives.
    """
    source: Size = depth.shape
    scale_y, scale_x = _scale_at_center(transform, source, size)
    if min(scale_x, scale_y) < 1:
        source = _scaled_size(source, scale_y, scale_x)
        depth, known = masked_nearest_resize(depth, mask=~np.isnan(depth), size=source)
        depth = np.where(known, depth, np.float32(np.nan))
    return _warp(depth, transform, source, size, cv2.INTER_NEAREST, outside=float("nan"))


def warp_inverse_depth(depth: npt.NDArray[np.float32], transform: Matrix, size: Size) -> npt.NDArray[np.float32]:
    """Bilinear inverse depth `(H, W)`; unknown depth, infinite depth and the outside count as 0."""
    inverse = np.zeros_like(depth)
    np.divide(1, depth, out=inverse, where=depth > 0)
    return _warp(inverse, transform, depth.shape, size, cv2.INTER_LINEAR)


def warp_normal(
    normal: npt.NDArray[np.float32], transform: Matrix, rotation: npt.NDArray[Any], size: Size
) -> npt.NDArray[np.float32]:
    """Normals `(H, W, 3)` seen from the target camera, of unit length; NaN where a contributing normal is NaN."""
    valid = ~np.isnan(normal[..., 0] + normal[..., 1] + normal[..., 2])
    filled = np.where(valid[..., None], normal, np.float32(0))
    warped = _warp(filled, transform, valid.shape, size, cv2.INTER_LINEAR) @ np.asarray(rotation, dtype=np.float32).T
    weight = _warp(valid.astype(np.float32), transform, valid.shape, size, cv2.INTER_LINEAR)
    length = np.sqrt(np.einsum("hwc,hwc->hw", warped, warped))[..., None]
    # Opposite normals can cancel; what is left of them has no direction.
    usable = (weight > 0.999)[..., None] & (length > 1e-3)
    unit = np.full_like(warped, np.nan)
    np.divide(warped, length, out=unit, where=usable)
    return unit


def z_ratio(transform: Matrix, size: Size) -> npt.NDArray[np.float32]:
    """Source depth over target depth of one point, `(H, W)`: the third row of the inverse transform at (u, v, 1)."""
    row = np.linalg.inv(transform)[2]
    height, width = size
    u = (np.arange(width) + 0.5) / width
    v = (np.arange(height) + 0.5) / height
    across, down = (row[0] * u).astype(np.float32), (row[1] * v + row[2]).astype(np.float32)
    ratio: npt.NDArray[np.float32] = across + down[:, None]
    return ratio


def _pixel_transform(transform: Matrix, source: Size, target: Size) -> Matrix:
    """The same transform between pixel indices, whose centres are at integers."""
    to_normalised = np.array([[1 / source[1], 0, 0.5 / source[1]], [0, 1 / source[0], 0.5 / source[0]], [0, 0, 1]])
    to_pixels = np.array([[target[1], 0, -0.5], [0, target[0], -0.5], [0, 0, 1]])
    matrix: Matrix = to_pixels @ transform @ to_normalised
    return matrix


def _scale_at_center(transform: Matrix, source: Size, target: Size) -> tuple[float, float]:
    """Target pixels per source pixel, (vertical, horizontal), at the target's centre."""
    matrix = _pixel_transform(transform, source, target)
    w = float(np.linalg.inv(matrix)[2] @ [target[1] / 2, target[0] / 2, 1])
    return w * float(np.linalg.norm(matrix[:2, 1])), w * float(np.linalg.norm(matrix[:2, 0]))


def _scaled_size(size: Size, scale_y: float, scale_x: float) -> Size:
    return max(round(scale_y * size[0]), _SMALLEST_SIDE), max(round(scale_x * size[1]), _SMALLEST_SIDE)


def _warp(
    array: npt.NDArray[Any], transform: Matrix, source: Size, target: Size, flag: int, outside: float = 0.0
) -> npt.NDArray[Any]:
    warped: npt.NDArray[Any] = cv2.warpPerspective(
        array,
        _pixel_transform(transform, source, target),
        target[::-1],
        flags=flag,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(outside, outside, outside, outside),
    )
    return warped
