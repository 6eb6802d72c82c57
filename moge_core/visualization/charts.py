"""Charts as inline SVG: crisp at any size, coloured by the page's style sheet, with a label for screen readers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

# In units of the picture, which are pixels of a phone's width.
_WIDTH, _HEIGHT = 360, 176
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 24, 40
_MOST_TICKS = 6
_CHAR_WIDTH = 8


def histogram_svg(
    counts: npt.NDArray[np.float64],
    edges: npt.NDArray[np.float64],
    *,
    label: str,
    x_label: str,
    log: bool = False,
    marker: float | None = None,
    marker_text: str = "median {}",
) -> Markup:
    """A histogram as `<svg>`.

    Args:
        counts, edges: (N,) and (N + 1,), as `count_values` gives them; N may be 0.
        label: what the chart shows, for screen readers.
        x_label: under the axis.
        log: logarithmic axis; the edges are above 0.
        marker: a value to mark by a line, such as the median.
        marker_text: what the line is; `{}` stands for its value.
    """
    if counts.sum() <= 0:
        return _chart(label, [_text(_WIDTH / 2, _HEIGHT / 2, "nothing to show", "middle")])
    low, high = float(edges[0]), float(edges[-1])
    bottom, height = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - _TOP

    def x_of(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    top_of = bottom - height * counts / counts.max()
    outline = [f"M{x_of(low):.1f} {bottom}"]
    for left, right, top in zip(edges[:-1], edges[1:], top_of, strict=True):
        outline.append(f"L{x_of(float(left)):.1f} {top:.1f}L{x_of(float(right)):.1f} {top:.1f}")
    parts = [Markup('<path class="bars" d="{}"/>').format("".join(outline) + f"L{x_of(high):.1f} {bottom}Z")]
    parts.append(_line("axis", _LEFT, bottom, _WIDTH - _RIGHT, bottom))
    for tick in _ticks(low, high, log):
        parts.append(_line("tick", x_of(tick), bottom, x_of(tick), bottom + 4))
        parts.append(_text(x_of(tick), bottom + 18, _short(tick)))
    parts.append(_text(_WIDTH / 2, _HEIGHT - 4, x_label, "middle", "axis-label"))
    if marker is not None and low <= marker <= high:
        parts.append(_line("marker", x_of(marker), _TOP - 4, x_of(marker), bottom))
        parts.append(_text(x_of(marker), _TOP - 8, marker_text.format(_short(marker)), "middle", "marker-label"))
    return _chart(label, parts)


def shares_svg(shares: Sequence[float], label: str) -> Markup:
    """Shares of a whole as one bar; the parts have the classes `share-0`, `share-1`, ..."""
    parts: list[Markup] = []
    left = 0.0
    for number, share in enumerate(shares):
        parts.append(
            Markup('<rect class="share-{}" x="{:.3f}" width="{:.3f}" height="10"/>').format(
                number, 100 * left, 100 * share
            )
        )
        left += share
    return Markup(
        '<svg class="shares" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(label, Markup().join(parts))


def _chart(label: str, parts: list[Markup]) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, label, Markup().join(parts)
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick-label") -> Markup:
    # Moved inwards where it would be cut at the border.
    half = _CHAR_WIDTH * len(text) / 2
    x = min(max(x, half + 1), _WIDTH - half - 1)
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for leads in ((1, 2, 5), (1, 3), (1,)):
            ticks = [lead * 10.0**decade for decade in decades for lead in leads]
            ticks = [tick for tick in ticks if low <= tick <= high]
            if len(ticks) <= _MOST_TICKS + 1:
                break
        # Less than a decade may hold one round number or none.
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / (_MOST_TICKS + 1))]
    raw = (high - low) / _MOST_TICKS
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(lead * size for lead in (1, 2, 5, 10) if lead * size >= raw)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("-", "−")
