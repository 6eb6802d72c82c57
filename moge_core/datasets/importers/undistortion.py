"""Pictures of a camera with distortion, and their maps, brought onto a pinhole.

The pinhole keeps the picture's size, the principal point and the shape of its pixels. Its focal length is the shortest
with which every pixel of the new picture was seen by the camera, and no side of it is more than 60 degrees away from
the optical axis. So there are no empty corners; what the distorted picture shows beyond is left out, and how much stays
is told.

Pictures are interpolated. Depth is not: each pixel takes the nearest measured value, moved by less than half a pixel
along the surface that it lies on, as far as its neighbours agree on one; what lies across an edge never enters. Sparse
depth keeps its returns, each in the pixel that it falls into. Normals, masks and segmentations are picked: the axes of
the camera stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.distortion import FISHEYE, RADIAL_TANGENTIAL, Distortion
from moge_core.datasets.importers.frames import Parts, normalised_intrinsics
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportSettings, Record, StoredDepth
from moge_core.errors import InputError, InstanceError

# Beyond this angle from the axis a pinhole's picture shows little in many pixels.
_MOST_TANGENT = math.tan(math.radians(60))
# A model that bends the middle of the picture so much is none of this picture.
_LONGEST_FOCAL = 64.0
_SAMPLES_PER_SIDE = 129
_GRID_SIDE = 33
_NUM_ANGLES = 8192
# OpenCV takes so many coefficients, and no others.
_LENGTHS = (4, 5, 8, 12, 14)
# Of the neighbours of a return that lies alone, less than this share is known.
_MOST_NEIGHBOURS = 0.5
# A pixel whose ray, seen through the camera again, misses it by more has no ray that can be found.
_MOST_MISS_PX = 1e-3
_NEWTON_STEPS = 5
# Of a change of the direction, a part of which the model makes less than this is no longer measured.
_LEAST_SLOPE = 0.1
# Relative; a longer search changes no pixel.
_FOCAL_PRECISION = 1e-7
# Tangents of directions beyond this are of no pinhole's picture.
_FARTHEST = 1e3
_UNTURNED = np.zeros(3)
# Depth is moved in bands of so many pixels: several large maps are under way at once.
_PIXELS_AT_ONCE = 1 << 20

_Floats: TypeAlias = npt.NDArray[np.float64]


def undistort(parts: Parts, record: Record, settings: ImportSettings) -> None:
    """Bring the parts of a frame onto a pinhole, where their camera has distortion.

    Args:
        parts: changed in place: its camera has none afterwards.
        record: where they come from.
        settings: `distortion` says whether it is obeyed.

    Raises:
        InstanceError: a model that is not obeyed, one that does not fit the picture, or disparity.
    """
    distortion = parts.camera.distortion
    if distortion is None:
        return
    check_obeyed(distortion, record.image.path, settings)
    if settings.distortion == "ignore":
        parts.camera = replace(parts.camera, distortion=None)
        parts.told.notes.add(f"The camera's distortion, {distortion}, was ignored (--distortion ignore).")
        return
    if parts.meaning is not None and parts.meaning.kind == "disparity":
        raise InstanceError(
            record.depth.path,
            "disparity must be of rectified pictures, whose camera is a pinhole",
            found=f"the distortion {distortion}",
            fix="Say --distortion ignore if the pictures are rectified.",
        )
    width, height = parts.image.shape[1], parts.image.shape[0]
    normalised, remarks = normalised_intrinsics(parts.camera, width, height, record.size_is_said_by)
    parts.told.notes.update(remarks)
    camera = PixelIntrinsics(
        float(normalised[0, 0] * width),
        float(normalised[1, 1] * height),
        float(normalised[0, 2] * width - 0.5),
        float(normalised[1, 2] * height - 0.5),
        (width, height),
        distortion=distortion,
    )
    pinhole, share = pinhole_of(camera)
    parts.image = undistorted_picture(parts.image, camera, pinhole)
    parts.jpeg = None
    parts.camera = pinhole
    if parts.stored is not None and parts.meaning is not None:
        _undistort_depth(parts, camera, pinhole)
    for name in ("normal", "mask", "segmentation"):
        values = getattr(parts, name)
        if values is not None:
            setattr(parts, name, _picked(values, camera, pinhole))
    parts.told.notes.add(
        f"Pictures and maps were undistorted onto a pinhole; the model is {distortion.model}. If they were undistorted"
        " already, import again with --distortion ignore."
    )
    parts.told.shares["undistorted"] = share
    parts.told.shares["undistorted_fov"] = math.degrees(_fov(width, camera.cx, pinhole.fx))


def check_obeyed(distortion: Distortion | None, where: object, settings: ImportSettings) -> None:
    """Refuse what no picture can be undistorted by.

    Raises:
        InputError: naming the model.
    """
    if distortion is None or distortion.is_obeyed:
        return
    if not distortion.is_of_a_pinhole:
        fix = "Undistort the pictures first, and give the intrinsics of the pinhole: --intrinsics fx,fy,cx,cy."
    elif settings.distortion == "ignore":
        return
    else:
        fix = "Undistort the pictures first; if they are undistorted already, say --distortion ignore."
    known = f"a pinhole, or have {RADIAL_TANGENTIAL} or {FISHEYE} distortion"
    raise InputError(where, f"the camera must be {known}", found=f"the camera model {distortion}", fix=fix)


@lru_cache(maxsize=64)
def pinhole_of(camera: PixelIntrinsics) -> tuple[PixelIntrinsics, float]:
    """The pinhole that pictures of a camera are brought onto, and the share of their pixels that it shows.

    Args:
        camera: with a size and a distortion that is obeyed.

    Raises:
        InstanceError: there is none, because the distortion folds the middle of the picture.
    """
    width, height = _size(camera)
    reach_x = max(camera.cx + 0.5, width - 0.5 - camera.cx) / camera.fx
    reach_y = max(camera.cy + 0.5, height - 0.5 - camera.cy) / camera.fy
    shortest = max(reach_x, reach_y) / _MOST_TANGENT
    longest = max(1.0, shortest)
    while not _sees_all(camera, longest):
        longest *= 2
        if longest > _LONGEST_FOCAL:
            raise InstanceError(
                "intrinsics",
                f"the distortion must fit pictures of {width}x{height}",
                found=f"{camera.distortion}, which folds the middle of the picture",
                fix="Check the order and the number of the coefficients.",
            )
    if _sees_all(camera, shortest):
        longest = shortest
    while longest / shortest > 1 + _FOCAL_PRECISION:
        middle = math.sqrt(shortest * longest)
        if _sees_all(camera, middle):
            longest = middle
        else:
            shortest = middle
    pinhole = PixelIntrinsics(longest * camera.fx, longest * camera.fy, camera.cx, camera.cy, camera.size)
    x, y = pixels_of_rays(camera, _border(camera, longest)).T
    area = abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    return pinhole, min(area / (width * height), 1.0)


def undistorted_picture(
    image: npt.NDArray[np.uint8], camera: PixelIntrinsics, pinhole: PixelIntrinsics
) -> npt.NDArray[np.uint8]:
    """A picture (H, W, 3) of a camera, as a pinhole sees it; black where the camera did not."""
    from moge_core.io.opencv import cv2

    x, y = _places(camera, pinhole)
    mode = cv2.BORDER_REPLICATE
    seen: npt.NDArray[np.uint8] = cv2.remap(image, x, y, interpolation=cv2.INTER_CUBIC, borderMode=mode)
    seen[_outside(x, y, _size(camera))] = 0
    return seen


def pixels_of_rays(camera: PixelIntrinsics, rays: _Floats) -> _Floats:
    """Pixels (N, 2) in which a camera with distortion sees directions (N, 2), x and y at z = 1."""
    from moge_core.io.opencv import cv2

    points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)[:, None]
    project = cv2.fisheye.projectPoints if _distortion(camera).model == FISHEYE else cv2.projectPoints
    pixels, _ = project(points, _UNTURNED, _UNTURNED, camera.matrix(), _coefficients(camera))
    found: _Floats = pixels.reshape(-1, 2)
    return found


def rays_of_pixels(camera: PixelIntrinsics, pixels: _Floats) -> _Floats:
    """Directions (N, 2), x and y at z = 1, that a camera with distortion sees in pixels (N, 2); NaN where none.

    OpenCV's own inversion diverges where a model bends strongly; here Newton's method begins at the radial part alone,
    which is inverted by a table.
    """
    tangents, seen = _radial_profile(_distortion(camera))
    bent = (pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy)
    radius = np.hypot(*bent.T)
    with np.errstate(all="ignore"):
        rays: _Floats = bent * np.where(radius > 0, np.interp(radius, seen, tangents) / radius, 1.0)[:, None]
        for _ in range(_NEWTON_STEPS):
            rays = _nearer(camera, rays, pixels)
        again = pixels_of_rays(camera, rays)
        missed = ~(np.abs(again - pixels).max(axis=1, initial=0) < _MOST_MISS_PX)
    return np.where((missed | ~_is_unfolded(camera, np.hypot(*rays.T)))[:, None], np.nan, rays)


def _nearer(camera: PixelIntrinsics, rays: _Floats, pixels: _Floats) -> _Floats:
    """Directions after a step of Newton's method towards those of the pixels."""
    step = 1e-6
    miss = pixels - pixels_of_rays(camera, rays)
    across, down = (
        (pixels_of_rays(camera, rays + aside) - pixels_of_rays(camera, rays - aside)) / (2 * step)
        for aside in step * np.eye(2)
    )
    area = across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0]
    x = (miss[:, 0] * down[:, 1] - miss[:, 1] * down[:, 0]) / area
    y = (across[:, 0] * miss[:, 1] - across[:, 1] * miss[:, 0]) / area
    moved = rays + np.stack([x, y], axis=1)
    return np.where(np.isfinite(moved) & (np.abs(moved) < _FARTHEST), moved, rays)


