"""The camera of a training view: a narrower, turned camera that sees only what the source image shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError


@dataclass(frozen=True)
class View:
    """A virtual camera at the place of the source camera.

    Attributes:
        intrinsics: `(3, 3)` float32, normalised, principal point at the centre.
        rotation: `(3, 3)` float32; a point `p` of the source camera is `rotation @ p` in this one.
    """

    intrinsics: npt.NDArray[np.float32]
    rotation: npt.NDArray[np.float32]


def sample_view(
    intrinsics: npt.NDArray[Any],
    aspect_ratio: float,
    *,
    fov_range_absolute: tuple[float, float],
    fov_range_relative: tuple[float, float],
    center_augmentation: float,
    rng: np.random.Generator,
) -> View:
    """Draw a view of `aspect_ratio` (width / height) that lies within the source image.

    Three numbers are drawn, always: the horizontal field of view, the turn about the vertical axis, the turn about the
    horizontal one. The view is shrunk until it shows nothing from outside the source.

    Args:
        intrinsics: `(3, 3)` normalised intrinsics of the source.
        aspect_ratio: width / height of the view.
        fov_range_absolute: limits of the horizontal field of view in degrees. The upper one always holds; the lower
            one gives way where the source itself is narrower.
        fov_range_relative: limits as fractions of the source's fields of view.
        center_augmentation: 0 looks through the image centre, 1 anywhere the view still fits.
        rng: source of the three draws.

    Raises:
        InputError: `intrinsics` is not an invertible pinhole matrix or `aspect_ratio` is not positive.
    """
    camera = checked_intrinsics(intrinsics)
    if not (math.isfinite(aspect_ratio) and aspect_ratio > 0):
        raise InputError("aspect_ratio", "must be a positive number", found=aspect_ratio)
    source_fov_x, source_fov_y = _fov(camera[0, 0]), _fov(camera[1, 1])

    limits = [
        min(share * source_fov_x, _fov(_focal(share * source_fov_y) / aspect_ratio)) for share in fov_range_relative
    ]
    lowest = max(limits[0], math.radians(fov_range_absolute[0]))
    highest = min(limits[1], math.radians(fov_range_absolute[1]))
    fov_x = rng.uniform(min(lowest, highest), highest)
    fov_y = _fov(_focal(fov_x) * aspect_ratio)

    turn_x = center_augmentation * rng.uniform(-0.5, 0.5) * (source_fov_x - fov_x)
    turn_y = center_augmentation * rng.uniform(-0.5, 0.5) * (source_fov_y - fov_y)
    axis_uv = (
        0.5 + 0.5 * math.tan(turn_x) / math.tan(source_fov_x / 2),
        0.5 + 0.5 * math.tan(turn_y) / math.tan(source_fov_y / 2),
    )
    to_rays = np.linalg.inv(camera)
    rotation = rotation_onto_axis(to_rays @ np.array([*axis_uv, 1.0]))

    half_width = _half_width_inside(rotation @ to_rays, aspect_ratio)
    focal_x = 1 / min(2 * math.tan(fov_x / 2), 2 * half_width)
    focal_y = 1 / min(2 * math.tan(fov_y / 2), 2 * half_width / aspect_ratio)
    target = np.array([[focal_x, 0, 0.5], [0, focal_y, 0.5], [0, 0, 1]], dtype=np.float32)
    return View(target, rotation.astype(np.float32))


def checked_intrinsics(intrinsics: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """`intrinsics` as float64, if it is a normalised pinhole matrix.

    Raises:
        InputError: wrong shape, non-finite entries, a focal length that is not positive, a last row other than
            (0, 0, 1), or values that can only be pixels.
    """
    camera = np.asarray(intrinsics, dtype=np.float64)
    if camera.shape != (3, 3):
        raise InputError("intrinsics", "must be a (3, 3) matrix", found=camera.shape)
    if not np.isfinite(camera).all() or not np.array_equal(camera[2], [0, 0, 1]):
        raise InputError("intrinsics", "must be finite with the last row (0, 0, 1)", found=camera.tolist())
    # Focal lengths of half a degree of view and more, and principal points an image beside the image, still pass.
    focal, center = camera[[0, 1], [0, 1]], camera[:2, 2]
    if not (focal > 1e-4).all() or abs(np.linalg.det(camera)) < 1e-8:
        raise InputError("intrinsics", "must be invertible, with positive focal lengths", found=camera.tolist())
    if (focal > 100).any() or (np.abs(center - 0.5) > 2).any():
        raise InputError(
            "intrinsics",
            "must be normalised",
            found=camera.tolist(),
            fix="Divide the first row by the image width and the second by its height.",
        )
    return camera


def rotation_onto_axis(direction: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The smallest rotation that takes `direction` `(3,)`, which looks forward, onto the z axis (no roll)."""
    x, y, z = direction / np.linalg.norm(direction)
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
    rotation: npt.NDArray[np.float64] = np.eye(3) + cross + cross @ cross / (1 + z)
    return rotation


def _half_width_inside(image_to_view: npt.NDArray[np.float64], aspect_ratio: float) -> float:
    """Half the width, at z = 1, of the largest centred box of `aspect_ratio` that the source image covers.

    `image_to_view` takes normalised image coordinates to rays of the view. Each side of the source image spans a plane
    through the camera centre; planes stay meaningful where a corner lies behind a strongly turned view.
    """
    corners = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 0, 1]], dtype=np.float64) @ image_to_view.T
    planes = np.cross(corners, np.roll(corners, -1, axis=0))
    # The diagonals (a, 1) and (a, -1), cut with plane . (s a, s, 1) = 0.
    with np.errstate(divide="ignore"):
        cuts = [planes[:, 2] / (planes[:, 0] * aspect_ratio + sign * planes[:, 1]) for sign in (1, -1)]
    return float(np.abs(cuts).min()) * aspect_ratio


def _fov(focal: float) -> float:
    return 2 * math.atan(0.5 / focal)


def _focal(fov: float) -> float:
    return 0.5 / math.tan(fov / 2)
