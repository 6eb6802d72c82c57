"""Maps of depth, normals and masks as RGB pictures."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError

Rgb = tuple[int, int, int]

UNKNOWN_COLOR: Rgb = (20, 20, 20)
INF_COLOR: Rgb = (214, 226, 240)

# Quantiles of disparity that become the ends of the colour map: a few wild pixels must not flatten the rest.
_FAR_QUANTILE, _NEAR_QUANTILE = 0.001, 0.99


def colorize_depth(
    depth: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_] | None = None,
    near: float | None = None,
    far: float | None = None,
    normalize: bool = True,
    *,
    inf_color: Rgb = INF_COLOR,
    unknown_color: Rgb = UNKNOWN_COLOR,
) -> npt.NDArray[np.uint8]:
    """Depth as colours of its disparity, from red (near) to violet (far).

    Args:
        depth: (H, W), any unit; NaN, negative and zero are unknown, +Inf is infinitely far.
        mask: (H, W) bool; False is shown as unknown.
        near, far: depths at the ends of the colour map; None takes them from the map itself.
        normalize: stretch the colours over the map's own disparities (its 0.1 % to 99 % quantiles), so that a scale
            and shift of disparity change nothing. False colours disparities 0 to 1, so that pictures compare.
        inf_color, unknown_color: RGB of +Inf and of unknown pixels.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: a shape does not fit, or not 0 < near < far.
    """
    depth = np.asarray(depth)
    if depth.ndim != 2:
        raise InputError("depth", "must be of shape (H, W)", found=depth.shape)
    shown = np.ones(depth.shape, np.bool_) if mask is None else _checked_mask(mask, depth.shape)
    if (near is not None and not near > 0) or (far is not None and not far > 0):
        raise InputError("near, far", "must be above 0", found=(near, far))
    if near is not None and far is not None and not near < far:
        raise InputError("near", "must be less than far", found=(near, far))
    depth = depth.astype(np.float64)
    picture = np.full((*depth.shape, 3), unknown_color, np.uint8)
    picture[shown & (depth == np.inf)] = inf_color
    finite = shown & np.isfinite(depth) & (depth > 0)
    if finite.any():
        disparity = 1 / np.maximum(depth[finite], np.finfo(np.float64).tiny * 4)
        low, high = (0.0, 1.0)
        if normalize:
            low, high = np.quantile(disparity, [_FAR_QUANTILE, _NEAR_QUANTILE])
        low, high = (1 / far if far else low), (1 / near if near else high)
        # A map of one depth, or bounds that cross, has no spread to show: it gets the middle colour.
        share = np.full_like(disparity, 0.5) if not low < high else np.clip((disparity - low) / (high - low), 0, 1)
        colors = _spectral()
        picture[finite] = colors[np.rint((1 - share) * (len(colors) - 1)).astype(np.int64)]
    return picture


def colorize_normal(normal: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.uint8]:
    """Normals as colours: red grows to the right, green upwards, blue towards the camera.

    Args:
        normal: (H, W, 3) unit vectors in OpenCV camera axes; NaN is unknown.
        mask: (H, W) bool; False is shown as unknown.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: a shape does not fit.
    """
    normal = np.asarray(normal)
    if normal.ndim != 3 or normal.shape[2] != 3:
        raise InputError("normal", "must be of shape (H, W, 3)", found=normal.shape)
    known = np.isfinite(normal).all(axis=2)
    if mask is not None:
        known &= _checked_mask(mask, known.shape)
    picture = np.full(normal.shape, UNKNOWN_COLOR, np.uint8)
    codes = normal[known].astype(np.float64) * np.array([0.5, -0.5, -0.5]) + 0.5
    picture[known] = np.rint(255 * np.clip(codes, 0, 1)).astype(np.uint8)
    return picture


def colorize_mask(mask: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A mask as grey: black for 0 or False, white for 1 or True; NaN is shown as unknown.

    Args:
        mask: (H, W) bool, or probabilities, which are clipped to 0..1.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: another shape.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise InputError("mask", "must be of shape (H, W)", found=mask.shape)
    share = mask.astype(np.float64)
    known = ~np.isnan(share)
    picture = np.full((*mask.shape, 3), UNKNOWN_COLOR, np.uint8)
    picture[known] = np.rint(255 * np.clip(share[known], 0, 1)).astype(np.uint8)[:, None]
    return picture


def _checked_mask(mask: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise InputError("mask", f"must be of shape {shape}, as its map", found=mask.shape)
    return mask.astype(np.bool_)


@functools.cache
def _spectral() -> npt.NDArray[np.uint8]:
    """(256, 3) colours of ColorBrewer's Spectral, from red to violet."""
    import matplotlib as mpl

    colors: npt.NDArray[np.uint8] = mpl.colormaps["Spectral"](np.arange(256), bytes=True)[:, :3]
    return colors
