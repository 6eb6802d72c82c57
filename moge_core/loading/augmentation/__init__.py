"""Colour augmentations: what separates a clean image from one that a camera, a lens and a codec have been through.

All take and return an image `(H, W, 3)` uint8 RGB. They are applied in the order of `AUGMENTATIONS` whatever the
configuration's order, and all randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError
from moge_core.io.opencv import cv2
from moge_core.loading.augmentation.color import jitter_colors
from moge_core.loading.augmentation.depth_of_field import blur_by_depth, fill_unknown
from moge_core.loading.augmentation.shot_noise import draw_photons_per_level, photon_noise
from moge_core.loading.stages import StageClock

ImageArray = npt.NDArray[np.uint8]
DepthArray = npt.NDArray[np.float32]

_MAX_BLUR_RADIUS = 12


def augment(
    image: ImageArray,
    depth: DepthArray,
    names: Collection[str],
    rng: np.random.Generator,
    clock: StageClock | None = None,
) -> ImageArray:
    """Apply the augmentations in `names`.

    All but `jittering` first toss a coin and act on every other image.

    Args:
        image: `(H, W, 3)` uint8.
        depth: `(H, W)` float32 in any unit, NaN unknown, +Inf infinitely far; `dof` needs it.
        names: any of `AUGMENTATIONS`.
        rng: source of all draws.
        clock: where the time of each is added up.

    Raises:
        InputError: a name is unknown.
    """
    unknown = set(names) - set(AUGMENTATIONS)
    if unknown:
        raise InputError(
            "image_augmentation", f"must be of {', '.join(AUGMENTATIONS)}", found=", ".join(sorted(unknown))
        )
    clock = StageClock() if clock is None else clock
    for name, apply in AUGMENTATIONS.items():
        if name in names and (name == "jittering" or rng.uniform() < 0.5):
            with clock.stage(name):
                image = apply(image, depth, rng)
    return image


def _jittering(image: ImageArray, _depth: DepthArray, rng: np.random.Generator) -> ImageArray:
    brightness, contrast, saturation = (rng.uniform(0.9, 1.1) for _ in range(3))
    hue = rng.uniform(-0.05, 0.05)
    gamma = rng.uniform(0.9, 1.1)
    return jitter_colors(image, brightness, contrast, saturation, hue, gamma)


def _depth_of_field(image: ImageArray, depth: DepthArray, rng: np.random.Generator) -> ImageArray:
    max_radius = int(rng.integers(_MAX_BLUR_RADIUS))
    unknown = np.isnan(depth)
    disparity = np.zeros_like(depth)
    np.divide(1, depth, out=disparity, where=depth > 0)
    finite = disparity[np.isfinite(depth)]
    nearest = float(finite.max(initial=0))
    focus = rng.uniform(float(finite.min(initial=nearest)), nearest)
    if nearest == 0 or max_radius == 0:
        return image  # all of it is equally sharp
    disparity = fill_unknown(disparity / np.float32(nearest), unknown)
    return blur_by_depth(image, disparity, focus / nearest, max_radius)


def _shot_noise(image: ImageArray, _depth: DepthArray, rng: np.random.Generator) -> ImageArray:
    return photon_noise(image, draw_photons_per_level(rng), rng)


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


AUGMENTATIONS: dict[str, Callable[[ImageArray, DepthArray, np.random.Generator], ImageArray]] = {
    "jittering": _jittering,
    "dof": _depth_of_field,
    "shot_noise": _shot_noise,
    "blurring": _blurring,
    "jpeg_loss": _jpeg_loss,
}
