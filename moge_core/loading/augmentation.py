"""Colour augmentations: what separates a clean image from one that a camera, a lens and a codec have been through.

All take and return an image `(H, W, 3)` uint8 RGB. They are applied in the order of `AUGMENTATIONS` whatever the
configuration's order, and all randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError
from moge_core.io.opencv import cv2

ImageArray = npt.NDArray[np.uint8]
DepthArray = npt.NDArray[np.float32]

_MAX_BLUR_RADIUS = 12
_GREY = (0.2989, 0.587, 0.114)


def augment(image: ImageArray, depth: DepthArray, names: Collection[str], rng: np.random.Generator) -> ImageArray:
    """Apply the augmentations in `names`.

    All but `jittering` first toss a coin and act on every other image.

    Args:
        image: `(H, W, 3)` uint8.
        depth: `(H, W)` float32 in any unit, NaN unknown, +Inf infinitely far; `dof` needs it.
        names: any of `AUGMENTATIONS`.
        rng: source of all draws.

    Raises:
        InputError: a name is unknown.
    """
    unknown = set(names) - set(AUGMENTATIONS)
    if unknown:
        raise InputError(
            "image_augmentation", f"must be of {', '.join(AUGMENTATIONS)}", found=", ".join(sorted(unknown))
        )
    for name, apply in AUGMENTATIONS.items():
        if name in names and (name == "jittering" or rng.uniform() < 0.5):
            image = apply(image, depth, rng)
    return image


def _jittering(image: ImageArray, _depth: DepthArray, rng: np.random.Generator) -> ImageArray:
    brightness, contrast, saturation = (rng.uniform(0.9, 1.1) for _ in range(3))
    hue = rng.uniform(-0.05, 0.05)
    gamma = rng.uniform(0.9, 1.1)
    return jitter_colors(image, brightness, contrast, saturation, hue, gamma)


def jitter_colors(
    image: ImageArray, brightness: float, contrast: float, saturation: float, hue: float, gamma: float
) -> ImageArray:
    """Brightness, contrast, saturation (factors), hue (turns) and gamma, in that order, back to uint8 after each."""
    levels = np.arange(256, dtype=np.float32)
    image = _looked_up(image, _truncated(np.float32(brightness) * levels))

    mean = np.mean(_grey(image), dtype=np.float64)
    image = _looked_up(image, _truncated(np.float32(contrast) * levels + np.float32((1 - contrast) * mean)))

    grey = _grey(image)[..., None].astype(np.float32)
    image = _truncated(np.float32(saturation) * image + np.float32(1 - saturation) * grey)

    image = _shift_hue(image, hue)
    return _looked_up(image, _to_levels((levels / np.float32(255)) ** np.float32(gamma)))


def _looked_up(image: ImageArray, table: ImageArray) -> ImageArray:
    result: ImageArray = cv2.LUT(image, table)
    return result


def _grey(image: ImageArray) -> ImageArray:
    red, green, blue = (np.float32(weight) * image[..., i] for i, weight in enumerate(_GREY))
    grey: ImageArray = (red + green + blue).astype(np.uint8)
    return grey


def _shift_hue(image: ImageArray, turns: float) -> ImageArray:
    red, green, blue = (image[..., i].astype(np.float32) for i in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    safe = np.maximum(chroma, 1)
    hue = np.where(
        red == value,
        (green - blue) / safe,
        np.where(green == value, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue += np.float32(6 * turns)
    shifted = np.empty_like(image)
    for channel, sector in enumerate((5, 3, 1)):
        k = np.mod(hue + np.float32(sector), np.float32(6))
        share = np.clip(np.minimum(k, 4 - k), 0, 1)
        shifted[..., channel] = _to_levels((value - chroma * share) / np.float32(255))
    return shifted


def _depth_of_field(image: ImageArray, depth: DepthArray, rng: np.random.Generator) -> ImageArray:
    max_radius = int(rng.integers(_MAX_BLUR_RADIUS))
    unknown = np.isnan(depth)
    disparity = np.zeros_like(depth)
    np.divide(1, depth, out=disparity, where=depth > 0)
    finite = disparity[np.isfinite(depth)]
    nearest = float(finite.max(initial=0))
    focus = rng.uniform(float(finite.min(initial=nearest)), nearest)
    if nearest == 0:
        return image  # all of it is infinitely far and equally sharp
    if unknown.any():
        filled = cv2.inpaint(disparity, unknown.astype(np.uint8), 3, cv2.INPAINT_TELEA)
        # Far from all known pixels the filling can end in NaN.
        disparity = np.clip(np.nan_to_num(filled, nan=0.0), 0, nearest)
    return blur_by_depth(image, disparity / np.float32(nearest), focus / nearest, max_radius)


def blur_by_depth(image: ImageArray, disparity: npt.NDArray[np.float32], focus: float, max_radius: int) -> ImageArray:
    """Blur what is out of focus, as a lens does; blurred near things spread over sharp ones behind them.

    Args:
        image: `(H, W, 3)` uint8.
        disparity: `(H, W)` float32 in [0, 1], 1 at the nearest point.
        focus: disparity in [0, 1] that stays sharp.
        max_radius: radius in pixels of the blur at a disparity 1 away from the focus.
    """

    def radius_at(map_of_disparity: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        distance = np.abs(map_of_disparity - np.float32(focus)) * np.float32(max_radius)
        radius: npt.NDArray[np.int32] = np.clip(distance, 0, max_radius).astype(np.int32)
        return radius

    radius = radius_at(disparity)
    for reach in range(max_radius + 1):
        nearer = cv2.dilate(disparity, _ellipse(reach))
        spread = radius_at(nearer)
        radius = np.where((spread >= reach) & (spread >= radius) & (nearer > disparity), spread, radius)
    radius = cv2.blur(radius, (5, 5))

    result = image.copy()
    for size in range(1, max_radius + 1):
        here = radius == size
        if here.any():
            result[here] = _disc_means(image, size, here)
    return result


def _ellipse(radius: int) -> npt.NDArray[np.uint8]:
    element: npt.NDArray[np.uint8] = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return element


def _disc_means(image: ImageArray, radius: int, where: npt.NDArray[np.bool_]) -> ImageArray:
    """Means `(N, 3)` over the discs of `radius` around N pixels, rounded down, black from outside the image."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = (x**2 + y**2 <= radius**2).astype(np.float64)
    # Whole sums: a mean that is a whole number must not fall to the level below by a rounding error.
    sums = np.rint(cv2.filter2D(image, cv2.CV_64F, disc, borderType=cv2.BORDER_CONSTANT)[where])
    means: ImageArray = (sums // disc.sum()).astype(np.uint8)
    return means


def _shot_noise(image: ImageArray, _depth: DepthArray, rng: np.random.Generator) -> ImageArray:
    photons_per_level = math.exp(rng.uniform(math.log(100), math.log(10000))) / 255
    noisy = rng.poisson(image * photons_per_level) / photons_per_level
    return _truncated(noisy)


def _blurring(image: ImageArray, _depth: DepthArray, rng: np.random.Generator) -> ImageArray:
    height, width = image.shape[:2]
    ratio = rng.uniform(0.25, 1)
    small_size = max(int(width * ratio), 1), max(int(height * ratio), 1)
    small = cv2.resize(image, small_size, interpolation=cv2.INTER_AREA)
    back = rng.choice([cv2.INTER_LINEAR_EXACT, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4])
    blurred: ImageArray = cv2.resize(small, (width, height), interpolation=int(back))
    return blurred


def _jpeg_loss(image: ImageArray, _depth: DepthArray, rng: np.random.Generator) -> ImageArray:
    quality = int(rng.integers(20, 100))
    # The codec takes the channels for BGR; published models were trained on that.
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: ImageArray = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return decoded


def _truncated(values: npt.NDArray[Any]) -> ImageArray:
    levels: ImageArray = np.clip(values, 0, 255).astype(np.uint8)
    return levels


def _to_levels(values: npt.NDArray[np.float32]) -> ImageArray:
    """Values in [0, 1] as levels of equal width."""
    return _truncated(np.clip(values, 0, 1) * np.float32(255.999))


AUGMENTATIONS: dict[str, Callable[[ImageArray, DepthArray, np.random.Generator], ImageArray]] = {
    "jittering": _jittering,
    "dof": _depth_of_field,
    "shot_noise": _shot_noise,
    "blurring": _blurring,
    "jpeg_loss": _jpeg_loss,
}
