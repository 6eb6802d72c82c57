"""How normals of a map lie to those of the depth, and in which axes they would agree.

Depth has normals of its own. Over a plane 1/z is affine in the camera's coordinates, 1/z = a x + b y + c, and (a, b, c)
points away from the camera along the plane's normal, so differences of 1/z give normals that are exact on planes
however far apart the pixels are. Where 1/z bends, nothing is said. Axes are right when most of a map's normals are
within 30 degrees of these (45 where the depth is noisy); others are tried when they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.normal_axes import CODES, OPENCV, USUAL, NormalAxes
from moge_core.datasets.validation.geometry import Map

# Cells of the grid between a pixel and the neighbours that its normal comes from.
_REACH = 2
# Radians that a bend of 1/z may turn a normal by.
_MOST_TURN = 0.3
# Pixels that normals are compared at, at least, and their least share of the grid.
_LEAST_SAMPLES, _LEAST_SHARE = 120, 0.02
# More than this are not needed, and every second row is left out.
_MOST_SAMPLES = 4000
# Degrees within which normals agree where depth is smooth, and where it is noisy, as a sensor's.
_AGREE_DEG, _AGREE_IN_NOISE_DEG = 30.0, 45.0
# Share that proves axes, and by how much they must be better than the ones that were said.
_PROVEN, _BETTER = 0.7, 0.2
# Shares of agreement below which normals are of something else, where depth is smooth and where it is noisy.
_FOREIGN, _FOREIGN_IN_NOISE = 0.65, 0.45
# Neighbouring normals of smooth depth are within so many degrees, for such a share.
_SMOOTH_DEG, _SMOOTH_SHARE = 10.0, 0.935
# The least coordinate that a range of 0 to 1 leaves, rounding allowed for.
_LEAST_CODED = -0.02
# Share of agreement from which on vectors without a negative coordinate are right all the same.
_LEAST_UNCODED = 0.5
# Of solving for a rotation.
_ROUNDS = 6
# Length of the mean of normals that are all of one plane.
_ONE_DIRECTION = 0.985
# Axes that are as close as others but for this are told in the order of `USUAL`.
_SAME = 0.02


@dataclass(frozen=True)
class NormalFit:
    """How normals of a map lie to those of the depth.

    Attributes:
        count: how many were compared.
        share: of them that agree, see `_Pairs`.
        axes: others in which nearly all agree, where these are much better; None where there are none.
        axes_share: of agreement in those.
        turned_deg: the angle of a rotation with which nearly all agree, where no axes do.
        looks_coded: whether no coordinate is negative, as in maps whose range 0 to 1 was never turned into -1 to 1.
        is_foreign: whether they agree with nothing.
    """

    count: int
    share: float
    axes: NormalAxes | None = None
    axes_share: float = 0.0
    turned_deg: float | None = None
    looks_coded: bool = False
    is_foreign: bool = False

    @property
    def is_right(self) -> bool:
        """Whether nothing speaks against the map."""
        return self.axes is None and self.turned_deg is None and not self.looks_coded and not self.is_foreign


def fit_normals(
    depth: Map,
    normal: Map,
    intrinsics: npt.NDArray[np.float64],
    axes: NormalAxes = OPENCV,
    pose: Sequence[float] | None = None,
) -> NormalFit | None:
    """Compare normals with those of the depth; None where too few can be.

    Args:
        depth: grid (h, w) that spans the image, NaN where unknown.
        normal: grid (3, h, w) of the same pixels, unit vectors towards the camera, NaN where unknown.
        intrinsics: (3, 3), normalised.
        axes: those that the normals are said to be in.
        pose: camera-to-world of the frame, 16 numbers, where it is known; axes of the world need it.
    """
    with np.errstate(all="ignore"):
        own = depth_normals(depth, intrinsics)
        said = axes.to_camera(pose).astype(np.float32)
        turned = normal if axes == OPENCV else np.einsum("ij,jhw->ihw", said, normal)
        cosines = _dot(own, turned)
        known = np.isfinite(cosines)
        count = int(np.count_nonzero(known))
        if count < max(_LEAST_SAMPLES, _LEAST_SHARE * depth.size):
            return None
        if count > _MOST_SAMPLES:
            known[1::2] = False
        is_smooth = _is_smooth(own)
        degrees = _AGREE_DEG if is_smooth else _AGREE_IN_NOISE_DEG
        directions = _Directions(own[:, known])
        share = directions.share(cosines[known] > np.cos(np.radians(degrees)))
        if share >= _PROVEN + _BETTER:
            return NormalFit(count, share)
        # One wall alone cannot tell axes, only that its normals look away.
        is_one_plane = float(np.linalg.norm(own[:, known].mean(axis=1))) > _ONE_DIRECTION
        if is_one_plane and _looks_here(turned[:, known], known, intrinsics):
            return NormalFit(count, share)
        pairs = _Pairs(own[:, known].T, normal[:, known].T, degrees, directions)
        enough = max(_PROVEN, share + _BETTER)
        best, best_share = pairs.best_axes(pose)
        if best_share >= enough:
            return NormalFit(count, share, best, best_share)
        if share < _LEAST_UNCODED and float(np.quantile(pairs.stored.min(axis=1), 0.05)) >= _LEAST_CODED:
            return NormalFit(count, share, looks_coded=True)
        rotation = pairs.best_rotation()
        turned_share, angle = pairs.agreement(rotation), _angle_of(rotation)
        if turned_share >= enough and angle > degrees:
            return NormalFit(count, share, axes_share=turned_share, turned_deg=angle)
        return NormalFit(count, share, is_foreign=share < (_FOREIGN if is_smooth else _FOREIGN_IN_NOISE))


def _looks_here(normals: Map, known: npt.NDArray[np.bool_], intrinsics: npt.NDArray[np.float64]) -> bool:
    """Whether most normals (3, N) of the known pixels of a grid (h, w) are on the camera's side."""
    height, width = known.shape
    rows, columns = np.nonzero(known)
    x = ((columns + 0.5) / width - intrinsics[0, 2]) / intrinsics[0, 0]
    y = ((rows + 0.5) / height - intrinsics[1, 2]) / intrinsics[1, 1]
    return float(np.mean(normals[0] * x + normals[1] * y + normals[2] < 0)) > 0.5


