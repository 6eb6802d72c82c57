"""Colour jitter: brightness, contrast, saturation, hue and gamma, each rounded down to whole levels.

What depends on one level alone is a table. The rest runs over the three colour planes in bands that stay in the
processor's cache, in float32, without branches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.io.opencv import cv2

ImageArray = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]

_GREY = tuple(np.float32(weight) for weight in (0.2989, 0.587, 0.114))
_LEVELS = np.arange(256, dtype=np.float32)
# Values of [0, 1] become levels of equal width.
_TO_LEVELS = np.float32(255.999)
_BAND_PIXELS = 1 << 15
_SAMPLED_PIXELS = 1 << 16


def jitter_colors(
    image: ImageArray, brightness: float, contrast: float, saturation: float, hue: float, gamma: float
) -> ImageArray:
    """Brightness, contrast, saturation (factors), hue (turns) and gamma, in that order, back to uint8 after each.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        brightness: factor of all levels.
        contrast: factor of the distance to the mean grey of the image.
        saturation: factor of the distance to each pixel's own grey.
        hue: shift in turns of the colour circle, between -1 and 1.
        gamma: exponent of the levels in [0, 1].
    """
    planes = cv2.split(cv2.LUT(image, _truncated(np.float32(brightness) * _LEVELS)))
    mean = _mean_grey(planes)
    contrasts = _truncated(np.float32(contrast) * _LEVELS + np.float32((1 - contrast) * mean))
    planes = [cv2.LUT(plane, contrasts) for plane in planes]
    _saturate_and_turn(planes, saturation, 6 * hue)
    gammas = _truncated(np.clip((_LEVELS / np.float32(255)) ** np.float32(gamma), 0, 1) * _TO_LEVELS)
    result: ImageArray = cv2.LUT(cv2.merge(planes), gammas)
    return result


def _mean_grey(planes: list[ImageArray]) -> float:
    """Mean of the grey levels, over evenly spaced rows of a large image: it counts for at most a tenth."""
    every = max(planes[0].size // _SAMPLED_PIXELS, 1)
    red, green, blue = (plane[::every].astype(np.float32) for plane in planes)
    grey, spare = np.empty_like(red), np.empty_like(red)
    _grey(red, green, blue, grey, spare)
    return float(grey.mean(dtype=np.float64))


def _saturate_and_turn(planes: list[ImageArray], saturation: float, turn: float) -> None:
    """Saturation, then a shift of the hue by `turn` sixths of the colour circle, in place."""
    flat = [plane.reshape(-1) for plane in planes]
    num_pixels = flat[0].size
    scratch = np.empty((9, min(_BAND_PIXELS, num_pixels)), np.float32)
    for start in range(0, num_pixels, _BAND_PIXELS):
        bands = scratch[:, : num_pixels - start]
        colors, (grey, value, chroma, hue, spare, other) = bands[:3], bands[3:]
        for band, plane in zip(colors, flat, strict=True):
            np.copyto(band, plane[start : start + _BAND_PIXELS])
        red, green, blue = colors
        _grey(red, green, blue, grey, spare)
        grey *= np.float32(1 - saturation)
        colors *= np.float32(saturation)
        colors += grey
        np.clip(colors, 0, 255, out=colors)
        np.floor(colors, out=colors)

        np.maximum(np.maximum(colors[0], colors[1], out=value), colors[2], out=value)
        np.minimum(np.minimum(colors[0], colors[1], out=chroma), colors[2], out=chroma)
        np.subtract(value, chroma, out=chroma)
        _hue(colors, value, chroma, hue, (grey, spare, other))
        hue += np.float32(turn)
        # Into one turn, [0, 6).
        np.floor(np.multiply(hue, np.float32(1 / 6), out=spare), out=spare)
        spare *= 6
        hue -= spare
        for plane, channel in zip(flat, range(3), strict=True):
            _chroma_missing(hue, channel, spare)
            spare *= chroma
            np.subtract(value, spare, out=spare)
            spare *= _TO_LEVELS / 255
            plane[start : start + _BAND_PIXELS] = spare


def _grey(red: Plane, green: Plane, blue: Plane, grey: Plane, spare: Plane) -> None:
    """Grey levels, rounded down, into `grey`."""
    np.multiply(red, _GREY[0], out=grey)
    for plane, weight in ((green, _GREY[1]), (blue, _GREY[2])):
        grey += np.multiply(plane, weight, out=spare)
    np.floor(grey, out=grey)


def _hue(
    colors: npt.NDArray[np.float32], value: Plane, chroma: Plane, hue: Plane, spares: tuple[Plane, Plane, Plane]
) -> None:
    """Hue in sixths of a turn, into `hue`; where two colours are strongest, red counts before green before blue."""
    divisor, candidate, chosen = spares
    np.maximum(chroma, 1, out=divisor)
    red, green, blue = colors
    np.subtract(red, green, out=hue)
    hue /= divisor
    hue += 4
    for more, less, sixths, strongest in ((blue, red, 2, green), (green, blue, 0, red)):
        np.subtract(more, less, out=candidate)
        candidate /= divisor
        candidate += sixths
        # Levels are whole numbers, so this is 0 where the colour is the strongest and 1 elsewhere.
        np.minimum(np.subtract(value, strongest, out=chosen), 1, out=chosen)
        hue *= chosen
        candidate *= np.subtract(1, chosen, out=chosen)
        hue += candidate


def _chroma_missing(hue: Plane, channel: int, share: Plane) -> None:
    """The share of the chroma that a hue of [0, 6) takes from a colour channel's strongest level, into `share`."""
    np.abs(np.subtract(hue, np.float32((3, 2, 4)[channel]), out=share), out=share)
    if channel == 0:
        np.subtract(2, share, out=share)
    else:
        share -= 1
    np.clip(share, 0, 1, out=share)


def _truncated(values: npt.NDArray[Any]) -> ImageArray:
    levels: ImageArray = np.clip(values, 0, 255).astype(np.uint8)
    return levels
