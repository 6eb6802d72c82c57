"""From records to instances: what every importer shares.

Files are decoded, values become depth along z, and image.jpg, depth.png and meta.json are written, `meta.json` last: an
instance is complete when it is there. It remembers what it was made from, so a second run does only what is new, and a
run that was killed half-way is finished by the next, with the same result as one that was not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from moge_core.datasets.import_log import append_import, import_log_path
from moge_core.datasets.importers.frames import Frame, read_frame
from moge_core.datasets.importers.records import (
    ImportSettings,
    Record,
    Stored,
    StoredDepth,
    described,
    described_items,
    finding_of,
)
from moge_core.datasets.importers.suspicions import unlikely_depth
from moge_core.datasets.importers.told import Told, ToldOfAll
from moge_core.datasets.importers.vocabulary import GivenValues
from moge_core.datasets.layout import (
    DEPTH_NAME,
    IMAGE_NAME,
    MASK_NAME,
    META_NAME,
    NORMAL_NAME,
    SEGMENTATION_NAME,
    Finding,
    Progress,
    is_instance_path,
)
from moge_core.datasets.parallel import parallel_map, parallel_stream
from moge_core.errors import DatasetError, InputError, InstanceError, MoGeError
from moge_core.io.files import NamedBytes, write_bytes

_VERSION = 3
# By the names that `Record.parts` has.
_FILE_OF_PART = {
    "image": IMAGE_NAME,
    "depth": DEPTH_NAME,
    "normal": NORMAL_NAME,
    "mask": MASK_NAME,
    "segmentation": SEGMENTATION_NAME,
}
_FILE_NAMES = (*_FILE_OF_PART.values(), META_NAME)


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


@dataclass(frozen=True, slots=True)
class _Result:
    instance: str
    written: bool = False
    finding: Finding | None = None
    depth_median: float = np.nan
    valid_share: float = np.nan
    fov_x_deg: float = np.nan
    depth_unit: float | None = None
    told: Told | None = None


def check_folders(source_dir: str | Path, out_dir: str | Path) -> tuple[Path, Path]:
    """Resolved source (a folder or a file) and target of an import.

    Raises:
        DatasetError: there is no such source.
        InputError: the target is the source, a folder above it, or a file.
    """
    source, out = Path(source_dir).resolve(), Path(out_dir).resolve()
    if not source.exists():
        raise DatasetError(source_dir, "must be the data to import", found="no such file or folder")
    if source.is_relative_to(out):
        raise InputError("out_dir", "must be another folder than the source, and not one above it", found=out)
    if out.exists() and not out.is_dir():
        raise InputError("out_dir", "must be a folder", found=f"a file at {out}")
    return source, out


def run_import(
    importer: str,
    source: Path,
    out: Path,
    records: Iterable[Record | Finding],
    settings: ImportSettings,
    *,
    options: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
    identity: str | None = None,
    total: int | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Write the instances of all records that are not there yet.

    Args:
        importer: its name; an instance of another is never overwritten.
        source: what is imported; file names are remembered relative to it.
        out: the dataset.
        records: see `records`; a `Finding` is a frame that cannot be one.
        settings: see `ImportSettings`.
        options: how the source is read, for the log.
        notes: what is to be told besides.
        identity: by which instances of this source are known again even where they come from other files now, as when
            a table is corrected; by default from its files.
        total: how many records there are. Told beforehand, they are taken as they come, and never all held.
        progress: called as `progress(done, total)`.

    Raises:
        DatasetError: no record, none that could be imported, or a `.moge` that leads out of the dataset.
    """
    base = source if source.is_dir() else source.parent
    log_path = import_log_path(out)
    skipped: list[Finding] = []
    accepted = _accepted(records, settings, skipped)
    out.mkdir(parents=True, exist_ok=True)
    work = _Writer(importer, base, out, settings, identity)
    tally = _Tally([], [], [], [], ToldOfAll(), set())
    if total is None:
        results = parallel_map(work, list(accepted), progress)
    else:
        results = parallel_stream(work, accepted, total, progress)
    for result in results:
        tally.add(result, skipped)
    told = [*notes, *tally.told.lines()]
    unit = tally.depth_units.pop() if len(tally.depth_units) == 1 else None
    metric = None if tally.depth_units else unit is not None
    report = ImportReport(
        out_dir=out,
        instances=sorted(tally.instances),
        num_written=len(tally.medians),
        skipped=skipped,
        notes=told,
        median_depth_m=_median(tally.medians),
        valid_share=_median(tally.valid_shares),
        fov_x_deg=_median(tally.fovs_x),
        log_path=log_path,
        label_type=settings.label_type,
        metric=metric,
        depth_unit=unit,
    )
    typical_depth = tally.told.typical_depth or report.median_depth_m
    unlikely = unlikely_depth(typical_depth, tally.told.scale) if report.metric else None
    if unlikely is not None:
        told.append(unlikely)
    _append_log(report, importer, source, settings, options or {})
    if not report.instances:
        first = skipped[0] if skipped else None
        raise DatasetError(
            source,
            "must hold a frame that can be imported",
            found=f"{len(skipped)} skipped, none usable"
            + (f". First: {first.instance}: {first.evidence}" if first else ""),
            fix=first.fix if first else None,
        )
    return report


