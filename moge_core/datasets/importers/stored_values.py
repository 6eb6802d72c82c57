"""What the stored values of some depth maps look like: numbers, a histogram in text, and what strikes a person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.records import StoredDepth

# Of each map so many pixels are looked at, on a grid; a share of 0.1 % is still hundreds of them.
_MOST_PIXELS = 300_000
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_NUM_BARS = 14
_BAR_WIDTH = 40
# Values whose greatest is so many times their least are shown on a logarithmic axis.
_LOG_RANGE = 50.0
# A single value that is no measurement holds more pixels than this, and is far from the others or far more frequent.
_LEAST_CONSTANT = 0.005
_FAR_FROM_OTHERS = 1.5
_MORE_FREQUENT = 30.0
_MOST_CONSTANTS = 5
# Steps between stored values that some encoding makes; 257 is how 8 bits fill 16.
_STEPS = (2, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100, 128, 256, 257, 1000)
_SHARE_OF_MULTIPLES = 0.95


@dataclass(frozen=True)
class Constant:
    """One stored value that many pixels have.

    Attributes:
        value: as stored.
        share: of all pixels.
        thirds: shares of its pixels in the upper, middle and lower third of the maps.
    """

    value: float
    share: float
    thirds: tuple[float, float, float]

    @property
    def is_above(self) -> bool:
        """Whether it lies where the sky would be."""
        return self.thirds[0] > 0.5 and self.thirds[2] < 0.1


@dataclass(frozen=True)
class StoredValues:
    """Stored values of some maps, taken together.

    Attributes:
        dtypes: types of the maps' elements.
        num_pixels: how many pixels were looked at.
        zeros, nans, infinities: shares of the pixels.
        num_distinct: different finite values but 0.
        least, greatest: of them; NaN where there are none.
        percentiles: of them, by percent.
        constants: values that are hardly measured, most frequent first.
        step: the greatest step that nearly all values are multiples of; 1 where there is none.
        typical: the median of what seems measured: finite, not 0 and no constant; NaN where nothing is.
        bars: lower ends, and shares of what seems measured, of a histogram.
    """

    dtypes: tuple[str, ...]
    num_pixels: int
    zeros: float
    nans: float
    infinities: float
    num_distinct: int
    least: float
    greatest: float
    percentiles: dict[int, float]
    constants: tuple[Constant, ...]
    step: int
    typical: float
    bars: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, maps: Sequence[npt.NDArray[Any]]) -> StoredValues:
        """Look at some maps (H, W) of numbers; at least one, none without pixels."""
        grids = [sampled(values) for values in maps]
        pixels = np.concatenate([grid.ravel().astype(np.float64) for grid in grids])
        finite = pixels[np.isfinite(pixels) & (pixels != 0)]
        distinct, counts = np.unique(finite, return_counts=True)
        constants = _constants(distinct, counts, pixels.size, grids)
        measured = finite[~np.isin(finite, [constant.value for constant in constants])]
        is_integer = all(values.dtype.kind in "iu" for values in maps)
        return cls(
            dtypes=tuple(sorted({str(values.dtype) for values in maps})),
            num_pixels=int(pixels.size),
            zeros=float((pixels == 0).mean()),
            nans=float(np.isnan(pixels).mean()),
            infinities=float(np.isinf(pixels).mean()),
            num_distinct=int(distinct.size),
            least=float(distinct[0]) if distinct.size else math.nan,
            greatest=float(distinct[-1]) if distinct.size else math.nan,
            percentiles={} if not finite.size else dict(zip(_PERCENTILES, _quantiles(finite), strict=True)),
            constants=constants,
            step=_step(measured) if is_integer and measured.size else 1,
            typical=float(np.median(measured)) if measured.size else math.nan,
            bars=_bars(measured),
        )

    def lines(self, meaning: StoredDepth) -> list[str]:
        """The numbers and the histogram, for a terminal.

        Args:
            meaning: what is known of the values.
        """
        lines = [
            f"{', '.join(self.dtypes)}, {self.num_pixels:,} pixels: {self.zeros:.1%} zeros, {self.nans:.1%} NaN,"
            f" {self.infinities:.1%} infinite; {self.num_distinct:,} different values besides"
        ]
        if self.percentiles:
            named = [("min", self.least), *((f"{at}%", value) for at, value in self.percentiles.items())]
            lines.append("  ".join(f"{name} {value:.6g}" for name, value in [*named, ("max", self.greatest)]))
        # Of a few values all may lie outside of the bars.
        most = max((share for _, share in self.bars), default=0.0) or 1.0
        for low, share in self.bars:
            lines.append(f"  from {low:>10.5g} {share:>6.1%} {'#' * round(_BAR_WIDTH * share / most)}".rstrip())
        if self.step > 1:
            lines.append(f"nearly all of them are multiples of {self.step}" + _meaning_of(self.step))
        lines += [self._told(constant, meaning) for constant in self.constants]
        return lines

    @staticmethod
    def _told(constant: Constant, meaning: StoredDepth) -> str:
        """Where a constant lies, and what it is taken for or may mean."""
        names = ("above", "in the middle", "below")
        places = ", ".join(f"{share:.0%} {name}" for share, name in zip(constant.thirds, names, strict=True))
        value = f"{constant.value:.10g}"
        if constant.value in meaning.invalid:
            remedy = "it is read as unknown"
        elif constant.value in meaning.infinite or constant.value >= (meaning.far_from or math.inf):
            remedy = "it is read as infinitely far"
        elif constant.is_above:
            remedy = f"as sky has it: --infinite {value}"
        else:
            remedy = f"if it means unknown: --invalid {value}"
        return f"{value} is the value of {constant.share:.1%} of the pixels ({places}); {remedy}"


def sampled(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Some pixels of a map (H, W), evenly spread, as many as are looked at; a copy, so that the map can go."""
    every = max(1, math.ceil(math.sqrt(values.size / _MOST_PIXELS)))
    return values[::every, ::every].copy()


