"""Colours of surfaces as functions of texture coordinates, filtered over the footprint of a pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Color = tuple[float, float, float]

# One table of noise for every scene; a material looks at its own part of it.
_TABLE_SIZE = 64
_TABLE = np.random.default_rng(20240611).random((_TABLE_SIZE, _TABLE_SIZE), np.float32)


@dataclass(frozen=True)
class Material:
    """What a surface looks like, and whether a depth sensor sees it.

    Args:
        pattern: a key of `PATTERNS`.
        colors: linear RGB; main, second (grout, stripe, ...) and third (windows).
        scale: metres to one period of the pattern.
        offset: where the pattern begins, in periods; also picks the noise.
        variation: relative strength of stains and of the tint of single tiles.
        known: False for glass, mirrors, screens and water, whose depth sensors do not measure.
        emission: how brightly it shines by itself, in units of its colour.
    """

    pattern: str
    colors: tuple[Color, Color, Color]
    scale: float = 1.0
    offset: tuple[float, float] = (0.0, 0.0)
    variation: float = 0.2
    known: bool = True
    emission: float = 0.0

    def albedo(self, u: FloatArray, v: FloatArray, footprint: FloatArray) -> FloatArray:
        """Linear RGB (3, N) at texture coordinates u, v: (N,), seen through pixels `footprint: (N,)` metres wide."""
        inverse = np.float32(1 / self.scale)
        u = u * inverse + np.float32(self.offset[0])
        v = v * inverse + np.float32(self.offset[1])
        return PATTERNS[self.pattern](self, u, v, np.maximum(footprint * inverse, np.float32(1e-4)))


def noise(u: FloatArray, v: FloatArray) -> FloatArray:
    """Smooth noise in 0..1 with one feature to a unit."""
    floor_u, floor_v = np.floor(u), np.floor(v)
    a, b = u - floor_u, v - floor_v
    a *= a * (3 - 2 * a)
    b *= b * (3 - 2 * b)
    i, j = floor_u.astype(np.int32), floor_v.astype(np.int32)
    i0, j0 = i & (_TABLE_SIZE - 1), j & (_TABLE_SIZE - 1)
    i1, j1 = (i + 1) & (_TABLE_SIZE - 1), (j + 1) & (_TABLE_SIZE - 1)
    flat = _TABLE.ravel()
    i0 *= _TABLE_SIZE
    i1 *= _TABLE_SIZE
    low = flat[i0 + j0]
    low += (flat[i1 + j0] - low) * a
    high = flat[i0 + j1]
    high += (flat[i1 + j1] - high) * a
    low += (high - low) * b
    return low


def fractal_noise(u: FloatArray, v: FloatArray, footprint: FloatArray, num_octaves: int = 3) -> FloatArray:
    """Octaves of noise around 0, each faded out where a pixel covers its features."""
    total = np.zeros_like(u)
    for octave in range(num_octaves):
        frequency = np.float32(2.17**octave)
        share = np.clip(2 - 2 * frequency * footprint, 0, 1) * np.float32(0.62**octave)
        if not share.any():
            break
        total += share * (noise(u * frequency + 13 * octave, v * frequency + 7 * octave) - np.float32(0.5))
    return total


def pulse(x: FloatArray, duty: float, footprint: FloatArray) -> FloatArray:
    """How much of the footprint around x lies on [n, n + duty] for a whole number n."""

    def integral(at: FloatArray) -> FloatArray:
        whole = np.floor(at)
        return whole * np.float32(duty) + np.minimum(at - whole, np.float32(duty))

    half = np.float32(0.5) * footprint
    covered: FloatArray = (integral(x + half) - integral(x - half)) / footprint
    return covered


def _tint(u: FloatArray, v: FloatArray, footprint: FloatArray) -> FloatArray:
    """A number around 0 for each unit cell, faded out where a pixel covers cells."""
    i = np.floor(u).astype(np.int32) & (_TABLE_SIZE - 1)
    j = np.floor(v).astype(np.int32) & (_TABLE_SIZE - 1)
    value: FloatArray = (_TABLE.ravel()[i * _TABLE_SIZE + j] - np.float32(0.5)) * np.clip(1.5 - footprint, 0, 1)
    return value


def _mix(first: Color, second: Color, share: FloatArray) -> FloatArray:
    start = np.array(first, np.float32)[:, None]
    return start + (np.array(second, np.float32)[:, None] - start) * share


def _plain(material: Material, u: FloatArray, v: FloatArray, footprint: FloatArray) -> FloatArray:
    stains = 1 + np.float32(material.variation) * fractal_noise(u, v, footprint, 2)
    return np.array(material.colors[0], np.float32)[:, None] * stains


def _ground(material: Material, u: FloatArray, v: FloatArray, footprint: FloatArray) -> FloatArray:
    share = np.clip(np.float32(0.5) + fractal_noise(u, v, footprint, 5), 0, 1)
    return _mix(material.colors[0], material.colors[1], share)


def _checker(material: Material, u: FloatArray, v: FloatArray, footprint: FloatArray) -> FloatArray:
    # The product of two square waves, each averaged over the footprint.
    wave = (1 - 2 * pulse(u * 0.5, 0.5, footprint * 0.5)) * (1 - 2 * pulse(v * 0.5, 0.5, footprint * 0.5))
    colors = _mix(material.colors[0], material.colors[1], 0.5 - 0.5 * wave)
    return colors * (1 + np.float32(material.variation) * fractal_noise(u, v, footprint, 2))


def _tiles(material: Material, u: FloatArray, v: FloatArray, footprint: FloatArray) -> FloatArray:
    joints = np.maximum(pulse(u, 0.05, footprint), pulse(v, 0.05, footprint))
    tiles = 1 + np.float32(material.variation) * _tint(u, v, footprint)
    return _mix(material.colors[0], material.colors[1], joints) * tiles


def _bricks(material: Material, u: FloatArray, v: FloatArray, footprint: FloatArray) -> FloatArray:
    rows = v * 3
    shifted = u.copy()
    shifted += np.float32(0.5) * (np.floor(rows) % 2)
    joints = np.maximum(pulse(shifted, 0.05, footprint), pulse(rows, 0.14, footprint * 3))
    bricks = 1 + np.float32(2 * material.variation) * _tint(shifted, rows, footprint * 3)
    return _mix(material.colors[0], material.colors[1], joints) * bricks


def _planks(material: Material, u: FloatArray, v: FloatArray, footprint: FloatArray) -> FloatArray:
    board = np.floor(v)
    shifted = u.copy()
    shifted *= np.float32(0.15)
    shifted += board * np.float32(0.37)
    grain = fractal_noise(u * np.float32(0.8) + board * 5, v * 7, footprint * 7, 2)
    wood = 1 + np.float32(material.variation) * (_tint(shifted, v, footprint) + grain)
    joints = np.maximum(pulse(v, 0.06, footprint), pulse(shifted, 0.008, footprint * np.float32(0.15)))
    return _mix(material.colors[0], material.colors[1], joints) * wood


def _stripes(material: Material, u: FloatArray, v: FloatArray, footprint: FloatArray) -> FloatArray:
    colors = _mix(material.colors[0], material.colors[1], pulse(u, 0.5, footprint))
    return colors * (1 + np.float32(material.variation) * fractal_noise(u, v, footprint, 2))


def _facade(material: Material, u: FloatArray, v: FloatArray, footprint: FloatArray) -> FloatArray:
    """Storeys of windows; one period is one storey."""
    columns = u * np.float32(1.25)
    panes = pulse(columns - 0.25, 0.5, footprint * np.float32(1.25)) * pulse(v - 0.3, 0.5, footprint)
    frames = pulse(columns - 0.2, 0.6, footprint * np.float32(1.25)) * pulse(v - 0.24, 0.62, footprint)
    wall = _mix(material.colors[0], material.colors[1], np.maximum(frames, pulse(v, 0.06, footprint)))
    wall *= 1 + np.float32(material.variation) * fractal_noise(u * 2, v * 2, footprint * 2, 2)
    glass = np.array(material.colors[2], np.float32)[:, None] * (1 + _tint(columns, v, footprint))
    return wall + (glass - wall) * panes


def _road(material: Material, u: FloatArray, v: FloatArray, footprint: FloatArray) -> FloatArray:
    """A road along u = 0 with a dashed middle line, pavements and grass; one period is half its width."""

    def strip(low: float, high: float) -> FloatArray:
        half = footprint * np.float32(0.5)
        covered: FloatArray = np.clip(np.minimum(u + half, high) - np.maximum(u - half, low), 0, None) / footprint
        return covered

    grass, asphalt, paint = (np.array(color, np.float32)[:, None] for color in material.colors)
    speckle = fractal_noise(u * 3, v * 3, footprint * 3, 4)
    colors = grass * (1 + 0.9 * speckle)
    slabs = paint * (np.float32(0.42) - np.float32(0.15) * pulse(v, 0.06, footprint) + 0.15 * speckle)
    colors += (slabs - colors) * (strip(-1.5, -1) + strip(1, 1.5))
    colors += (asphalt * (1 + 0.5 * speckle) - colors) * strip(-1, 1)
    lines = strip(-0.03, 0.03) * pulse(v * np.float32(0.5), 0.5, footprint * np.float32(0.5))
    return colors + (paint - colors) * (lines + strip(-0.93, -0.89) + strip(0.89, 0.93))


PATTERNS: dict[str, Callable[[Material, FloatArray, FloatArray, FloatArray], FloatArray]] = {
    "plain": _plain,
    "ground": _ground,
    "checker": _checker,
    "tiles": _tiles,
    "bricks": _bricks,
    "planks": _planks,
    "stripes": _stripes,
    "facade": _facade,
    "road": _road,
}
