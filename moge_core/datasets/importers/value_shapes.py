"""Shapes of regions and of histograms that tell one meaning of stored values from another."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

# float16 from 1/16 m to 1024 m: their bits as integers.
_LEAST_HALF, _MOST_HALF = 0x2C00, 0x6400
# The greatest of them, which renderers write for sky, and infinity.
_GREATEST_HALF, _INFINITE_HALF = 0x7BFF, 0x7C00
# Bits of such numbers span less than this factor.
_MOST_HALF_SPAN = 2.3
# Of fewer different values nothing is said.
_LEAST_DISTINCT = 16
# A region with so many pixels beside it for each of its own is scattered; of a sky most hangs from the upper edge.
_SCATTERED, _MOSTLY = 0.8, 0.5
# Share of the lowest rows that no sky fills, and how near to the end of known depth the border of what is too far lies.
_AT_BOTTOM, _AT_END = 0.05, 0.85
# Pixels of a triple are so far apart, as a share of the side, and straight to this share of their slope.
_STRIDE = 1 / 12
_STRAIGHT = 0.015
# Fewer triples on planes say nothing, nor does one reading that has not clearly more of them than the other.
_LEAST_PLANAR, _CLEARLY = 30, 1.7
# Depth in metres is between these.
_LEAST_METRES, _MOST_METRES = 0.01, 1e5
# Nearly every picture shows something nearer than this, in metres.
_NEAR_TO = 8.0


def hangs_from_top(region: Mask) -> float:
    """Share (0..1) of a region (H, W) that hangs from the upper edge.

    Columns that are in the region from top to bottom do not count: stripes at the sides have them, and sky does not
    reach the lower edge. Nor does a strip along the upper edge that is as thin as the borders of rectified pictures.
    """
    size = int(region.sum())
    if not size:
        return 0.0
    hanging = np.logical_and.accumulate(region, axis=0)
    hanging = hanging[:, ~hanging[-1]]
    depths = hanging.sum(axis=0)
    if not depths.size or (depths.max() == depths.min() and depths.max() < max(2, 0.03 * region.shape[0])):
        return 0.0
    return float(depths.sum()) / size


def why_no_sky(infinite: Mask, z: npt.NDArray[Any]) -> str | None:
    """What makes a region (H, W) that is infinitely far no sky, as a phrase; None where it may be one.

    Sky hangs from the upper edge, or is seen through the windows of a room, whose frames are at any depth. Around what
    is too far for a sensor, depth ends where known depth does.
    """
    size = int(infinite.sum())
    if int(infinite[:, infinite.all(axis=0)].sum()) > size / 2:
        return "fills stripes from top to bottom"
    beside = np.zeros_like(infinite)
    beside[1:] |= infinite[:-1]
    beside[:-1] |= infinite[1:]
    beside[:, 1:] |= infinite[:, :-1]
    beside[:, :-1] |= infinite[:, 1:]
    border = beside & ~infinite
    if int(border.sum()) > _SCATTERED * size:
        return "is scattered"
    if hangs_from_top(infinite) >= _MOSTLY:
        return None
    low = infinite[-max(1, infinite.shape[0] // 20) :]
    if float(low.mean()) > _AT_BOTTOM:
        return "reaches the bottom of the picture"
    ends = z[border & np.isfinite(z)]
    if ends.size and np.percentile(ends, 75) > _AT_END * np.percentile(z[np.isfinite(z)], 99):
        return "lies where known depth ends, below the top of the picture"
    return None


def surrounds(region: Mask) -> bool:
    """Whether a region (H, W) is all around, as the background of a single thing is."""
    sides = [float(side.mean()) for side in (region[0], region[:, 0], region[:, -1])]
    return min(sides) > 0.6 and float(region[-1].mean()) > 0.2


def is_turned(values: npt.NDArray[Any]) -> bool:
    """Whether integers (N,) are turned left by three bits: their last bits, once the first, are nearly all 0 or 1.

    Coarse steps, of 8-bit maps that were stretched, are another matter, and so is what hardly varies.
    """
    if np.unique(values[:: max(1, values.size // 4096)]).size < _LEAST_DISTINCT:
        return False
    last = values & 7
    return (
        float(np.mean(last <= 1)) >= 0.97 and float(np.mean(last == 0)) > 0.5 and float(np.mean(values % 64 == 0)) < 0.9
    )


def is_half_float(
    grid: npt.NDArray[Any], values: npt.NDArray[Any], scale: float, rays: npt.NDArray[np.floating[Any]] | None = None
) -> bool:
    """Whether integers are the bits of float16 numbers.

    Their histogram has nothing outside of a narrow band, which depth at usual scales can have as well. So planes
    decide: along a line on one, 1 / z has no second difference, of numbers but not of their bits.

    Args:
        grid: (H, W) integers of 16 bits.
        values: (N,) those that are known.
        scale: stored units a metre by which they were read.
        rays: (H, W) lengths of the viewing rays with z = 1, where they are known: numbers may be distances, too.
    """
    finite = values[values < _GREATEST_HALF]
    if values.max() > _INFINITE_HALF or not finite.size:
        return False
    near, far = np.percentile(finite, (1, 97))
    if near < _LEAST_HALF or far > _MOST_HALF or far > _MOST_HALF_SPAN * near:
        return False
    decoded = np.ascontiguousarray(grid).view(np.float16)
    counts = [_planar_triples(decoded, grid)]
    if rays is not None:
        counts.append(_planar_triples(decoded / rays, grid / rays))
    as_bits, beside = max(counts)
    as_numbers = max(numbers for _, numbers in counts)
    if as_bits >= _LEAST_PLANAR and as_bits >= _CLEARLY * beside and as_bits > as_numbers:
        return True
    if as_numbers >= max(as_bits, _LEAST_PLANAR):
        return False
    # Planes say nothing: at a usual scale nothing near is unlikely enough.
    return float(near) / scale > _NEAR_TO


def is_single_float(values: npt.NDArray[Any], scale: float) -> bool:
    """Whether integers are the bits of float32 numbers: too far by their scale, and plausible metres as numbers.

    Args:
        values: (N,) integers of 32 bits, those that are known.
        scale: stored units a metre by which they were read.
    """
    numbers = np.ascontiguousarray(values).view(np.float32)
    near, far = np.percentile(numbers[np.isfinite(numbers)], (1, 97)) if np.isfinite(numbers).any() else (0.0, 0.0)
    return bool(near > _LEAST_METRES and far < _MOST_METRES and float(np.min(values)) / scale > _MOST_METRES)


def _planar_triples(*readings: npt.NDArray[Any]) -> list[int]:
    """For each reading (H, W) of the same pixels, on how many triples along rows and columns 1 / z is straight.

    Triples are those on slopes by the first reading: on level ground every reading is straight.
    """
    counts = [0] * len(readings)
    for axis in (0, 1):
        step = max(2, round(readings[0].shape[axis] * _STRIDE))
        telling: Any = True
        for number, values in enumerate(readings):
            with np.errstate(all="ignore"):
                inverse = np.moveaxis(1 / values.astype(np.float32), axis, 0)
                first, middle, last = inverse[: -2 * step], inverse[step:-step], inverse[2 * step :]
                slope, bend = np.abs(last - first), np.abs(first + last - 2 * middle)
                if number == 0:
                    # Edges are steeper, and steps of the numbers themselves are as large as what is flatter.
                    telling = (slope > 0.1 * middle) & (slope < 0.6 * middle)
                counts[number] += int(np.count_nonzero((bend < _STRAIGHT * slope) & telling))
    return counts
