"""Bringing the parts of a frame to one size: measured values are picked, never mixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.records import Resolution

# Shapes of image and depth may differ by so much and still be one picture: 1296x968 and 640x480 of ScanNet do.
_SHAPE_TOLERANCE = 0.015
# Depth is sparse where less than this is known: accumulated LiDAR has a fifth, one sweep a twentieth, and a camera that
# measures depth mostly more than a third.
_SPARSE = 0.25


def instance_size(image_size: tuple[int, int], depth_size: tuple[int, int], resolution: Resolution) -> tuple[int, int]:
    """(width, height) of the instance of an image and a depth map, `resolution` choosing where they differ."""
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


def is_sparse(depth: npt.NDArray[np.float32]) -> bool:
    """Whether most of a depth map (H, W) is unknown (NaN), as of LiDAR."""
    return int(np.count_nonzero(np.isnan(depth))) > (1 - _SPARSE) * depth.size


def nearest_returns(depth: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Sparse depth (H, W) in a smaller size (width, height): each pixel has the least depth of its block.

    A block is the pixels whose centres lie in it; its pixel is unknown (NaN) only where all of them are.
    """
    height, width = depth.shape
    rows, columns = np.nonzero(~np.isnan(depth))
    blocks = (rows * size[1] // height) * size[0] + columns * size[0] // width
    nearest = np.full(size[0] * size[1], np.nan, np.float32)
    np.fmin.at(nearest, blocks, depth[rows, columns])
    return nearest.reshape(size[1], size[0])


def any_of_block(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A mask (H, W) in a smaller size (width, height): true where any pixel of the block is, see `nearest_returns`."""
    return np.isfinite(nearest_returns(np.where(mask, np.float32(1), np.float32(np.nan)), size))


def picked(own: tuple[int, int], size: tuple[int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of the pixels nearest to those of another size."""
    rows = ((np.arange(size[1]) + 0.5) * own[1] / size[1]).astype(np.int64)
    columns = ((np.arange(size[0]) + 0.5) * own[0] / size[0]).astype(np.int64)
    return rows, columns
