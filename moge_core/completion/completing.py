"""Completion: gaps of a depth map follow a prediction's gradients, known pixels stay (MoGe-2, real data refinement)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from moge_core.completion.common import Array, align_prediction, check_companion, check_depth, image_contrast
from moge_core.completion.poisson import interpolate_harmonic
from moge_core.errors import InputError

# Change of log depth between neighbours of the prediction at which depth is likely to be that of two surfaces.
_PREDICTION_JUMP = 0.05
# Across an edge of image or prediction little is carried, yet never nothing: a gap must not fall apart.
_LEAST_WEIGHT = 1e-3
# Draws what no known depth reaches to the aligned prediction, and is too weak to be felt elsewhere.
_PULL = 1e-7
# Depth beyond this many times the farthest known is no interpolation any more.
_FARTHEST = 3.0
# A trial hides known pixels in squares this many times as wide as gap pixels are on average from the known.
_TRIAL_SIDE = 6.0
_LEAST_TRIAL_PIXELS = 64
# Of the solver: the trial asks for one number only.
_TOLERANCE, _TRIAL_TOLERANCE = 1e-5, 1e-3
# Shares of known pixels outside the mask that speak against its sky: in one region, and in the whole image.
_REGION_DOUBT, _IMAGE_DOUBT = 0.1, 0.01


def complete_depth(
    depth: npt.NDArray[Any],
    prediction: npt.NDArray[Any],
    *,
    image: npt.NDArray[np.uint8] | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float32]:
    """Fill the unknown pixels of a depth map with the help of a prediction.

    In log depth, the gaps solve a Poisson problem: known pixels hold their values, gradients in the gaps are those of
    the prediction after it was aligned by scale and shift. Edges of prediction and image carry little from one side to
    the other. A model may be poor, so its gradients are weighed against those of the surface that bends least in
    disparity (a plane stays a plane); the weight is the one that restores known pixels best that are hidden in a trial.

    Args:
        depth: (H, W), any unit; NaN, zero and negative = unknown, +Inf = sky, which stays.
        prediction: (H, W) predicted depth, right up to scale and shift; not finite where the model says nothing.
        image: uint8 (H, W, 3), RGB; None does without its edges.
        mask: (H, W) bool, False where the model sees the infinitely far. Unknown pixels there become +Inf, unless
            known depth contradicts the mask: finite for more than 1 of 10 known pixels of a connected region, or, in a
            region with none, more than 1 of 100 in the whole image. None, the default: no new sky.

    Returns:
        (H, W) float32 without unknown pixels, in the unit of `depth`; known pixels have the values they had.

    Raises:
        InputError: shapes or types do not fit, or there are gaps and no finite depth that gives them a unit.
    """
    known_depth = check_depth(depth)
    check_depth(prediction, "prediction")
    if prediction.shape != depth.shape:
        raise InputError("prediction", f"must have the shape of depth, {depth.shape}", found=prediction.shape)
    if image is not None:
        check_companion(image, "image", (*depth.shape, 3), np.uint8)
    result = np.where(np.isnan(known_depth), np.float32(np.nan), depth.astype(np.float32))
    gaps = np.isnan(known_depth)
    if mask is not None:
        check_companion(mask, "mask", depth.shape, np.bool_)
        new_sky = gaps & _sky_of_mask(mask, known_depth)
        result[new_sky] = np.inf
        gaps &= ~new_sky
    if not gaps.any():
        return result
    known = np.isfinite(known_depth)
    if not known.any():
        raise InputError(
            "depth",
            "must have a pixel of finite depth, which gives the completed ones their unit",
            found="none",
            fix="A prediction alone is what `moge infer --maps` writes.",
        )
    log_depth = np.log(np.where(known, known_depth, 1))
    log_prediction = np.log(align_prediction(np.where(prediction > 0, prediction, np.nan), known_depth))
    weights = _Weights.of(log_prediction, image)
    trust = _trust_in_prediction(log_depth, log_prediction, known, gaps, weights)
    followed = _follow_prediction(log_depth, log_prediction, known, gaps, weights)
    filled = np.where(_reached(known, gaps), trust, 1) * followed
    if trust < 1:
        filled += np.where(_reached(known, gaps), 1 - trust, 0) * _follow_surface(log_depth, known, gaps, weights)
    limits = np.finfo(np.float32)
    with np.errstate(over="ignore"):
        result[gaps] = np.clip(np.exp(filled[gaps]), limits.smallest_subnormal, limits.max).astype(np.float32)
    return result


@dataclass(frozen=True)
class _Weights:
    """Of the edges between neighbours, (H, W - 1) and (H - 1, W): near 0 across edges of the image, or of either."""

    image: tuple[Array, Array]
    both: tuple[Array, Array]

    @classmethod
    def of(cls, log_prediction: Array, image: npt.NDArray[np.uint8] | None) -> _Weights:
        jumps = [_weight_of(np.diff(log_prediction, axis=axis), _PREDICTION_JUMP) for axis in (1, 0)]
        if image is None:
            colors = [np.ones_like(jump) for jump in jumps]
        else:
            contrast_x, contrast_y, least = image_contrast(image)
            colors = [_weight_of(contrast, least) for contrast in (contrast_x, contrast_y)]
        both = [np.maximum(color * jump, _LEAST_WEIGHT) for color, jump in zip(colors, jumps, strict=True)]
        return cls((colors[0], colors[1]), (both[0], both[1]))


def _weight_of(difference: Array, scale: float) -> Array:
    return np.maximum(1 / (1 + np.square(difference.astype(np.float64) / scale)), _LEAST_WEIGHT)


def _follow_prediction(
    log_depth: Array, log_prediction: Array, known: Array, gaps: Array, weights: _Weights, tolerance: float = _TOLERANCE
) -> npt.NDArray[np.float64]:
    """Log depth (H, W) whose gradients in the gaps are the prediction's."""
    offset = np.where(known, log_depth - log_prediction, 0)
    return log_prediction + interpolate_harmonic(offset, known, gaps, *weights.both, _PULL, tolerance)


