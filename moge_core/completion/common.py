"""What filter and completion share: checks, the alignment of a prediction, edges of the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError

Array = npt.NDArray[Any]

# Residuals count up to this, relative to depth, so that displaced depth does not draw the alignment to itself.
ALIGNMENT_TRUNC = 0.3
_GLOBAL_SAMPLES = 1024
# An aligned prediction is kept this far from 0 and infinity, relative to the known depths.
_MARGIN = 10.0
# Channel differences, summed, that are an edge of the image: at least this, or this many times the image's median.
_LEAST_CONTRAST = 0.03
_CONTRAST_OF_MEDIAN = 1.5


def check_depth(depth: Any, name: str = "depth") -> npt.NDArray[np.float64]:
    """The map as float64 with every impossible depth unknown.

    Raises:
        InputError: no floating-point array of shape (H, W) with a pixel.
    """
    if not isinstance(depth, np.ndarray) or depth.dtype.kind != "f" or depth.ndim != 2 or depth.size == 0:
        found = f"{depth.dtype} {depth.shape}" if isinstance(depth, np.ndarray) else type(depth).__name__
        raise InputError(name, "must be a floating-point array of shape (H, W), not empty", found=found)
    wide = depth.astype(np.float64)
    wide[~(wide > 0)] = np.nan
    return wide


def check_companion(array: Any, name: str, shape: tuple[int, ...], dtype: type) -> None:
    """Refuse what does not belong to a depth map of that shape.

    Raises:
        InputError: another shape or type.
    """
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(name, f"must be {np.dtype(dtype).name} of shape {shape}", found=found)


def align_prediction(prediction: Array, depth: Array) -> npt.NDArray[np.float64]:
    """The prediction (H, W) at scale and shift of the finite depths (H, W), positive and finite everywhere.

    A prediction that runs against the depth, or that is nowhere known, says nothing: the result is then constant.
    """
    import torch

    from moge_core.alignment import align_depth_affine

    known = np.isfinite(depth)
    usable = np.flatnonzero(known & np.isfinite(prediction))
    middle = float(np.median(depth[known]))
    scale, shift = 0.0, middle
    if usable.size:
        chosen = usable[np.linspace(0, usable.size - 1, min(usable.size, _GLOBAL_SAMPLES)).astype(np.int64)]
        # Near 1, so that the solver's margins hold for depths of any unit.
        unit = float(np.median(np.abs(prediction.flat[chosen]))) or 1.0
        source, target = (
            torch.from_numpy(v.flat[chosen].astype(np.float64) / u) for v, u in ((prediction, unit), (depth, middle))
        )
        found_scale, found_shift = align_depth_affine(source[None], target[None], 1 / target[None], ALIGNMENT_TRUNC)
        scale, shift = float(found_scale) * middle / unit, float(found_shift) * middle
        if usable.size == 1:
            scale, shift = float(target[0] / source[0]) * middle / unit if source[0] > 0 else 0.0, 0.0
    if not scale > 0:
        return np.full(depth.shape, middle)
    low, high = float(depth[known].min()) / _MARGIN, float(depth[known].max()) * _MARGIN
    aligned = np.where(np.isfinite(prediction), scale * np.nan_to_num(prediction) + shift, middle)
    return np.clip(aligned, low, high)


def image_contrast(image: Array) -> tuple[Array, Array, float]:
    """Differences of colour between neighbours, and how great one must be to be an edge.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        (H, W - 1), (H - 1, W) and a number; colours are in 0..1 and their differences summed over the channels.
    """
    colors = image.astype(np.float32) / 255
    contrast_x, contrast_y = (np.abs(np.diff(colors, axis=axis)).sum(axis=2) for axis in (1, 0))
    both = np.concatenate([contrast_x.ravel(), contrast_y.ravel()])
    # Noise and fine texture raise what counts as an edge.
    median = float(np.median(both)) if both.size else 0.0
    return contrast_x, contrast_y, max(_LEAST_CONTRAST, _CONTRAST_OF_MEDIAN * median)
