"""Depth whose stored integers were not what they were read as, seen after the import.

Depth that was imported as integer / scale still shows its integers: the codes of the format are finer than they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from moge_core.datasets.validation.geometry import count_votes, grid_of, normalised_grid
from moge_core.datasets.validation.values import DepthValues
from moge_core.io.depth import NUM_STEPS, CodedDepth

# Stored units a metre that integers are usually read with; 1 where no scale was given.
_SCALES = (1000.0, 5000.0, 10000.0, 256.0, 6553.5, 4000.0, 1.0)

# SUN RGB-D's integers, millimetres turned left by three bits: what is nearer than 8.192 m becomes a multiple of 8.
# Scales of which an eighth is in use itself (256, 4000) are left out: their multiples of 8 are ordinary depth.
_TURNED_SCALES = (1000.0, 5000.0, 10000.0, 1.0)
_TURNED, _TURNED_SHARE = 8, 0.88
# Where the codes are coarser than this many stored units, nothing is known of the lowest bits.
_TURNED_CERTAIN = 1.6
# Multiples of these times 8 would be depth that was rounded, to 16 or 40 millimetres for example.
_COARSER, _MOST_COARSER = (2, 3, 5, 7), 0.8

# float16 from 1/16 to 256 metres as integers, and near its greatest and infinity, which mean sky.
_LEAST_HALF, _MOST_HALF, _HALF_SKY = 0x2C00, 0x5C00, 0x7B00
# Planes as the float16 that the integers would be: so many triples for z, and so many times those for disparity.
_HALF_VOTES, _HALF_SHARE, _HALF_LEAD = 120, 0.04, 2.3

_LEAST_LEVELS, _SAMPLE = 64, 1024
# Of the known pixels, at whole numbers, where the integers can be told apart.
_WHOLE_SHARE = 0.95


def judge_encoding(
    values: DepthValues, coded: CodedDepth, intrinsics: npt.NDArray[np.float64] | None
) -> Iterator[tuple[str, str]]:
    """(rule, evidence) where the stored integers look like another encoding than plain numbers.

    Args:
        values: of the map.
        coded: the map (H, W).
        intrinsics: (3, 3), normalised; without them float16 is not looked for.
    """
    if values.levels.size < _LEAST_LEVELS:
        return
    turned = _turned(values, coded)
    if turned is not None:
        yield "depth-bits-in-order", turned
        return
    half = None if intrinsics is None else _float16(values, coded, intrinsics)
    if half is not None:
        yield "depth-not-float16-bits", half


def _turned(values: DepthValues, coded: CodedDepth) -> str | None:
    sample = slice(None, None, max(1, values.levels.size // _SAMPLE))
    for scale in _TURNED_SCALES:
        if not 2 * _LEAST_LEVELS * _TURNED <= values.levels[-1] * scale <= 65535.5:
            continue
        # A part of the levels is enough to see that most maps are not turned.
        share, _ = _multiples_of_8(values.levels[sample] * scale, values.counts[sample], coded)
        if share < 0.5:
            continue
        share, coarser = _multiples_of_8(values.levels * scale, values.counts, coded)
        if share >= _TURNED_SHARE and coarser < _MOST_COARSER * share:
            return (
                f"read with {scale:g} units a metre, {share:.0%} of the pixels have a multiple of 8 stored, as of"
                " integers that are turned by three bits (SUN RGB-D)"
            )
    return None


def _multiples_of_8(
    stored: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], coded: CodedDepth
) -> tuple[float, float]:
    """Shares of the pixels whose stored number is a multiple of 8, and at most of 8 times one of `_COARSER`.

    Both are 0 where the codes are too coarse to tell.
    """
    error = stored * _code_error(coded)
    certain = np.where(error < _TURNED_CERTAIN, counts, 0)
    num_certain = int(certain.sum())
    if num_certain < 0.5 * counts.sum():
        return 0.0, 0.0
    eighths = np.rint(stored / _TURNED).astype(np.int64)
    is_multiple = np.abs(stored - _TURNED * eighths) <= error + 0.05
    coarser = max(int(certain[is_multiple & (eighths % k == 0)].sum()) for k in _COARSER)
    return float(certain[is_multiple].sum()) / num_certain, coarser / num_certain


def _float16(values: DepthValues, coded: CodedDepth, intrinsics: npt.NDArray[np.float64]) -> str | None:
    for scale in _SCALES:
        # Sky is the greatest float16 or its infinity; what is left must be half-precision numbers of a scene.
        number = int(np.searchsorted(values.levels, _HALF_SKY / scale))
        if number == 0 or values.levels[0] * scale < _LEAST_HALF / 8:
            continue
        cumulative = np.cumsum(values.counts[:number])
        low, high = (values.levels[np.searchsorted(cumulative, share * cumulative[-1])] for share in (0.02, 0.95))
        if cumulative[-1] < 0.2 * values.num_known or not _LEAST_HALF <= low * scale <= high * scale <= _MOST_HALF:
            continue
        stored, certain = _integers(values, coded, scale)
        if stored is None or int(values.counts[certain].sum()) < _WHOLE_SHARE * values.num_known:
            continue
        grid = grid_of(coded)
        integers = np.nan_to_num(np.rint(grid.astype(np.float64) * scale), nan=0)
        decoded = np.clip(integers, 0, 65535).astype(np.uint16).view(np.float16).astype(np.float32)
        decoded[(integers >= _HALF_SKY) | (decoded <= 0)] = np.nan
        with np.errstate(all="ignore"):
            votes = count_votes(normalised_grid(decoded)[0], intrinsics)
            as_read = count_votes(normalised_grid(grid)[0], intrinsics)
        least = max(_HALF_VOTES, _HALF_SHARE * votes.sloped, _HALF_LEAD * votes.disparity, _HALF_LEAD * as_read.z)
        if votes.z >= least:
            return (
                f"read with {scale:g} units a metre, the integers lie between {low * scale:.0f} and {high * scale:.0f};"
                f" as float16 they would be depth around {np.nanmedian(decoded):.3g}, with {votes.z} pixel triples on"
                f" planes instead of {as_read.z}"
            )
    return None


def _integers(
    values: DepthValues, coded: CodedDepth, scale: float
) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.bool_]]:
    """The 16-bit integers that levels were read from with a scale, and which are certain; None for other data."""
    stored = values.levels * scale
    nothing = np.zeros(stored.shape, np.bool_)
    if stored[-1] > 65535.5 or stored[-1] < 2 * _LEAST_LEVELS:
        return None, nothing
    error = stored * _code_error(coded)
    rounded = np.rint(stored).astype(np.int64)
    certain = error < 0.4
    whole = certain & (np.abs(stored - rounded) <= error + 0.02)
    if int(values.counts[whole].sum()) < _WHOLE_SHARE * max(1, int(values.counts[certain].sum())):
        return None, nothing
    return rounded, certain


def _code_error(coded: CodedDepth) -> float:
    """Greatest relative error of a depth that the format stores: half a step of the code, and float32's rounding."""
    return float(0.5 * np.log(coded.far / coded.near) / NUM_STEPS + 1e-7)
