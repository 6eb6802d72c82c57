"""Plots as PNG files. Figures are made by hand, without pyplot, so that nothing global is changed or left open."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError
from moge_core.io import atomic_open

_NUM_BINS = 80
_SIZE_INCHES = (6.4, 3.2)
_DPI = 110
_COLOR = "#3b6ea8"
# A line of few points shows them, for one point alone would not be seen.
_MARKED_POINTS = 30


def plot_histogram(
    values: npt.NDArray[Any] | tuple[npt.NDArray[Any], npt.NDArray[Any]],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
    x_label: str = "",
    log: bool = False,
) -> bytes:
    """A histogram as a PNG picture.

    Args:
        values: numbers of any shape, of which only finite ones are counted; or a histogram that was made elsewhere,
            (counts (N,), edges (N + 1,)).
        path: a file to write the PNG to as well.
        log: logarithmic horizontal axis; only values above 0 are counted.

    Returns:
        The PNG file. Without anything to count it says so in words.

    Raises:
        InputError: counts and edges do not fit together.
    """
    counts, edges = _check_histogram(*values) if isinstance(values, tuple) else count_values(values, log=log)
    if log:
        positive = edges[:-1] > 0
        counts, edges = counts[positive], np.append(edges[:-1][positive], edges[-1:])
    axes = _new_axes(title, x_label)
    if counts.sum() > 0:
        axes.stairs(100 * counts / counts.sum(), edges, fill=True, color=_COLOR)
        axes.set_ylabel("share (%)")
        if log:
            axes.set_xscale("log")
    else:
        _say_empty(axes)
    return _picture(axes, path)


def plot_lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    log: bool = False,
) -> bytes:
    """Lines over a common axis as a PNG picture; a line of one point is a dot.

    Args:
        lines: (x, y) of each line by its name. Points that are not finite leave a gap.
        path: a file to write the PNG to as well.
        log: logarithmic vertical axis; only values above 0 are drawn.

    Returns:
        The PNG file. Without anything to draw it says so in words.
    """
    from matplotlib.ticker import MaxNLocator

    axes = _new_axes(title, x_label)
    if all(float(value).is_integer() for x, _ in lines.values() for value in x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn = False
    for name, (x, y) in lines.items():
        heights = np.asarray(y, np.float64)
        heights = np.where(np.isfinite(heights) & ((heights > 0) | (not log)), heights, np.nan)
        if np.isfinite(heights).any():
            marker = "o" if np.isfinite(heights).sum() <= _MARKED_POINTS else None
            axes.plot(np.asarray(x, np.float64), heights, label=name, marker=marker, markersize=3)
            drawn = True
    if drawn:
        axes.set_ylabel(y_label, parse_math=False)
        axes.set_yscale("log" if log else "linear")
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)
    else:
        _say_empty(axes)
    return _picture(axes, path)


def _new_axes(title: str, x_label: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Names of datasets may hold dollar signs, which are no formulas here.
    axes.set_title(title, parse_math=False)
    axes.set_xlabel(x_label, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _say_empty(axes: Any) -> None:
    axes.text(0.5, 0.5, "no values to show", ha="center", va="center", transform=axes.transAxes)
    axes.set_yticks([])
    axes.set_xticks([])


def _picture(axes: Any, path: str | os.PathLike[str] | None) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names of datasets may be in any script; a letter that the font lacks is a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        axes.figure.savefig(buffer, format="png", metadata={"Software": None})
    if path is not None:
        with atomic_open(path) as file:
            file.write(buffer.getvalue())
    return buffer.getvalue()


def count_values(
    values: npt.NDArray[Any], *, log: bool = False, num_bins: int = _NUM_BINS, bounds: tuple[float, float] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Counts (N,) and edges (N + 1,) of the finite values; N is 0 without any.

    Args:
        values: numbers of any shape.
        log: bins of equal ratio; only values above 0 are counted.
        num_bins: N.
        bounds: the outermost edges; by default the least and the greatest value.
    """
    values = np.asarray(values)
    finite = values[np.isfinite(values)].astype(np.float64)
    if log:
        finite = finite[finite > 0]
    if finite.size == 0:
        return np.zeros(0), np.zeros(1)
    low, high = (float(finite.min()), float(finite.max())) if bounds is None else bounds
    if not _is_wide(low, high):
        # Equal values still need a bar that can be seen.
        low, high = (low / 1.1, high * 1.1) if log else (low - max(abs(low), 1) / 10, high + max(abs(high), 1) / 10)
    edges = np.geomspace(low, high, num_bins + 1) if log else np.linspace(low, high, num_bins + 1)
    counts, _ = np.histogram(finite, bins=edges)
    return counts.astype(np.float64), edges


def _is_wide(low: float, high: float) -> bool:
    return high - low > 1e-6 * max(abs(low), abs(high))


def _check_histogram(
    counts: npt.NDArray[Any], edges: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    counts, edges = np.asarray(counts, np.float64), np.asarray(edges, np.float64)
    if counts.ndim != 1 or edges.shape != (counts.size + 1,):
        raise InputError("values", "must have one edge more than counts", found=(counts.shape, edges.shape))
    if not (
        np.isfinite(counts).all() and np.isfinite(edges).all() and (np.diff(edges) > 0).all() and (counts >= 0).all()
    ):
        raise InputError("values", "must have finite counts of at least 0 and increasing edges")
    return counts, edges
