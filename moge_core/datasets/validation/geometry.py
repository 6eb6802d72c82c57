"""What the shape of a depth map says: z, ray length, disparity or inverted; the floor and the ceiling.

Rooms, roads and facades are full of planes, and each way of storing depth bends planes in its own way. Three pixels at
equal distances in a row or column see a plane when 1/z is linear over them; of a disparity, the stored value itself is;
of ray lengths, ray/z divided by the value; of "maximum minus depth" none is, but a maximum can be found for which it
would be. Pixels that fit one hypothesis and contradict the others vote for it. No plane needs to be found first, and
noise votes for nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moge_core.datasets.validation.settings import ValidationSettings
from moge_core.geometry.rays import ray_lengths
from moge_core.io.depth import INFINITE_CODE, UNKNOWN_CODE, CodedDepth

Map = npt.NDArray[np.float32]

# Longer side of the grid of pixels that is looked at, and distances between the pixels of a triple as shares of it.
_GRID, _STRIDES = 112, (0.036, 0.1)
# A triple votes where depth changes this much across it (shape), and fits a hypothesis to this share of what tells the
# hypotheses apart.
_LEAST_SLOPE, _MOST_SLOPE, _FIT = 0.08, 1.2, 0.15
# Ray length and z are told apart where the lens makes this much difference across a triple.
_LEAST_BEND = 0.004
# How far apart suggested maxima of an inverted map may be to be one.
_SAME_MAXIMUM = 0.15
# Shares of the sloped triples that must lie on planes as disparity, or as maximum minus depth, to be told: curved
# surfaces alone reach 0.07 of the latter.
_DISPARITY_SHARE, _INVERTED_SHARE = 0.01, 0.08
# Cosine between a floor's normal and the image's vertical: the camera looks up or down by 35 degrees.
_FLOOR_CONE = 0.82
_FLOOR_POINTS = 1500  # so many tell a plane as well as all


@dataclass(frozen=True)
class Votes:
    """How many triples of pixels speak for each way of storing depth.

    Attributes:
        sloped: triples across which depth changes enough to tell z, disparity and inverted apart.
        z, disparity, inverted: of these, the ones that fit.
        along_axis, along_ray: triples that fit z and not ray length, and the reverse.
    """

    sloped: int
    z: int
    disparity: int
    inverted: int
    along_axis: int
    along_ray: int


def grid_of(coded: CodedDepth, longer_side: int = _GRID) -> Map:
    """Depth at evenly spaced pixels (h, w), NaN where it is not finite; pixels are picked, never mixed.

    Of a sparse map each cell has its farthest return instead, since most single pixels have none.
    """
    step = max(1, round(max(coded.codes.shape) / longer_side))
    picked = coded.codes[step // 2 :: step, step // 2 :: step]
    if step > 1 and np.count_nonzero(picked) < 0.4 * picked.size:
        height, width = (side // step * step for side in coded.codes.shape)
        cells = coded.codes[:height, :width].reshape(height // step, step, width // step, step)
        picked = np.where(cells == INFINITE_CODE, UNKNOWN_CODE, cells).max(axis=(1, 3))
    depth = coded.depth_of_code[picked]
    depth[np.isinf(depth)] = np.nan
    return depth


def normalised_grid(depth: Map) -> tuple[Map, float]:
    """A grid divided by its median, so that products of three depths fit into float32, and that median."""
    median = float(np.nanmedian(depth.astype(np.float64)))
    with np.errstate(over="ignore", under="ignore"):
        scaled: Map = (depth.astype(np.float64) / median).astype(np.float32)
    # What is a thousand million times nearer or farther than the rest says nothing about shapes.
    scaled[~((scaled > 1e-9) & (scaled < 1e9))] = np.nan
    return scaled, median


def count_votes(depth: Map, intrinsics: npt.NDArray[np.float64]) -> Votes:
    """Votes of a grid of depth (h, w) that spans the image.

    Args:
        depth: stored values, NaN where unknown.
        intrinsics: (3, 3), normalised.
    """
    height, width = depth.shape
    rays = ray_lengths(height, width, intrinsics).astype(np.float32)
    greatest = float(np.nanmax(depth))
    totals = np.zeros(5, np.int64)
    maxima: list[npt.NDArray[np.float32]] = []
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for share in _STRIDES:
            stride = max(1, round(share * max(height, width)))
            for values, lengths in ((depth, rays), (depth.T, rays.T)):
                if 2 * stride < values.shape[1]:
                    counts, found = _votes_along_rows(values, lengths, stride, greatest)
                    totals += counts
                    maxima.append(found)
    # A map was inverted with one maximum; hills and steps suggest another at each place.
    together = np.concatenate(maxima) if maxima else np.zeros(0, np.float32)
    inverted = int(np.count_nonzero(np.abs(together / np.median(together) - 1) < _SAME_MAXIMUM)) if together.size else 0
    sloped, z, disparity, along_axis, along_ray = (int(total) for total in totals)
    return Votes(sloped, z, disparity, inverted, along_axis, along_ray)


def _votes_along_rows(
    values: Map, rays: Map, stride: int, greatest: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Counts of sloped, z, disparity, along axis, along ray; and the maximum that each triple suggests if inverted."""

    def triple(of: Map) -> tuple[Map, Map, Map]:
        return of[:, : -2 * stride], of[:, stride:-stride], of[:, 2 * stride :]

    left, middle, right = triple(values)
    before, after = left / middle, right / middle
    slope = np.abs(after - before)
    sloped = (slope > _LEAST_SLOPE) & (slope < _MOST_SLOPE)
    # Second differences of z and of 1/z, relative; where one vanishes on a plane the other is slope^2 / 2.
    bend, inverse_bend = before + after - 2, 1 / before + 1 / after - 2
    tolerance = (_FIT / 2) * slope**2
    fits_z = sloped & (np.abs(inverse_bend) < tolerance)
    fits_disparity = sloped & (np.abs(bend) < tolerance)
    # The M for which 1/(M - value) is linear: 0 for z, at infinity for disparity, beyond the greatest when inverted.
    turning = (2 * before * after - (before + after)) / bend
    fits_inverted = sloped & (turning * middle > greatest) & (turning < 6)

    ray_left, ray_middle, ray_right = triple(rays)
    curve_left, curve_right = ray_left / ray_middle, ray_right / ray_middle
    lens = np.abs(curve_left + curve_right - 2)
    telling = lens > _LEAST_BEND
    limit = 0.2 * lens
    along_axis = telling & (np.abs(inverse_bend) < limit)
    along_ray = telling & (np.abs(curve_left / before + curve_right / after - 2) < limit)
    masks = (sloped, fits_z, fits_disparity, along_axis, along_ray)
    counts = np.array([np.count_nonzero(mask) for mask in masks], np.int64)
    return counts, (turning * middle)[fits_inverted]


