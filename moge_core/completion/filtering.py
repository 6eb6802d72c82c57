"""The filter: depth that no local alignment of a prediction explains is dropped (MoGe-2, real data refinement)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.completion.common import (
    ALIGNMENT_TRUNC,
    Array,
    align_prediction,
    check_companion,
    check_depth,
    image_contrast,
)
from moge_core.completion.jumps import drop_unsupported_pieces
from moge_core.errors import InputError

LEVELS = (1, 2, 4)
"""Windows of a scale span the image this many times, and overlap by half."""

# Samples of a window, on a grid of this side; a window with fewer known pixels than the least says nothing.
_SAMPLE_SIDE = 12
_LEAST_SAMPLES = 12
# A model that errs by more than this part of the tolerance at one pixel in ten cannot tell wrong depth from right.
_ORDINARY_SHARE, _LARGEST_ORDINARY = 0.9, 0.25


def filter_depth(
    depth: npt.NDArray[Any],
    prediction: npt.NDArray[Any],
    *,
    image: npt.NDArray[np.uint8] | None = None,
    levels: tuple[int, ...] = LEVELS,
    tolerance: float = 0.15,
) -> npt.NDArray[np.float32]:
    """Drop known depth that disagrees with a prediction, as measured locally.

    Two tests, either of which drops a pixel:

    - Its error is large after every local alignment that covers it. Windows at several scales align the prediction by
      scale and shift, with truncated residuals relative to depth; a pixel is excused by the best of its windows. Large
      is more than `tolerance`. The test is left out where the model is poor: where one of ten pixels exceeds a quarter
      of the tolerance.
    - It belongs to a piece of surface that is displaced as a whole, which a window inside it would excuse: a piece
      whose rim has jumps of depth that neither the prediction nor the image shows. The smaller side of such a rim is
      dropped. This test needs known neighbours, and works with a poor model too.

    Pixels without neighbours to compare with, and windows with fewer than 12 known pixels, are left alone: sparse depth
    loses single outliers at most.

    Args:
        depth: (H, W), any unit; NaN, zero and negative = unknown, +Inf = sky, which stays.
        prediction: (H, W) predicted depth, right up to scale and shift; not finite where the model says nothing.
        image: uint8 (H, W, 3), RGB; without it jumps are looked for in the prediction only.
        levels: scales of the windows.
        tolerance: relative error above which depth is wrong, where the model is good.

    Returns:
        (H, W) float32, `depth` with dropped and impossible values NaN.

    Raises:
        InputError: shapes or types do not fit, or an option outside its domain.
    """
    wide = check_depth(depth)
    check_depth(prediction, "prediction")
    if prediction.shape != depth.shape:
        raise InputError("prediction", f"must have the shape of depth, {depth.shape}", found=prediction.shape)
    if image is not None:
        check_companion(image, "image", (*depth.shape, 3), np.uint8)
    if not levels or not all(isinstance(level, int) and level >= 1 for level in levels):
        raise InputError("levels", "must be integers of at least 1", found=levels)
    if not tolerance > 0:
        raise InputError("tolerance", "must be positive", found=tolerance)
    result = np.where(np.isnan(wide), np.float32(np.nan), depth.astype(np.float32))
    known = np.isfinite(wide)
    if np.count_nonzero(known) < _LEAST_SAMPLES:
        return result
    aligned = align_prediction(np.where(prediction > 0, prediction, np.nan), wide)
    error = least_window_error(wide, aligned, levels)
    judged = known & np.isfinite(error)
    dropped = np.zeros(known.shape, np.bool_)
    ordinary = float(np.quantile(error[judged], _ORDINARY_SHARE)) if judged.any() else math.inf
    if ordinary <= _LARGEST_ORDINARY * tolerance:
        dropped = judged & (error > tolerance)
    contrast = None if image is None else image_contrast(image)
    dropped |= drop_unsupported_pieces(
        np.log(np.where(known, wide, 1)), np.log(aligned), known & ~dropped, np.isposinf(wide), contrast
    )
    result[dropped] = np.nan
    return result


def least_window_error(depth: Array, prediction: Array, levels: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Error of each pixel after the best of the local alignments that cover it.

    Args:
        depth: (H, W), finite where known.
        prediction: (H, W), positive and finite.
        levels: scales of the windows.

    Returns:
        (H, W) absolute error relative to depth; +Inf where unknown or in no window that could be aligned.
    """
    import torch

    from moge_core.alignment import align_depth_affine

    known = np.isfinite(depth)
    windows = [window for level in levels for window in _windows(depth.shape, level)]
    samples = [_samples(known, window) for window in windows]
    count = max(len(chosen) for chosen in samples)
    source, target, weight = (np.zeros((len(windows), count)) for _ in range(3))
    for row, chosen in enumerate(samples):
        if len(chosen) >= _LEAST_SAMPLES:
            unit = float(np.median(depth.flat[chosen]))
            source[row, : len(chosen)] = prediction.flat[chosen] / unit
            target[row, : len(chosen)] = depth.flat[chosen] / unit
            weight[row, : len(chosen)] = unit / depth.flat[chosen]
    p, q, w = (torch.from_numpy(v) for v in (source, target, weight))
    scale, shift = (v.numpy() for v in align_depth_affine(p, q, w, ALIGNMENT_TRUNC))
    least = np.full(depth.shape, np.inf)
    for row, (window, chosen) in enumerate(zip(windows, samples, strict=True)):
        if len(chosen) < _LEAST_SAMPLES or not scale[row] >= 0:
            continue
        unit = float(np.median(depth.flat[chosen]))
        moved = scale[row] * prediction[window] + shift[row] * unit
        error = np.abs(moved - depth[window]) / np.where(known[window], depth[window], 1)
        least[window] = np.fmin(least[window], np.where(known[window], error, np.inf))
    return least


def _windows(shape: tuple[int, ...], level: int) -> list[tuple[slice, slice]]:
    """Windows that span the image `level` times each way, and those half a window between them."""
    starts = []
    for size in shape:
        side = math.ceil(size / level)
        steps = np.unique(np.linspace(0, size - side, 2 * level - 1).astype(int))
        starts.append([slice(int(first), int(first) + side) for first in steps])
    return [(rows, columns) for rows in starts[0] for columns in starts[1]]


def _samples(known: Array, window: tuple[slice, slice]) -> npt.NDArray[np.int64]:
    """Flat indices of known pixels of a window: those nearest to none in particular, spread over all of them."""
    rows, columns = np.nonzero(known[window])
    if rows.size == 0:
        return np.zeros(0, np.int64)
    count = min(rows.size, _SAMPLE_SIDE**2)
    # A step that shares no factor with the width visits all columns, not a few of them.
    chosen = np.linspace(0, rows.size - 1, count).astype(np.int64)
    flat: npt.NDArray[np.int64] = (rows[chosen] + window[0].start) * known.shape[1] + columns[chosen] + window[1].start
    return flat
