"""From pixels to numbers: encodings of depth that are no plain numbers, see `vocabulary.WORDS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.vocabulary import Encoding
from moge_core.errors import InstanceError

OF_CHANNELS: frozenset[str] = frozenset({"float32", "float32-bgra", "rgb24", "bgr24"})
"""Encodings whose bytes lie in the channels of a picture."""

# Channels from the least byte to the greatest.
_BYTES: Mapping[str, tuple[int, ...]] = {"float32": (0, 1, 2, 3), "float32-bgra": (2, 1, 0, 3)}
# Steps of depth in 24 bits are smaller than those of its least byte by this factor, each relative to its range.
_SMOOTHER = 0.25
# Swapped bytes leave the magnitude of a float and scramble its digits: neighbours then differ by so many powers of two,
# and by so many times more than in the right order.
_ROUGH, _ROUGHER = 0.05, 4.0


def decoded(values: npt.NDArray[Any], encoding: Encoding, path: Path) -> npt.NDArray[Any]:
    """Numbers (H, W) from stored pixels.

    Args:
        values: (H, W) integers of 16 bits for float16 and rotated3, (H, W) of 32 bits for float32; (H, W, 3 or 4) of 8
            bits in the order red, green, blue, alpha for the encodings in `OF_CHANNELS`.
        encoding: how the numbers are stored; `linear` and `moge-png` are numbers already.
        path: what errors name.

    Raises:
        InstanceError: pixels that this encoding cannot have.
    """
    decoder = _DECODERS.get(encoding)
    return values if decoder is None else decoder(values, path)


def looks_like_24_bits(pixels: npt.NDArray[Any]) -> Encoding | None:
    """The encoding of three bytes that a colour picture (H, W, 3) of 8 bits looks like, or None.

    The greatest byte of a depth changes seldom, and the least runs through all its values again and again, without
    any likeness to the others. In pictures of the world all channels change together.
    """
    if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8 or min(pixels.shape[:2]) < 8:
        return None
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return None
    for low, high, encoding in ((red, blue, "rgb24"), (blue, red, "bgr24")):
        number = low + 256 * green + 65536 * high
        extent = int(number.max()) - int(number.min())
        if extent < 1 << 12:
            continue
        # The whole number must be smoother than its least byte, relative to what each of them spans.
        rough, noisy = (float(np.mean(np.abs(np.diff(part, axis=1)))) for part in (number, low))
        if rough / extent < _SMOOTHER * noisy / 256:
            return "rgb24" if encoding == "rgb24" else "bgr24"
    return None


def _float16(values: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if values.ndim != 2 or values.dtype.kind not in "iu" or values.dtype.itemsize != 2:
        raise _unfit("float16", "integers of 16 bits", values, path)
    return np.ascontiguousarray(values).view(np.float16)


def _rotated3(values: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """Bits turned right by three, as the toolbox of SUN RGB-D does it in read3dPoints.m."""
    if values.ndim != 2 or values.dtype.kind not in "iu" or values.dtype.itemsize != 2:
        raise _unfit("rotated3", "integers of 16 bits", values, path)
    bits = values.astype(np.uint16)
    return (bits >> np.uint16(3)) | (bits << np.uint16(13))


def _float32(values: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if values.ndim == 2 and values.dtype.kind in "iu" and values.dtype.itemsize == 4:
        return np.ascontiguousarray(values).view(np.float32)
    return _float32_of_bytes(values, "float32", path)


def _float32_bgra(values: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    return _float32_of_bytes(values, "float32-bgra", path)


def _float32_of_bytes(values: npt.NDArray[Any], encoding: str, path: Path) -> npt.NDArray[np.float32]:
    if values.ndim != 3 or values.shape[2] != 4 or values.dtype != np.uint8:
        raise _unfit(encoding, "four channels of 8 bits", values, path)
    orders = {name: _joined(values, order) for name, order in _BYTES.items()}
    numbers = orders.pop(encoding)
    for name, others in orders.items():
        rough = _roughness(numbers)
        if rough > max(_ROUGH, _ROUGHER * _roughness(others)):
            found = "numbers that jump from pixel to pixel, which those of the other order of bytes do not"
            raise InstanceError(path, f"must be depth as {encoding}", found=found, fix=f"Say --encoding {name}.")
    return numbers


def _joined(values: npt.NDArray[Any], order: tuple[int, ...]) -> npt.NDArray[np.float32]:
    numbers: npt.NDArray[np.float32] = np.ascontiguousarray(values[..., order]).view("<f4")[..., 0].astype(np.float32)
    return numbers


def _roughness(numbers: npt.NDArray[np.float32]) -> float:
    """Median step between neighbours in a row, in powers of two; 0 where none is known."""
    with np.errstate(all="ignore"):
        steps = np.abs(np.diff(np.log2(numbers), axis=1))
    known = steps[np.isfinite(steps)]
    return float(np.median(known)) if known.size else 0.0


def _rgb24(values: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    return _three_bytes(values, (0, 1, 2), "rgb24", path)


def _bgr24(values: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    return _three_bytes(values, (2, 1, 0), "bgr24", path)


def _three_bytes(
    values: npt.NDArray[Any], order: tuple[int, int, int], encoding: str, path: Path
) -> npt.NDArray[np.uint32]:
    if values.ndim != 3 or values.shape[2] not in {3, 4} or values.dtype != np.uint8:
        raise _unfit(encoding, "three channels of 8 bits", values, path)
    low, middle, high = (values[..., channel].astype(np.uint32) for channel in order)
    other = looks_like_24_bits(values)
    if other is not None and other != encoding:
        found = "numbers that jump from pixel to pixel, which those of the other order of bytes do not"
        raise InstanceError(path, f"must be depth as {encoding}", found=found, fix=f"Say --encoding {other}.")
    numbers: npt.NDArray[np.uint32] = low | (middle << np.uint32(8)) | (high << np.uint32(16))
    return numbers


def _unfit(encoding: str, needed: str, values: npt.NDArray[Any], path: Path) -> InstanceError:
    found = f"{values.dtype} of shape {values.shape}"
    fix = "Leave --encoding out, or say the one that these files have."
    return InstanceError(path, f"must have {needed} to be {encoding}", found=found, fix=fix)


_DECODERS: Mapping[str, Callable[[npt.NDArray[Any], Path], npt.NDArray[Any]]] = {
    "float16": _float16,
    "float32": _float32,
    "float32-bgra": _float32_bgra,
    "rgb24": _rgb24,
    "bgr24": _bgr24,
    "rotated3": _rotated3,
}