class _Directions:
    """Directions (3, N), each of which counts for less by the root of how many others are like it.

    So the ground, of which a picture is often full, does not decide alone.
    """

    def __init__(self, directions: Map) -> None:
        # 64 cells of a cube around the sphere.
        x, y, z = np.minimum((directions + 1) * 2, 3).astype(np.uint8)
        self._cell = x * np.uint8(16) + y * np.uint8(4) + z
        self._counts = np.bincount(self._cell, minlength=64)
        self._total = float(np.sqrt(self._counts).sum())

    def share(self, chosen: npt.NDArray[np.bool_]) -> float:
        """Share of those chosen (N,)."""
        inside = np.bincount(self._cell[chosen], minlength=64)
        return float((inside / np.sqrt(np.maximum(self._counts, 1))).sum()) / self._total

    def weights(self) -> Map:
        """(N,), adding up to 1."""
        return np.asarray(1 / np.sqrt(self._counts[self._cell]) / self._total, np.float32)


class _Pairs:
    """Normals of the depth and of a map at the same pixels.

    Attributes:
        towards: (N, 3) from the depth, OpenCV axes, towards the camera.
        stored: (N, 3) from the map.
        degrees: within which they agree.
        directions: those of the depth's.
    """

    def __init__(self, towards: Map, stored: Map, degrees: float, directions: _Directions) -> None:
        self.towards, self.stored, self.degrees, self.directions = towards, stored, degrees, directions
        self.weights = directions.weights()

    def cosines(self, matrix: npt.NDArray[np.floating[Any]]) -> Map:
        """(N,) between the map's normals and those of the depth, led into the map's axes by a matrix (3, 3)."""
        return np.asarray(np.einsum("ni,ni->n", self.towards @ matrix.T.astype(np.float32), self.stored))

    def agreement(self, matrix: npt.NDArray[np.floating[Any]]) -> float:
        """Share of them that agree."""
        return self.directions.share(self.cosines(matrix) > np.cos(np.radians(self.degrees)))

    def closeness(self, matrix: npt.NDArray[np.floating[Any]]) -> Map:
        """(N,) 1 where they are equal, 0 where they are twice as far apart as may be."""
        angles = np.arccos(np.clip(self.cosines(matrix), -1, 1))
        return np.asarray(np.clip(1 - angles / np.radians(2 * self.degrees), 0, 1), np.float32)

    def best_axes(self, pose: Sequence[float] | None) -> tuple[NormalAxes, float]:
        """The axes in which they are closest, the usual before others that are as close, and the share that agrees."""
        candidates = [NormalAxes(code) for code in (*USUAL, *(code for code in CODES if code not in USUAL))]
        if pose is not None:
            candidates += [NormalAxes(axes.code, is_of_world=True) for axes in candidates]
        best, closest = candidates[0], -1.0
        for axes in candidates:
            close = float(self.closeness(axes.to_camera(pose).T) @ self.weights)
            if close > closest + _SAME:
                best, closest = axes, close
        return best, self.agreement(best.to_camera(pose).T)

    def best_rotation(self) -> npt.NDArray[np.float64]:
        """The rotation or reflection (3, 3) after which they are closest.

        The orthogonal Procrustes problem, solved by singular values, with weights that fall with the angle left over.
        """
        rotation, weights = np.eye(3), self.weights
        for _ in range(_ROUNDS):
            left, _, right = np.linalg.svd(((weights[:, None] * self.stored).T @ self.towards).astype(np.float64))
            rotation = left @ right
            weights = self.weights * np.maximum(self.closeness(rotation), np.float32(0.02)) ** 2
        return rotation


