"""What launchers that hand a command to a cluster share: the job's folder, its record, and how it is watched."""

from __future__ import annotations

import codecs
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import dagster as dg

from moge_pipeline.defs.resources.launchers.protocol import LaunchResources
from moge_pipeline.process_tree import interrupts_held

LAUNCH_TAG = "moge/launch"
"""Tag of a Dagster run that says, as JSON, which job of which cluster works for it; see `end_abandoned_launch`."""

_SECONDS_BETWEEN_TICKS = 0.5
_SECONDS_BETWEEN_BEATS = 5.0
_SECONDS_TO_DIE = 60.0
MARGIN_S = 10.0
"""A job ends its processes by itself when the grace period is over; it gets a little longer to say so."""


class Job(Protocol):
    """One job of a cluster."""

    def poll(self) -> int | None:
        """Its exit code once it has ended for good, and is not going to be started again; negative is a signal."""
        ...

    def has_started(self) -> bool:
        """Whether it ever ran, rather than waiting for its turn."""
        ...

    def ask_to_end(self) -> None:
        """SIGTERM to its command, or no beginning at all. Called again while it has not ended."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class LaunchFolder:
    """Files of one launch: what is given to the job and what it leaves, on the file system that both see."""

    def __init__(self, context: dg.AssetExecutionContext, resources: LaunchResources) -> None:
        asset = context.asset_key.path[-1]
        # A step that is retried is another launch: what is left of an earlier job must not reach it.
        self.name = f"{asset}-{context.run.run_id[:8]}-{context.retry_number}"
        self.path = resources.run_dir / "launch" / self.name
        self.path.mkdir(parents=True, exist_ok=True)
        self._last_beat, self._beats = -_SECONDS_BETWEEN_BEATS, 0

    @property
    def heartbeat_path(self) -> Path:
        """The file that changes as long as the job is watched."""
        return self.path / "heartbeat"

    def beat(self) -> None:
        """Tell the job every few seconds that somebody watches it."""
        if time.monotonic() - self._last_beat >= _SECONDS_BETWEEN_BEATS:
            self._beats, self._last_beat = self._beats + 1, time.monotonic()
            # A file system that is full or away for a moment must not end the watch.
            with contextlib.suppress(OSError):
                self.heartbeat_path.write_text(f"{self._beats}\n")

    def task(
        self, python: str, command: Sequence[str], resources: LaunchResources, abandoned_after_s: float | None
    ) -> list[str]:
        """The command that the job runs: `moge_pipeline.job_task` around `command`, both with that interpreter."""
        argv = [python, "-m", "moge_pipeline.job_task", "--grace_s", f"{resources.terminate_grace_s:g}"]
        if abandoned_after_s is not None:
            argv += ["--heartbeat", str(self.heartbeat_path), "--abandoned_after_s", f"{abandoned_after_s:g}"]
        return [*argv, "--", *([python, *command[1:]] if command[0] == sys.executable else command)]


class OutputTail:
    """Copies what others append to a file to this process's output, which Dagster keeps with the step."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def copy(self) -> None:
        """Write what is new."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except OSError:  # not written yet, or the file system is away for a moment
            return
        self._offset += len(content)
        if content:
            sys.stdout.write(self._decoder.decode(content))
            sys.stdout.flush()


def record_launch(context: dg.AssetExecutionContext, record: Mapping[str, str]) -> None:
    """Leave with the Dagster run what finds its job again when this process is gone."""
    context.instance.add_run_tags(context.run.run_id, {LAUNCH_TAG: json.dumps(dict(record))})
    context.log.info(f"Launched as {record['launcher']} job {record['id']}.")


def watch(
    context: dg.AssetExecutionContext, job: Job, resources: LaunchResources, tick: Callable[[], None]
) -> tuple[int, bool]:
    """Wait until the job has ended, or end it: at its maximum runtime, or because this step is interrupted.

    Args:
        tick: called about twice a second.

    Returns:
        its exit code, and whether it was ended because its time was over.
    """
    try:
        return _watch(context, job, resources, tick)
    except BaseException:
        with interrupts_held():
            _end(context, job, resources.terminate_grace_s, tick)
        raise


def _watch(
    context: dg.AssetExecutionContext, job: Job, resources: LaunchResources, tick: Callable[[], None]
) -> tuple[int, bool]:
    began: float | None = None
    while (code := _poll(job, tick)) is None:
        if began is None and job.has_started():
            began = time.monotonic()
        limit = resources.max_runtime_s
        if limit is not None and began is not None and time.monotonic() - began > limit:
            context.log.info(f"The training has run for {limit:g} s, its maximum.")
            return _end(context, job, resources.terminate_grace_s, tick), True
        time.sleep(_SECONDS_BETWEEN_TICKS)
    return code, False


def _end(context: dg.AssetExecutionContext, job: Job, grace_s: float, tick: Callable[[], None]) -> int:
    """Ask the job to end, kill it when the grace period is over, and wait until it is gone; its exit code."""
    context.log.info(f"Asking the training to save and end; it has {grace_s:g} s.")
    code = _wait(job, grace_s + MARGIN_S, tick, job.ask_to_end)
    if code is None:
        context.log.warning(f"Killing what is still running after {grace_s:g} s.")
        code = _wait(job, _SECONDS_TO_DIE, tick, job.kill)
    if code is None:
        context.log.error("The cluster does not say that the job is gone; look after it there.")
    return 1 if code is None else code


def _wait(job: Job, seconds: float, tick: Callable[[], None], insist: Callable[[], None]) -> int | None:
    """The job's exit code, or None if it has not ended in time. `insist` is called at once and every few seconds."""
    deadline = time.monotonic() + seconds
    again = time.monotonic()
    while (code := _poll(job, tick)) is None and time.monotonic() < deadline:
        if time.monotonic() >= again:
            insist()
            again = time.monotonic() + _SECONDS_BETWEEN_BEATS
        time.sleep(_SECONDS_BETWEEN_TICKS)
    return code


def _poll(job: Job, tick: Callable[[], None]) -> int | None:
    tick()
    code = job.poll()
    if code is not None:
        tick()  # what it wrote at its very end
    return code
