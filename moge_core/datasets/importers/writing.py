"""From records to instances: what every importer shares.

Files are decoded, values become depth along z, and image.jpg, depth.png and meta.json are written, `meta.json` last: an
instance is complete when it is there. It remembers what it was made from, so a second run does only what is new, and a
run that was killed half-way is finished by the next, with the same result as one that was not.
"""

from __future__ import annotations

import functools
import json
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from moge_core import __version__
from moge_core.datasets.import_log import append_import, begin_import, import_log_path
from moge_core.datasets.importers.calls import current_call
from moge_core.datasets.importers.frames import read_frame
from moge_core.datasets.importers.instance_files import FILE_NAMES, encoded
from moge_core.datasets.importers.leftovers import find_leftovers, remove_instances
from moge_core.datasets.importers.origins import Origins, Standing, check_target, check_unused
from moge_core.datasets.importers.records import ImportSettings, Record, finding_of
from moge_core.datasets.importers.reports import ImportReport, Result, Tally, unit_of
from moge_core.datasets.importers.same_source import Sample, earlier_imports, refuse_other_source
from moge_core.datasets.importers.shared_cameras import check_one_size, each_of_one_size
from moge_core.datasets.importers.suspicions import unlikely_depth
from moge_core.datasets.layout import (
    INSPECTION_NAMES,
    META_NAME,
    Finding,
    Progress,
    is_instance_path,
)
from moge_core.datasets.normal_axes import NO_NORMALS
from moge_core.datasets.parallel import parallel_map, parallel_stream
from moge_core.errors import DatasetError, InputError
from moge_core.io.files import write_bytes

__all__ = ["ImportReport", "Repeatable", "check_folders", "run_import"]

_REPLACED_NAME = "replaced_meta.jsonl"
# Skipped frames that a line of the log tells one by one: every import reads the whole log.
_MOST_LOGGED = 10_000


