"""`.moge/import.jsonl`: where a dataset came from, one line for each time that data was brought into it.

A line has what is needed to do it again: what was asked, how it was understood, versions, and the command line. While
an import runs, `.moge/import.begun.json` tells of it, so that one that was killed is known too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moge_core.datasets.layout import STATE_DIR, read_state
from moge_core.errors import DatasetError
from moge_core.io.files import write_bytes

LOG_NAME = "import.jsonl"
_BEGUN_NAME = "import.begun.json"
_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class ImportEvent:
    """One time that data was brought into a dataset.

    Attributes:
        time: when it ended, ISO 8601 in UTC.
        importer: its name, such as `rgbd-folder` or `sample-scenes`.
        source: what was imported.
        options: how it was read.
        instances: how many instances of this source were complete then.
        written: how many of them this import wrote.
        num_skipped: how many frames it left out.
        asked: the keyword arguments of the importer, as the caller gave them.
        command: the command line that repeats it; None where it cannot be typed, or was made by an earlier version.
        sample: digests of the source's files for some of the instances, see `same_source.Sample`.
    """

    time: str
    importer: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    instances: int = 0
    written: int = 0
    num_skipped: int = 0
    asked: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    sample: Mapping[str, Sequence[str | None]] = field(default_factory=dict)


def import_log_path(root: Path) -> Path:
    """Path of the log.

    Raises:
        DatasetError: it leads out of the dataset.
    """
    path = root / STATE_DIR / LOG_NAME
    for part in (path.parent, path):
        if part.is_symlink():
            raise DatasetError(part, "must lie inside the dataset", found=f"a link to {part.readlink()}")
    return path


def append_import(
    path: Path,
    *,
    importer: str,
    source: str,
    options: Mapping[str, Any],
    instances: int,
    written: int,
    **told: Any,
) -> None:
    """Add a line to the log `path`; `told` is kept beside the attributes of `ImportEvent` that go before it."""
    event = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "importer": importer,
        "source": source,
        "options": dict(options),
        "instances": instances,
        "written": written,
        **told,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(json.dumps(event, default=str) + "\n")
    path.with_name(_BEGUN_NAME).unlink(missing_ok=True)


def begin_import(
    path: Path, *, importer: str, source: str, options: Mapping[str, Any], sample: Mapping[str, Sequence[str | None]]
) -> None:
    """Note beside the log `path` that an import begins; `append_import` takes the note away.

    Raises:
        DatasetError: the note would lead out of the dataset.
    """
    event = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "importer": importer,
        "source": source,
        "options": dict(options),
        "sample": dict(sample),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_name(_BEGUN_NAME)
    if note.is_symlink():
        raise DatasetError(note, "must lie inside the dataset", found=f"a link to {note.readlink()}")
    write_bytes(note, (json.dumps(event, default=str) + "\n").encode("utf-8", "surrogateescape"))


def unfinished_import(root: Path) -> ImportEvent | None:
    """The import that was begun last, where it did not come to its end.

    Raises:
        DatasetError: the log leads out of the dataset.
    """
    path = import_log_path(root).with_name(_BEGUN_NAME)
    try:
        return _event(json.loads(read_state(path, _MAX_BYTES)))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_import_log(root: Path) -> tuple[list[ImportEvent], int]:
    """What the log of a dataset tells, oldest first, and how many of its lines are damaged.

    Raises:
        DatasetError: the log leads out of the dataset, is no file, or is larger than 256 MiB.
    """
    try:
        data = read_state(import_log_path(root), _MAX_BYTES)
    except FileNotFoundError:
        return [], 0
    events, num_damaged = [], 0
    for line in data.splitlines():
        try:
            events.append(_event(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            num_damaged += 1
    return events, num_damaged


def _event(line: Any) -> ImportEvent:
    return ImportEvent(
        time=str(line["time"]),
        importer=str(line["importer"]),
        source=str(line["source"]),
        options=dict(line.get("options", {})),
        instances=int(line.get("instances", 0)),
        written=int(line.get("written", 0)),
        num_skipped=int(line.get("num_skipped", len(line.get("skipped", ())))),
        asked=dict(line.get("asked") or {}),
        command=line.get("command"),
        sample={str(name): _pair(pair) for name, pair in line.get("sample", {}).items()},
    )


def _pair(digests: Any) -> tuple[str | None, str | None]:
    image, depth = digests
    return image, depth
