"""The charts of a report, each with the words that stand below it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from moge_core.datasets.manifest import InstanceRecord
from moge_core.datasets.quality.measures import ELEVATION_EDGES, SHARP_STEP
from moge_core.datasets.quality.samples import Sample
from moge_core.visualization.charts import histogram_svg, shares_svg
from moge_core.visualization.plots import count_values

_NUM_BINS = 48
_WIDTH_BOUNDS = (1.0, 4.0)
_NOTHING = Markup()


@dataclass(frozen=True)
class Figure:
    """A chart with its title and caption.

    Attributes:
        title, caption: plain text.
        svg: the chart, may be empty.
        bar: a bar of shares below it, may be empty.
        legend: the parts of the bar with their shares.
    """

    title: str
    caption: str
    svg: Markup = _NOTHING
    bar: Markup = _NOTHING
    legend: Sequence[tuple[str, float]] = ()


class ReportCharts:
    """Distributions over the list where the manifest knows it, else over the samples."""

    def __init__(
        self, samples: Sequence[Sample], records: Sequence[InstanceRecord], list_numbers: Mapping[str, int | float]
    ) -> None:
        self._samples = samples
        self._records = records
        units = {sample.stored_unit for sample in samples}
        # The manifest keeps depth as stored; where all samples agree on a unit it can be told in metres.
        self._factor = units.pop() if len(units) == 1 else None
        self.list_unit = "as stored" if self._factor is None else "m"
        median = list_numbers.get("depth_median")
        self.list_median_depth = None if median is None else median * (self._factor or 1)

    def distributions(self) -> list[Figure]:
        """Depth, field of view and validity."""
        figures = (self._depth(), self._median_depth(), self._fov(), self._valid(), self._composition())
        return [figure for figure in figures if figure is not None]

    def image_sizes(self) -> list[tuple[tuple[int, int], int]]:
        """(width, height) with the number of instances, the most frequent first."""
        sizes = [(record.width, record.height) for record in self._records if record.width and record.height]
        return Counter(sizes or [(sample.width, sample.height) for sample in self._samples]).most_common()

    def edges(self) -> Figure | None:
        """Widths of depth edges; None where no sample has enough of them."""
        measured = [sample.edges for sample in self._samples if sample.edges.sharp_share is not None]
        if not measured:
            return None
        widths = np.concatenate([edges.widths for edges in measured])
        counts, edges = count_values(widths, num_bins=30, bounds=_WIDTH_BOUNDS)
        return Figure(
            "Width of depth edges",
            f"{widths.size:,} edges of {_instances(len(measured), 'sampled instance')}; 1 pixel is a clean step.",
            histogram_svg(
                counts,
                edges,
                label="Histogram of the width of depth edges",
                x_label="width in pixels",
                marker=1 / SHARP_STEP,
                marker_text="sharp up to {}",
            ),
        )

    def normals(self) -> Figure | None:
        """Where surfaces face; None where no sample has normals."""
        counts = np.sum([sample.normals.elevation_counts for sample in self._samples], axis=0).astype(np.float64)
        total = counts.sum()
        if not total:
            return None
        middles = (ELEVATION_EDGES[:-1] + ELEVATION_EDGES[1:]) / 2
        floor, ceiling = float(counts[middles > 45].sum() / total), float(counts[middles < -45].sum() / total)
        shares = (floor, max(0.0, 1 - floor - ceiling), ceiling)
        return Figure(
            "Where surfaces face",
            f"{int(total):,} pixels of {_instances(len(self._samples), 'sampled instance')}, taking the camera to be"
            " level.",
            histogram_svg(
                counts,
                ELEVATION_EDGES,
                label="Histogram of the angle between normals and the horizon",
                x_label="degrees: −90 ceiling, 0 wall, 90 floor",
            ),
            shares_svg(shares, "Shares of surfaces that face up, sideways and down"),
            tuple(zip(("up", "sideways", "down"), shares, strict=True)),
        )

    def _depth(self) -> Figure:
        depths = np.concatenate([sample.depths for sample in self._samples])
        counts, edges = count_values(depths, log=True, num_bins=_NUM_BINS)
        metric = all(sample.metric for sample in self._samples)
        low, high = np.quantile(depths, [0.05, 0.95])
        return Figure(
            "Depth of pixels",
            f"Pixels of {_instances(len(self._samples), 'sampled instance')}; nine of ten lie between {low:.3g} and"
            f" {high:.3g}{' m' if metric else ''}.",
            histogram_svg(
                counts,
                edges,
                label="Histogram of the depth of pixels",
                x_label="depth in metres" if metric else "depth, unit unknown",
                log=True,
                marker=float(np.median(depths)),
            ),
        )

    def _median_depth(self) -> Figure | None:
        medians = self._column("depth_median") * (self._factor or 1)
        if medians.size < 2:
            return None
        counts, edges = count_values(medians, log=True, num_bins=_bins_for(medians.size))
        return Figure(
            "Median depth of instances",
            f"{_instances(medians.size)}, {_range(medians)}.",
            histogram_svg(
                counts,
                edges,
                label="Histogram of the median depth of instances",
                x_label="depth in metres" if self._factor is not None else "depth as stored",
                log=True,
                marker=float(np.median(medians)),
            ),
        )

    def _fov(self) -> Figure | None:
        fovs = self._column("fov_x", [sample.fov_x for sample in self._samples])
        if not fovs.size:
            return None
        counts, edges = count_values(fovs, num_bins=_bins_for(fovs.size))
        return Figure(
            "Field of view",
            f"{_instances(fovs.size)}, {_range(fovs, '°')}.",
            histogram_svg(
                counts,
                edges,
                label="Histogram of horizontal fields of view",
                x_label="horizontal, in degrees",
                marker=float(np.median(fovs)),
            ),
        )

    def _valid(self) -> Figure:
        valid = 100 * self._column("valid_share", [sample.valid_share for sample in self._samples])
        counts, edges = count_values(valid, num_bins=40, bounds=(0.0, 100.0))
        return Figure(
            "Pixels of known depth",
            f"{_instances(valid.size)}, {_range(valid, ' %')}.",
            histogram_svg(
                counts,
                edges,
                label="Histogram of the share of pixels with a known depth",
                x_label="per cent of an instance's pixels",
                marker=float(np.median(valid)),
            ),
        )

    def _composition(self) -> Figure:
        valid = self._column("valid_share", [sample.valid_share for sample in self._samples])
        infinite = self._column("inf_share", [sample.inf_share for sample in self._samples])
        known, far = float(valid.mean()), float(infinite.mean())
        shares = (known, far, max(0.0, 1 - known - far))
        return Figure(
            "What pixels hold",
            f"Mean over {_instances(valid.size)}.",
            bar=shares_svg(shares, "Shares of pixels that are known, infinitely far and unknown"),
            legend=tuple(zip(("known", "infinitely far (sky)", "unknown"), shares, strict=True)),
        )

    def _column(self, name: str, otherwise: Sequence[float] = ()) -> npt.NDArray[np.float64]:
        values = [value for record in self._records if (value := getattr(record, name)) is not None]
        column = np.array(values or list(otherwise), np.float64)
        return column[np.isfinite(column)]


def _bins_for(num_values: int) -> int:
    """Few values in many bins would be a comb."""
    return int(np.clip(2 * num_values**0.5, 8, _NUM_BINS))


def _instances(count: int, noun: str = "instance") -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _range(values: npt.NDArray[np.float64], unit: str = "") -> str:
    low, high = f"{values.min():.3g}{unit}", f"{values.max():.3g}{unit}"
    return low if low == high else f"from {low} to {high}"
