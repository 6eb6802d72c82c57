"""Pixel intrinsics: a pinhole camera and, where it has one, the distortion of its lens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.distortion import Distortion
from moge_core.errors import FormatError, InputError

LATER: Mapping[str, bool] = {"later": True}
"""Metadata of a field that came after datasets had been imported: at its default it is no part of a digest."""


@dataclass(frozen=True, slots=True)
class PixelIntrinsics:
    """Focal lengths and principal point in pixels, counted from the centre of the first pixel.

    Attributes:
        size: (width, height) of the image that they refer to, where that is known.
        depth_scale: units a metre, where the file says so; only compared with what the user says.
        distortion: of the lens; None for a pinhole. The other numbers are then those of its model.
        notes: what a person should know about how the camera was read.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    size: tuple[int, int] | None = None
    depth_scale: float | None = None
    distortion: Distortion | None = field(default=None, metadata=LATER)
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def matrix(self) -> npt.NDArray[np.float64]:
        """The 3x3 matrix in pixels."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)


def intrinsics_from_matrix(value: Any, where: object) -> PixelIntrinsics:
    """Intrinsics of a 3x3 or 4x4 camera matrix in pixels, written row by row or column by column.

    Args:
        value: numbers, nested or 9 in a row.
        where: what errors name.

    Raises:
        FormatError: no camera matrix, or skew.
        InputError: focal lengths that are no pixels.
    """
    try:
        K = np.asarray(value, dtype=np.float64)
        K = K.reshape(3, 3) if K.size == 9 else K
    except (TypeError, ValueError) as error:
        raise FormatError(where, "must be a 3x3 matrix of numbers", found=error) from error
    if K.shape == (4, 4):
        K = K[:3, :3]
    if K.shape != (3, 3):
        raise FormatError(where, "must be a 3x3 matrix", found=f"shape {K.shape}")
    # A camera's last row is 0 0 1. Where its last column is, the matrix was written column by column.
    if not np.allclose(K[2], (0, 0, 1)):
        if not np.allclose(K[:, 2], (0, 0, 1)):
            raise FormatError(where, "must be a camera matrix, with 0 0 1 as its last row or column", found=K.tolist())
        K = K.T
    if abs(K[0, 1]) > 1e-6 * abs(K[0, 0]) or K[1, 0] != 0:
        raise FormatError(
            where,
            "must have no skew; instances are pinhole cameras",
            found=f"K[0][1] = {K[0, 1]:g}, K[1][0] = {K[1, 0]:g}",
        )
    return checked_intrinsics([K[0, 0], K[1, 1], K[0, 2], K[1, 2]], where)


def checked_intrinsics(numbers: Sequence[float], where: object) -> PixelIntrinsics:
    """Intrinsics of fx, fy, cx and cy in pixels.

    Raises:
        InputError: no such numbers, or normalised ones.
    """
    fx, fy, cx, cy = numbers
    text = f"fx = {fx:g}, fy = {fy:g}, cx = {cx:g}, cy = {cy:g}"
    if not all(math.isfinite(number) for number in numbers) or fx <= 0 or fy == 0:
        raise InputError(where, "must be finite pixel intrinsics with fx > 0 and fy not 0", found=text)
    if fx < 10 and 0 < cx < 1 and 0 < cy < 1:
        raise InputError(
            where,
            "must be intrinsics in pixels",
            found=f"{text}, which look normalised",
            fix="Multiply by the image size: fx * W, fy * H, cx * W - 0.5, cy * H - 0.5.",
        )
    return PixelIntrinsics(fx, fy, cx, cy)
