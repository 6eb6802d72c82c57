"""Instances that an earlier import of a source left, and that an import of today does not make.

Other options or patterns give frames other names, and frames go from a source. What was made of them stays in the
dataset, and `moge index` lists it, until somebody removes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path

from moge_core.datasets.import_log import ImportEvent
from moge_core.datasets.importers.instance_files import FILE_NAMES
from moge_core.datasets.importers.origins import origin_of
from moge_core.datasets.importers.records import ImportSettings
from moge_core.datasets.layout import INSPECTION_NAMES, META_NAME, scan_instances


def find_leftovers(
    importer: str,
    source: Path,
    out: Path,
    settings: ImportSettings,
    identity: str | None,
    events: Sequence[ImportEvent],
    made: Collection[str],
) -> list[str]:
    """Instances that are certain to be left by an earlier import of this source, sorted.

    Those are of the same importer and below the same `--name-prefix`, below no other prefix of an earlier import, and
    made from a file that is in this source alone. Where the file is gone, the log must have counted so many instances
    of this source, and none of another under that prefix: instances may have been copied into the dataset.

    Args:
        importer, source, out, settings, identity: see `writing.run_import`.
        events: earlier imports.
        made: instances that this import made, found up to date, or could not read this time.
    """
    own = [event for event in events if event.importer == importer]
    prefix = settings.name_prefix
    below = out / prefix[: prefix.rfind("/") + 1]
    if not own or not below.is_dir():
        return []
    prefixes = {str(event.options.get("name_prefix", "")) for event in own}
    longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    # A link could lead anywhere; imports write through none, so none of theirs lies behind one.
    if below.resolve() != below:
        return []
    start = "" if below == out else f"{below.relative_to(out).as_posix()}/"
    others = _other_sources(source, prefix, identity, own)
    found, gone = [], []
    for path in scan_instances(below)[0]:
        name = start + path
        if name in made or not name.startswith(prefix) or (longer and name.startswith(longer)):
            continue
        origin = origin_of(out / name)
        if origin.get("importer") != importer or (identity is not None and origin.get("from") != identity):
            continue
        files = [str(origin.get(part, "")).partition("#")[0] for part in ("image", "depth")]
        if not _has(source, files):
            gone.append(name)
        elif not any(_has(other, files) for other in others):
            found.append(name)
    counted = max((event.instances for event in own if _is_from(event, source, prefix)), default=0)
    return sorted([*found, *gone] if not others and len(made) + len(gone) <= counted else found)


def remove_instances(out: Path, names: Sequence[str]) -> list[str]:
    """Remove what imports write into instances, and folders that are empty then.

    Returns:
        instances whose folders hold other files too, which stay.
    """
    kept = []
    for name in names:
        folder = out / name
        # Without meta.json there is no instance: it goes first.
        for file in (META_NAME, *FILE_NAMES, *INSPECTION_NAMES):
            (folder / file).unlink(missing_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if any(folder.iterdir()):
            kept.append(name)
        while folder != out:
            with contextlib.suppress(OSError):
                folder.rmdir()
            folder = folder.parent
    return kept


def _other_sources(source: Path, prefix: str, identity: str | None, events: Sequence[ImportEvent]) -> set[Path]:
    """Other sources that were imported under a prefix, of those that this one may be taken for."""
    others = {Path(event.source) for event in events if event.options.get("name_prefix", "") == prefix} - {source}
    return others if identity is None else {other for other in others if other.name == source.name}


def _is_from(event: ImportEvent, source: Path, prefix: str) -> bool:
    return event.source == str(source) and event.options.get("name_prefix", "") == prefix


def _has(source: Path, files: Sequence[str]) -> bool:
    base = source if source.is_dir() else source.parent
    return any(file and (base / file).exists() for file in files)