def _accepted(
    records: Iterable[Record | Finding], settings: ImportSettings, skipped: list[Finding]
) -> Iterator[Record]:
    """The records that have a name of their own; the others go to `skipped`."""
    names: set[str] = set()
    folded: set[str] = set()
    for record in records:
        if isinstance(record, Finding):
            skipped.append(record)
            continue
        name = settings.name_prefix + record.name
        if not is_instance_path(name):
            evidence = f"{name!r} is no path that a list can name"
            skipped.append(Finding(repr(record.name), "listable-path", "error", evidence, "Rename the frame."))
        elif name in names:
            evidence = f"a second frame, from {record.image.path}, has this name"
            skipped.append(Finding(name, "listed-once", "error", evidence, "Give each frame a name of its own."))
        else:
            told = record.notes
            if name.casefold() in folded:
                told = (*told, "Some names differ only by case; on macOS, Windows and in archives they become one.")
            names.add(name)
            folded.add(name.casefold())
            yield settings.values.applied_to(replace(record, name=name, notes=told))


@dataclass
class _Tally:
    """What the results add up to; they themselves are not kept."""

    instances: list[str]
    medians: list[float]
    valid_shares: list[float]
    fovs_x: list[float]
    told: ToldOfAll
    depth_units: set[float | None]

    def add(self, result: _Result, skipped: list[Finding]) -> None:
        if result.finding is not None:
            skipped.append(result.finding)
            return
        self.instances.append(result.instance)
        self.depth_units.add(result.depth_unit)
        if result.told is not None:
            self.told.add(result.told)
        if result.written:
            self.medians.append(result.depth_median)
            self.valid_shares.append(result.valid_share)
            self.fovs_x.append(result.fov_x_deg)