def _fov(side: int, centre: float, focal: float) -> float:
    """Field of view in radians."""
    return math.atan((centre + 0.5) / focal) + math.atan((side - 0.5 - centre) / focal)


def _border(camera: PixelIntrinsics, stretch: float) -> _Floats:
    """Directions once round the picture of a pinhole with so many times the focal lengths of a camera."""
    width, height = _size(camera)
    left, right = (-0.5 - camera.cx) / camera.fx, (width - 0.5 - camera.cx) / camera.fx
    top, bottom = (-0.5 - camera.cy) / camera.fy, (height - 0.5 - camera.cy) / camera.fy
    part = np.linspace(0, 1, _SAMPLES_PER_SIDE, endpoint=False)
    one, other = np.ones_like(part), 1 - part
    x = np.concatenate([left + (right - left) * part, right * one, left + (right - left) * other, left * one])
    y = np.concatenate([top * one, top + (bottom - top) * part, bottom * one, top + (bottom - top) * other])
    return np.stack([x, y], axis=1) / stretch


def _sees_all(camera: PixelIntrinsics, stretch: float) -> bool:
    """Whether a camera sees every pixel of such a pinhole, each in a place of its own.

    A longer focal length shows a part of what a shorter one does, so that this holds from some length on.
    """
    border = _border(camera, stretch)
    width, height = _size(camera)
    if not bool(_is_unfolded(camera, np.hypot(*border.T)).all()):
        return False
    with np.errstate(all="ignore"):
        x, y = pixels_of_rays(camera, border).T
        inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
        if not bool(inside.all()):
            return False
        columns = np.linspace(border[:, 0].min(), border[:, 0].max(), _GRID_SIDE)
        rows = np.linspace(border[:, 1].min(), border[:, 1].max(), _GRID_SIDE)
        grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
        pixels = pixels_of_rays(camera, grid).reshape(_GRID_SIDE, _GRID_SIDE, 2)
        right, down = np.diff(pixels, axis=1)[:-1], np.diff(pixels, axis=0)[:, :-1]
        turns = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
    return bool((turns > 0).all())


