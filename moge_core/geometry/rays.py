"""Viewing rays of a pinhole camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def ray_lengths(
    height: int,
    width: int,
    intrinsics: npt.NDArray[np.floating[Any]],
    *,
    rows: npt.NDArray[np.int64] | None = None,
    columns: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float64]:
    """Length (h, w) of the viewing rays up to z = 1 of a map (height, width): distance along the ray over z."""
    rows = np.arange(height) if rows is None else rows
    columns = np.arange(width) if columns is None else columns
    u = ((columns + 0.5) / width - intrinsics[0, 2]) / intrinsics[0, 0]
    v = ((rows + 0.5) / height - intrinsics[1, 2]) / intrinsics[1, 1]
    lengths: npt.NDArray[np.float64] = np.sqrt(1 + u[None, :] ** 2 + v[:, None] ** 2)
    return lengths
