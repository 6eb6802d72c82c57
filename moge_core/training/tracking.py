"""Who hears of a training run: its files, MLflow (`mlflow_tracking`), and what else observes it. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from moge_core.io.files import atomic_open
from moge_core.training.workspace import RunStatus, Workspace

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Hears of a run's progress, on rank 0 only."""

    def on_start(self, workspace: Path, parameters: Mapping[str, Any]) -> None:
        """Training is about to begin; `parameters` are all flags and what was derived from them."""

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Means since the last call."""

    def on_system(self, step: int, figures: Mapping[str, float]) -> None:
        """Speed, memory and waiting since the last call."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint is complete."""

    def on_pictures(self, step: int, folder: Path) -> None:
        """Pictures of a step have been drawn."""

    def on_end(self, status: RunStatus) -> None:
        """The run ended, one way or another."""


class Observers:
    """Passes every event on to each observer; one that fails is told in the log and never stops the training."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def on_start(self, workspace: Path, parameters: Mapping[str, Any]) -> None:
        """See `Observer`."""
        self._tell("on_start", workspace, parameters)

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Observer`."""
        self._tell("on_log", step, metrics)

    def on_system(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Observer`."""
        self._tell("on_system", step, figures)

    def on_checkpoint(self, step: int, path: Path) -> None:
        """See `Observer`."""
        self._tell("on_checkpoint", step, path)

    def on_pictures(self, step: int, folder: Path) -> None:
        """See `Observer`."""
        self._tell("on_pictures", step, folder)

    def on_end(self, status: RunStatus) -> None:
        """See `Observer`."""
        self._tell("on_end", status)

    def _tell(self, event: str, *arguments: Any) -> None:
        for observer in self._observers:
            try:
                handler = getattr(observer, event, None)  # observers may leave out what they do not care for
                if handler is not None:
                    handler(*arguments)
            except Exception as error:  # whatever tracking does, training goes on
                logger.warning("%s.%s failed: %s", type(observer).__name__, event, error)


class MetricsFile:
    """metrics.jsonl and system.jsonl: one object a line, `{"step": ..., "loss": ...}`; not-a-number is null.

    metrics.jsonl has what depends on configuration, data and seed alone, so two runs that should be equal can be
    compared by it; speed, memory and waiting go to system.jsonl.
    """

    def __init__(self, workspace: Workspace, first_step: int = 0) -> None:
        self._workspace = workspace
        for path in (workspace.metrics_path, workspace.system_path):
            if path.is_file():
                _drop_lines_from(path, first_step)

    def on_start(self, workspace: Path, parameters: Mapping[str, Any]) -> None:
        """Nothing to write before the first metrics."""

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl."""
        _append(self._workspace.metrics_path, step, metrics)

    def on_system(self, step: int, figures: Mapping[str, float]) -> None:
        """Append a line to system.jsonl."""
        _append(self._workspace.system_path, step, figures)

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Checkpoints have manifests of their own."""

    def on_pictures(self, step: int, folder: Path) -> None:
        """Pictures are files already."""

    def on_end(self, status: RunStatus) -> None:
        """The ending is in status.json."""


def finite_only(values: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON can hold them: not-a-number and infinity are null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _append(path: Path, step: int, values: Mapping[str, float]) -> None:
    append_line(path, {"step": step, **finite_only(values)})


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add one JSON object a line to a file: whole, or not at all.

    Raises:
        OSError: the disk does not take it.
    """
    line = (json.dumps(values) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        if file.write(line) != len(line):  # a full disk takes a part, which would spoil the next line
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _drop_lines_from(path: Path, first_step: int) -> None:
    """Forget lines that a resumed run will write again, and a line that a crash cut short."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] < first_step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: dropped a damaged line", path)
    with atomic_open(path) as file:
        file.write("".join(line + "\n" for line in kept).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The undamaged lines of a file that `append_line` wrote; none where there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        with contextlib.suppress(ValueError):  # half a line of a full disk
            lines.append(json.loads(line))
    return lines