def _is_unfolded(camera: PixelIntrinsics, reach: _Floats) -> npt.NDArray[np.bool_]:
    """Whether directions so far from the axis, as tangents, come before the radius at which the model flattens."""
    tangents, _ = _radial_profile(_distortion(camera))
    unfolded: npt.NDArray[np.bool_] = reach <= tangents[-1]
    return unfolded


@lru_cache(maxsize=64)
def _radial_profile(distortion: Distortion) -> tuple[_Floats, _Floats]:
    """Tangents of directions, and how far from the axis the model sees them at focal length 1, as far as that rises.

    A polynomial of the radius that fits within the picture may fall again beyond it, and would show the same twice.
    """
    numbers = np.zeros(14)
    numbers[: len(distortion.coefficients)] = distortion.coefficients
    angles = np.linspace(0, math.atan(_FARTHEST), _NUM_ANGLES)
    tangents = np.tan(angles)
    if distortion.model == FISHEYE:
        places, below = angles, np.ones(_NUM_ANGLES)
        k1, k2, k3, k4 = numbers[:4]
        seen = angles * (1 + k1 * angles**2 + k2 * angles**4 + k3 * angles**6 + k4 * angles**8)
    else:
        places = tangents
        k1, k2, _, _, k3, k4, k5, k6 = numbers[:8]
        squared = tangents**2
        below = 1 + squared * (k4 + squared * (k5 + squared * k6))
        with np.errstate(divide="ignore"):
            seen = tangents * (1 + squared * (k1 + squared * (k2 + squared * k3))) / below
    rises = (below[1:] > 0) & (np.diff(seen) > _LEAST_SLOPE * np.diff(places))
    end = _NUM_ANGLES if rises.all() else max(int(rises.argmin()), 1)
    return tangents[:end], seen[:end]


