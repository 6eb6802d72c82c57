"""Normal maps: 16-bit RGB PNG of n * (0.5, -0.5, -0.5) + 0.5, all-zero = NaN.

Normals are in OpenCV's camera axes (x right, y down, z forward): one that looks at the camera has z < 0 and much blue.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import FormatError, InputError
from moge_core.io import limits
from moge_core.io.files import PathOrFile, name_of, read_bytes, write_bytes
from moge_core.io.opencv import cv2
from moge_core.io.png import DEFAULT_COMPRESSION_LEVEL, RGB, decode_png, encode_png, parse_png


class NormalWarning(UserWarning):
    """Normals without a direction were written as unknown."""


def read_normal(
    path_or_file: PathOrFile, region: tuple[slice, slice] = (slice(None), slice(None))
) -> npt.NDArray[np.float32]:
    """Read a normal map.

    Args:
        path_or_file: path or binary file object of a 16-bit RGB PNG.
        region: rows and columns to return; by default all.

    Returns:
        normal (H, W, 3) of unit length, NaN where unknown.

    Raises:
        FormatError: no 16-bit RGB PNG, truncated or undecodable.
        ImageTooLargeError: more pixels than `moge_core.io.limits.MAX_IMAGE_PIXELS`.
        FileNotFoundError: there is no such file.
    """
    name = name_of(path_or_file)
    data = read_bytes(path_or_file, limit=limits.MAX_FILE_BYTES)
    header = parse_png(data, name)
    if (header.color_type, header.bit_depth) != (RGB, 16):
        raise FormatError(name, "a normal map must be a 16-bit RGB PNG", found=f"a {header.pixel_format} PNG")
    # Plane by plane, which is several times faster than along a last axis of three.
    r, g, b = cv2.split(decode_png(data, name, header)[region])
    # No code stands for exactly zero, so every length is positive.
    coordinate = (np.arange(65536) / 65535 * 2 - 1).astype(np.float32)
    x, y, z = np.take(coordinate, r), np.take(-coordinate, g), np.take(-coordinate, b)
    scale = 1 / np.sqrt(x * x + y * y + z * z)
    scale[(r | g | b) == 0] = np.nan
    normal: npt.NDArray[np.float32] = cv2.merge([x * scale, y * scale, z * scale])
    return normal


def write_normal(
    path_or_file: PathOrFile, normal: npt.NDArray[Any], *, compression_level: int = DEFAULT_COMPRESSION_LEVEL
) -> None:
    """Write a normal map. A read normal differs from the written one by at most 0.002 degrees.

    Lengths are not kept: every normal is brought to unit length first. A unit normal never has the code of NaN, because
    that corner of the cube, (-1, 1, 1), has length sqrt(3).

    Args:
        path_or_file: path or binary file object.
        normal: (H, W, 3), floating point; unknown where a coordinate is NaN.
        compression_level: of the PNG, 0 (none) to 9 (smallest, slow).

    Raises:
        InputError: another shape or type, or a missing folder.

    Warns:
        NormalWarning: normals of zero or infinite length became unknown.
    """
    if not isinstance(normal, np.ndarray) or normal.dtype.kind != "f":
        raise InputError(
            "normal", "must be a floating-point array", found=getattr(normal, "dtype", type(normal).__name__)
        )
    if normal.ndim != 3 or normal.shape[2] != 3 or 0 in normal.shape:
        raise InputError("normal", "must be of shape (H, W, 3) and not empty", found=normal.shape)
    x, y, z = (normal[..., i].astype(np.float64) for i in range(3))
    with np.errstate(over="ignore"):
        length = np.sqrt(x * x + y * y + z * z)  # NaN where a coordinate is
    has_no_direction = (length == 0) | (length == np.inf)
    if has_no_direction.any():
        warnings.warn(
            f"{name_of(path_or_file)}: {np.count_nonzero(has_no_direction):,} of {length.size:,} normals have zero or "
            "infinite length and are written as unknown (NaN).",
            NormalWarning,
            stacklevel=2,
        )
    is_known = np.isfinite(length) & (length > 0)
    scale = np.divide(65535 / 2, length, out=np.zeros_like(length), where=is_known)
    codes = np.zeros(normal.shape, np.uint16)
    for i, axis in enumerate((x, -y, -z)):
        codes[..., i] = np.where(is_known, np.rint(np.where(is_known, axis, 0) * scale + 65535 / 2), 0)
    write_bytes(path_or_file, encode_png(codes, compression_level=compression_level))
