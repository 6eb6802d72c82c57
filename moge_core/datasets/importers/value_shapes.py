"""Shapes of regions and of histograms that tell one meaning of stored values from another."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

# float16 from 1/16 m to 1024 m: their bits as integers.
_LEAST_HALF, _MOST_HALF = 0x2C00, 0x6400
# Bits of such numbers span less than this factor.
_MOST_HALF_SPAN = 2.3
# Triples of pixels on which a plane is judged are so far apart, as a share of the side.
_STRIDE = 1 / 24
_LEAST_TRIPLES = 200


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


def surrounds(region: Mask) -> bool:
    """Whether a region (H, W) is all around, as the background of a single thing is."""
    sides = [float(side.mean()) for side in (region[0], region[:, 0], region[:, -1])]
    return min(sides) > 0.6 and float(region[-1].mean()) > 0.2


def is_turned(values: npt.NDArray[Any]) -> bool:
    """Whether integers (N,) are turned left by three bits: nearly all multiples of 8, and no coarser."""
    return float(np.mean(values % 8 == 0)) >= 0.97 and float(np.mean(values % 64 == 0)) < 0.9


def is_half_float(grid: npt.NDArray[Any], values: npt.NDArray[Any], scale: float) -> bool:
    """Whether integers are the bits of float16 numbers.

    Their histogram has nothing outside of a narrow band, which depth at usual scales can have as well. So planes
    decide: along a line on one, 1 / z has no second difference, of numbers but not of their bits.

    Args:
        grid: (H, W) integers of 16 bits.
        values: (N,) those that are known.
        scale: stored units a metre by which they were read.
    """
    near, far = np.percentile(values, (1, 97))
    if values.max() > 0x7C00 or near < _LEAST_HALF or far > _MOST_HALF or far > _MOST_HALF_SPAN * near:
        return False
    as_bits = _flatness(np.ascontiguousarray(grid).view(np.float16).astype(np.float64))
    as_numbers = _flatness(grid.astype(np.float64))
    if as_bits is None or as_numbers is None:
        # Nothing to see of planes: at a usual scale nothing near is unlikely enough.
        return float(near) / scale > 8
    return as_bits < 0.7 * as_numbers


def _flatness(z: npt.NDArray[np.float64]) -> float | None:
    """Median of the second difference of 1 / z relative to its first, on triples of pixels far apart; 0 on planes.

    None where too few triples are on slopes.
    """
    found = []
    for axis in (0, 1):
        step = max(2, round(z.shape[axis] * _STRIDE))
        if z.shape[axis] <= 2 * step:
            continue
        with np.errstate(all="ignore"):
            inverse = np.moveaxis(1 / z, axis, 0)
            first, middle, last = inverse[: -2 * step], inverse[step:-step], inverse[2 * step :]
            slope = np.abs(last - first)
            bend = np.abs(first + last - 2 * middle)
            # Steps of the numbers themselves and edges say nothing.
            telling = (slope > 0.02 * middle) & (slope < 0.3 * middle) & np.isfinite(bend)
            found.append((bend / slope)[telling])
    values = np.concatenate(found) if found else np.empty(0)
    return float(np.median(values)) if values.size >= _LEAST_TRIPLES else None
