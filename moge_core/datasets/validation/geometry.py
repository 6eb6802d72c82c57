"""What the shape of a depth map says: z, ray length, disparity or inverted; the floor; image and depth together.

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
_FLOOR_CONE = (
    0.82  # cosine between a floor's normal and the image's vertical: the camera looks up or down by 35 degrees
)
_FLOOR_POINTS = 1500  # so many tell a plane as well as all

_MOST_BEND = 0.05  # a stronger edge of depth says no more than this one


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
    is_disparity = votes.disparity >= max(least, 0.008 * votes.sloped) and votes.disparity > 2.3 * votes.z
    rivals = max(votes.z, votes.disparity)
    is_inverted = votes.inverted >= max(2 * least, 0.06 * votes.sloped) and votes.inverted > 4 * rivals
    # Where few planes are seen both may be suspected.
    if is_disparity:
        yield "depth-not-disparity", f"{straight}, {votes.disparity} as disparity"
    if is_inverted:
        yield "depth-not-inverted", f"{straight}, {votes.inverted} as maximum minus depth"
    if not is_disparity and not is_inverted and votes.along_ray >= max(4 * least, 1.25 * votes.along_axis):
        evidence = f"{votes.along_ray} pixel triples lie on planes as ray lengths, {votes.along_axis} as z"
        yield "depth-along-axis", evidence


def camera_height(depth: Map, intrinsics: npt.NDArray[np.float64]) -> float | None:
    """Distance from the camera to the lowest large floor-like plane, in units of the depth; None where none is seen.

    Args:
        depth: grid (h, w), NaN where unknown.
        intrinsics: (3, 3), normalised.
    """
    # Every second point of the grid is enough for a plane.
    depth = depth[::2, ::2] if min(depth.shape) >= 32 else depth
    height, width = depth.shape
    if min(height, width) < 8:
        return None
    u = ((np.arange(width, dtype=np.float32) + 0.5) / width - intrinsics[0, 2]) / intrinsics[0, 0]
    v = ((np.arange(height, dtype=np.float32) + 0.5) / height - intrinsics[1, 2]) / intrinsics[1, 1]
    y = depth * v[:, None].astype(np.float32)
    # Differences of the points along rows and columns, two pixels apart; a = (ax, ay, az), b likewise.
    x = depth * u[None, :].astype(np.float32)
    ax, ay, az = (of[1:-1, 2:] - of[1:-1, :-2] for of in (x, y, depth))
    bx, by, bz = (of[2:, 1:-1] - of[:-2, 1:-1] for of in (x, y, depth))
    nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    length = np.sqrt(nx * nx + ny * ny + nz * nz)
    with np.errstate(invalid="ignore", divide="ignore"):
        floor = (np.abs(ny) > _FLOOR_CONE * length) & (y[1:-1, 1:-1] > 0)
    num_floor = int(np.count_nonzero(floor))
    if num_floor < max(24, 0.03 * depth.size):
        return None
    rows, columns = (index[:: max(1, num_floor // _FLOOR_POINTS)] for index in np.nonzero(floor))
    ny_there = ny[rows, columns]
    scale = np.sign(ny_there) / length[rows, columns]
    normal = np.array([np.median(of[rows, columns] * scale) for of in (nx, ny, nz)])
    normal /= np.linalg.norm(normal)
    points = (of[rows + 1, columns + 1] for of in (x, y, depth))
    distance = np.sum([of * part for of, part in zip(points, normal, strict=True)], axis=0)
    distance = distance[distance > 0]
    if distance.size < 24:
        return None
    lowest = np.quantile(distance, 0.9)
    plane = distance[np.abs(distance - lowest) < 0.15 * lowest]
    return float(np.median(plane)) if plane.size >= 0.25 * distance.size else None


@dataclass(frozen=True)
class Registration:
    """How well edges of depth lie on edges of the image.

    Attributes:
        shift: (x, y) of the depth that would fit best, as shares of the image's longer side.
        best, here: correlation there and as it is.
        step: share of the longer side that one cell of the search is.
        edges: share of the cells that are edges of depth.
    """

    shift: tuple[float, float]
    best: float
    here: float
    step: float
    edges: float


def register(grey: npt.NDArray[np.uint8], depth: Map) -> Registration | None:
    """Correlation of the edges of image and depth over small shifts; None where either has no edges.

    An edge of depth is where 1/depth is not linear along a row or column, so that slanted planes have none. Rows and
    columns are kept apart: a vertical edge must meet a vertical one.

    Args:
        grey: the image, of any size and the same field.
        depth: grid (h, w), NaN where unknown.
    """
    from moge_core.io.opencv import cv2

    height, width = depth.shape
    longer = max(height, width)
    margin = max(2, round(0.08 * longer))
    if min(height, width) < 4 * margin or np.count_nonzero(np.isfinite(depth)) < 0.3 * depth.size:
        return None
    image = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    steps = image_steps(image)
    ceiling = float(np.quantile(steps[::2, ::2].max(axis=2), 0.95)) + 4
    image_edges = np.minimum(steps, np.float32(ceiling))
    inner = depth_bends(depth)[margin:-margin, margin:-margin]
    depth_edges = np.minimum(inner, np.float32(_MOST_BEND))
    if depth_edges.max() < 1e-3 or image_edges.max() < 1e-3:
        return None
    scores = cv2.matchTemplate(image_edges, depth_edges, cv2.TM_CCOEFF_NORMED)
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    return Registration(
        shift=((int(column) - margin) / longer, (int(row) - margin) / longer),
        best=float(scores[row, column]),
        here=float(scores[margin, margin]),
        step=1 / longer,
        edges=float(np.count_nonzero((inner >= _MOST_BEND).any(axis=2))) / (inner.shape[0] * inner.shape[1]),
    )


def judge_registration(registration: Registration, settings: ValidationSettings) -> Iterator[tuple[str, str]]:
    """(rule, evidence) where depth seems shifted against its image, or to belong to another."""
    shift = max(abs(part) for part in registration.shift)
    gain = registration.best - registration.here
    allowed = max(settings.registration_shift, 1.5 * registration.step)
    if shift > allowed and registration.best > 0.12 and gain > max(0.07, 0.4 * abs(registration.here)):
        x, y = registration.shift
        yield (
            "registered",
            f"edges of depth and image correlate by {registration.here:.2f} as they are, and by {registration.best:.2f}"
            f" with depth moved by {x:+.1%}, {y:+.1%} of the longer side",
        )
    elif registration.edges > 0.02 and registration.here < settings.min_registration:
        yield "registered", f"edges of depth and image have nothing in common (correlation {registration.here:.2f})"


def image_steps(image: npt.NDArray[np.uint8]) -> Map:
    """Greater of the differences to both neighbours (h, w, 2), along rows and along columns; 0 at the border."""
    height, width = image.shape
    wide = image.astype(np.float32)
    steps = np.zeros((height, width, 2), np.float32)
    across, down = np.abs(wide[:, 1:] - wide[:, :-1]), np.abs(wide[1:] - wide[:-1])
    np.maximum(across[:, :-1], across[:, 1:], out=steps[:, 1:-1, 0])
    np.maximum(down[:-1], down[1:], out=steps[1:-1, :, 1])
    return steps


def depth_bends(depth: Map) -> Map:
    """Relative second difference of 1/depth (h, w, 2), along rows and along columns; 0 beside the unknown."""
    height, width = depth.shape
    bends = np.zeros((height, width, 2), np.float32)
    with np.errstate(all="ignore"):
        inverse = 1 / depth
        across = np.abs(depth[:, 1:-1] * (inverse[:, :-2] + inverse[:, 2:]) - 2)
        down = np.abs(depth[1:-1] * (inverse[:-2] + inverse[2:]) - 2)
    bends[:, 1:-1, 0] = np.nan_to_num(across, copy=False, nan=0.0, posinf=0.0)
    bends[1:-1, :, 1] = np.nan_to_num(down, copy=False, nan=0.0, posinf=0.0)
    return bends