def _undistort_depth(parts: Parts, camera: PixelIntrinsics, pinhole: PixelIntrinsics) -> None:
    """Stored values as metres, or as inverse depth's own unit, on the pinhole."""
    from moge_core.datasets.importers.projection import metric_z

    assert parts.stored is not None and parts.meaning is not None
    stored, meaning = parts.stored, parts.meaning
    if meaning.scale is None and meaning.kind in {"z", "ray"} and stored.dtype.kind in "iu":
        parts.told.notes.add("No scale was given for depth stored as integers; it was read as millimetres.")
    # A distance along the ray stays one until it is on the pinhole, whose rays are known.
    is_ray = meaning.kind == "ray"
    as_read = replace(meaning, kind="z" if is_ray else meaning.kind, infinite_from=None)
    values = metric_z(stored, as_read, np.eye(3))
    size = (values.shape[1], values.shape[0])
    camera, pinhole = _of_size(camera, size), _of_size(pinhole, size)
    if _lies_alone(values):
        parts.stored = _splatted(values, camera, pinhole, is_ray=is_ray)
        is_ray = False
    else:
        parts.stored = _moved_along_surfaces(values, camera, pinhole)
    parts.meaning = StoredDepth(
        meaning.path, kind="ray" if is_ray else "z", scale=1.0, infinite_from=meaning.infinite_from
    )


def _lies_alone(values: npt.NDArray[np.float32]) -> bool:
    """Whether known pixels mostly lie alone, as returns of a LiDAR do."""
    known = ~np.isnan(values)
    across, down = known[:, 1:] & known[:, :-1], known[1:] & known[:-1]
    return 2 * (int(across.sum()) + int(down.sum())) < _MOST_NEIGHBOURS * 4 * int(known.sum()) and min(values.shape) > 2


