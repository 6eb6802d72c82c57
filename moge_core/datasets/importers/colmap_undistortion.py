"""The pinhole that COLMAP brings the pictures of a camera with distortion onto.

COLMAP's stereo runs on undistorted pictures only: the depth maps of a model whose cameras have distortion belong to
these. `colmap image_undistorter` keeps the focal lengths and chooses another size, with which no pixel is blank; the
rule is that of `UndistortCamera` in its src/colmap/image/undistortion.cc, at the default options.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import Stored
from moge_core.datasets.importers.sizes import is_same_shape
from moge_core.datasets.importers.undistortion import rays_of_pixels, undistorted_picture
from moge_core.errors import InstanceError
from moge_core.io.headers import read_image_header
from moge_core.io.image import read_stored_image

_FIX = (
    "Import the folder that `colmap image_undistorter` made; if pictures and depth maps are undistorted with these very"
    " focal lengths, say --distortion ignore."
)
# COLMAP's options min_scale and max_scale.
_LEAST_SCALE, _MOST_SCALE = 0.2, 2.0
# COLMAP and this code may round a size differently.
_SIZE_SLACK_PX = 1


def undistorted_frame(
    image: Path, camera: PixelIntrinsics, depth_size: tuple[int, int]
) -> tuple[Stored, PixelIntrinsics, str]:
    """The picture of a depth map of COLMAP, its camera, and what is to be told.

    Args:
        image: the picture, as it was taken or undistorted.
        camera: with distortion, as the model has it.
        depth_size: (width, height) of the depth map.

    Raises:
        InstanceError: the depth map is not of the undistorted picture, or the picture is of another size than both.
    """
    pinhole = colmap_pinhole(camera)
    assert pinhole.size is not None and camera.size is not None
    text = f"{pinhole.size[0]}x{pinhole.size[1]}"
    is_smaller = min(*depth_size) < min(*pinhole.size) and depth_size != camera.size
    if not (_is_same(depth_size, pinhole.size) or (is_smaller and is_same_shape(depth_size, pinhole.size))):
        raise InstanceError(
            image,
            f"a depth map of COLMAP must be of the undistorted picture, {text}",
            found=f"{depth_size[0]}x{depth_size[1]}",
            fix=_FIX,
        )
    # COLMAP passes EXIF orientations by.
    header = read_image_header(image)
    size = header.width, header.height
    if size == camera.size:
        note = "COLMAP's depth maps are of undistorted pictures; the pictures were undistorted as COLMAP does."
        return Stored(image, partial(_read_undistorted, camera=camera, pinhole=pinhole)), pinhole, note
    if _is_same(size, pinhole.size):
        note = "The pictures have the size of COLMAP's undistorted ones and were taken as such."
        return Stored(image), pinhole, note
    raise InstanceError(
        image,
        f"must have the size of its camera, {camera.size[0]}x{camera.size[1]}, or of its undistorted picture, {text}",
        found=f"{size[0]}x{size[1]}",
        fix="Import the folder that `colmap image_undistorter` made.",
    )


@lru_cache(maxsize=1024)
def colmap_pinhole(camera: PixelIntrinsics) -> PixelIntrinsics:
    """The camera of the undistorted pictures.

    Args:
        camera: with a size and a distortion that is obeyed.
    """
    assert camera.size is not None
    scales = []
    # Places count from the corner here, as COLMAP's do.
    for side, focal, centre, axis in (
        (camera.size[0], camera.fx, camera.cx + 0.5, 0),
        (camera.size[1], camera.fy, camera.cy + 0.5, 1),
    ):
        along = np.arange(camera.size[1 - axis], dtype=np.float64)
        ends = []
        for end in (0.0, side - 1.0):
            pixels = np.stack([np.full_like(along, end), along][:: 1 if axis == 0 else -1], axis=1)
            rays = rays_of_pixels(camera, pixels)[:, axis]
            ends.append(rays[np.isfinite(rays)] * focal + centre)
        shown = [centre / (centre - ends[0].max())] if ends[0].size else []
        shown += [(side - 0.5 - centre) / (ends[1].min() - centre)] if ends[1].size else []
        scale = 1 / max(shown) if shown and max(shown) > 0 else _MOST_SCALE
        scales.append(min(max(scale, _LEAST_SCALE), _MOST_SCALE))
    size = int(max(1.0, scales[0] * camera.size[0])), int(max(1.0, scales[1] * camera.size[1]))
    cx = (camera.cx + 0.5) * size[0] / camera.size[0] - 0.5
    cy = (camera.cy + 0.5) * size[1] / camera.size[1] - 0.5
    return PixelIntrinsics(camera.fx, camera.fy, cx, cy, size)


def _is_same(size: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(abs(size[0] - other[0]), abs(size[1] - other[1])) <= _SIZE_SLACK_PX


def _read_undistorted(path: Path, *, camera: PixelIntrinsics, pinhole: PixelIntrinsics) -> npt.NDArray[Any]:
    return undistorted_picture(read_stored_image(path)[0], camera, pinhole)
