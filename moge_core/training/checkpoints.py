"""Saving and loading the state of a training run: weights, average, optimiser, schedule, counters.

The `.pt` files have the published contents (`{step}.pt`, `{step}_ema.pt`: model_config, model; `{step}_optimizer.pt`:
model_config, step, optimizer, lr_scheduler; `latest.pt`: model_config, step), so the published tools read them. What
they cannot hold stands in the manifest beside them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch

from moge_core import __version__
from moge_core.configuration import load_json
from moge_core.errors import CheckpointError, WorkspaceError
from moge_core.io.files import atomic_open, file_digest, sync_folder
from moge_core.models.weights import read_tensors
from moge_core.training.workspace import CheckpointInfo, Workspace, parse_checkpoint_flag, write_json

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """All that a resumed run needs. `step` is the last finished optimiser step.

    Attributes:
        model: state_dict of the model.
        ema: state_dict of the moving average, None without one.
        ema_updates: how many updates that average has seen.
        counters: further integers and floats (skipped steps, partial sums of the metrics since the last log).
    """

    step: int
    model_config: Mapping[str, Any]
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any] | None = None
    lr_scheduler: Mapping[str, Any] | None = None
    scaler: Mapping[str, Any] | None = None
    ema: Mapping[str, torch.Tensor] | None = None
    ema_updates: int = 0
    counters: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def without_tensors(self) -> TrainingState:
        """What a process is told that another one sends the tensors to: what there is, empty."""
        return replace(
            self,
            model={},
            optimizer=None if self.optimizer is None else {},
            ema=None if self.ema is None else {},
        )


def save_checkpoint(workspace: Workspace, state: TrainingState, lineage: Mapping[str, Any]) -> CheckpointInfo:
    """Write one checkpoint so that it is either complete or absent.

    Each file gets its final name when it is whole and on disk; the manifest comes after the files it names, then
    `latest.pt`.

    Args:
        lineage: goes into the manifest: configuration digest, dataset digests, parent checkpoint.

    Raises:
        WorkspaceError: the disk is full or not writable; what was written before stays loadable.
    """
    folder = workspace.checkpoint_dir
    model_config = dict(state.model_config)
    name = f"{state.step:08d}"
    contents: dict[str, dict[str, Any]] = {f"{name}.pt": {"model_config": model_config, "model": state.model}}
    if state.optimizer is not None:
        contents[f"{name}_optimizer.pt"] = {
            "model_config": model_config,
            "step": state.step,
            "optimizer": state.optimizer,
            "lr_scheduler": state.lr_scheduler,
            **({"scaler": state.scaler} if state.scaler else {}),
        }
    if state.ema is not None:
        contents[f"{name}_ema.pt"] = {"model_config": model_config, "model": state.ema}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A step that is saved again is incomplete until its new manifest stands.
        (folder / f"{name}.json").unlink(missing_ok=True)
        files = {file_name: _save(folder / file_name, values) for file_name, values in contents.items()}
        manifest = {
            "step": state.step,
            "files": files,
            "ema_updates": state.ema_updates,
            "counters": state.counters,
            "code_version": __version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **lineage,
        }
        write_json(folder / f"{name}.json", manifest)
        contents = {}  # complete from here on
        _save(folder / "latest.pt", {"model_config": model_config, "step": state.step})
        sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch.save turns some failures of the disk into the latter
        for file_name in contents:  # a part of a checkpoint is of no use, and its room is needed
            with contextlib.suppress(OSError):
                (folder / file_name).unlink(missing_ok=True)
        raise WorkspaceError(
            folder,
            "must be writable to save a checkpoint",
            found=error,
            fix="Free some space; older checkpoints still load.",
        ) from error
    return workspace.checkpoint_at(state.step)


def load_training_state(workspace: Workspace, checkpoint: str) -> TrainingState | None:
    """The state that `--checkpoint` names; None for `latest` in a workspace that has none yet.

    Raises:
        CheckpointError: the file cannot be read or holds no model.
        WorkspaceError: there is no checkpoint of that step.
    """
    found = find_checkpoint(workspace, checkpoint)
    return None if found is None else read_checkpoint(found)


def find_checkpoint(workspace: Workspace, checkpoint: str) -> CheckpointInfo | Path | None:
    """The checkpoint that `--checkpoint` names, or a file; None for `latest` in a workspace that has none yet.

    `latest` takes the newest complete checkpoint; one whose files are not what its manifest says is passed over for the
    one before, and told. That reads all of it.

    Raises:
        CheckpointError: no checkpoint of the workspace is undamaged.
        WorkspaceError: there is no checkpoint of that step.
    """
    which = parse_checkpoint_flag(checkpoint)
    if which == "latest":
        return _find_newest(workspace)
    return workspace.checkpoint_at(which) if isinstance(which, int) else Path(which)


def read_checkpoint(found: CheckpointInfo | Path, *, with_average: bool = True) -> TrainingState:
    """The state that a checkpoint holds; its tensors are read from the files when they are used, see `read_tensors`.

    A `.pt` file that carries step, optimizer, lr_scheduler or ema_model is obeyed; a plain model file starts at step 0.

    Args:
        found: by `find_checkpoint`.
        with_average: whether to open the file of the moving average, too.

    Raises:
        CheckpointError: a file cannot be read or holds no model.
    """
    if isinstance(found, Path):
        return _read_single_file(found)
    return _read_from_workspace(found, with_average)


def _find_newest(workspace: Workspace) -> CheckpointInfo | None:
    complete = workspace.checkpoints()
    for step in workspace.incomplete_steps():
        if not complete or step > complete[-1].step:
            logger.warning("checkpoint %d of %s is not complete: it is passed over", step, workspace.path)
    for info in reversed(complete):
        try:
            check_files(info)
            read_checkpoint(info)
        except CheckpointError as error:
            logger.warning("checkpoint %d is damaged and passed over: %s", info.step, error)
        else:
            return info
    if any(re.fullmatch(r"\d{8,}", path.stem) for path in workspace.checkpoint_dir.glob("*.json")):
        raise CheckpointError(
            workspace.checkpoint_dir,
            "must hold an undamaged checkpoint",
            found="none",
            fix="Name a step to take its files as they are, or leave --checkpoint out to start anew.",
        )
    return _latest_without_manifest(workspace)


def check_files(info: CheckpointInfo) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
        CheckpointError: a file is missing or has another digest.
    """
    for name, recorded in info.manifest.get("files", {}).items():
        path = info.model_path.with_name(name)
        try:
            found = file_digest(path)
        except OSError as error:
            raise CheckpointError(path, "must be readable", found=error) from error
        if found != recorded["sha256"]:
            raise CheckpointError(path, "must have the digest that its manifest names", found=found[:16])


