"""Depth of field: what is out of focus is blurred, as a lens does."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moge_core.io.opencv import cv2

ImageArray = npt.NDArray[np.uint8]
DepthArray = npt.NDArray[np.float32]

_BAND_ROWS = 32
_LARGEST_RADIUS = 11
"""Half a disc of this radius adds up to less than 2^16."""


def blur_by_depth(image: ImageArray, disparity: DepthArray, focus: float, max_radius: int) -> ImageArray:
    """Blur what is out of focus; blurred near things spread over sharp ones behind them.

    Every pixel becomes the mean over the disc of its own radius, rounded down, black from outside the image.

    Args:
        image: `(H, W, 3)` uint8.
        disparity: `(H, W)` float32 in [0, 1], 1 at the nearest point.
        focus: disparity in [0, 1] that stays sharp.
        max_radius: radius in pixels of the blur at a disparity 1 away from the focus, at most 11.
    """
    assert 0 <= max_radius <= _LARGEST_RADIUS
    return _disc_means(image, _blur_radius(disparity, focus, max_radius))


def fill_unknown(disparity: DepthArray, unknown: npt.NDArray[np.bool_]) -> DepthArray:
    """Disparity `(H, W)` with unknown pixels filled from the known ones around, 0 where there is none.

    Each takes the mean of the smallest block of a pyramid, 2 to a side and up, that knows something, smoothly
    interpolated.
    """
    if not unknown.any():
        return disparity
    weight = (~unknown).astype(np.float32)
    values = disparity * weight
    levels = [(values, weight)]
    while min(levels[-1][1].shape) > 1 and not (levels[-1][1] > 0).all():
        height, width = levels[-1][1].shape
        half = ((width + 1) // 2, (height + 1) // 2)
        levels.append(tuple(cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in levels[-1]))
    filled = np.zeros((1, 1), np.float32)
    for values, weight in reversed(levels):
        known = weight > 1e-6
        filled = cv2.resize(filled, weight.shape[::-1], interpolation=cv2.INTER_LINEAR)
        np.divide(values, weight, out=filled, where=known)
    return filled


def _blur_radius(disparity: DepthArray, focus: float, max_radius: int) -> npt.NDArray[np.uint8]:
    """The radius of the blur `(H, W)` in pixels.

    Only the whole number of pixels counts by which a disparity is off the focus, so the search for nearer things
    whose blur reaches a pixel works on bytes: the signed radius plus `max_radius`.
    """
    signed = np.clip((disparity - np.float32(focus)) * np.float32(max_radius), -max_radius, max_radius).astype(np.int8)
    coded = (signed + np.int8(max_radius)).view(np.uint8)
    in_focus = np.full_like(coded, max_radius)
    radius = cv2.absdiff(coded, in_focus)
    nearer = coded
    for reach in range(1, int(radius.max()) + 1):
        # The nearest within `reach` is the nearest within `reach - 1` or on the ring around that.
        ring = _ellipse(reach)
        ring[1:-1, 1:-1] -= _ellipse(reach - 1)
        nearer = np.maximum(nearer, cv2.dilate(coded, ring))
        spread = cv2.absdiff(nearer, in_focus)
        covers = (spread >= reach) & (nearer > coded)
        np.maximum(radius, spread * covers, out=radius)
    smoothed: npt.NDArray[np.uint8] = cv2.blur(radius, (5, 5))
    return smoothed


def _ellipse(radius: int) -> npt.NDArray[np.uint8]:
    element: npt.NDArray[np.uint8] = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return element


def _disc_means(image: ImageArray, radius: npt.NDArray[np.uint8]) -> ImageArray:
    """For each pixel the mean of `image` over the disc of its `radius`."""
    height, width = radius.shape
    margin = int(radius.max())
    if margin == 0:
        return image
    padded = np.zeros((3, height + 2 * margin, width + 2 * margin), np.uint16)
    for plane, channel in zip(padded, cv2.split(image), strict=True):
        plane[margin : margin + height, margin : margin + width] = channel
    means = np.zeros((3, height, width), np.uint8)
    for top in range(0, height, _BAND_ROWS):
        here = radius[top : top + _BAND_ROWS]
        present = np.flatnonzero(np.bincount(here.reshape(-1)))
        largest = int(present[-1])
        source = padded[:, top + margin - largest : top + margin + largest + len(here)]
        runs = _horizontal_sums(source, largest, margin, width)
        for size in map(int, present):
            chosen = -(here == size).view(np.uint8)  # all bits of a byte, or none
            means[:, top : top + _BAND_ROWS] |= _disc_mean(runs, size, largest, len(here)) & chosen
    return np.asarray(cv2.merge(list(means)))


def _horizontal_sums(
    source: npt.NDArray[np.uint16], largest: int, margin: int, width: int
) -> list[npt.NDArray[np.uint16]]:
    """Sums over 1, 3, 5, ... pixels of a row, up to 2 `largest` + 1, for the columns within the margin."""
    runs = [source[..., margin : margin + width]]
    for reach in range(1, largest + 1):
        wider = runs[-1] + source[..., margin - reach : margin - reach + width]
        wider += source[..., margin + reach : margin + reach + width]
        runs.append(wider)
    return runs


def _disc_mean(runs: list[npt.NDArray[np.uint16]], radius: int, first_row: int, num_rows: int) -> ImageArray:
    """Means over the discs of `radius` around the pixels of rows `first_row` and on, rounded down."""
    half_widths = [math.isqrt(radius**2 - dy**2) for dy in range(radius + 1)]
    area = sum(2 * half + 1 for half in half_widths) * 2 - (2 * radius + 1)
    # Two halves, so that 16 bits hold their sums.
    below = runs[radius][:, first_row : first_row + num_rows].copy()
    above = np.zeros_like(below)
    for dy, half in enumerate(half_widths[1:], start=1):
        below += runs[half][:, first_row + dy : first_row + dy + num_rows]
        above += runs[half][:, first_row - dy : first_row - dy + num_rows]
    mean = below.astype(np.float32)
    mean += above
    mean *= np.float32(1 / area)  # for no disc in use does a mean that is a whole number fall short of it
    levels: ImageArray = mean.astype(np.uint8)
    return levels
