"""What an import did, and how that of many frames adds up to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moge_core.datasets.importers.told import Told, ToldOfAll
from moge_core.datasets.layout import Finding

if TYPE_CHECKING:
    from moge_core.datasets.importers.dry_run import Understood
    from moge_core.datasets.importers.frames import Frame
    from moge_core.datasets.importers.records import Record


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        out_dir: the dataset.
        instances: all instances of this source that are now complete, sorted.
        num_written: how many of them were written by this run; the rest was there already.
        skipped: files that did not become instances, and why.
        notes: what a person should know about how the source was read.
        median_depth_m, valid_share, fov_x_deg: medians over the instances written by this run; None when none was.
        log_path: the log that holds all of this.
        label_type: loss set of the configuration entry.
        metric: whether the depth has a unit; None when instances differ.
        depth_unit: metres a unit of depth; None without a unit, or when instances differ.
        num_replaced: how many of those that were written took the place of an instance that an earlier import made.
        leftovers: instances that an earlier import of this source made and this one does not, sorted.
        num_removed: how many such instances were removed, because `prune` asked for it.
        command: the command line that repeats this import; None where it cannot be typed.
        taken_for: what was taken for what.
        understood: what a dry run found; None where instances were written.
    """

    out_dir: Path
    instances: list[str]
    num_written: int
    skipped: list[Finding]
    notes: list[str]
    median_depth_m: float | None
    valid_share: float | None
    fov_x_deg: float | None
    log_path: Path
    label_type: str = "sfm"
    metric: bool | None = True
    depth_unit: float | None = 1.0
    num_replaced: int = 0
    leftovers: list[str] = field(default_factory=list)
    num_removed: int = 0
    command: str | None = None
    taken_for: list[str] = field(default_factory=list)
    understood: Understood | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one record.

    Attributes:
        instance: its name.
        written: whether it was written by this run.
        replaced: whether one of an earlier import stood there.
        edited: whether somebody had edited the meta.json that was replaced.
        lacks_pose: whether it was left as it is, without the pose that is known now.
        finding: why it could not be imported.
        depth_median: metres, or without unit; NaN where no pixel is known or nothing was written.
        valid_share, fov_x_deg: of what was written.
        depth_unit: metres a unit, None without one.
        told: what is to be told.
    """

    instance: str
    written: bool = False
    replaced: bool = False
    edited: bool = False
    lacks_pose: bool = False
    finding: Finding | None = None
    depth_median: float = np.nan
    valid_share: float = np.nan
    fov_x_deg: float = np.nan
    depth_unit: float | None = None
    told: Told | None = None

    @classmethod
    def of_frame(cls, record: Record, frame: Frame, *, replaced: bool = False, edited: bool = False) -> Result:
        """What is to be told of a frame that was read."""
        from moge_core.geometry import intrinsics_to_fov

        unit = unit_of(record, frame)
        known = frame.depth[np.isfinite(frame.depth)]
        return cls(
            record.name,
            written=True,
            replaced=replaced,
            edited=edited,
            depth_median=float(np.median(known)) * (unit or 1.0) if known.size else np.nan,
            valid_share=known.size / frame.depth.size,
            fov_x_deg=float(np.degrees(intrinsics_to_fov(frame.intrinsics)[0])),
            depth_unit=unit,
            told=frame.told,
        )


def unit_of(record: Record, frame: Frame) -> float | None:
    """Metres a unit of a frame's depth; None where its source has no unit, or its values show that they have none."""
    return record.depth_unit if record.is_metric and not frame.told.is_relative else None


@dataclass
class Tally:
    """What the results add up to; they themselves are not kept."""

    instances: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    valid_shares: list[float] = field(default_factory=list)
    fovs_x: list[float] = field(default_factory=list)
    told: ToldOfAll = field(default_factory=ToldOfAll)
    depth_units: set[float | None] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, result: Result, skipped: list[Finding]) -> None:
        """Count one more result; a frame that could not be imported goes to `skipped`."""
        if result.finding is not None:
            skipped.append(result.finding)
            self.failed.append(result.instance)
            return
        self.instances.append(result.instance)
        self.depth_units.add(result.depth_unit)
        self.counts["replaced"] += result.replaced
        self.counts["without pose"] += result.lacks_pose
        self.counts["edited"] += result.edited
        if result.told is not None:
            self.told.add(result.told)
        if result.written:
            self.medians.append(result.depth_median)
            self.valid_shares.append(result.valid_share)
            self.fovs_x.append(result.fov_x_deg)

    def measures(self) -> dict[str, Any]:
        """What all of them are like, by the attributes of `ImportReport`."""
        units = list(self.depth_units)
        return {
            "median_depth_m": median(self.medians),
            "valid_share": median(self.valid_shares),
            "fov_x_deg": median(self.fovs_x),
            "metric": units != [None] if len(units) == 1 else None if units else False,
            "depth_unit": units[0] if len(units) == 1 else None,
        }


def median(values: list[float]) -> float | None:
    """Of the finite ones; None where there are none."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else None
