"""Where a depth map jumps: pixels that bilinear interpolation must not mix."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError
from moge_core.geometry._backend import Array, array_namespace, as_floating, check_map, check_mask


def depth_map_edge(
    depth: Array,
    atol: float | None = None,
    rtol: float | None = None,
    ltol: float | None = None,
    kernel_size: int = 3,
    mask: Array | None = None,
) -> Array:
    """Where depth jumps within a window around the pixel, by any of the criteria given.

    Unknown pixels (NaN, or outside `mask`) are ignored within the window; the result is not confined to known pixels.

    Args:
        depth: (..., H, W); NaN is unknown. +Inf is a depth like others, so the border of the sky is an edge, save for
            `rtol`, which has no meaning at infinity.
        atol: edge where max - min of the depth in the window is greater, in the unit of `depth`.
        rtol: edge where (max - min) / depth is greater.
        ltol: edge by the Laplacian of disparity d = 1 / depth, relative: L = (d - mean of d in the window) / d must be
            above `ltol` at one pixel of the window and below -`ltol` at another. A slanted plane is no edge then. Depth
            must be positive; what is not counts as unknown.
        kernel_size: side of the window in pixels, odd.
        mask: (..., H, W) boolean, pixels to use.

    Returns:
        (..., H, W) boolean.

    Raises:
        InputError: shapes or types that do not fit, no criterion, or a parameter outside its domain.
    """
    xp = array_namespace(depth=depth, mask=mask)
    depth = as_floating("depth", depth)
    check_map("depth", depth)
    if mask is not None:
        check_mask(mask, tuple(depth.shape), "depth")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError("kernel_size", "must be odd and positive", found=kernel_size)
    if atol is None and rtol is None and ltol is None:
        raise InputError("depth_map_edge", "needs at least one of atol, rtol and ltol")
    for name, tolerance in (("atol", atol), ("rtol", rtol), ("ltol", ltol)):
        if tolerance is not None and not tolerance >= 0:
            raise InputError(name, "must be 0 or greater", found=tolerance)

    known = ~xp.isnan(depth)
    known = known if mask is None else known & mask
    windows = _CvWindows(kernel_size) if xp is np else _TorchWindows(kernel_size)
    edge = xp.zeros_like(known)
    with np.errstate(all="ignore"):
        if atol is not None or rtol is not None:
            high = windows.largest(xp.where(known, depth, -xp.inf))
            low = -windows.largest(xp.where(known, -depth, -xp.inf))
            jump = xp.where(high >= low, high - low, 0)
            if atol is not None:
                edge = edge | (jump > atol)
            if rtol is not None:
                edge = edge | (jump / depth > rtol)
        if ltol is not None:
            laplacian, known = _relative_laplacian(xp, depth, known, windows)
            high = windows.largest(xp.where(known, laplacian, -xp.inf))
            low = -windows.largest(xp.where(known, -laplacian, -xp.inf))
            edge = edge | ((high > ltol) & (low < -ltol))
    result: Array = edge
    return result


def _relative_laplacian(xp: Any, depth: Any, known: Any, windows: Any) -> tuple[Any, Any]:
    disparity = 1 / depth
    known = known & (depth > 0) & xp.isfinite(disparity)
    disparity = xp.where(known, disparity, 0)
    weight = xp.where(known, xp.ones_like(disparity), 0)
    mean = windows.total(disparity) / windows.total(weight)
    # At infinity d = 0: next to nearer things L is -Inf, among its own 0 / 0 stands for a flat neighbourhood.
    laplacian = xp.where(mean > 0, (disparity - mean) / disparity, 0)
    return laplacian, known


class _CvWindows:
    """Filters over square windows of numpy maps (..., H, W), image by image."""

    def __init__(self, kernel_size: int) -> None:
        import cv2

        self._cv2 = cv2
        self._square = np.ones((kernel_size, kernel_size), np.uint8)
        self._line = np.ones(kernel_size)

    def largest(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The greatest value in each window; windows end at the image's border."""
        # OpenCV's own border value is the least finite float, which is more than the -Inf of unknown pixels and of sky.
        border = {"borderType": self._cv2.BORDER_CONSTANT, "borderValue": -np.inf}
        return self._each(values, lambda image: self._cv2.dilate(image, self._square, **border))

    def total(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The sum over each window, the image continued by its border pixels."""
        # Not a box filter: its running sums would carry the rounding error of one huge value across the whole row.
        border = self._cv2.BORDER_REPLICATE
        return self._each(
            values, lambda image: self._cv2.sepFilter2D(image, -1, self._line, self._line, borderType=border)
        )

    @staticmethod
    def _each(values: npt.NDArray[Any], work: Any) -> npt.NDArray[Any]:
        if values.ndim == 2:
            return np.asarray(work(values))
        result = np.empty_like(values)
        for image in np.ndindex(values.shape[:-2]):
            result[image] = work(np.ascontiguousarray(values[image]))
        return result


class _TorchWindows:
    """The same filters for tensors, all images at once, on their device."""

    def __init__(self, kernel_size: int) -> None:
        self._functional: Any = sys.modules["torch"].nn.functional
        self._kernel_size = kernel_size

    def largest(self, values: Any) -> Any:
        side, margin = self._kernel_size, self._kernel_size // 2
        rows = self._functional.max_pool2d(self._as_images(values), (side, 1), 1, (margin, 0))
        return self._functional.max_pool2d(rows, (1, side), 1, (0, margin)).reshape(values.shape)

    def total(self, values: Any) -> Any:
        side, margin = self._kernel_size, self._kernel_size // 2
        images = self._functional.pad(self._as_images(values), [margin] * 4, mode="replicate")
        rows = self._functional.avg_pool2d(images, (side, 1), 1, divisor_override=1)
        sums = self._functional.avg_pool2d(rows, (1, side), 1, divisor_override=1)
        return sums.reshape(values.shape)

    @staticmethod
    def _as_images(values: Any) -> Any:
        return values.reshape(-1, 1, *values.shape[-2:])
