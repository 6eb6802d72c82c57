"""Resampling an image, depth map or normal map as another camera at the same place would see it.

Sizes are `(height, width)`. Only the part of the source that the view sees is worked on.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from moge_core.geometry import masked_nearest_resize
from moge_core.io.opencv import cv2
from moge_core.loading.view import View, checked_intrinsics

Matrix = npt.NDArray[np.float64]
Size = tuple[int, int]
Region = tuple[slice, slice]
"""Rows and columns of an image."""

Interpolation = Literal["cubic", "lanczos", "bilinear"]

_FLAGS = {"cubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4, "bilinear": cv2.INTER_LINEAR}
# Lanczos reduces first where the warp would shrink further than this, keeping 1.25 source pixels per target pixel.
_REDUCE_BELOW = 0.8
_SMALLEST_SIDE = 16
# Pixels around what the view sees: depth edges look 4 pixels further than interpolation does, Lanczos takes 8 x 8.
_MARGIN = 8


@dataclass(frozen=True)
class Warp:
    """From a source image to a view of it.

    Attributes:
        transform: `(3, 3)`, from the source's normalised image coordinates to the view's.
        source: size of the source.
        target: size of the view.
    """

    transform: Matrix
    source: Size
    target: Size

    @classmethod
    def to_view(cls, intrinsics: npt.NDArray[Any], view: View, source: Size, target: Size) -> Warp:
        """The warp `K_view @ R @ K^-1` from a source with `intrinsics` `(3, 3)`."""
        camera = np.linalg.inv(checked_intrinsics(intrinsics))
        return cls(view.intrinsics.astype(np.float64) @ view.rotation @ camera, source, target)

    @functools.cached_property
    def region(self) -> Region:
        """The part of the source that the view sees, with a margin for filters around it."""
        return self._region_of(self.source)

    def image(self, image: npt.NDArray[np.uint8], interpolation: Interpolation = "cubic") -> npt.NDArray[np.uint8]:
        """The view `(h, w, 3)` of an image `(H, W, 3)`; outside the source it is black.

        `cubic` and `lanczos` shrink the source first, with a Lanczos filter, where one target pixel covers several of
        its pixels.
        """
        scale_y, scale_x = self._scale
        if interpolation == "bilinear" or min(scale_x, scale_y) >= _REDUCE_BELOW:
            return self._apply(image[self.region], self.source, self.region, _FLAGS[interpolation])
        grid = _scaled_size(self.source, scale_y / _REDUCE_BELOW, scale_x / _REDUCE_BELOW)
        region = self._region_of(grid)
        return self._apply(_reduced(image, grid, region), grid, region, _FLAGS[interpolation])

    def nearest(self, values: npt.NDArray[Any], known: npt.NDArray[np.bool_], outside: Any) -> npt.NDArray[Any]:
        """The source's value `(H, W)` nearest to each target pixel `(h, w)`, `outside` from outside the source.

        Where the warp shrinks, `known` values win over others, so that sparse depth survives; cells without any
        are `outside` too.
        """
        scale_y, scale_x = self._scale
        if min(scale_x, scale_y) >= 1:
            return self._apply(values[self.region], self.source, self.region, cv2.INTER_NEAREST, outside)
        grid = _scaled_size(self.source, scale_y, scale_x)
        region = self._region_of(grid)
        reduced, found = masked_nearest_resize(values, mask=known, size=grid, region=region)
        reduced[~found] = outside
        return self._apply(reduced, grid, region, cv2.INTER_NEAREST, outside)

    def bilinear(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Bilinear values `(h, w)` or `(h, w, C)` of a map over `region`, NaN where one that contributes is NaN."""
        return self._apply(values, self.source, self.region, cv2.INTER_LINEAR, math.nan)

    def depth(
        self, part: npt.NDArray[np.float32], smooth: npt.NDArray[np.bool_], nearest: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Depth `(h, w)` as the view measures it, along its own z axis, NaN from outside the source.

        Where all source pixels around a target pixel are smooth the inverse depth is interpolated, elsewhere the
        nearest pixel is taken.

        Args:
            part: depth over `region`, NaN unknown, +Inf infinitely far.
            smooth: over `region`, known, finite and not at a depth edge.
            nearest: `(h, w)`, the source's depth nearest to each target pixel.
        """
        disparity = np.full_like(part, np.nan)
        np.divide(1, part, out=disparity, where=smooth)
        depth = np.reciprocal(warped := self.bilinear(disparity), out=warped)
        np.copyto(depth, nearest, where=np.isnan(depth))
        depth /= self.z_ratio()
        return depth

    def normal(self, part: npt.NDArray[np.float32], rotation: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Normals `(h, w, 3)` of unit length, turned by `rotation` `(3, 3)`.

        Args:
            part: normals `(..., 3)` over `region`, NaN unknown, and so is what they contribute to.
            rotation: from the source's camera axes to the view's.
        """
        x, y, z = cv2.split(cv2.transform(self.bilinear(part), np.asarray(rotation, dtype=np.float32)))
        length = np.sqrt(x * x + y * y + z * z)
        # Opposite normals can cancel; what is left of them has no direction.
        length[length < 1e-3] = np.nan
        np.reciprocal(length, out=length)
        return np.asarray(cv2.merge([x * length, y * length, z * length]))

    def z_ratio(self) -> npt.NDArray[np.float32]:
        """Source depth over target depth of one point, `(h, w)`: row 3 of the inverse transform at (u, v, 1)."""
        row = np.linalg.inv(self.transform)[2]
        height, width = self.target
        u = (np.arange(width) + 0.5) / width
        v = (np.arange(height) + 0.5) / height
        across, down = (row[0] * u).astype(np.float32), (row[1] * v + row[2]).astype(np.float32)
        ratio: npt.NDArray[np.float32] = across + down[:, None]
        return ratio

    @functools.cached_property
    def _scale(self) -> tuple[float, float]:
        """Target pixels per source pixel, (vertical, horizontal), at the target's centre."""
        matrix = self._pixel_transform(self.source)
        w = float(np.linalg.inv(matrix)[2] @ [self.target[1] / 2, self.target[0] / 2, 1])
        return w * float(np.linalg.norm(matrix[:2, 1])), w * float(np.linalg.norm(matrix[:2, 0]))

    def _pixel_transform(self, grid: Size) -> Matrix:
        """The transform from pixel indices of the source, resized to `grid`, to those of the target."""
        to_normalised = np.array([[1 / grid[1], 0, 0.5 / grid[1]], [0, 1 / grid[0], 0.5 / grid[0]], [0, 0, 1]])
        to_pixels = np.array([[self.target[1], 0, -0.5], [0, self.target[0], -0.5], [0, 0, 1]])
        matrix: Matrix = to_pixels @ self.transform @ to_normalised
        return matrix

    def _region_of(self, grid: Size) -> Region:
        """What the view sees of the source resized to `grid`, and a margin."""
        height, width = self.target
        corners = np.array(
            [[-0.5, -0.5, 1], [width - 0.5, -0.5, 1], [-0.5, height - 0.5, 1], [width - 0.5, height - 0.5, 1]]
        )
        x, y, w = np.linalg.inv(self._pixel_transform(grid)) @ corners.T
        if not (w > 0).all():
            return slice(0, grid[0]), slice(0, grid[1])  # a corner looks behind the source camera
        return _span(y / w, grid[0]), _span(x / w, grid[1])

    def _apply(
        self, part: npt.NDArray[Any], grid: Size, region: Region, flag: int, outside: float = 0.0
    ) -> npt.NDArray[Any]:
        """Warp a part of the source, resized to `grid`."""
        shift = np.array([[1, 0, region[1].start], [0, 1, region[0].start], [0, 0, 1.0]])
        warped: npt.NDArray[Any] = cv2.warpPerspective(
            part,
            self._pixel_transform(grid) @ shift,
            self.target[::-1],
            flags=flag,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(outside, outside, outside, outside),
        )
        return warped


def _span(places: npt.NDArray[np.float64], length: int) -> slice:
    """The pixels from the least to the greatest of `places` with a margin, at least one of them."""
    first = min(max(math.floor(places.min()) - _MARGIN, 0), length - 1)
    return slice(first, max(min(math.ceil(places.max()) + 1 + _MARGIN, length), first + 1))


def _scaled_size(size: Size, scale_y: float, scale_x: float) -> Size:
    return max(round(scale_y * size[0]), _SMALLEST_SIDE), max(round(scale_x * size[1]), _SMALLEST_SIDE)


def _reduced(image: npt.NDArray[np.uint8], grid: Size, region: Region) -> npt.NDArray[np.uint8]:
    """The `region` of the image resized to `grid`; beyond it the filter sees nothing, which its margin makes up for."""
    crop, box = [], []
    for part, length, source in zip(region, grid, image.shape, strict=False):
        step = source / length
        first = math.floor(part.start * step)
        crop.append(slice(first, math.ceil(part.stop * step)))
        box.append((part.start * step - first, part.stop * step - first))
    (top, bottom), (left, right) = box
    size = (region[1].stop - region[1].start, region[0].stop - region[0].start)
    source_part = Image.fromarray(np.ascontiguousarray(image[tuple(crop)]))
    return np.asarray(source_part.resize(size, Image.Resampling.LANCZOS, box=(left, top, right, bottom)))
