"""The run that a checkpoint comes from: its workspace, and the launches that trained it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moge_core.training.checkpoint_manifest import CheckpointManifest, is_file
from moge_core.training.mlflow_tracking import known_run
from moge_core.training.provenance import LaunchRecord, read_launches
from moge_core.training.workspace import Workspace


@dataclass(frozen=True)
class Segment:
    """The steps of a checkpoint that one launch trained; `first_step` is None where nobody recorded it."""

    first_step: int | None
    last_step: int
    launch: LaunchRecord


@dataclass(frozen=True)
class Run:
    """Where and by whom a checkpoint was trained.

    Attributes:
        workspace: the folder; None where it is gone.
        segments: the launches, oldest first; several where the training was resumed.
        mlflow_run_id, mlflow_uri: the MLflow run, None without one.
        init: weights that the training began with, as its flag says; None where that is not recorded.
    """

    workspace: Path | None
    segments: tuple[Segment, ...]
    mlflow_run_id: str | None
    mlflow_uri: str | None
    init: str | None


def workspace_of(checkpoint: Path, manifest: CheckpointManifest) -> Path | None:
    """The workspace around a checkpoint, or else the one that its manifest names; None where both are gone."""
    folder = checkpoint.absolute().parent
    candidates: list[Path] = []
    if folder.name == "checkpoint":
        candidates.append(folder.parent)
    elif folder.parent.name == "set_aside":
        candidates.append(folder.parent.parent)
    if manifest.launch is not None and manifest.launch.workspace is not None:
        candidates.append(Path(manifest.launch.workspace))
    return next((each for each in candidates if is_file(Workspace(each).config_path)), None)


def trace_run(workspace: Path | None, manifest: CheckpointManifest) -> Run:
    """The run of a checkpoint, from its manifest and what its workspace remembers."""
    lines = read_launches(Workspace(workspace)) if workspace is not None else []
    segments, first = _segments(lines, manifest)
    launch = manifest.launch or (segments[-1].launch if segments else None)
    uri, run_id = (launch.mlflow_uri, launch.mlflow_run_id) if launch is not None else (None, None)
    if run_id is None and workspace is not None:
        uri, run_id = known_run(Workspace(workspace))
    flags = first.get("flags") if first is not None else None
    init = flags.get("init") if isinstance(flags, dict) else None
    return Run(workspace, segments, run_id, uri, None if init is None else str(init))


def _segments(
    lines: Sequence[Mapping[str, Any]], manifest: CheckpointManifest
) -> tuple[tuple[Segment, ...], Mapping[str, Any] | None]:
    """The launches whose steps are in a checkpoint, and the line of the first one.

    A launch that went back behind steps of the one before has trained them anew: those of the one before are not in it.
    """
    own = manifest.launch
    starts = [_start(line) for line in lines]
    position = len(starts) - 1
    if own is not None:
        while position >= 0 and not _is_same(starts[position], own):
            position -= 1
    segments: list[Segment] = []
    first: Mapping[str, Any] | None = None
    end = manifest.step
    while position >= 0 and end >= 0:
        start = starts[position]
        if start is not None and start.first_step <= end:
            segments.append(Segment(start.first_step, end, start.launch))
            end = start.first_step - 1
            if not start.continues:
                first = lines[position]
                break
        position -= 1
    if not segments and own is not None:
        segments = [Segment(None, manifest.step, own)]
    return tuple(reversed(segments)), first


@dataclass(frozen=True)
class _Start:
    first_step: int
    continues: bool
    launch: LaunchRecord


def _start(line: Mapping[str, Any]) -> _Start | None:
    first_step = line.get("first_step")
    if not isinstance(first_step, int) or first_step < 0:
        return None
    try:
        return _Start(first_step, line.get("continues") is True, LaunchRecord.model_validate(dict(line)))
    except ValidationError:
        return None


def _is_same(start: _Start | None, launch: LaunchRecord) -> bool:
    """Whether a line is of this launch: its process is, for what is known only later is not in the line."""
    if start is None:
        return False
    return (start.launch.host, start.launch.pid, start.launch.time) == (launch.host, launch.pid, launch.time)
