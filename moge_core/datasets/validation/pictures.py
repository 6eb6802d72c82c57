"""Decoding an image as far as validation needs it: whether it can be, and its edges in grey."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from moge_core.datasets.validation.settings import ValidationSettings
from moge_core.errors import FormatError
from moge_core.io.headers import ImageHeader

# Longer side of the picture that edges are looked for in; JPEG decodes to about that size in half the time.
_FINEST = 160
_MOST_TAIL = 0.15


def decode_grey(data: bytes, header: ImageHeader, name: str) -> npt.NDArray[np.uint8]:
    """An image in grey and no larger than edges need, as stored (EXIF's orientation is not applied).

    Raises:
        FormatError: the pixels cannot be decoded.
    """
    from moge_core.io.opencv import cv2

    reduced = {
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    }
    longer = max(header.width, header.height)
    factor = max((factor for factor in reduced if longer / factor >= _FINEST), default=1)
    mode = reduced.get(factor, cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_IGNORE_ORIENTATION
    rule = "must hold a decodable image"
    try:
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error as error:
        raise FormatError(name, rule, found=error) from error
    expected = (math.ceil(header.height / factor), math.ceil(header.width / factor))
    if grey is None or any(abs(a - b) > 1 for a, b in zip(grey.shape, expected, strict=True)):
        raise FormatError(name, rule, found="damaged pixels behind a valid header")
    return np.asarray(grey)


def judge_picture(
    grey: npt.NDArray[np.uint8], num_pixels: int, settings: ValidationSettings
) -> Iterator[tuple[str, str]]:
    """(rule, evidence) where an image shows nothing, or nothing from some row on.

    Args:
        grey: (h, w), see `decode_grey`.
        num_pixels: of the image itself.
        settings: thresholds.
    """
    if num_pixels >= settings.min_pixels and grey.size > 1 and float(grey.std()) < 1.0:
        yield "image-varies", f"every pixel is about {round(float(grey.mean()))} of 255"
    elif (tail := _grey_tail(grey)) > _MOST_TAIL:
        yield "image-varies", f"the lowest {tail:.0%} of the image are one grey, as of a truncated JPEG"


def _grey_tail(grey: npt.NDArray[np.uint8]) -> float:
    """Share of the rows at the bottom that are all of one value, neither black nor white."""
    if min(grey.shape) < 16 or not 4 < int(grey[-1, 0]) < 251:
        return 0.0
    flat = (np.abs(grey.astype(np.int16) - int(grey[-1, 0])) <= 1).all(axis=1)
    different = np.flatnonzero(~flat)
    return 1 - (int(different[-1]) + 1) / grey.shape[0] if different.size else 0.0