class _Writer:
    """Makes the instance of one record, where it is not there already."""

    def __init__(self, importer: str, base: Path, out: Path, settings: ImportSettings, identity: str | None) -> None:
        self.importer = importer
        self.base = f"{base}/"
        self.out = out
        self.settings = settings
        self.identity = identity

    def __call__(self, record: Record) -> _Result:
        try:
            return self._write(record)
        except (MoGeError, OSError) as error:
            return _Result(record.name, finding=finding_of(record.name, error))
        except Exception as error:
            evidence = f"could not be read: {type(error).__name__}: {error}"
            fix = "Mend or remove the file. If it is sound, this is a defect of the importer; please tell."
            return _Result(record.name, finding=Finding(record.name, "importable", "error", evidence, fix))

    def _write(self, record: Record) -> _Result:
        from moge_core.geometry import intrinsics_to_fov

        folder = self.out / record.name
        self._check_target(folder, record)
        origin = self._origin(record)
        unit = record.depth_unit if record.is_metric else None
        existing = self._up_to_date(record, folder, origin)
        if existing is not None:
            return _Result(record.name, depth_unit=existing.get("depth_unit"))
        frame = read_frame(record, self.settings)
        if frame.told.is_relative:
            unit = None
        # Everything is encoded before the folder is touched: what cannot be stored leaves it as it was.
        contents = _encoded(frame, record, unit, self.settings.label_type, origin)

        folder.mkdir(parents=True, exist_ok=True)
        # Without meta.json there is no instance: it goes first and comes last.
        (folder / META_NAME).unlink(missing_ok=True)
        for name in _FILE_NAMES:
            if name not in contents:
                (folder / name).unlink(missing_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for name, content in contents.items():
            write_bytes(folder / name, content)

        known = frame.depth[np.isfinite(frame.depth)]
        return _Result(
            record.name,
            written=True,
            depth_median=float(np.median(known)) * (unit or 1.0) if known.size else np.nan,
            valid_share=known.size / frame.depth.size,
            fov_x_deg=float(np.degrees(intrinsics_to_fov(frame.intrinsics)[0])),
            depth_unit=unit,
            told=frame.told,
        )

    def _check_target(self, folder: Path, record: Record) -> None:
        """Refuse to write through links, and over what is read.

        Raises:
            InstanceError: naming the link or the file.
        """
        real = os.path.realpath(folder)
        if real != os.path.normpath(folder):
            raise InstanceError(
                folder, "must lie inside the dataset", found=f"a link to {real}", fix="Remove the link."
            )
        for name in _FILE_NAMES:
            if os.path.islink(f"{real}/{name}"):  # noqa: PTH114 - a Path for each file of a million frames is slow
                raise InstanceError(folder / name, "must be a file of its own", found="a link", fix="Remove the link.")
        for file in record.files():
            if os.path.realpath(file).startswith(f"{real}/"):
                raise InstanceError(
                    folder,
                    "must not be written into, because the frame is read from there",
                    found=str(file),
                    fix="Import into another folder, or with another --name-prefix.",
                )

    def _origin(self, record: Record) -> dict[str, str]:
        """What an instance was made from: names for people, and a digest that changes with settings and sizes.

        Nothing in it depends on the machine, so that equal imports give equal datasets.
        """
        # What the user said of values is in the record already.
        settings = replace(self.settings, name_prefix="", values=GivenValues())
        texts = [
            described(settings),
            described(record.camera),
            repr(record.depth_unit),
            repr(sorted(record.labels.items())),
            *(f"{name} {self._label(part)} {described_items(part)!r}" for name, part in record.parts()),
        ]
        depth = record.depth
        if isinstance(depth, StoredDepth) and record.is_metric != (
            record.depth_unit is not None and not (depth.kind == "disparity" and depth.baseline is None)
        ):
            texts.append("with a unit" if record.is_metric else "without a unit")
        texts += [f"{self._relative(path)} {path.stat().st_size}" for path in record.files()]
        data = "\0".join([str(_VERSION), *texts]).encode("utf-8", "surrogateescape")
        origin = {
            "importer": self.importer,
            "image": self._label(record.image),
            "depth": self._label(record.depth),
            "digest": hashlib.sha256(data).hexdigest(),
        }
        return origin if self.identity is None else origin | {"from": self.identity}

    def _up_to_date(self, record: Record, folder: Path, origin: dict[str, str]) -> Mapping[str, Any] | None:
        """Its meta.json, when this very import made the instance already and its files did not change since.

        Raises:
            InstanceError: an instance stands there that another import or none made; it is not ours to overwrite.
        """
        from moge_core.io import read_meta

        path = folder / META_NAME
        if not path.exists():
            return None
        meta = read_meta(path)
        existing = meta.get("source")
        fix = "Import into another folder, or with another --name-prefix."
        if not isinstance(existing, dict) or existing.get("importer") != self.importer:
            found = f"a {META_NAME} that is not from {self.importer}"
            raise InstanceError(folder, "must not hold an instance that was made otherwise", found=found, fix=fix)
        known_again = self.identity is not None and existing.get("from") == self.identity
        if not known_again and any(existing.get(name) != origin[name] for name in ("image", "depth")):
            found = f"one made from {existing.get('image')} and {existing.get('depth')}"
            raise InstanceError(folder, "must not hold the instance of other files", found=found, fix=fix)
        # The change time moves whenever a file is written or replaced, even if its modification time is old.
        changed = max(file.stat().st_ctime_ns for file in record.files())
        complete = all((folder / _FILE_OF_PART[part]).is_file() for part, _ in record.parts())
        # A unit that values did not show is there since the user says it.
        as_said = not record.unit_is_said or meta.get("depth_unit") == record.depth_unit
        is_up_to_date = existing == origin and complete and as_said and changed <= path.stat().st_mtime_ns
        return meta if is_up_to_date else None

    def _label(self, part: Stored) -> str:
        return self._relative(part.path) + (f"#{part.part}" if part.part else "")

    def _relative(self, path: Path) -> str:
        text = str(path)
        if text.startswith(self.base):
            return text[len(self.base) :]
        return Path(os.path.relpath(path, self.base)).as_posix()


def _encoded(
    frame: Frame, record: Record, unit: float | None, label_type: str, origin: Mapping[str, str]
) -> dict[str, bytes]:
    """The files of an instance by name, meta.json last.

    Raises:
        PrecisionError, InputError: values that the formats cannot hold.
    """
    from moge_core.io import write_depth, write_image, write_mask, write_meta, write_normal, write_segmentation

    files: dict[str, NamedBytes] = {}

    def file(name: str) -> NamedBytes:
        files[name] = NamedBytes(f"{record.name}/{name}")
        return files[name]

    if frame.jpeg is None:
        write_image(file(IMAGE_NAME), frame.image, quality=95, format="jpeg")
    else:
        file(IMAGE_NAME).write(frame.jpeg)
    write_depth(file(DEPTH_NAME), frame.depth)
    if frame.normal is not None:
        write_normal(file(NORMAL_NAME), frame.normal)
    if frame.mask is not None:
        write_mask(file(MASK_NAME), frame.mask)
    if frame.segmentation is not None:
        write_segmentation(file(SEGMENTATION_NAME), frame.segmentation, dict(record.labels))
    meta: dict[str, Any] = {"intrinsics": frame.intrinsics}
    if unit is not None:
        meta["depth_unit"] = unit
    write_meta(file(META_NAME), {**meta, "label_type": label_type, "source": dict(origin)})
    return {name: content.getvalue() for name, content in files.items()}


def _append_log(
    report: ImportReport, importer: str, source: Path, settings: ImportSettings, options: Mapping[str, Any]
) -> None:
    append_import(
        report.log_path,
        importer=importer,
        source=str(source),
        options={**options, **_asked(settings)},
        instances=len(report.instances),
        written=report.num_written,
        notes=report.notes,
        skipped=[{"file": finding.instance, "why": finding.evidence, "fix": finding.fix} for finding in report.skipped],
    )


def _asked(settings: ImportSettings) -> dict[str, Any]:
    """What was asked of every importer, by the names of its options."""
    own = {one.name: getattr(settings, one.name) for one in fields(settings) if one.name != "values"}
    return own | settings.values.said()


def _median(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else None