def _quantiles(values: npt.NDArray[np.float64]) -> list[float]:
    return [float(value) for value in np.percentile(values, _PERCENTILES)]


def _constants(
    distinct: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    num_pixels: int,
    grids: Sequence[npt.NDArray[Any]],
) -> tuple[Constant, ...]:
    """Values that hold many pixels and stand apart from the others."""
    # A map of few levels has nothing but frequent values.
    if distinct.size < 8:
        return ()
    usual = float(np.median(counts))
    found = []
    for place in np.flatnonzero(counts >= _LEAST_CONSTANT * num_pixels):
        value = distinct[place]
        at_end = place in (0, distinct.size - 1)
        other = distinct[1] if place == 0 else distinct[place - 1]
        greater, less = max(abs(value), abs(other)), min(abs(value), abs(other))
        is_apart = at_end and (value * other < 0 or greater > _FAR_FROM_OTHERS * less)
        around = np.r_[counts[max(0, place - 4) : place], counts[place + 1 : place + 5]]
        is_frequent = counts[place] > _MORE_FREQUENT * max(usual, float(around.mean()))
        if is_apart or is_frequent:
            found.append((int(counts[place]), float(value)))
    return tuple(
        Constant(value, count / num_pixels, _thirds(value, grids))
        for count, value in sorted(found, reverse=True)[:_MOST_CONSTANTS]
    )


def _thirds(value: float, grids: Sequence[npt.NDArray[Any]]) -> tuple[float, float, float]:
    counts = np.zeros(3)
    for grid in grids:
        rows = np.flatnonzero((grid == value).any(axis=1))
        thirds = np.minimum(2, 3 * rows // grid.shape[0])
        np.add.at(counts, thirds, (grid[rows] == value).sum(axis=1))
    upper, middle, lower = counts / counts.sum()
    return float(upper), float(middle), float(lower)


def _step(measured: npt.NDArray[np.float64]) -> int:
    spread = measured.max() - measured.min()
    steps = [step for step in _STEPS if spread > 4 * step and (measured % step == 0).mean() >= _SHARE_OF_MULTIPLES]
    return max(steps, default=1)


def _meaning_of(step: int) -> str:
    if step == 8:
        return ", as those of SUN RGB-D are, which are turned by three bits: --encoding rotated3"
    if step in {256, 257}:
        return ", as those of an 8-bit picture that was stretched to 16 bits"
    return ""


def _bars(measured: npt.NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    """A histogram without its outermost half percents; logarithmic where the values span much."""
    if not measured.size:
        return ()
    low, high = (float(value) for value in np.percentile(measured, (0.5, 99.5)))
    if not low < high:
        return ((low, 1.0),)
    is_log = low > 0 and high > _LOG_RANGE * low
    edges = np.geomspace(low, high, _NUM_BARS + 1) if is_log else np.linspace(low, high, _NUM_BARS + 1)
    counts, _ = np.histogram(measured, edges)
    return tuple((float(edge), float(count / measured.size)) for edge, count in zip(edges[:-1], counts, strict=True))
