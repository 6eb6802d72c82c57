"""Shot noise: the light that reaches a pixel comes in photons, whose number is Poisson-distributed."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

ImageArray = npt.NDArray[np.uint8]

_PHOTONS_AT_WHITE = (100, 10_000)
_NUM_QUANTILE_BITS = 12
_NUM_QUANTILES = 1 << _NUM_QUANTILE_BITS
# Below so many photons the distribution is summed up, from there on its expansion around the normal one is closer than
# the quantiles are apart.
_LEAST_NORMAL_MEAN = 48.0
_BAND_PIXELS = 1 << 15


def draw_photons_per_level(rng: np.random.Generator) -> float:
    """Photons for one of 255 levels, log-uniform between 100 and 10,000 photons for white."""
    low, high = _PHOTONS_AT_WHITE
    return math.exp(rng.uniform(math.log(low), math.log(high))) / 255


def photon_noise(image: ImageArray, photons_per_level: float, rng: np.random.Generator) -> ImageArray:
    """Every level v becomes Poisson(v * `photons_per_level`) / `photons_per_level`, rounded down, at most 255.

    The noise is drawn from a table of 4096 equally likely outcomes for each level, ten times faster than from the
    distribution itself.

    Args:
        image: `(H, W, 3)` uint8.
        photons_per_level: positive.
        rng: source of the noise.
    """
    table = noise_table(photons_per_level).reshape(-1)
    levels = np.ascontiguousarray(image).reshape(-1)
    bits = rng.bit_generator.random_raw(-(-levels.size // 4)).view(np.uint16)[: levels.size]
    noisy = np.empty_like(levels)
    places = np.empty(min(_BAND_PIXELS, levels.size), np.intp)
    for start in range(0, levels.size, _BAND_PIXELS):
        band = slice(start, start + _BAND_PIXELS)
        place = places[: levels.size - start]
        np.copyto(place, levels[band])
        place <<= _NUM_QUANTILE_BITS
        place += bits[band] >> (16 - _NUM_QUANTILE_BITS)
        np.take(table, place, out=noisy[band], mode="wrap")  # no place is outside; `wrap` is merely the fastest
    return noisy.reshape(image.shape)


def noise_table(photons_per_level: float) -> ImageArray:
    """What becomes of each level: `(256, 4096)` equally likely outcomes in ascending order."""
    mean = np.arange(256) * photons_per_level
    num_small = int(np.searchsorted(mean, _LEAST_NORMAL_MEAN))
    photons = np.empty((256, _NUM_QUANTILES), np.float32)
    photons[:num_small] = _quantiles_by_sums(mean[:num_small])
    photons[num_small:] = _quantiles_by_expansion(mean[num_small:].astype(np.float32))
    photons *= np.float32(1 / photons_per_level)
    np.minimum(photons, 255, out=photons)
    return photons.astype(np.uint8)


def _quantiles_by_sums(mean: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Quantiles `(N, 4096)` of Poisson distributions with the small means `(N,)`."""
    if not len(mean):
        return np.empty((0, _NUM_QUANTILES), np.float32)
    number = np.arange(math.ceil(mean[-1] + 6 * math.sqrt(mean[-1]) + 8))
    log_factorial = np.concatenate([[0], np.cumsum(np.log(number[1:]))])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_share = number * np.log(mean[:, None]) - mean[:, None] - log_factorial
    share = np.exp(np.where(mean[:, None] > 0, log_share, np.where(number == 0, 0, -np.inf)))
    ends = np.rint(np.cumsum(share, axis=1) * _NUM_QUANTILES).astype(np.int64)
    ends[:, -1] = _NUM_QUANTILES
    counts = np.diff(ends, axis=1, prepend=0)
    numbers = np.broadcast_to(number.astype(np.float32), counts.shape)
    return np.repeat(numbers.reshape(-1), counts.reshape(-1)).reshape(len(mean), _NUM_QUANTILES)


def _quantiles_by_expansion(mean: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Quantiles `(N, 4096)` of Poisson distributions with the large means `(N,)`: Cornish and Fisher's expansion."""
    normal, skew, kurtosis = _expansion_terms()
    deviation = np.sqrt(mean)[:, None]
    quantiles = deviation * normal
    quantiles += kurtosis / deviation
    quantiles += skew
    quantiles += mean[:, None]
    rounded: npt.NDArray[np.float32] = np.floor(quantiles, out=quantiles)
    return rounded


@functools.cache
def _expansion_terms() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    standard = NormalDist()
    z = np.array([standard.inv_cdf((i + 0.5) / _NUM_QUANTILES) for i in range(_NUM_QUANTILES)])
    # Whole numbers stand for intervals of length 1, whose variance of 1/12 adds z / 24 to the last term; the half makes
    # the floor of a quantile the nearest whole number.
    skew, kurtosis = (z**2 - 1) / 6 + 0.5, (z - z**3) / 72 + z / 24
    return z.astype(np.float32), skew.astype(np.float32), kurtosis.astype(np.float32)
