"""What a training run leaves on disk, and which run a new start continues. Imports no torch.

    workspace/
    ├── config.json                   the configuration that the run trains with
    ├── status.json                   whether it runs, finished, was interrupted or failed, and why
    ├── .lock                         one training at a time (host, pid)
    ├── metrics.jsonl                 one line a log step: what depends on configuration, data and seed alone
    ├── system.jsonl                  one line a log step: speed, memory, waiting
    ├── failures.jsonl                instances that could not be used
    ├── launches.jsonl                one line a start or resume: who launched it, from which code, on which data
    ├── tracking.json                 which MLflow run it is, and what has been sent there
    ├── best.json                     step and score of the best checkpoint, with --eval_every
    ├── bad_batches/                  batches of steps that had to be skipped
    ├── stacks/{step}_{time}/         where every rank stood when the training hung
    ├── .heartbeats/                  what the watchers of several ranks tell each other
    ├── checkpoint/{step:08d}.pt      model, with {step}_optimizer.pt, {step}_ema.pt and {step}.json, its manifest
    ├── checkpoint/latest.pt          the newest step, in the published form
    └── vis/                          pictures and point clouds

A checkpoint is complete when its manifest stands there, for the manifest is renamed into place last.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from moge_core.configuration import changed_keys
from moge_core.errors import ConfigError, WorkspaceError
from moge_core.io.files import atomic_open
from moge_core.training.config import NOT_OF_THE_MODEL, TrainConfig


class ExitCode(IntEnum):
    """How the training command ends. `accelerate launch` hides the code, so status.json tells it too.

    REFUSED: nothing was trained, the configuration, data or checkpoint is at fault. BAD_DATA: too many instances are
    broken. NON_FINITE: too many steps in a row had to be skipped. STORAGE: a checkpoint could not be written.
    INTERRUPTED: asked to stop; it can be resumed.
    """

    FINISHED = 0
    FAILED = 1
    REFUSED = 2
    BAD_DATA = 65
    NON_FINITE = 70
    STORAGE = 74
    INTERRUPTED = 75


@dataclass(frozen=True)
class RunStatus:
    """How a run stands. `step` is the last finished step, -1 before the first."""

    state: Literal["running", "finished", "interrupted", "failed"]
    reason: str
    step: int
    num_iterations: int
    resumable: bool
    host: str = ""
    pid: int = 0
    time: str = ""


@dataclass(frozen=True)
class CheckpointInfo:
    """One complete checkpoint of a workspace."""

    step: int
    model_path: Path
    optimizer_path: Path
    ema_path: Path | None
    manifest: Mapping[str, Any]

    def recorded_digest(self, path: Path) -> str | None:
        """SHA-256 of one of its files, as the manifest recorded it while the file was written."""
        digest = self.manifest.get("files", {}).get(path.name, {}).get("sha256")
        return str(digest) if digest else None


class Workspace:
    """The folder of one training run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoint"

    @property
    def metrics_path(self) -> Path:
        """Metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def system_path(self) -> Path:
        """Speed, memory and waiting, one JSON object a line."""
        return self.path / "system.jsonl"

    @property
    def tracking_path(self) -> Path:
        """Which MLflow run this is, and what has been sent there."""
        return self.path / "tracking.json"

    def tracking_run_id(self) -> str | None:
        """The MLflow run that the training logs to, if it does."""
        run_id = (_read_json(self.tracking_path) or {}).get("run_id")
        return run_id if isinstance(run_id, str) else None

    @property
    def launches_path(self) -> Path:
        """Every start and resume, one JSON object a line."""
        return self.path / "launches.jsonl"

    def failures_path(self, rank: int = 0) -> Path:
        """Instances that a process could not use, one JSON object a line."""
        return self.path / ("failures.jsonl" if rank == 0 else f"failures.{rank}.jsonl")

    @property
    def config_path(self) -> Path:
        """The configuration that the run trains with."""
        return self.path / "config.json"

    def status(self) -> RunStatus | None:
        """How the run stands, None if it never started; "running" without its process means it was interrupted."""
        values = _read_json(self.path / "status.json")
        if values is None:
            return None
        status = RunStatus(**values)
        if status.state == "running" and status.host == socket.gethostname() and not _is_alive(status.pid):
            return RunStatus(
                **{**values, "state": "interrupted", "reason": f"process {status.pid} is gone", "resumable": True}
            )
        return status

    def write_status(self, status: RunStatus) -> None:
        """Replace status.json at once."""
        stamped = {
            **asdict(status),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self.path / "status.json", stamped)

    def checkpoints(self) -> list[CheckpointInfo]:
        """Complete checkpoints, oldest first; one without a manifest, or with a file missing or cut, is left out."""
        found = []
        for manifest_path in sorted(self.checkpoint_dir.glob("*.json")):
            if re.fullmatch(r"\d{8,}", manifest_path.stem):
                manifest = _read_json(manifest_path)
                if manifest is not None and self._is_whole(manifest):
                    found.append(self._checkpoint(int(manifest_path.stem), manifest))
        return found

    def incomplete_steps(self) -> list[int]:
        """Steps of which there are files, but no complete checkpoint."""
        names = (path.name for path in self.checkpoint_dir.glob("*"))
        steps = {int(match[1]) for name in names if (match := re.fullmatch(r"(\d{8,})(_\w+)?\.(pt|json)", name))}
        return sorted(steps - {checkpoint.step for checkpoint in self.checkpoints()})

    def best(self) -> dict[str, Any] | None:
        """Step and score of the best checkpoint, if the training evaluates."""
        return _read_json(self.path / "best.json")

    def write_best(self, values: Mapping[str, Any] | None) -> None:
        """Replace best.json at once; None removes it."""
        if values is None:
            (self.path / "best.json").unlink(missing_ok=True)
        else:
            write_json(self.path / "best.json", values)

    def prune(self, keep_last: int, keep_every: int = 0) -> list[int]:
        """Remove complete checkpoints but the newest `keep_last`, multiples of `keep_every` and the best one.

        Returns:
            the steps that were removed.
        """
        complete = self.checkpoints()
        kept = {checkpoint.step for checkpoint in complete[-keep_last:]}
        best = self.best()
        if best is not None:
            kept.add(best["step"])
        removed = []
        for checkpoint in complete:
            step = checkpoint.step
            if step in kept or (keep_every and step % keep_every == 0):
                continue
            # The manifest first: what is half removed must not look complete.
            for path in (self.checkpoint_dir / f"{step:08d}.json", *self.checkpoint_dir.glob(f"{step:08d}*.pt")):
                path.unlink(missing_ok=True)
            removed.append(step)
        return removed

    def latest_checkpoint(self) -> CheckpointInfo | None:
        """The newest complete checkpoint."""
        complete = self.checkpoints()
        return complete[-1] if complete else None

    def checkpoint_at(self, step: int) -> CheckpointInfo:
        """The checkpoint of one step; one without a manifest is taken as it is.

        Raises:
            WorkspaceError: there is no such checkpoint.
        """
        model_path = self.checkpoint_dir / f"{step:08d}.pt"
        if not model_path.is_file():
            have = [str(checkpoint.step) for checkpoint in self.checkpoints()]
            raise WorkspaceError(model_path, "must exist", fix=f"Complete checkpoints: {', '.join(have) or 'none'}.")
        return self._checkpoint(step, _read_json(self.checkpoint_dir / f"{step:08d}.json") or {})

    def remove_fragments(self) -> None:
        """Delete what a killed process left: temporary files, and files after the newest complete checkpoint without a
        manifest.

        Files before it, of the published tool for instance, and those with a manifest stay. To be called by who holds
        the lock.
        """
        for folder in (self.path, self.checkpoint_dir):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)
        newest = self.latest_checkpoint()
        if newest is None:
            return
        for step in self.incomplete_steps():
            if step > newest.step and not (self.checkpoint_dir / f"{step:08d}.json").exists():
                for path in self.checkpoint_dir.glob(f"{step:08d}*.pt"):
                    path.unlink(missing_ok=True)

    def set_aside(self, first_step: int) -> Path | None:
        """Move checkpoints of `first_step` and later, and with step 0 metrics and failures, out of a new run's way.

        Else `latest` would find the abandoned run again. Nothing is deleted.

        Returns:
            the folder that holds them now; None when there was nothing to move.
        """
        later = [
            path
            for path in self.checkpoint_dir.glob("*")
            if (match := re.match(r"\d{8,}", path.name)) and int(match[0]) >= first_step
        ]
        if first_step == 0:
            files = (self.metrics_path, self.system_path, self.tracking_path, self.path / "best.json")
            later += [path for path in (*files, *self.path.glob("failures*.jsonl")) if path.is_file()]
        else:
            best = self.best()
            if best is not None and best["step"] >= first_step:
                later.append(self.path / "best.json")
        if not later:
            return None
        number = 1
        while (folder := self.path / "set_aside" / str(number)).exists():
            number += 1
        folder.mkdir(parents=True)
        # Manifests first: a checkpoint that is half moved must not look complete.
        for path in sorted(later, key=lambda path: path.suffix != ".json"):
            path.rename(folder / path.name)
        return folder

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the workspace for one training.

        The lock is the kernel's, so it ends with the process however that dies.

        Raises:
            WorkspaceError: another training holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock_path = self.path / ".lock"
        # Append mode keeps the holder's name in the file while the lock is not ours.
        with lock_path.open("a+", encoding="utf-8") as file:
            try:
                # A POSIX lock, unlike flock, is not inherited by loader workers that outlive us.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "an unknown process"
                raise WorkspaceError(
                    self.path,
                    "must not be in use by another training",
                    found=f"a lock held by {holder}",
                    fix="Wait for it, stop it, or name another --workspace.",
                ) from None
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
            file.flush()
            yield

    def _checkpoint(self, step: int, manifest: Mapping[str, Any]) -> CheckpointInfo:
        ema_path = self.checkpoint_dir / f"{step:08d}_ema.pt"
        return CheckpointInfo(
            step=step,
            model_path=self.checkpoint_dir / f"{step:08d}.pt",
            optimizer_path=self.checkpoint_dir / f"{step:08d}_optimizer.pt",
            ema_path=ema_path if ema_path.is_file() else None,
            manifest=manifest,
        )

    def _is_whole(self, manifest: Mapping[str, Any]) -> bool:
        try:
            return all(
                (self.checkpoint_dir / name).stat().st_size == file["bytes"] for name, file in manifest["files"].items()
            )
        except (OSError, KeyError, TypeError, AttributeError, ValueError):
            return False


@dataclass(frozen=True)
class WorkspaceChoice:
    """Where a training goes, whether it continues what is there, and what differs from the newest run."""

    path: Path
    resumes: bool
    changed_keys: list[str]


def choose_workspace(root: Path, config: TrainConfig, resume: str = "auto") -> WorkspaceChoice:
    """The workspace below `root` (numbered 1, 2, ...) that a training uses.

    Args:
        root: folder of all runs of one asset.
        config: what will be trained.
        resume: `auto` continues the newest run if that can go on and has the same configuration, else begins the
            next; `never` begins the next; `must` continues the newest; anything else is the path of the workspace to
            continue.

    Raises:
        WorkspaceError: `must` or a path, and there is nothing to continue or its configuration differs.
    """
    if resume not in ("auto", "never", "must"):
        workspace = Workspace(Path(resume).resolve())
        if not workspace.config_path.is_file():
            raise WorkspaceError(workspace.path, "must be the workspace of a training", found="no config.json")
        return WorkspaceChoice(workspace.path, True, _changes(workspace, config))

    numbers = sorted(_run_numbers(root))
    newest = Workspace(root / str(numbers[-1])) if numbers else None
    following = root / str(numbers[-1] + 1 if numbers else 1)
    if newest is None:
        if resume == "must":
            raise WorkspaceError(
                root, "must hold a run to continue", found="none", fix="Use resume `auto` for the first run."
            )
        return WorkspaceChoice(following, False, [])
    changed = _changes(newest, config)
    if resume == "must":
        if changed:
            raise WorkspaceError(
                newest.path,
                "must have been trained with this configuration",
                found=f"other values of {', '.join(changed)}",
                fix="Use resume `never` for a new run, or give the path of this workspace to accept the change.",
            )
        return WorkspaceChoice(newest.path, True, [])
    status = newest.status()
    may_go_on = status is None or (status.state != "finished" and status.resumable)
    if resume == "auto" and may_go_on and not changed:
        return WorkspaceChoice(newest.path, True, [])
    return WorkspaceChoice(following, False, changed)


def finished_workspaces(root: Path) -> list[Workspace]:
    """The finished runs below `root`, newest first."""
    workspaces = [Workspace(root / str(number)) for number in sorted(_run_numbers(root), reverse=True)]
    return [each for each in workspaces if (status := each.status()) is not None and status.state == "finished"]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object under its final name at once."""
    with atomic_open(path) as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())


def _run_numbers(root: Path) -> list[int]:
    return [int(path.name) for path in root.glob("*") if path.name.isdigit()] if root.is_dir() else []


def _changes(workspace: Workspace, config: TrainConfig) -> list[str]:
    before = _read_json(workspace.config_path)
    if before is None:
        return []
    return changed_keys({key: value for key, value in before.items() if key not in NOT_OF_THE_MODEL}, config.identity())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def parse_checkpoint_flag(text: str) -> int | Path | Literal["latest"]:
    """What `--checkpoint` names: the newest checkpoint, a step of this workspace, or a file.

    Raises:
        ConfigError: it is none of the three.
    """
    if text == "latest":
        return "latest"
    if text.isdigit():
        return int(text)
    if text.endswith((".pt", ".pth", ".safetensors")) or Path(text).is_file():
        return Path(text)
    raise ConfigError("--checkpoint", "must be `latest`, a step number or the path of a `.pt` file", found=repr(text))
