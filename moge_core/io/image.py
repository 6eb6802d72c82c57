"""Colour images: JPEG, and PNG where the name says so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moge_core.errors import FormatError, InputError
from moge_core.io import limits
from moge_core.io.files import PathOrFile, name_of, read_bytes, write_bytes
from moge_core.io.headers import parse_image_header
from moge_core.io.opencv import cv2
from moge_core.io.png import encode_png

_FORMAT_OF_SUFFIX: dict[str, Literal["jpeg", "png"]] = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}

# What turns stored pixels upright, by EXIF orientation: (transpose first?, OpenCV's flip code).
_UPRIGHT: dict[int, tuple[bool, int | None]] = {
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}


def read_image(path_or_file: PathOrFile) -> npt.NDArray[np.uint8]:
    """Read a colour image: JPEG, PNG, WebP, BMP or PPM.

    Grey images become RGB, 16-bit images keep their upper 8 bits, transparency is dropped. An EXIF orientation is
    applied, as the published MoGe tools do: the depth map beside an image belongs to the image as people see it.

    Args:
        path_or_file: path or binary file object.

    Returns:
        RGB image (H, W, 3).

    Raises:
        FormatError: no supported image, truncated or undecodable.
        ImageTooLargeError: more pixels than `moge_core.io.limits.MAX_IMAGE_PIXELS`.
        FileNotFoundError: there is no such file.
    """
    return turned_upright(*read_stored_image(path_or_file))


def read_stored_image(path_or_file: PathOrFile) -> tuple[npt.NDArray[np.uint8], int]:
    """The pixels of a colour image as they are stored, RGB (H, W, 3), and its EXIF orientation (1..8, 1 upright).

    Raises:
        FormatError, ImageTooLargeError, FileNotFoundError: see `read_image`.
    """
    name = name_of(path_or_file)
    data = read_bytes(path_or_file, limit=limits.MAX_FILE_BYTES)
    header = parse_image_header(data, name)
    limits.check_pixel_count(name, header.width, header.height)
    try:
        # The orientation comes from our own header parser, so that `read_image_size` cannot disagree with the pixels.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise FormatError(name, "must hold a decodable image", found=error) from error
    if image is None or image.shape != (header.height, header.width, 3):
        raise FormatError(name, "must hold a decodable image", found="damaged pixels behind a valid header")
    rgb: npt.NDArray[Any] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return rgb, header.orientation


def turned_upright(stored: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Pixels (H, W) or (H, W, C) as people see them, from the stored ones and their EXIF orientation (1..8)."""
    transposes, flip_code = _UPRIGHT.get(orientation, (False, None))
    upright: npt.NDArray[Any] = cv2.transpose(stored) if transposes else stored
    return upright if flip_code is None else np.asarray(cv2.flip(upright, flip_code))


def write_image(
    path_or_file: PathOrFile,
    image: npt.NDArray[Any],
    quality: int = 95,
    *,
    format: Literal["jpeg", "png"] | None = None,
) -> None:
    """Write a colour image as JPEG or PNG.

    Args:
        path_or_file: path or binary file object.
        image: RGB (H, W, 3), uint8.
        quality: of a JPEG, 1..100.
        format: by default what a path's suffix says (.jpg, .jpeg, .png), and JPEG for a file object.

    Raises:
        InputError: another shape or type, an unknown suffix, or a missing folder.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        fix = "Colours 0..1 become uint8 by (image * 255).round().astype(np.uint8)."
        raise InputError("image", "must be a uint8 array", found=getattr(image, "dtype", type(image).__name__), fix=fix)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError("image", "must be RGB of shape (H, W, 3)", found=image.shape)
    chosen = format or _format_of(path_or_file)
    if chosen == "png":
        write_bytes(path_or_file, encode_png(image))
    elif chosen == "jpeg":
        write_bytes(path_or_file, _encode_jpeg(image, quality))
    else:
        raise InputError("format", "must be 'jpeg' or 'png'", found=chosen)


def _format_of(path_or_file: PathOrFile) -> Literal["jpeg", "png"]:
    if not isinstance(path_or_file, (str, os.PathLike)):
        return "jpeg"
    suffix = Path(path_or_file).suffix.lower()
    if suffix not in _FORMAT_OF_SUFFIX:
        raise InputError(path_or_file, "an image's name must end with .jpg, .jpeg or .png", found=suffix or "no suffix")
    return _FORMAT_OF_SUFFIX[suffix]


def _encode_jpeg(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    if not 1 <= quality <= 100:
        raise InputError("quality", "must be 1..100", found=quality)
    if max(image.shape) > 65500:
        raise InputError(
            "image", "a side of a JPEG may have at most 65,500 pixels", found=image.shape, fix="Write a PNG."
        )
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"OpenCV could not encode {image.shape} as JPEG")
    data: bytes = encoded.tobytes()
    return data
