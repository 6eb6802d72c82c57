"""The page of a report: what its template shows, in the order of reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from moge_core.datasets.inspection import PLY_NAME
from moge_core.datasets.manifest import InstanceRecord
from moge_core.datasets.quality.charts import ReportCharts
from moge_core.datasets.quality.findings import FindingGroup
from moge_core.datasets.quality.numbers import Change, Comparison, ReportNumbers
from moge_core.datasets.quality.samples import Sample, small_picture

_PACKAGE = "moge_core.datasets.quality"
_BUTTON_SIDE = 96
_SHORT_NAME = 12
# Pictures with fewer pixels across are shown as the squares that they are.
_PIXELATED_BELOW = 120


@dataclass(frozen=True)
class ReportContent:
    """All that the page tells.

    Attributes:
        numbers: what report.json holds.
        samples: in the order of the contact sheet.
        records: what the manifest knows of the list's instances.
        problems: instances that could not be shown, and why.
        groups: findings by rule.
        checked: False when nobody has validated the dataset.
        comparison: with the former report.
        ply_dir: name of the folder of the point clouds beside the page.
    """

    numbers: ReportNumbers
    samples: Sequence[Sample]
    records: Sequence[InstanceRecord]
    problems: dict[str, str]
    groups: Sequence[FindingGroup]
    checked: bool
    comparison: Comparison
    ply_dir: str

    @property
    def verdict(self) -> str:
        """The report in one sentence."""
        counts = self.numbers.list_numbers
        num_listed, num_measured = int(counts["num_instances"]), int(counts["num_measured"])
        parts = ["1 instance" if num_listed == 1 else f"{num_listed:,} instances"]
        if not self.checked:
            return f"{parts[0]}, not checked yet: run `moge index`."
        if num_measured < num_listed and self.records:
            parts.append(f"{num_measured:,} of them checked")
        num_broken, num_left_out = int(counts["num_broken"]), int(counts["num_left_out"])
        if num_broken:
            parts.append(f"{num_broken:,} broken")
        if num_left_out:
            parts.append(f"{num_left_out:,} broken and left out of the list")
        if not num_broken and not num_left_out:
            parts.append("none broken")
        num_kinds = sum(group.severity == "warning" for group in self.groups)
        parts.append(
            f"{num_kinds} kinds of warning" if num_kinds > 1 else ("no warnings", "one kind of warning")[num_kinds]
        )
        return ", ".join(parts) + "."

    @property
    def mood(self) -> str:
        """How bad it is: `good`, `warning` or `error`."""
        if any(group.severity == "error" for group in self.groups):
            return "error"
        return "warning" if self.groups or self.problems or not self.checked else "good"


def report_page(content: ReportContent) -> bytes:
    """The page as UTF-8."""
    from moge_core.visualization.pages import image_data_uri, render_page, render_template, template_source
    from moge_core.visualization.viewer import viewer_script

    samples = [_shown_sample(sample, content.ply_dir) for sample in content.samples]
    clouds = [shown for shown in samples if shown["cloud"] is not None]
    for number, shown in enumerate(clouds):
        shown["cloud_number"] = number
    body = render_template(
        _PACKAGE,
        "report.html",
        content=content,
        numbers=content.numbers,
        samples=samples,
        clouds=clouds,
        charts=ReportCharts(content.samples, content.records, content.numbers.list_numbers),
        comparison=content.comparison,
        uri=image_data_uri,
        difference=_difference,
    )
    return render_page(
        f"{content.numbers.dataset}: quality of the dataset",
        body,
        styles=[template_source(_PACKAGE, "report.css")],
        scripts=[viewer_script()] if clouds else [],
    )


def _shown_sample(sample: Sample, ply_dir: str) -> dict[str, Any]:
    """A sample with what the template cannot work out by itself."""
    name = sample.instance
    normals = sample.normals.known_share
    tiles = [
        ("image", "Image", sample.image, None),
        ("depth", "Depth", sample.depth_picture, None),
        ("normals", "Normals", sample.normal_picture, None if normals else "no three neighbouring pixels are known"),
        ("edges", "Depth edges", sample.edge_picture, None),
    ]
    cloud = None if sample.cloud is None else sample.cloud | {"caption": _cloud_caption(sample)}
    return {
        "sample": sample,
        "tiles": tiles,
        "pixelated": sample.image.shape[1] < _PIXELATED_BELOW,
        # The ends of names tell instances of one folder apart.
        "short_name": name if len(name) <= _SHORT_NAME else "…" + name[1 - _SHORT_NAME :],
        "button": small_picture(sample.image, _BUTTON_SIDE),
        "cloud": cloud,
        "cloud_number": None,
        "ply": quote(f"{ply_dir}/{name}/{PLY_NAME}"),
    }


def _cloud_caption(sample: Sample) -> str:
    assert sample.cloud is not None
    num_known = round(sample.valid_share * sample.width * sample.height)
    count = sample.cloud["count"]
    shown = f"all {count:,} points" if count >= num_known else f"{count:,} of {num_known:,} points"
    return f"{sample.instance}: {shown}, depth {sample.depth_min:.3g} to {sample.depth_max:.3g}{sample.unit}"


def _difference(change: Change) -> str:
    """A change in words and an arrow."""
    if change.before is None:
        return "new"
    if change.difference is None:
        return "gone"
    if not change.changed:
        return "="
    arrow = "▲" if change.difference > 0 else "▼"
    size = abs(change.difference)
    if change.kind == "percent":
        return f"{arrow} {100 * size:.2g} points"
    return f"{arrow} {size:,.0f}" if change.kind == "count" else f"{arrow} {size:.3g}"
