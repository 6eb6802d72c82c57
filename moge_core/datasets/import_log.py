"""`.moge/import.jsonl`: where a dataset came from, one line for each time that data was brought into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moge_core.datasets.layout import STATE_DIR, read_state
from moge_core.errors import DatasetError

LOG_NAME = "import.jsonl"
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
    """

    time: str
    importer: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    instances: int = 0
    written: int = 0
    num_skipped: int = 0


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
        num_skipped=len(line.get("skipped", ())),
    )
