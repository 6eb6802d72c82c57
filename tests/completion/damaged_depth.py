"""Ways to damage true depth, predictions of made-up quality, and the error against the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def fill_nearest(depth: Array) -> Array:
    """Every pixel gets the depth of the nearest finite one."""
    known = np.isfinite(depth)
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = np.zeros(labels.max() + 1)
    values[labels[known]] = depth[known]
    return values[labels]


def relative_error(depth: Array, truth: Array) -> float:
    """Mean over all pixels of finite truth; what is not finite counts as wholly wrong."""
    finite = np.isfinite(truth)
    error = np.abs(depth[finite] - truth[finite]) / truth[finite]
    return float(np.where(np.isfinite(error), error, 1).mean())


def predicted(truth: Array, rng: np.random.Generator, distortion: float = 0.08, noise: float = 0.01) -> Array:
    """What a good model would say: up to scale and shift, bent by a smooth field, noisy, finite everywhere."""
    filled = fill_nearest(truth)
    height, width = truth.shape
    field = cv2.resize(rng.normal(size=(4, 5)), (width, height), interpolation=cv2.INTER_CUBIC)
    bent = filled * np.exp(distortion * field + noise * rng.normal(size=truth.shape))
    prediction: Array = (0.4 * bent + 0.03 * np.median(filled)).astype(np.float32)
    return prediction


def _rectangle(shape: tuple[int, ...], rng: np.random.Generator, low: float, high: float) -> tuple[slice, slice]:
    sides = [max(1, int(size * rng.uniform(low, high))) for size in shape]
    starts = [int(rng.integers(0, size - side + 1)) for size, side in zip(shape, sides, strict=True)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return rows, columns


def with_holes(depth: Array, rng: np.random.Generator) -> Array:
    damaged = depth.copy()
    for _ in range(6):
        damaged[_rectangle(depth.shape, rng, 0.1, 0.3)] = np.nan
    blobs = cv2.GaussianBlur(rng.normal(size=depth.shape), (0, 0), 4)
    damaged[blobs > 1.7 * blobs.std()] = np.nan
    return damaged


def with_removed_region(depth: Array, rng: np.random.Generator) -> Array:
    damaged = depth.copy()
    damaged[_rectangle(depth.shape, rng, 0.4, 0.6)] = np.nan
    return damaged


def with_displaced_blocks(depth: Array, rng: np.random.Generator) -> Array:
    damaged = depth.copy()
    for _ in range(3):
        damaged[_rectangle(depth.shape, rng, 0.1, 0.28)] *= np.float32(rng.uniform(1.2, 1.6) ** rng.choice([-1, 1]))
    return damaged


def with_salt(depth: Array, rng: np.random.Generator) -> Array:
    damaged = depth.copy()
    hit = np.isfinite(depth) & (rng.random(depth.shape) < 0.02)
    damaged[hit] *= np.exp(rng.uniform(0.3, 1.5, hit.sum()) * rng.choice([-1, 1], hit.sum())).astype(np.float32)
    return damaged


def sparse(depth: Array, rng: np.random.Generator) -> Array:
    return np.where(rng.random(depth.shape) < 0.04, depth, np.float32(np.nan))


def with_everything(depth: Array, rng: np.random.Generator) -> Array:
    return with_holes(with_salt(with_displaced_blocks(depth, rng), rng), rng)


DAMAGES: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "holes": with_holes,
    "removed region": with_removed_region,
    "displaced blocks": with_displaced_blocks,
    "salt": with_salt,
    "sparse": sparse,
    "everything": with_everything,
}
