"""Nearest-neighbour resizing that looks for valid pixels only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError
from moge_core.geometry._backend import array_namespace, check_boolean, check_map, is_on_host

# Source pixels that the search compares at once; bounds its memory to some tens of megabytes.
_SEARCH_PIXELS = 1 << 21


def masked_nearest_resize(
    *maps: Any,
    mask: Any,
    size: tuple[int, int],
    return_index: bool = False,
    region: tuple[slice, slice] = (slice(None), slice(None)),
) -> tuple[Any, ...]:
    """Resize maps so that every target pixel takes the nearest valid source pixel of its own window.

    The window of a target pixel is the part of the source that the pixel covers, at least one source pixel wide and
    high. Among the window's valid pixels the nearest to the target's centre is taken, the first in raster order if
    several are equally near. A target pixel without a valid source pixel is invalid.

    Args:
        maps: each (*mask.shape, ...): any type, any trailing channels.
        mask: (..., H, W) boolean, the valid source pixels.
        size: (height, width) of the target.
        return_index: also return where the pixels were taken from.
        region: rows and columns of the target to compute, in steps of 1; by default all.

    Returns:
        Each map resized, (..., height, width, ...) of the region, then the resized mask, (..., height, width), then
        with `return_index` a pair (rows, columns) of integer maps (..., height, width). Where the resized mask is
        false, maps and index hold the first pixel of the window, whatever it is: look at the mask.

    Raises:
        InputError: shapes or types that do not fit, or a size below one pixel.
    """
    named = {f"maps[{position}]": value for position, value in enumerate(maps)}
    xp = array_namespace(mask=mask, **named)
    check_map("mask", mask)
    check_boolean(mask)
    for name, value in named.items():
        if tuple(value.shape[: mask.ndim]) != tuple(mask.shape):
            raise InputError(name, f"must begin with the shape {tuple(mask.shape)} of mask", found=tuple(value.shape))
    target_height, target_width = size
    if target_height < 1 or target_width < 1:
        raise InputError("size", "must be at least (1, 1)", found=tuple(size))

    height, width = mask.shape[-2:]
    batch = tuple(mask.shape[:-2])
    flat_mask = mask.reshape(-1)
    rows, columns = _AxisWindows(height, target_height, region[0]), _AxisWindows(width, target_width, region[1])
    index, found = _nearest_valid(xp, flat_mask, rows, columns, height, width)

    shape = (*batch, len(rows.pixels), len(columns.pixels))
    resized = [
        value.reshape(flat_mask.shape[0], *value.shape[mask.ndim :])[index].reshape(*shape, *value.shape[mask.ndim :])
        for value in maps
    ]
    result = (*resized, found.reshape(shape))
    if not return_index:
        return result
    pixel = index.reshape(shape) % (height * width)
    return (*result, (pixel // width, pixel % width))


class _AxisWindows:
    """The windows of all target pixels along one axis, in the float32 arithmetic of the published implementation.

    Attributes:
        pixels: (target, window) source indices, clipped to the image.
        distances: (target, window) squared distances to the target's centre in source pixels, Inf outside the image.
        nearest_pixels: (target,) the pixel of least distance, the first of equally near ones.
    """

    def __init__(self, length: int, target: int, part: slice) -> None:
        scale = max(1.0, length / target)
        centres = np.linspace(0.5 / target, 1 - 0.5 / target, target)[part].astype(np.float32) * np.float32(length)
        # np.round rounds halves to even.
        first = np.round(centres - np.float32(scale / 2)).astype(np.int64)
        pixels = first[:, None] + np.arange(math.ceil(scale))
        distances = np.square(pixels.astype(np.float32) + np.float32(0.5) - centres[:, None])
        distances[(pixels < 0) | (pixels >= length)] = np.inf
        self.pixels: npt.NDArray[np.int64] = np.clip(pixels, 0, length - 1)
        self.distances: npt.NDArray[np.float32] = distances
        self.nearest_pixels = self.pixels[np.arange(len(pixels)), distances.argmin(axis=1)]


def _nearest_valid(
    xp: Any, flat_mask: Any, rows: _AxisWindows, columns: _AxisWindows, height: int, width: int
) -> tuple[Any, Any]:
    """For every target pixel of every image, all flat: the flat source index, and whether that source is valid."""

    def move(table: npt.NDArray[Any]) -> Any:
        return table if xp is np else xp.from_numpy(table).to(flat_mask.device, non_blocking=True)

    num_images = flat_mask.shape[0] // (height * width)
    num_columns, num_targets = len(columns.pixels), len(rows.pixels) * len(columns.pixels)
    # Nearly always the nearest pixel of all is valid, and it is the nearest along each axis: two unequal squared
    # distances around 1/4 differ by more than the rounding of their sum with the other axis, so no new ties arise.
    nearest = rows.nearest_pixels[:, None] * width + columns.nearest_pixels
    first_pixels = move(np.arange(num_images) * (height * width))[:, None]
    index = (first_pixels + move(nearest.reshape(-1))).reshape(-1)
    found = flat_mask[index]
    if is_on_host(flat_mask):
        pending = move(np.flatnonzero(np.asarray(~found)))
    else:
        # Asking the device which targets are left would make the host wait; searching them all does not.
        pending = move(np.arange(num_images * num_targets))

    row_pixels, row_distances = move(rows.pixels * width), move(rows.distances)
    column_pixels, column_distances = move(columns.pixels), move(columns.distances)
    window = row_pixels.shape[1] * column_pixels.shape[1]
    chunk = max(_SEARCH_PIXELS // window, 1)
    for start in range(0, pending.shape[0], chunk):
        targets = pending[start : start + chunk]
        row, column = targets % num_targets // num_columns, targets % num_columns
        source = row_pixels[row][:, :, None] + column_pixels[column][:, None, :]
        source = source.reshape(-1, window) + first_pixels[targets // num_targets]
        distance = (row_distances[row][:, :, None] + column_distances[column][:, None, :]).reshape(-1, window)
        distance = xp.where(flat_mask[source], distance, xp.inf)
        best = xp.argmin(distance, 1)[:, None]
        index[targets] = _pick(xp, source, best)
        found[targets] = xp.isfinite(_pick(xp, distance, best))
    return index, found


def _pick(xp: Any, table: Any, column: Any) -> Any:
    """From each row of `table` the entry in its `column: (rows, 1)`."""
    return (np.take_along_axis(table, column, 1) if xp is np else table.gather(1, column))[:, 0]
