"""Bringing the parts of a frame to one size: measured values are picked, never mixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.records import Record, Resolution
from moge_core.errors import InstanceError

# Shapes of image and depth may differ by so much and still be one picture: 1296x968 and 640x480 of ScanNet do.
_SHAPE_TOLERANCE = 0.015


def instance_size(
    record: Record, image_size: tuple[int, int], depth_size: tuple[int, int], resolution: Resolution
) -> tuple[int, int]:
    """(width, height) of the instance of an image and a depth map, `resolution` choosing where they differ.

    Raises:
        InstanceError: they differ in shape.
    """
    if image_size == depth_size:
        return image_size
    (width, height), (depth_width, depth_height) = image_size, depth_size
    if not is_same_shape(image_size, depth_size):
        raise InstanceError(
            record.image.path,
            "image and depth map must have the same size, or at least the same shape",
            found=f"{width}x{height} and {depth_width}x{depth_height}",
            fix="Use the depth maps registered to the colour camera, cropped like the images.",
        )
    if resolution == "smaller":
        return min(image_size, depth_size)
    return image_size if resolution == "image" else depth_size


def is_same_shape(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two sizes are of one picture: the same ratio of sides, or the same but for whole pixels."""
    (width, height), (other_width, other_height) = max(first, second), min(first, second)
    if abs((width * other_height) / (height * other_width) - 1) <= _SHAPE_TOLERANCE:
        return True
    off_width, off_height = other_width - width * other_height / height, other_height - height * other_width / width
    return other_width < width and other_height < height and max(abs(off_width), abs(off_height)) < 1


def resized(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Nearest neighbour: measured values are picked, never mixed."""
    rows, columns = picked((values.shape[1], values.shape[0]), size)
    return np.ascontiguousarray(values[rows[:, None], columns])


def picked(own: tuple[int, int], size: tuple[int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of the pixels nearest to those of another size."""
    rows = ((np.arange(size[1]) + 0.5) * own[1] / size[1]).astype(np.int64)
    columns = ((np.arange(size[0]) + 0.5) * own[0] / size[0]).astype(np.int64)
    return rows, columns
