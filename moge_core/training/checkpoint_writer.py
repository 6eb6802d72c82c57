"""Checkpoints written beside the training, which waits only until it has been copied."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import torch

from moge_core.errors import WorkspaceError
from moge_core.training.checkpoints import TrainingState, save_checkpoint
from moge_core.training.workspace import CheckpointInfo, Workspace


class CheckpointWriter:
    """One thread that writes one checkpoint at a time.

    `save` copies the state to the host's memory and returns. While a checkpoint is being written the next one waits
    before it is copied, so there is never more than one copy.

    Args:
        workspace: where to.
        keep_last: how many of the newest to keep; 0 keeps all.
        keep_every: keep those of multiples of this step, too; 0 for none.
    """

    def __init__(self, workspace: Workspace, keep_last: int = 0, keep_every: int = 0) -> None:
        self._workspace = workspace
        self._keep_last, self._keep_every = keep_last, keep_every
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="moge-checkpoint")
        self._pending: Future[CheckpointInfo] | None = None
        self._written: list[CheckpointInfo] = []
        self._copies: dict[str, Any] = {}

    def save(self, state: TrainingState, lineage: Mapping[str, Any], best: Mapping[str, Any] | None = None) -> None:
        """Copy `state` and have it written.

        Args:
            state: what to save.
            lineage: goes into the manifest.
            best: what best.json is to say, when this is the best checkpoint so far.

        Raises:
            WorkspaceError: the checkpoint before could not be written.
        """
        self.wait()
        # Into the memory of the last copy, which nobody reads any more: new memory costs as much as the copying.
        self._copies = {
            field.name: host_copy(getattr(state, field.name), self._copies.get(field.name)) for field in fields(state)
        }
        self._pending = self._executor.submit(self._write, replace(state, **self._copies), dict(lineage), best)

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            WorkspaceError: it could not be.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._written.append(pending.result())

    def take_written(self) -> list[CheckpointInfo]:
        """Checkpoints that have become complete since the last call.

        Raises:
            WorkspaceError: one could not be written.
        """
        if self._pending is not None and self._pending.done():
            self.wait()
        written, self._written = self._written, []
        return written

    def close(self) -> None:
        """End the thread, after the checkpoint at hand; how that went is told by `wait` alone."""
        self._executor.shutdown(wait=True)

    def _write(
        self, state: TrainingState, lineage: Mapping[str, Any], best: Mapping[str, Any] | None
    ) -> CheckpointInfo:
        info = save_checkpoint(self._workspace, state, lineage)
        if best is not None:
            try:
                self._workspace.write_best(best)
            except OSError as error:
                raise WorkspaceError(self._workspace.path, "must be writable", found=error) from error
        if self._keep_last:
            with contextlib.suppress(OSError):  # what cannot be removed stays
                self._workspace.prune(self._keep_last, self._keep_every)
        return info


def host_copy(value: Any, into: Any = None) -> Any:
    """A copy, with all tensors in the host's memory, that the training cannot change any more.

    Args:
        value: tensors in dictionaries and lists, among other values.
        into: an earlier copy of the like, whose memory is used again.
    """
    if isinstance(value, torch.Tensor):
        if isinstance(into, torch.Tensor) and into.shape == value.shape and into.dtype == value.dtype:
            return into.copy_(value.detach())
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        before = into if isinstance(into, Mapping) else {}
        return {key: host_copy(item, before.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        earlier = into if isinstance(into, list | tuple) and len(into) == len(value) else [None] * len(value)
        return type(value)(host_copy(item, old) for item, old in zip(value, earlier, strict=True))
    return value
