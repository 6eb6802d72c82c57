"""What a training says of itself: metrics and system figures, its status, a bar, and how it ended."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator
from tqdm import tqdm

from moge_core.errors import MoGeError, TrainingError
from moge_core.loading import TrainLoader
from moge_core.loading.stages import StageClock
from moge_core.training.determinism import refusal
from moge_core.training.devices import system_figures
from moge_core.training.flags import TrainFlags
from moge_core.training.memory import Work, out_of_memory
from moge_core.training.timing import DeviceClock
from moge_core.training.tracking import Observer, Observers
from moge_core.training.workspace import RunStatus, Workspace

logger = logging.getLogger(__name__)


class Report:
    """The voice of one process of a training; rank 0 speaks for all, but any rank may say why it failed.

    Attributes:
        observers: hear of it, on rank 0.
        work: what the network is at work on, as the trainer sets it.

    Args:
        workspace: whose status is kept.
        accelerator: of this process.
        flags: of the training.
        global_batch: images in a step.
        first_step: where the training begins.
        observers: become those of this process, on rank 0.
    """

    def __init__(
        self,
        workspace: Workspace,
        accelerator: Accelerator,
        *,
        flags: TrainFlags,
        global_batch: int,
        first_step: int,
        observers: Sequence[Observer],
    ) -> None:
        self._workspace, self._accelerator = workspace, accelerator
        self._flags, self._num_iterations, self._global_batch = flags, flags.num_iterations, global_batch
        self.work: Work | None = None
        self._is_main: bool = accelerator.is_main_process
        self._logged_step, self._logged_at = first_step - 1, time.perf_counter()
        self._progress: Any = None
        self._first_step = first_step
        self.observers = Observers(observers if self._is_main else [])

    def begin(self, parameters: Mapping[str, Any]) -> None:
        """The training is about to start."""
        self._logged_at = time.perf_counter()
        if self._is_main:
            self.observers.on_start(self._workspace.path, parameters)
            self._say_running(self._first_step - 1)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Any]:
        """A bar for a terminal; a log file gets a line at each log step instead."""
        with tqdm(
            total=self._num_iterations,
            initial=self._first_step,
            disable=None if self._is_main else True,
            unit="step",
            dynamic_ncols=True,
        ) as self._progress:
            yield self._progress

    def log(
        self, step: int, metrics: Mapping[str, float], clock: StageClock | DeviceClock, loader: TrainLoader
    ) -> None:
        """Metrics of the run, and what this process spent since the last log."""
        now = time.perf_counter()
        steps, seconds = max(step - self._logged_step, 1), max(now - self._logged_at, 1e-9)
        self._logged_step, self._logged_at = step, now
        figures = {f"step.{phase}_share": spent / seconds for phase, spent in clock.wall.items()}
        figures |= {"images_per_second": self._global_batch * steps / seconds, "step.seconds": seconds / steps}
        figures |= loader.statistics().metrics() | system_figures(self._accelerator.device)
        loader.statistics().reset()
        if not self._is_main:
            return
        self.observers.on_log(step, metrics)
        self.observers.on_system(step, figures)
        loss = f"{metrics.get('loss', float('nan')):.4g}"
        self._progress.set_postfix(loss=loss)
        if self._progress.disable:
            logger.info("step %d of %d: loss %s", step, self._num_iterations, loss)
        self._say_running(step)

    def end(
        self,
        state: Literal["finished", "interrupted", "failed"],
        reason: str,
        step: int,
        loader: TrainLoader,
        *,
        resumable: bool,
    ) -> RunStatus:
        """The training is over."""
        status = RunStatus(state, reason, step, self._num_iterations, resumable)
        for failure in loader.failures:
            logger.warning("skipped %s of %s: %s, %s", failure.instance, failure.dataset, failure.rule, failure.detail)
        if self._is_main:
            self.observers.on_end(status)
        if self._is_first_to_tell(state):
            try:
                self._workspace.write_status(status)
            except OSError as error:  # a full disk; the reason must not be hidden by that
                logger.error("the ending (%s: %s) cannot be written: %s", state, reason, error)  # noqa: TRY400
        return status

    def cause_of(self, error: BaseException, *, sharded: bool) -> BaseException:
        """What to tell of an error: the loss of another process has a name, a lack of memory its work and ways out.

        Args:
            error: that ended the training.
            sharded: whether weights are spread over the processes.
        """
        if isinstance(error, torch.OutOfMemoryError):
            return out_of_memory(error, self.work, self._flags, sharded=sharded)
        if (refused := refusal(error)) is not None:
            return refused
        num_processes: int = self._accelerator.num_processes
        if num_processes > 1 and isinstance(error, RuntimeError) and not isinstance(error, MoGeError):
            return TrainingError(
                f"process {self._accelerator.process_index} of {num_processes}",
                "needs all other processes of the training",
                found=str(error).splitlines()[0],
                fix="Another one has died; its own message says why. `--checkpoint latest` goes on.",
            )
        return error

    def _say_running(self, step: int) -> None:
        try:
            self._workspace.write_status(RunStatus("running", "training", step, self._num_iterations, resumable=True))
        except OSError as error:  # a training of days must not end over that
            logger.warning("the status cannot be written: %s", error)

    def _is_first_to_tell(self, state: str) -> bool:
        """After one rank failed, the others merely see that it is gone."""
        if state != "failed":
            return self._is_main
        before = self._workspace.status()
        return before is None or before.state != "failed"
