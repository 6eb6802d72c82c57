"""Pinhole cameras: normalised intrinsics, fields of view, and focal lengths relative to the image diagonal.

Axes are OpenCV's (x right, y down, z forward). Normalised intrinsics are the 3x3 matrix for image coordinates that run
from 0 to 1 across the image, so focal lengths and principal point are divided by width and height:

    [[fx, s, cx],
     [0, fy, cy],        the centre of pixel (i, j) lies at ((j + 0.5) / W, (i + 0.5) / H)
     [0,  0,  1]]

Three measures of one lens appear in this project, with a = width / height:

    field of view   fov_x = 2 atan(0.5 / fx), radians
    focal           relative to half the image diagonal: fy = focal / 2 * sqrt(1 + a^2), fx = fy / a
    intrinsics      the matrix above, whose principal point may lie anywhere
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moge_core.errors import InputError
from moge_core.geometry._backend import Array, array_namespace, as_floating, check_between, check_intrinsics, is_tensor


def intrinsics_to_fov(intrinsics: Array) -> tuple[Array, Array]:
    """Horizontal and vertical field of view, 2 atan(0.5 / f).

    Args:
        intrinsics: (..., 3, 3), normalised.

    Returns:
        fov_x, fov_y: (...), radians. Where the principal point is off centre, the field of view of a centred image with
        the same focal lengths.

    Raises:
        InputError: not the shape or the values of a camera.
    """
    xp = array_namespace(intrinsics=intrinsics)
    intrinsics = as_floating("intrinsics", intrinsics)
    check_intrinsics(intrinsics)
    fx, fy = abs(intrinsics[..., 0, 0]), abs(intrinsics[..., 1, 1])
    return 2 * xp.arctan(0.5 / fx), 2 * xp.arctan(0.5 / fy)


def intrinsics_from_fov(fov_x: Any = None, fov_y: Any = None, aspect_ratio: Any = None) -> Any:
    """Normalised intrinsics with a centred principal point, from two of the three arguments.

    Args:
        fov_x, fov_y: number, array or tensor (...), radians between 0 and pi.
        aspect_ratio: width / height, number, array or tensor (...); pixels are square then.

    Returns:
        (..., 3, 3); float32 for plain numbers, otherwise the argument's kind and type.

    Raises:
        InputError: not exactly two arguments, or one outside its domain.
    """
    if sum(argument is not None for argument in (fov_x, fov_y, aspect_ratio)) != 2:
        raise InputError(
            "intrinsics_from_fov",
            "needs exactly two of fov_x, fov_y and aspect_ratio",
            found={"fov_x": fov_x, "fov_y": fov_y, "aspect_ratio": aspect_ratio},
        )
    check_between("fov_x", fov_x, math.pi)
    check_between("fov_y", fov_y, math.pi)
    check_between("aspect_ratio", aspect_ratio, math.inf)
    xp, (fov_x, fov_y, aspect_ratio) = _numbers(fov_x=fov_x, fov_y=fov_y, aspect_ratio=aspect_ratio)
    fx = None if fov_x is None else 0.5 / xp.tan(fov_x / 2)
    fy = None if fov_y is None else 0.5 / xp.tan(fov_y / 2)
    if fx is None:
        fx = fy / aspect_ratio
    elif fy is None:
        fy = fx * aspect_ratio
    return _centred_intrinsics(xp, fx, fy)


def focal_to_intrinsics(focal: Any, aspect_ratio: Any) -> Any:
    """Normalised intrinsics with a centred principal point and square pixels.

    Args:
        focal: number, array or tensor (...), relative to half the image diagonal.
        aspect_ratio: width / height, number, array or tensor (...).

    Returns:
        (..., 3, 3); float32 for plain numbers, otherwise the argument's kind and type.

    Raises:
        InputError: an aspect ratio that is not positive and finite.
    """
    check_between("aspect_ratio", aspect_ratio, math.inf)
    xp, (focal, aspect_ratio) = _numbers(focal=focal, aspect_ratio=aspect_ratio)
    fy = focal / 2 * (1 + aspect_ratio**2) ** 0.5
    return _centred_intrinsics(xp, fy / aspect_ratio, fy)


def intrinsics_to_focal(intrinsics: Array) -> Array:
    """Focal length relative to half the image diagonal, 2 / sqrt(1 / fx^2 + 1 / fy^2).

    Half of it is the focal length relative to the whole diagonal, which sizes the patches of the local loss.

    Args:
        intrinsics: (..., 3, 3), normalised.

    Returns:
        (...).

    Raises:
        InputError: not the shape or the values of a camera.
    """
    array_namespace(intrinsics=intrinsics)
    intrinsics = as_floating("intrinsics", intrinsics)
    check_intrinsics(intrinsics)
    focal: Array = 2 / (intrinsics[..., 0, 0] ** -2 + intrinsics[..., 1, 1] ** -2) ** 0.5
    return focal


def fov_to_focal(fov_x: Any, aspect_ratio: Any) -> Any:
    """Focal length relative to half the image diagonal, a / sqrt(1 + a^2) / tan(fov_x / 2).

    Args:
        fov_x: number, array or tensor (...), radians between 0 and pi.
        aspect_ratio: a = width / height, number, array or tensor (...).

    Returns:
        (...); a float32 for plain numbers, otherwise the argument's kind and type.

    Raises:
        InputError: an argument outside its domain.
    """
    check_between("fov_x", fov_x, math.pi)
    check_between("aspect_ratio", aspect_ratio, math.inf)
    xp, (fov_x, aspect_ratio) = _numbers(fov_x=fov_x, aspect_ratio=aspect_ratio)
    return aspect_ratio / (1 + aspect_ratio**2) ** 0.5 / xp.tan(fov_x / 2)


def focal_to_fov(focal: Any, aspect_ratio: Any) -> tuple[Any, Any]:
    """Horizontal and vertical field of view of a centred camera with square pixels; undoes `fov_to_focal`.

    Args:
        focal: number, array or tensor (...), relative to half the image diagonal, positive.
        aspect_ratio: width / height, number, array or tensor (...).

    Returns:
        fov_x, fov_y: (...), radians; float32 for plain numbers, otherwise the argument's kind and type.

    Raises:
        InputError: an argument that is not positive and finite.
    """
    check_between("focal", focal, math.inf)
    intrinsics = focal_to_intrinsics(focal, aspect_ratio)
    fov_x, fov_y = intrinsics_to_fov(intrinsics)
    return fov_x, fov_y


def normalize_intrinsics(K_px: Any, width: int, height: int) -> Any:
    """Normalised intrinsics from intrinsics in pixels.

    Pixel intrinsics count from the centre of the first pixel, so a principal point cx = 319.5 at a width of 640, the
    middle of the image, becomes 0.5.

    Args:
        K_px: (..., 3, 3), nested lists, array or tensor, in pixels.
        width, height: of the image, pixels.

    Returns:
        (..., 3, 3); lists and integer arrays become float32.

    Raises:
        InputError: not the shape or the values of a camera, or a size below one pixel.
    """
    return _rescale(K_px, width, height, to_pixels=False)


def denormalize_intrinsics(intrinsics: Any, width: int, height: int) -> Any:
    """Intrinsics in pixels, counted from the centre of the first pixel; undoes `normalize_intrinsics`.

    Args:
        intrinsics: (..., 3, 3), nested lists, array or tensor, normalised.
        width, height: of the image, pixels.

    Returns:
        (..., 3, 3); lists and integer arrays become float32.

    Raises:
        InputError: not the shape or the values of a camera, or a size below one pixel.
    """
    return _rescale(intrinsics, width, height, to_pixels=True)


def _rescale(matrix: Any, width: int, height: int, *, to_pixels: bool) -> Any:
    if width < 1 or height < 1:
        raise InputError("width, height", "must be at least one pixel", found=(width, height))
    if not is_tensor(matrix) and not (isinstance(matrix, np.ndarray) and matrix.dtype.kind == "f"):
        try:
            matrix = np.asarray(matrix, dtype=np.float32)
        except (TypeError, ValueError):
            raise InputError("intrinsics", "must be a 3x3 matrix of numbers", found=matrix) from None
    matrix = as_floating("intrinsics", matrix)
    check_intrinsics(matrix)
    scaled = matrix + 0.0
    for row, size in ((0, width), (1, height)):
        if to_pixels:
            scaled[..., row, :] *= size
            scaled[..., row, 2] -= 0.5
        else:
            scaled[..., row, 2] += 0.5
            scaled[..., row, :] /= size
    return scaled


def _numbers(**arguments: Any) -> tuple[Any, list[Any]]:
    """The namespace of the arguments, and the arguments in it; plain numbers take the type of the others."""
    given = {name: value for name, value in arguments.items() if value is not None}
    arrays = {name: value for name, value in given.items() if is_tensor(value) or isinstance(value, np.ndarray)}
    xp = array_namespace(**arrays) if arrays else np
    arrays = {name: as_floating(name, value) for name, value in arrays.items()}
    like = next(iter(arrays.values()), np.zeros((), np.float32))
    kind = {"dtype": like.dtype} if xp is np else {"dtype": like.dtype, "device": like.device}

    def converted(name: str, value: Any) -> Any:
        if isinstance(value, int | float):
            # Filled in where it is needed: copying it there would make the host wait for an accelerator.
            return xp.full((), value, **kind)
        return None if value is None else xp.asarray(arrays.get(name, value), **kind)

    return xp, [converted(name, value) for name, value in arguments.items()]


def _centred_intrinsics(xp: Any, fx: Any, fy: Any) -> Any:
    fx, fy = (xp.broadcast_arrays if xp is np else xp.broadcast_tensors)(fx, fy)
    zero, half, one = xp.zeros_like(fx), xp.full_like(fx, 0.5), xp.ones_like(fx)
    rows = [xp.stack(row, -1) for row in ([fx, zero, half], [zero, fy, half], [zero, zero, one])]
    return xp.stack(rows, -2)
