"""The numbers of a report as `report.json`, and what changed since the report that was there before."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moge_core.errors import FormatError, MoGeError
from moge_core.io.files import read_bytes, write_bytes

JSON_NAME = "report.json"
PREVIOUS_JSON_NAME = "report.previous.json"
_MAX_BYTES = 1 << 24

NumberKind = Literal["count", "number", "percent"]

LIST_LABELS: dict[str, tuple[str, NumberKind]] = {
    "num_instances": ("instances in the list", "count"),
    "num_measured": ("of them checked", "count"),
    "num_broken": ("of them broken", "count"),
    "num_left_out": ("broken and left out of the list", "count"),
    "depth_min": ("least depth", "number"),
    "depth_median": ("median of the median depths", "number"),
    "depth_max": ("greatest depth", "number"),
    "valid_share": ("pixels of known depth", "percent"),
    "inf_share": ("pixels infinitely far", "percent"),
    "fov_x_min": ("least horizontal field of view (°)", "number"),
    "fov_x_median": ("median field of view (°)", "number"),
    "fov_x_max": ("greatest field of view (°)", "number"),
    "area_min": ("smallest image (pixels)", "count"),
    "area_max": ("largest image (pixels)", "count"),
}
SAMPLE_LABELS: dict[str, tuple[str, NumberKind]] = {
    "depth_median": ("median depth", "number"),
    "valid_share": ("pixels of known depth", "percent"),
    "sharp_share": ("depth edges that are sharp", "percent"),
    "edge_width_px": ("width of depth edges (pixels)", "number"),
    "aligned_share": ("depth edges with an image edge beside them", "percent"),
    "normals_share": ("pixels with a normal", "percent"),
    "floor_share": ("normals facing up", "percent"),
    "wall_share": ("normals facing sideways", "percent"),
    "ceiling_share": ("normals facing down", "percent"),
}
"""Keys of `ReportNumbers.list_numbers` and `.sample_numbers` with what a person calls them."""


class RuleCount(BaseModel):
    """How many instances break a rule."""

    model_config = ConfigDict(frozen=True)

    severity: Literal["error", "warning"]
    rule: str
    count: int = Field(ge=0)


class ReportNumbers(BaseModel):
    """What report.json holds.

    Attributes:
        dataset: name of the dataset's folder.
        written_at: ISO 8601 with the time zone.
        index_name, depth_name, num_samples, seed, depth_unit: how the report was asked for.
        list_digest: digest of the names in the list.
        list_numbers, sample_numbers: over the list and over the samples.
        samples: numbers of each sampled instance.
        findings: by rule.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    version: Literal[1] = 1
    dataset: str
    written_at: datetime.datetime
    index_name: str
    depth_name: str
    num_samples: int
    seed: int
    depth_unit: float | None = None
    list_digest: str
    list_numbers: dict[str, int | float]
    sample_numbers: dict[str, int | float]
    samples: dict[str, dict[str, int | float | None]]
    findings: list[RuleCount]

    def same_samples(self, other: ReportNumbers) -> bool:
        """True when both show the same instances."""
        return list(self.samples) == list(other.samples)


@dataclass(frozen=True)
class Change:
    """One number before and now; None where a report did not have it."""

    label: str
    kind: NumberKind
    before: int | float | None
    now: int | float | None

    @property
    def difference(self) -> int | float | None:
        """Now less before."""
        return None if self.before is None or self.now is None else self.now - self.before

    @property
    def changed(self) -> bool:
        """True when the numbers differ by more than rounding."""
        if self.before is None or self.now is None:
            return self.before is not self.now
        return abs(self.now - self.before) > 1e-9 * max(abs(self.now), abs(self.before))


@dataclass(frozen=True)
class Comparison:
    """What changed since the former report.

    Attributes:
        former: the former report; None where there was none that could be read.
        note: why there is nothing to compare with, or what to mind when comparing.
        list_changes, sample_changes: the numbers.
        finding_changes: instances by (severity, rule), errors first.
    """

    former: ReportNumbers | None
    note: str
    list_changes: list[Change]
    sample_changes: list[Change]
    finding_changes: list[tuple[str, Change]]

    @property
    def changed(self) -> bool:
        """True when any number changed."""
        changes = [*self.list_changes, *self.sample_changes, *(change for _, change in self.finding_changes)]
        return any(change.changed for change in changes)


def read_numbers(path: Path) -> ReportNumbers:
    """A report.json.

    Raises:
        FormatError: it does not hold what this version writes.
        OSError: it cannot be read.
    """
    try:
        return ReportNumbers.model_validate(json.loads(read_bytes(path, limit=_MAX_BYTES)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise FormatError(path, "must be a report of this version", found=f"{where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "must hold JSON", found=error) from error


def write_numbers(path: Path, numbers: ReportNumbers) -> None:
    """Write a report.json in one step."""
    # Not pydantic's own JSON, which refuses names that are no UTF-8.
    text = json.dumps(numbers.model_dump(mode="python"), indent=1, default=datetime.datetime.isoformat)
    write_bytes(path, text.encode("ascii"))


def compare_with_former(path: Path, numbers: ReportNumbers) -> Comparison:
    """Compare with the report.json at `path`, where there is one."""
    nothing = Comparison(None, "", [], [], [])
    try:
        former = read_numbers(path)
    except FileNotFoundError:
        return _noted(nothing, "This is the first report in this folder.")
    except (MoGeError, OSError) as error:
        reason = error.found if isinstance(error, MoGeError) else error
        return _noted(nothing, f"The former {path.name} is damaged and was not compared with: {reason}.")
    if former.dataset != numbers.dataset:
        return _noted(nothing, f"The former report in this folder is of another dataset, {former.dataset}.")
    return Comparison(
        former,
        " ".join(_cautions(former, numbers)),
        list(_changes(LIST_LABELS, former.list_numbers, numbers.list_numbers)),
        list(_changes(SAMPLE_LABELS, former.sample_numbers, numbers.sample_numbers)),
        _finding_changes(former, numbers),
    )


def _noted(comparison: Comparison, note: str) -> Comparison:
    return Comparison(comparison.former, note, [], [], [])


def _cautions(former: ReportNumbers, numbers: ReportNumbers) -> Iterator[str]:
    for name, label in (("index_name", "the list"), ("depth_name", "the depth file"), ("depth_unit", "the depth unit")):
        before, now = getattr(former, name), getattr(numbers, name)
        if before != now:
            yield f"It was asked for otherwise: {label} was {before}, now {now}."
    if former.list_digest != numbers.list_digest:
        yield "The list names other instances than then."
    if not former.same_samples(numbers):
        yield "Other instances were sampled than then, so the numbers of the samples differ by the draw, too."


def _changes(
    labels: dict[str, tuple[str, NumberKind]], before: dict[str, int | float], now: dict[str, int | float]
) -> Iterator[Change]:
    for key, (label, kind) in labels.items():
        if key in before or key in now:
            yield Change(label, kind, before.get(key), now.get(key))


def _finding_changes(former: ReportNumbers, numbers: ReportNumbers) -> list[tuple[str, Change]]:
    before = {(count.severity, count.rule): count.count for count in former.findings}
    now = {(count.severity, count.rule): count.count for count in numbers.findings}
    return [
        (severity, Change(rule, "count", before.get((severity, rule), 0), now.get((severity, rule), 0)))
        for severity, rule in sorted({*before, *now})
    ]