def judge_shape(votes: Votes, settings: ValidationSettings) -> Iterator[tuple[str, str]]:
    """(rule, evidence) for what the votes are against."""
    least = settings.min_votes
    straight = f"of {votes.sloped} pixel triples on slopes {votes.z} lie on planes as z"
    is_disparity = votes.disparity >= max(least, _DISPARITY_SHARE * votes.sloped) and votes.disparity > 2.3 * votes.z
    rivals = max(votes.z, votes.disparity)
    is_inverted = votes.inverted >= max(2 * least, _INVERTED_SHARE * votes.sloped) and votes.inverted > 4 * rivals
    # Where few planes are seen both may be suspected.
    if is_disparity:
        yield "depth-not-disparity", f"{straight}, {votes.disparity} as disparity"
    if is_inverted:
        yield "depth-not-inverted", f"{straight}, {votes.inverted} as maximum minus depth"
    if not is_disparity and not is_inverted and votes.along_ray >= max(4 * least, 1.25 * votes.along_axis):
        evidence = f"{votes.along_ray} pixel triples lie on planes as ray lengths, {votes.along_axis} as z"
        yield "depth-along-axis", evidence


@dataclass(frozen=True)
class LevelPlanes:
    """Large planes that are about level, as the camera sees them.

    Attributes:
        floor: distance from the camera to the lowest one below it, in units of the depth; None where none is seen.
        ceiling: distance to the highest one above it; None likewise.
        floor_normal: (3,) unit vector downwards in camera axes (x right, y down, z forward); None without a floor.
    """

    floor: float | None
    ceiling: float | None
    floor_normal: npt.NDArray[np.float64] | None

    @property
    def room_height(self) -> float | None:
        """From the floor to the ceiling, where both are seen."""
        return None if self.floor is None or self.ceiling is None else self.floor + self.ceiling

    def times(self, unit: float) -> LevelPlanes:
        """The same planes in another unit."""
        floor, ceiling = (None if of is None else of * unit for of in (self.floor, self.ceiling))
        return LevelPlanes(floor, ceiling, self.floor_normal)