@dataclass(frozen=True)
class Repeatable(Iterable[Record | Finding]):
    """Records that are made anew each time that they are asked for, so that they need not be held to be seen twice."""

    make: Callable[[], Iterator[Record | Finding]]

    def __iter__(self) -> Iterator[Record | Finding]:
        return self.make()


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
    taken_for: Iterable[str] = (),
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
        taken_for: what was taken for what, for the summary.
        identity: by which instances of this source are known again even where they come from other files now, as when
            a table is corrected; by default from its files.
        total: how many there are. Told beforehand, they are taken as they come, and never all held: they should be
            `Repeatable` then, because in a dataset that holds instances already they are looked at before.
        progress: called as `progress(done, total)`.

    Raises:
        DatasetError: no record, none that could be imported, instances that another source made, or a `.moge` that
            leads out of the dataset.
    """
    how = {**(options or {}), **_asked(settings)}
    if settings.dry_run:
        return replace(_dry_run(importer, source, out, records, settings, how, notes), taken_for=list(taken_for))
    log_path = import_log_path(out)
    events = earlier_imports(out)
    # What is new needs no look at what stands there.
    may_hold_instances = out.is_dir() and any(out.iterdir())
    skipped: list[Finding] = []
    sample = Sample()
    accepted: Iterable[Record]
    if total is None:
        accepted = list(sample.watch(_accepted(records, settings, skipped)))
        check_one_size(accepted)
    elif may_hold_instances:
        records = list(records) if isinstance(records, Iterator) else records
        for _ in sample.watch(_accepted(records, settings, [])):
            pass
        accepted = _accepted(records, settings, skipped)
    else:
        accepted = sample.watch(_accepted(records, settings, skipped))
    digests = sample.digests()
    if may_hold_instances:
        looked_at = accepted if total is None else _accepted(records, settings, [])
        refuse_other_source(importer, source, out, looked_at, settings, events, digests, how)

    out.mkdir(parents=True, exist_ok=True)
    begin_import(log_path, importer=importer, source=str(source), options=how, sample=digests)
    base = source if source.is_dir() else source.parent
    work = _Writer(out, settings, Origins(importer, base, settings, identity), is_first=not events)
    tally = Tally()
    if isinstance(accepted, list):
        results = parallel_map(work, accepted, progress)
    else:
        results = parallel_stream(work, each_of_one_size(accepted, skipped), total or 0, progress)
    for result in results:
        tally.add(result, skipped)
    made = {*tally.instances, *tally.failed}
    leftovers = find_leftovers(importer, source, out, settings, identity, events, made) if tally.instances else []
    kept = remove_instances(out, leftovers) if settings.prune else []
    report = _report_of(tally, out, settings, skipped, [*notes, *_remarks(tally, out, kept)], leftovers, source)
    report = replace(report, taken_for=list(taken_for))
    typical_depth = tally.told.typical_depth or report.median_depth_m
    unlikely = unlikely_depth(typical_depth, tally.told.scale) if report.metric else None
    if unlikely is not None:
        report.notes.append(unlikely)
    _append_log(report, importer, source, how, digests or sample.digests())
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
            normal = None if settings.normal_axes == NO_NORMALS else record.normal
            yield settings.values.applied_to(replace(record, name=name, notes=told, normal=normal))


def _dry_run(
    importer: str,
    source: Path,
    out: Path,
    records: Iterable[Record | Finding],
    settings: ImportSettings,
    how: Mapping[str, Any],
    notes: Iterable[str],
) -> ImportReport:
    from moge_core.datasets.importers.dry_run import understand

    skipped: list[Finding] = []
    sample = Sample()
    watched = sample.watch(_accepted(records, settings, skipped))
    report = understand(source, out, watched, settings, notes, skipped)
    events = earlier_imports(out)
    try:
        if events:
            refuse_other_source(importer, source, out, (), settings, events, sample.digests(), how)
    except DatasetError as error:
        report.notes.append(f"This import would be refused: {error}")
    return report


class _Writer:
    """Makes the instance of one record, where it is not there already."""

    def __init__(self, out: Path, settings: ImportSettings, origins: Origins, *, is_first: bool) -> None:
        self.out = out
        self.is_first = is_first
        self.settings = settings
        self.origins = origins
        self.replaced = _ReplacedMetas(import_log_path(out).with_name(_REPLACED_NAME))

    def __call__(self, record: Record) -> Result:
        try:
            return self._write(record)
        except Exception as error:  # whatever a reader makes of a damaged file costs that frame alone
            return Result(record.name, finding=finding_of(record.name, error))

    def _write(self, record: Record) -> Result:
        folder = self.out / record.name
        check_target(folder, record)
        origin = self.origins.of(record)
        standing = self.origins.standing(record, folder, origin)
        if standing is None and self.is_first:
            check_unused(folder)
        if standing is not None and standing.is_current:
            return Result(record.name, lacks_pose=standing.lacks_pose, depth_unit=standing.meta.get("depth_unit"))
        frame = read_frame(record, self.settings)
        own_keys = {} if standing is None else standing.own_keys()
        is_edited = standing is not None and standing.is_edited(folder)
        # Everything is encoded before the folder is touched: what cannot be stored leaves it as it was.
        contents = encoded(frame, record, unit_of(record, frame), self.settings.label_type, origin, own_keys)
        if standing is not None:
            frame.told.suspicions |= _lost(standing, folder, contents)

        if standing is not None and is_edited:
            self.replaced.keep(record.name, standing.text)
        folder.mkdir(parents=True, exist_ok=True)
        # Without meta.json there is no instance: it goes first and comes last.
        (folder / META_NAME).unlink(missing_ok=True)
        for name in FILE_NAMES:
            if name not in contents:
                (folder / name).unlink(missing_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for name, content in contents.items():
            write_bytes(folder / name, content)

        return Result.of_frame(record, frame, replaced=standing is not None, edited=is_edited)


def _lost(standing: Standing, folder: Path, contents: Mapping[str, bytes]) -> set[str]:
    """What is to be told of an instance that is replaced."""
    told = set()
    own = standing.own_keys()
    if own:
        told.add(f"Keys of meta.json that no import writes were kept in replaced instances: {', '.join(sorted(own))}")
    gone = [name for name in FILE_NAMES if name not in contents and (folder / name).exists()]
    if gone:
        told.add(f"{', '.join(gone)} of replaced instances went, because this import makes none")
    others = sorted(
        file.name
        for file in folder.iterdir()
        if file.name not in {*FILE_NAMES, *INSPECTION_NAMES} and not file.name.startswith(".")
    )
    if others:
        told.add(f"Other files in replaced instances stayed and may belong to what was there: {', '.join(others)}")
    return told


class _ReplacedMetas:
    """Texts of meta.json files that somebody had edited, in a file that nobody overwrites."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()

    def keep(self, instance: str, text: str) -> None:
        """Add one, before it is replaced.

        Raises:
            DatasetError: the file would lie outside of the dataset.
        """
        if self.path.is_symlink():
            raise DatasetError(self.path, "must lie inside the dataset", found=f"a link to {self.path.readlink()}")
        line = json.dumps({"instance": instance, "meta": text}) + "\n"
        with self.lock, self.path.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(line)