def _follow_surface(
    log_depth: Array, known: Array, gaps: Array, weights: _Weights, tolerance: float = _TOLERANCE
) -> npt.NDArray[np.float64]:
    """Log depth (H, W) whose gradients in the gaps are those of the smoothest disparity. Planes have a linear one."""
    middle, farthest = float(np.median(log_depth[known])), float(log_depth[known].max())
    disparity = interpolate_harmonic(np.exp(middle - log_depth), known, gaps, *weights.image, _PULL, tolerance)
    least = math.exp(middle - farthest) / _FARTHEST
    return middle - np.log(np.maximum(disparity, least))


def _trust_in_prediction(
    log_depth: Array, log_prediction: Array, known: Array, gaps: Array, weights: _Weights
) -> float:
    """Share of the prediction's gradients, 0 to 1, that restores hidden known pixels with the least absolute error."""
    hidden = known & _trial_squares(known, gaps)
    if np.count_nonzero(hidden) < _LEAST_TRIAL_PIXELS:
        return 1.0
    left = known & ~hidden
    followed = _follow_prediction(log_depth, log_prediction, left, gaps | hidden, weights, _TRIAL_TOLERANCE)[hidden]
    plain = _follow_surface(log_depth, left, gaps | hidden, weights, _TRIAL_TOLERANCE)[hidden]
    span = followed - plain
    usable = np.abs(span) > 1e-9
    if not usable.any():
        return 1.0
    # The weighted median of the shares that restore each pixel.
    share, weight = (log_depth[hidden] - plain)[usable] / span[usable], np.abs(span[usable])
    order = np.argsort(share)
    total = np.cumsum(weight[order])
    return float(np.clip(share[order][np.searchsorted(total, total[-1] / 2)], 0, 1))


def _trial_squares(known: Array, gaps: Array) -> npt.NDArray[np.bool_]:
    """One of four squares (H, W) of a lattice, as wide as makes them as hard to fill as the gaps."""
    distance = cv2.distanceTransform((~known).astype(np.uint8), cv2.DIST_L2, 5)
    height, width = known.shape
    side = int(np.clip(round(_TRIAL_SIDE * float(distance[gaps].mean())), 2, max(2, min(height, width) // 4)))
    odd_row, odd_column = (np.arange(size) // side % 2 == 1 for size in (height, width))
    squares: npt.NDArray[np.bool_] = odd_row[:, None] & odd_column[None]
    return squares


def _reached(known: Array, gaps: Array) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) that are connected to known depth through gaps."""
    _, labels = cv2.connectedComponents((known | gaps).astype(np.uint8), connectivity=4)
    reached = np.zeros(labels.max() + 1, np.bool_)
    reached[labels[known]] = True
    pixels: npt.NDArray[np.bool_] = reached[labels]
    return pixels


def _sky_of_mask(mask: Array, depth: Array) -> npt.NDArray[np.bool_]:
    """Where the mask sees the infinitely far (H, W) and known depth does not contradict it."""
    count, labels = cv2.connectedComponents((~mask).astype(np.uint8), connectivity=4)
    finite, known = np.isfinite(depth), ~np.isnan(depth)
    num_finite, num_known = (np.bincount(labels[v], minlength=count) for v in (finite, known))
    wrong = np.count_nonzero(finite & ~mask)
    image_believed = wrong <= _IMAGE_DOUBT * np.count_nonzero(known)
    believed = np.where(num_known > 0, num_finite <= _REGION_DOUBT * num_known, image_believed)
    believed[0] = False  # the label of what is inside the mask
    sky: npt.NDArray[np.bool_] = believed[labels]
    return sky
