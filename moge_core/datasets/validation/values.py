"""What the values of a depth map say of themselves, from the histogram of its codes.

One count of 65,536 codes gives median, levels, steps and walls exactly, without touching the pixels again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.validation.infinity import is_like_sky, is_line
from moge_core.datasets.validation.settings import ValidationSettings
from moge_core.io.depth import INFINITE_CODE, UNKNOWN_CODE, CodedDepth

_MOST_COARSE_LEVELS = 4096
# Stored 65535 by units a metre: millimetres, TUM, KITTI, Replica, and other scales in use.
_MARKER = 65535
_MARKER_SCALES = (1000.0, 5000.0, 256.0, 6553.5, 10000.0, 4000.0, 512.0, 100.0, 1.0)
_MARKER_TOLERANCE = 2e-4
# The step of depth in whole millimetres, and how exactly codes keep it.
_MILLIMETRE, _STEP_TOLERANCE = 1e-3, 0.02


@dataclass(frozen=True)
class DepthValues:
    """The finite values of a depth map (H, W), counted.

    Attributes:
        levels: (N,) float64, the distinct finite depths, rising.
        counts: (N,) how many pixels have each.
        num_pixels: of the map.
        num_infinite: pixels at +Inf.
    """

    levels: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    num_pixels: int
    num_infinite: int

    @classmethod
    def of(cls, coded: CodedDepth) -> DepthValues:
        """Count the codes of a map."""
        histogram = _count(coded.codes)
        present = np.flatnonzero(histogram[UNKNOWN_CODE + 1 : INFINITE_CODE] > 0) + UNKNOWN_CODE + 1
        levels, counts = coded.depth_of_code[present], histogram[present].astype(np.int64)
        # Near and far so close together give several codes one value.
        if (levels[1:] == levels[:-1]).any():
            starts = np.flatnonzero(np.diff(levels, prepend=np.float32(-1)))
            levels, counts = levels[starts], np.add.reduceat(counts, starts)
        return cls(levels.astype(np.float64), counts, coded.codes.size, int(histogram[INFINITE_CODE]))

    @functools.cached_property
    def num_known(self) -> int:
        """Pixels of finite depth."""
        return int(self.counts.sum())

    def statistics(self) -> dict[str, float | None]:
        """Least, middle and greatest finite depth and the shares of finite and infinite pixels."""
        known = self.levels.size > 0
        return {
            "depth_min": float(self.levels[0]) if known else None,
            "depth_median": self._median() if known else None,
            "depth_max": float(self.levels[-1]) if known else None,
            "valid_share": self.num_known / self.num_pixels,
            "inf_share": self.num_infinite / self.num_pixels,
        }

    @functools.cached_property
    def _cumulative(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.counts)

    def _median(self) -> float:
        low, high = np.searchsorted(self._cumulative, [(self.num_known - 1) // 2, self.num_known // 2], side="right")
        return float((self.levels[low] + self.levels[high]) / 2)


def _count(codes: npt.NDArray[np.uint16]) -> npt.NDArray[Any]:
    """How often each of the 65,536 codes occurs."""
    from moge_core.io.opencv import cv2

    # OpenCV counts faster, in float32, which holds whole numbers up to 2^24.
    if codes.size > 1 << 24:
        return np.bincount(codes.ravel(), minlength=INFINITE_CODE + 1)
    counted = cv2.calcHist([codes], [0], None, [INFINITE_CODE + 1], [0, INFINITE_CODE + 1])
    return np.asarray(counted).ravel()


HEAPS = frozenset({"sky-infinite", "marker-not-depth"})
"""Rules about pixels that are no depth, and change what the others together look like."""

Judgement = tuple[str, str, str | None]
"""(rule, evidence, fix where the catalogue's does not fit)."""


def judge_values(
    values: DepthValues, coded: CodedDepth, settings: ValidationSettings, unit: float | None
) -> Iterator[Judgement]:
    """What each rule about values says that a map breaks.

    Args:
        values: of the map.
        coded: the map itself (H, W): where a heap of equal values lies says what it means.
        settings: thresholds.
        unit: metres a unit of depth; None where depth has no unit.
    """
    if values.num_known == 0:
        share = values.num_infinite / values.num_pixels
        yield "depth-known", f"all pixels are unknown or infinitely far ({share:.0%} infinite)", None
        return
    known_share = values.num_known / values.num_pixels
    if values.num_pixels >= settings.min_pixels and (
        known_share + values.num_infinite / values.num_pixels < settings.min_known_share
        or (values.num_known < 16 and known_share < 0.01)
    ):
        yield (
            "depth-mostly-known",
            f"{values.num_known} of {values.num_pixels} pixels are known ({known_share:.2%})",
            None,
        )
    if values.num_known < settings.min_pixels:
        return
    if values.levels[-1] < values.levels[0] * settings.min_level_ratio:
        yield "depth-varies", f"every known pixel is at {values.levels[0]:.6g}", None
        return
    wall = _wall(values, coded, settings, unit) or _sky(values, coded, settings, unit)
    if wall is not None:
        yield wall
    # What lies far behind everything is no step of depth.
    is_heap = wall is not None and wall[0] in HEAPS
    for rule, evidence in _coarseness(values, settings, unit):
        if not (is_heap and rule == "depth-steps"):
            yield rule, evidence, None


def _wall(values: DepthValues, coded: CodedDepth, settings: ValidationSettings, unit: float | None) -> Judgement | None:
    """A heap of pixels at exactly the greatest value: a marker, a sky, or a limit."""
    far = float(values.levels[-1])
    share = float(values.counts[-1]) / values.num_known
    # What one level of this neighbourhood holds where nothing is clipped.
    typical = float(np.median(values.counts[-64:-1])) if values.levels.size > 1 else 0.0
    told = f"{share:.1%} of the known pixels are at exactly the greatest depth, {far:.6g}"
    marker = _marker(values, coded, settings)
    if marker is not None:
        return marker
    if share < settings.saturated_share or values.counts[-1] < 8 * max(typical, 1.0):
        return None
    # Isolated values below the heap (edges that were blurred into the sky) do not bridge the gap.
    below = np.cumsum(values.counts[:-1])
    body = values.levels[:-1][np.searchsorted(below, 0.995 * below[-1])] if below.size else far
    if far >= settings.sky_gap * float(body):
        evidence = f"{told}, and 99.5 % of the rest is nearer than {float(body):.4g}"
        return "sky-infinite", evidence, _sky_fix(coded, far, unit)
    limit = f"--max-depth {_just_below(far, unit)}"
    if is_like_sky(coded.codes >= _first_code(coded, far)):
        # A renderer's far plane: to call it unknown would lose the sky.
        return "depth-unsaturated", told, f"{_sky_fix(coded, far, unit)} Where it is none, {limit} makes it unknown."
    return "depth-unsaturated", told, f"Import again with {limit}: what is clipped is unknown."


def _sky(values: DepthValues, coded: CodedDepth, settings: ValidationSettings, unit: float | None) -> Judgement | None:
    """Pixels far behind a gap that no surface bridges: at nearly one depth, or farther than surfaces are seen."""
    levels, counts = values.levels, values.counts
    wide = levels[1:] >= settings.sky_gap * levels[:-1]
    if not wide.any():
        return None
    behind = np.cumsum(counts[::-1])[::-1] / values.num_known
    wide &= (behind[1:] >= 0.01) & (behind[1:] <= 0.9)
    if not wide.any():
        return None
    first = int(np.flatnonzero(wide)[-1]) + 1
    nearest, farthest = float(levels[first]), float(levels[-1])
    gap = nearest / float(levels[first - 1])
    one_depth = farthest < 1.01 * nearest and gap >= 2 * settings.sky_gap
    far_away = unit is not None and nearest * unit >= settings.sky_from_m
    heap = (coded.codes >= _first_code(coded, nearest)) & (coded.codes != INFINITE_CODE)
    if not (one_depth or far_away) or is_line(heap):
        return None
    told = f"{behind[first]:.1%} of the known pixels are at {nearest:.5g} to {farthest:.5g}"
    evidence = f"{told}, {gap:.1f} times as far as anything before them"
    return "sky-infinite", evidence, _sky_fix(coded, nearest, unit)


def _sky_fix(coded: CodedDepth, nearest: float, unit: float | None) -> str:
    """What makes the heap from a depth on infinitely far; both remedies where it does not lie as a sky does."""
    since = _just_below(nearest, unit)
    infinite = f"--infinite-from {since}" if unit is not None else "--infinite and the stored value"
    if is_like_sky(coded.codes >= _first_code(coded, nearest)):
        return f"Import again with {infinite}: it fills the upper part of the picture, as sky does."
    return f"Import again with {infinite} where it is sky, or with --max-depth {since} where nothing is known of it."


def _first_code(coded: CodedDepth, depth: float) -> int:
    finite = coded.depth_of_code[UNKNOWN_CODE + 1 : INFINITE_CODE]
    return int(np.searchsorted(finite, np.float32(depth * (1 - 1e-6)))) + UNKNOWN_CODE + 1


def _just_below(depth: float, unit: float | None) -> str:
    """A little less than a depth, in metres, as it is typed."""
    return f"{0.99 * depth * (unit or 1.0):.4g}"


def _marker(values: DepthValues, coded: CodedDepth, settings: ValidationSettings) -> Judgement | None:
    """A heap of pixels at the depth that 65535 has in a scale in use."""
    levels, counts = values.levels, values.counts
    for scale in _MARKER_SCALES:
        depth = _MARKER / scale
        first, last = np.searchsorted(levels, [depth * (1 - _MARKER_TOLERANCE), depth * (1 + _MARKER_TOLERANCE)])
        if first == last:
            continue
        heap = int(counts[first:last].max())
        around = counts[max(0, first - 32) : last + 32]
        if heap >= settings.marker_share * values.num_known and heap >= 8 * max(float(np.median(around)), 1.0):
            told = (
                f"{heap / values.num_known:.1%} of the known pixels are at {depth:.6g}, which is {_MARKER} at {scale:g}"
                " units a metre"
            )
            low, high = (_first_code(coded, levels[index]) for index in (first, last - 1))
            if is_like_sky((coded.codes >= low) & (coded.codes <= high)):
                fix = f"Import again with --infinite {_MARKER}: it fills the upper part of the picture, as sky does."
                return "marker-not-depth", told, fix
            return "marker-not-depth", told, None
    return None


def _coarseness(values: DepthValues, settings: ValidationSettings, unit: float | None) -> Iterator[tuple[str, str]]:
    num_levels = values.levels.size
    # So many steps of a few per cent would span more than any depth map does.
    if not 2 <= num_levels <= _MOST_COARSE_LEVELS:
        return
    # Few returns cannot show many levels: a sweep of a hundred points says nothing about bits. Structured light has few
    # too, by nature, as far apart as the square of their depth; those of 8 bits are evenly spaced.
    gaps = np.diff(values.levels)
    third = max(1, gaps.size // 3)
    widening = float(np.median(gaps[-third:])) / float(np.median(gaps[:third]))
    farther = float(np.median(values.levels[-third:])) / float(np.median(values.levels[:third]))
    even = widening < farther**1.3
    if num_levels <= settings.max_levels and values.num_known >= 16 * num_levels:
        # A table top in whole millimetres has few levels too.
        step = float(np.median(gaps)) * (unit or 0.0)
        if even and abs(step / _MILLIMETRE - 1) > _STEP_TOLERANCE:
            yield "depth-levels", f"{num_levels} different depths, evenly spaced, in {values.num_known} pixels"
        elif not even and _is_8_bit_disparity(values.levels):
            yield (
                "depth-levels",
                f"{num_levels} different depths in {values.num_known} pixels, those of 8-bit disparities",
            )
    steps = gaps / values.levels[:-1]
    coarse = steps > settings.max_step
    weights = values.counts[:-1] + values.counts[1:]
    share = float(weights[coarse].sum() / weights.sum())
    if share > 0.5 and values.num_known >= 16 * num_levels:
        evidence = (
            f"{share:.0%} of the pixels are at depths whose neighbouring values are {settings.max_step:.0%} apart"
        )
        yield "depth-steps", f"{evidence} or more"


def _is_8_bit_disparity(levels: npt.NDArray[np.float64]) -> bool:
    """Whether 1/depth takes whole multiples, up to 255, of one step. Structured light is offset by part of a step."""
    inverse = 1 / levels[::-1]
    step = float(np.median(np.diff(inverse)))
    # The step itself is known to half a level over the whole range only.
    multiples = inverse / (inverse[-1] / max(1, round(float(inverse[-1]) / step)))
    off = np.abs(multiples - np.round(multiples))
    return levels.size >= 8 and float(multiples[-1]) <= 255.5 and float(off.mean()) < 0.06