def _remarks(tally: Tally, out: Path, kept: list[str]) -> list[str]:
    """What is to be told of an import as a whole."""
    told = tally.told.lines()
    if tally.counts["edited"]:
        path = import_log_path(out).with_name(_REPLACED_NAME)
        told.append(
            f"meta.json of {tally.counts['edited']} replaced instances had been edited, and is as the import makes it"
            f" now; what stood there is in {path}."
        )
    if tally.counts["without pose"]:
        told.append(
            f"{tally.counts['without pose']} instances were made before poses were read and were left as they are,"
            " without one. Remove them and import again to give them poses."
        )
    if kept:
        told.append(f"Folders of removed instances that hold other files were left: {', '.join(kept[:5])}.")
    return told


def _report_of(
    tally: Tally,
    out: Path,
    settings: ImportSettings,
    skipped: list[Finding],
    notes: list[str],
    leftovers: list[str],
    source: Path,
) -> ImportReport:
    call = current_call()
    return ImportReport(
        out_dir=out,
        instances=sorted(tally.instances),
        num_written=len(tally.medians),
        skipped=skipped,
        notes=notes,
        log_path=import_log_path(out),
        label_type=settings.label_type,
        **tally.measures(),
        num_replaced=tally.counts["replaced"],
        leftovers=[] if settings.prune else leftovers,
        num_removed=len(leftovers) if settings.prune else 0,
        command=None if call is None else call.command(source=Path(call.source).resolve(), out=out),
    )


def _append_log(
    report: ImportReport,
    importer: str,
    source: Path,
    how: Mapping[str, Any],
    digests: Mapping[str, tuple[str | None, str | None]],
) -> None:
    call = current_call()
    append_import(
        report.log_path,
        importer=importer,
        source=str(source),
        options=how,
        instances=len(report.instances),
        written=report.num_written,
        replaced=report.num_replaced,
        removed=report.num_removed,
        leftovers=report.leftovers,
        asked=None if call is None else call.for_log(),
        command=report.command,
        versions=_versions(),
        sample=digests,
        notes=report.notes,
        num_skipped=len(report.skipped),
        skipped=[
            {"file": finding.instance, "why": finding.evidence, "fix": finding.fix}
            for finding in report.skipped[:_MOST_LOGGED]
        ],
    )


@functools.cache
def _versions() -> dict[str, str]:
    """Versions of what decides the bytes of an instance."""
    from moge_core.io.opencv import cv2

    return {
        "moge": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": str(cv2.__version__),
    }


def _asked(settings: ImportSettings) -> dict[str, Any]:
    """What was asked of every importer, by the names of its options."""
    own = {one.name: getattr(settings, one.name) for one in fields(settings) if one.repr and one.name != "values"}
    return own | settings.values.said()
