"""Masks: 8-bit grey PNG, 0 = outside, 255 = inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError
from moge_core.io import limits
from moge_core.io.files import PathOrFile, name_of, read_bytes, write_bytes
from moge_core.io.png import DEFAULT_COMPRESSION_LEVEL, decode_png, encode_png, parse_png


def read_mask(path_or_file: PathOrFile) -> npt.NDArray[np.bool_]:
    """Read a mask: inside is every pixel that is not black. Transparency does not count.

    Args:
        path_or_file: path or binary file object of a PNG (a JPEG has no sharp zero) of any pixel format.

    Returns:
        mask (H, W).

    Raises:
        FormatError: no PNG, truncated or undecodable.
        ImageTooLargeError: more pixels than `moge_core.io.limits.MAX_IMAGE_PIXELS`.
        FileNotFoundError: there is no such file.
    """
    name = name_of(path_or_file)
    data = read_bytes(path_or_file, limit=limits.MAX_FILE_BYTES)
    pixels = decode_png(data, name, parse_png(data, name))
    return np.asarray(pixels > 0 if pixels.ndim == 2 else pixels[..., :3].any(axis=-1))


def write_mask(
    path_or_file: PathOrFile, mask: npt.NDArray[Any], *, compression_level: int = DEFAULT_COMPRESSION_LEVEL
) -> None:
    """Write a mask.

    Args:
        path_or_file: path or binary file object.
        mask: (H, W), bool.
        compression_level: of the PNG, 0 (none) to 9 (smallest, slow).

    Raises:
        InputError: another shape or type, or a missing folder.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        found = getattr(mask, "dtype", type(mask).__name__)
        raise InputError("mask", "must be a bool array", found=found, fix="Compare first, for instance mask > 0.")
    if mask.ndim != 2 or mask.size == 0:
        raise InputError("mask", "must be of shape (H, W) and not empty", found=mask.shape)
    write_bytes(path_or_file, encode_png(mask.astype(np.uint8) * np.uint8(255), compression_level=compression_level))
