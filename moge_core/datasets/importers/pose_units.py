"""Whether a COLMAP model that lies beside depth in metres is in metres too.

A model that was reconstructed from pictures has a unit of its own, which nobody knows; its points tell it, compared
with the depth maps. One without points was not reconstructed but written from poses that were known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.colmap_model import (
    ModelCamera,
    ModelImage,
    ModelPoints,
    model_file,
    points_in_camera,
    read_cameras,
    read_images,
    read_points,
)
from moge_core.errors import MoGeError

ReadDepth: TypeAlias = Callable[[PurePosixPath], npt.NDArray[np.float32]]
"""Depth (H, W) in metres of an image, as it would be imported."""

# Frames that are compared, and the fewest points of all of them that tell something.
_FRAMES, _LEAST_POINTS = 6, 20
# Depth and points of one unit differ by less.
_MOST_DIFFERENCE = 0.1


def metres_a_unit(folder: Path, images: Mapping[str, PurePosixPath], read_depth: ReadDepth) -> float | None:
    """How many metres of depth a unit of a model's points is; 1 of a model without points.

    Args:
        folder: of the model.
        images: of its images, by their names in the model.
        read_depth: how to get depth.

    Returns:
        None where too few points are seen by these images to tell.
    """
    images_path, cameras_path, points_path = (model_file(folder, name) for name in ("images", "cameras", "points3D"))
    assert images_path is not None and cameras_path is not None
    points = None if points_path is None else read_points(points_path)
    if points is None or not len(points.ids):
        return 1.0
    cameras = read_cameras(cameras_path)
    seen = [image for image in read_images(images_path) if image.name in images]
    ratios: list[npt.NDArray[np.float64]] = []
    for place in sorted({round(x) for x in np.linspace(0, len(seen) - 1, _FRAMES)}) if seen else ():
        image = seen[place]
        try:
            depth = read_depth(images[image.name])
            ratios.append(_ratios(depth, images_path, image, cameras[image.camera_id], points))
        except (MoGeError, OSError, KeyError):
            # The frame's own error is told where it is imported.
            continue
    if sum(map(len, ratios)) < _LEAST_POINTS:
        return None
    return float(np.median(np.concatenate(ratios)))


def is_in_metres(unit: float | None) -> bool:
    """Whether a unit is a metre, as far as depth can tell."""
    return unit is not None and abs(unit - 1) < _MOST_DIFFERENCE


def _ratios(
    depth: npt.NDArray[np.float32], path: Path, image: ModelImage, camera: ModelCamera, points: ModelPoints
) -> npt.NDArray[np.float64]:
    """Depth by z of each point that an image sees."""
    x, y, z = points_in_camera(path, image, points).T
    pinhole = camera.in_pixels(path)
    assert pinhole.size is not None
    height, width = depth.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        column = (x / z * pinhole.fx + pinhole.cx + 0.5) * width / pinhole.size[0]
        row = (y / z * pinhole.fy + pinhole.cy + 0.5) * height / pinhole.size[1]
    inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    there = depth[row[inside].astype(int), column[inside].astype(int)].astype(np.float64)
    ratio: npt.NDArray[np.float64] = there / z[inside]
    return ratio[np.isfinite(ratio)]