def _angle_of(rotation: npt.NDArray[np.float64]) -> float:
    """Degrees."""
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))


def depth_normals(depth: Map, intrinsics: npt.NDArray[np.float64], reach: int = _REACH) -> Map:
    """Normals (3, h, w) of a grid of depth that spans the image, towards the camera; NaN where it is not smooth.

    Args:
        depth: (h, w), NaN where unknown.
        intrinsics: (3, 3), normalised.
        reach: cells between a pixel and the neighbours that are compared.
    """
    height, width = depth.shape
    normals = np.full((3, height, width), np.nan, np.float32)
    if min(height, width) <= 2 * reach:
        return normals
    fx, fy, cx, cy = (float(intrinsics[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    x = (((np.arange(width) + 0.5) / width - cx) / fx).astype(np.float32)[None, reach:-reach]
    y = (((np.arange(height) + 0.5) / height - cy) / fy).astype(np.float32)[reach:-reach, None]
    step_x, step_y = np.float32(reach / (width * fx)), np.float32(reach / (height * fy))
    inverse = 1 / depth
    middle = inverse[reach:-reach, reach:-reach]
    left, right = inverse[reach:-reach, : -2 * reach], inverse[reach:-reach, 2 * reach :]
    above, below = inverse[: -2 * reach, reach:-reach], inverse[2 * reach :, reach:-reach]
    a, b = (right - left) / (2 * step_x), (below - above) / (2 * step_y)
    c = middle - a * x - b * y
    length = np.sqrt(a * a + b * b + c * c)
    # The slopes to either side differ from their mean by half of the second difference.
    bend = np.maximum(np.abs(left + right - 2 * middle) / step_x, np.abs(above + below - 2 * middle) / step_y)
    scale = np.where(bend < 2 * _MOST_TURN * length, -1 / length, np.float32(np.nan))
    for plane, part in zip(normals, (a, b, c), strict=True):
        np.multiply(part, scale, out=plane[reach:-reach, reach:-reach])
    return normals


def _is_smooth(normals: Map) -> bool:
    """Whether neighbours agree, which share no pixel of depth: those of rendered depth do and noisy ones do not."""
    cosines = _dot(normals[:, ::2, :-1], normals[:, ::2, 1:])
    count = np.count_nonzero(np.isfinite(cosines))
    alike = np.count_nonzero(cosines > np.cos(np.radians(_SMOOTH_DEG)))
    return bool(count > 0 and alike >= _SMOOTH_SHARE * count)


def _dot(first: Map, second: Map) -> Map:
    """Of vectors (3, ...)."""
    dot: Map = first[0] * second[0] + first[1] * second[1] + first[2] * second[2]
    return dot