def parent_of(path: Path) -> dict[str, Any]:
    """How a checkpoint's manifest names the file that the training began with; its step where a manifest tells it."""
    path = path.resolve()
    manifest = path.with_name(path.name[:8] + ".json")
    step = load_json(manifest).get("step") if path.name[:8].isdigit() and manifest.is_file() else None
    return {"path": str(path), "sha256": file_digest(path), "step": step}


class _HashingWriter:
    """Passes bytes on to a file and hashes them on the way, so that a large checkpoint is not read again."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.sha256.update(view)
        self.num_bytes += view.nbytes
        return self.file.write(view)

    def flush(self) -> None:
        self.file.flush()


def _save(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    with atomic_open(path) as file:
        writer = _HashingWriter(file)
        # torch.save hands a writer without seek() its bytes in order, which is what makes hashing on the way possible.
        torch.save(values, writer)  # type: ignore[arg-type]
    return {"bytes": writer.num_bytes, "sha256": writer.sha256.hexdigest()}


def _read_from_workspace(info: CheckpointInfo, with_average: bool) -> TrainingState:
    model_file = _load_file(info.model_path)
    state = TrainingState(
        step=info.step,
        model_config=model_file["model_config"],
        model=model_file["model"],
        ema_updates=int(info.manifest.get("ema_updates", 1)),
        counters=dict(info.manifest.get("counters", {})),
        source=info.model_path,
        manifest=info.manifest,
    )
    if info.optimizer_path.is_file():
        optimizer_file = _load_file(info.optimizer_path, needs_model=False)
        state.optimizer = optimizer_file.get("optimizer")
        state.lr_scheduler = optimizer_file.get("lr_scheduler")
        state.scaler = optimizer_file.get("scaler")
    if info.ema_path is not None and with_average:
        state.ema = _load_file(info.ema_path)["model"]
    return state


def _read_single_file(path: Path) -> TrainingState:
    values = _load_file(path)
    return TrainingState(
        step=int(values.get("step", -1)),
        model_config=values["model_config"],
        model=values["model"],
        optimizer=values.get("optimizer"),
        lr_scheduler=values.get("lr_scheduler"),
        ema=values.get("ema_model"),
        ema_updates=1 if "ema_model" in values else 0,
        source=path,
    )


def _latest_without_manifest(workspace: Workspace) -> CheckpointInfo | None:
    """Workspaces of the published tool have no manifests; their latest.pt names the step."""
    latest = workspace.checkpoint_dir / "latest.pt"
    if not latest.is_file() or any(workspace.checkpoint_dir.glob("*.json")):
        return None
    return workspace.checkpoint_at(int(_load_file(latest, needs_model=False)["step"]))


def _load_file(path: Path, needs_model: bool = True) -> dict[str, Any]:
    values = read_tensors(path)
    if not isinstance(values, dict):
        raise CheckpointError(path, "must hold a dictionary", found=type(values).__name__)
    if needs_model and not {"model_config", "model"} <= values.keys():
        raise CheckpointError(
            path, "must hold `model_config` and `model`", found=f"keys {sorted(map(str, values))[:6]}"
        )
    return values