def find_level_planes(depth: Map, intrinsics: npt.NDArray[np.float64]) -> LevelPlanes:
    """The floor below the camera and the ceiling above it.

    Args:
        depth: grid (h, w), NaN where unknown.
        intrinsics: (3, 3), normalised.
    """
    # Every second point of the grid is enough for a plane.
    depth = depth[::2, ::2] if min(depth.shape) >= 32 else depth
    height, width = depth.shape
    if min(height, width) < 8:
        return LevelPlanes(None, None, None)
    u = ((np.arange(width, dtype=np.float32) + 0.5) / width - intrinsics[0, 2]) / intrinsics[0, 0]
    v = ((np.arange(height, dtype=np.float32) + 0.5) / height - intrinsics[1, 2]) / intrinsics[1, 1]
    y = depth * v[:, None].astype(np.float32)
    # Differences of the points along rows and columns, two pixels apart; a = (ax, ay, az), b likewise.
    x = depth * u[None, :].astype(np.float32)
    ax, ay, az = (of[1:-1, 2:] - of[1:-1, :-2] for of in (x, y, depth))
    bx, by, bz = (of[2:, 1:-1] - of[:-2, 1:-1] for of in (x, y, depth))
    nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    length = np.sqrt(nx * nx + ny * ny + nz * nz)
    points, normals = (x, y, depth), (nx, ny, nz)
    with np.errstate(invalid="ignore", divide="ignore"):
        level = np.abs(ny) > _FLOOR_CONE * length
    least = max(24, 0.03 * depth.size)
    below = _level_plane(points, normals, length, level & (y[1:-1, 1:-1] > 0), least, 1.0)
    above = _level_plane(points, normals, length, level & (y[1:-1, 1:-1] < 0), least, -1.0)
    return LevelPlanes(below and below[0], above and above[0], below and below[1])


def _level_plane(
    points: tuple[Map, Map, Map],
    normals: tuple[Map, Map, Map],
    length: Map,
    chosen: npt.NDArray[np.bool_],
    least: float,
    side: float,
) -> tuple[float, npt.NDArray[np.float64]] | None:
    """Distance and normal of the plane farthest to one side (1 below, -1 above) among the chosen level points."""
    num_chosen = int(np.count_nonzero(chosen))
    if num_chosen < least:
        return None
    rows, columns = (index[:: max(1, num_chosen // _FLOOR_POINTS)] for index in np.nonzero(chosen))
    scale = side * np.sign(normals[1][rows, columns]) / length[rows, columns]
    normal = np.array([np.median(of[rows, columns] * scale) for of in normals])
    normal /= np.linalg.norm(normal)
    there = (of[rows + 1, columns + 1] for of in points)
    distance = np.sum([of * part for of, part in zip(there, normal, strict=True)], axis=0)
    distance = distance[distance > 0]
    if distance.size < 24:
        return None
    lowest = np.quantile(distance, 0.9)
    plane = distance[np.abs(distance - lowest) < 0.15 * lowest]
    return (float(np.median(plane)), normal) if plane.size >= 0.25 * distance.size else None
