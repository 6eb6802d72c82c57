"""Point clouds as viewers want them: upright, coloured, and saying what their numbers mean."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.io import write_ply

_TO_VIEWER = np.array([1, -1, -1], dtype=np.float32)


def write_viewer_ply(
    path: str | PathLike[str],
    points: npt.NDArray[Any],
    colors: npt.NDArray[np.uint8],
    normals: npt.NDArray[Any] | None = None,
    *,
    metric: bool,
) -> None:
    """Write points of a camera as a binary PLY whose vertices are (X, -Y, -Z), since viewers have y pointing up.

    Args:
        path: the file.
        points: (N, 3), OpenCV camera axes, finite.
        colors: uint8 (N, 3), RGB.
        normals: (N, 3), OpenCV camera axes.
        metric: True when the points are in metres; the header says so.

    Raises:
        InputError: shapes that do not fit, or points that are not finite.
    """
    write_ply(
        path,
        points * _TO_VIEWER,
        colors,
        normals=None if normals is None else normals * _TO_VIEWER,
        comments=(
            "vertices are (X, -Y, -Z) of the camera axes x right, y down, z forward",
            f"unit: {'metres' if metric else 'unknown, the depth is relative'}",
        ),
    )