def _moved_along_surfaces(
    values: npt.NDArray[np.float32], camera: PixelIntrinsics, pinhole: PixelIntrinsics
) -> npt.NDArray[np.float32]:
    """The nearest value of each pixel of the pinhole, on the surface that it and its neighbours lie on.

    One over z is linear over the image of a plane. Of its steps to either side the smaller counts, and none where they
    disagree (the minmod limiter of finite volumes), so that nothing comes over an edge.
    """
    x, y = _places(camera, pinhole)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / values.astype(np.float64)
    moved = np.empty(x.shape, np.float32)
    num_rows = max(1, _PIXELS_AT_ONCE // x.shape[1])
    for start in range(0, len(x), num_rows):
        band = slice(start, start + num_rows)
        moved[band] = _moved(inverse, x[band], y[band])
    return moved


def _moved(inverse: _Floats, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Depth at places (h, W), from one over that of the camera's pixels (H, W)."""
    rows, columns, outside = _nearest(x, y, inverse.shape)
    picked = inverse[rows, columns]
    moved = picked.copy()
    for axis, offset in ((1, x - columns), (0, y - rows)):
        moved += np.clip(offset, -0.5, 0.5) * _slope(inverse, rows, columns, axis)
    moved = np.where(np.isfinite(moved) & (moved > 0) & (picked > 0), moved, picked)
    moved[outside] = np.nan
    with np.errstate(divide="ignore", over="ignore"):
        return (1 / moved).astype(np.float32)


def _slope(values: _Floats, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], axis: int) -> _Floats:
    """The step of each of these pixels along an axis: the smaller of those to either side.

    It is zero at edges, where the sides disagree, and beside unknowns.
    """
    at, last = (rows, columns)[axis], values.shape[axis] - 1
    here, left, right = (
        values[rows, beside] if axis == 1 else values[beside, columns]
        for beside in (at, np.maximum(at - 1, 0), np.minimum(at + 1, last))
    )
    with np.errstate(invalid="ignore"):
        before, after = here - left, right - here
        smaller = np.sign(after) * np.minimum(np.abs(before), np.abs(after))
        return np.where(before * after > 0, smaller, 0.0)


def _splatted(
    values: npt.NDArray[np.float32], camera: PixelIntrinsics, pinhole: PixelIntrinsics, *, is_ray: bool
) -> npt.NDArray[np.float32]:
    """Each return in the pixel of the pinhole that it falls into, the nearest of several."""
    rows, columns = np.nonzero(~np.isnan(values))
    rays = rays_of_pixels(camera, np.stack([columns, rows], axis=1).astype(np.float64))
    z = values[rows, columns].astype(np.float64)
    if is_ray:
        z = z / np.sqrt(1 + (rays**2).sum(axis=1))
    width, height = _size(pinhole)
    with np.errstate(invalid="ignore"):
        x = np.floor(rays[:, 0] * pinhole.fx + pinhole.cx + 0.5)
        y = np.floor(rays[:, 1] * pinhole.fy + pinhole.cy + 0.5)
        seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    depth = np.full(height * width, np.nan)
    at = y[seen].astype(np.int64) * width + x[seen].astype(np.int64)
    np.fmin.at(depth, at, z[seen])
    return depth.reshape(height, width).astype(np.float32)


def _picked(values: npt.NDArray[Any], camera: PixelIntrinsics, pinhole: PixelIntrinsics) -> npt.NDArray[Any]:
    """The nearest values; unknown, or zero in integers, where the camera saw nothing."""
    size = (values.shape[1], values.shape[0])
    rows, columns, outside = _nearest(*_places(_of_size(camera, size), _of_size(pinhole, size)), values.shape)
    picked = values[rows, columns]
    picked[outside] = np.nan if values.dtype.kind == "f" else 0
    return picked


def _nearest(
    x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Rows and columns of the pixels nearest to places, and which places are outside."""
    rows = np.clip(np.floor(y + 0.5), 0, shape[0] - 1).astype(np.int64)
    columns = np.clip(np.floor(x + 0.5), 0, shape[1] - 1).astype(np.int64)
    return rows, columns, _outside(x, y, (shape[1], shape[0]))


def _outside(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which places are off the picture by more than the rounding of single precision."""
    slack = 1e-2
    width, height = size
    return ~((x > -0.5 - slack) & (x < width - 0.5 + slack) & (y > -0.5 - slack) & (y < height - 0.5 + slack))


@lru_cache(maxsize=8)
def _places(
    camera: PixelIntrinsics, pinhole: PixelIntrinsics
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Where the camera sees each pixel of the pinhole: columns and rows (H, W)."""
    from moge_core.io.opencv import cv2

    make = cv2.fisheye.initUndistortRectifyMap if _distortion(camera).model == FISHEYE else cv2.initUndistortRectifyMap
    x, y = make(camera.matrix(), _coefficients(camera), np.eye(3), pinhole.matrix(), _size(pinhole), cv2.CV_32FC1)
    return x, y


def _of_size(camera: PixelIntrinsics, size: tuple[int, int]) -> PixelIntrinsics:
    """The camera of the same picture in another size."""
    if size == camera.size:
        return camera
    x, y = (own / former for own, former in zip(size, _size(camera), strict=True))
    centre = (camera.cx + 0.5) * x - 0.5, (camera.cy + 0.5) * y - 0.5
    return replace(camera, fx=camera.fx * x, fy=camera.fy * y, cx=centre[0], cy=centre[1], size=size)


def _coefficients(camera: PixelIntrinsics) -> _Floats:
    given = _distortion(camera).coefficients
    length = 4 if _distortion(camera).model == FISHEYE else next(one for one in _LENGTHS if one >= len(given))
    padded = np.zeros(length)
    padded[: len(given)] = given
    return padded


def _distortion(camera: PixelIntrinsics) -> Distortion:
    assert camera.distortion is not None
    return camera.distortion


def _size(camera: PixelIntrinsics) -> tuple[int, int]:
    assert camera.size is not None
    return camera.size
