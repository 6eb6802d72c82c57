"""What a rank does to be watched: it starts its watcher and leaves its pulse where that can read it."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import logging
import mmap
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moge_core.loading.shared_memory import anonymous_file
from moge_core.training import watcher
from moge_core.training.stacks import DUMP_SIGNAL
from moge_core.training.watcher import PULSE_BYTES, STAGES, Pulse, Task

logger = logging.getLogger(__name__)

_STEP, _STAGE, _NUM_STAGES, _LOADER_ROUNDS = range(len(Pulse._fields))
_NUMBERS = {name: number for number, name in enumerate(STAGES)}
# The kernel's Yama lets a process trace its children only; this call of prctl allows one more.
_PR_SET_PTRACER = 0x59616D61
_SECONDS_TO_END = 10.0


class Watchdog:
    """Tells this rank's watcher, a process of its own (see `watcher`), how far the training is.

    Telling is a few writes to memory. The watcher ends with this process, however that ends.

    Args:
        workspace: where stacks and the status go if the training hangs.
        timeout_s: seconds without a finished step, or a finished part of one, after which it hangs; 0 starts no
            watcher.
        rank: of this process.
        world_size: number of ranks.
        num_iterations: the end of the training, for its status.
        compiles: whether torch.compile is used, which may take minutes in the middle of a step.
    """

    def __init__(
        self, workspace: Path, timeout_s: float, *, rank: int, world_size: int, num_iterations: int, compiles: bool
    ) -> None:
        self._stage = "start"
        self._slots: Any = [0] * len(Pulse._fields)
        self._process: subprocess.Popen[bytes] | None = None
        self._undo = contextlib.ExitStack()
        if timeout_s > 0:
            pulse, dump = anonymous_file(), anonymous_file()
            os.ftruncate(pulse, PULSE_BYTES)
            # Eight bytes are written at once, so a reader finds no half of a number.
            self._slots = memoryview(mmap.mmap(pulse, PULSE_BYTES)).cast("q")
            faulthandler.register(DUMP_SIGNAL, file=dump, all_threads=True, chain=False)
            theirs, lifeline = os.pipe()
            task = Task(
                workspace=str(workspace.absolute()),
                timeout_s=timeout_s,
                rank=rank,
                world_size=world_size,
                num_iterations=num_iterations,
                pid=os.getpid(),
                pulse=pulse,
                dump=dump,
                lifeline=theirs,
            )
            self._process = subprocess.Popen(
                [sys.executable, "-P", watcher.__file__, json.dumps(asdict(task))],
                pass_fds=(pulse, dump, theirs),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            for descriptor in (pulse, theirs):
                os.close(descriptor)
            with contextlib.suppress(AttributeError, OSError):
                ctypes.CDLL(None).prctl(_PR_SET_PTRACER, self._process.pid, 0, 0, 0)
            # Also when a training is dropped before it began.
            self._undo.callback(weakref.finalize(self, _end, self._process, lifeline, dump))
        if compiles:
            self._excuse_compilation()
        self._slots[_STEP] = -1
        self.enter("start")

    def enter(self, stage: str) -> str:
        """The rank is in another stage now.

        Args:
            stage: one of `STAGES`, or any other part of a step.

        Returns:
            the stage before, to go back to.
        """
        before, self._stage = self._stage, stage
        self._slots[_NUM_STAGES] += 1
        self._slots[_STAGE] = _NUMBERS.get(stage, 0)
        return before

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The rank is in a stage inside the `with` block."""
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def finished(self, step: int) -> None:
        """The rank has finished a step."""
        self._slots[_STEP] = step
        self._slots[_NUM_STAGES] = 0
        self.enter("step")
        if self._process is not None and self._process.poll() is not None:
            logger.warning("the watchdog ended with exit code %s; a hang will not be noticed", self._process.returncode)
            self._process = None

    def loader_lives(self) -> None:
        """The loader has looked after its workers; called from its thread."""
        self._slots[_LOADER_ROUNDS] += 1

    def close(self) -> None:
        """End the watching. Safe to call more than once."""
        self._process = None
        self._undo.close()

    def _excuse_compilation(self) -> None:
        """Let torch.compile say when it works: it begins in the first step, and again when sizes change."""
        from torch._dynamo.callback import callback_handler

        before: list[str] = []

        def begin(*_: object) -> None:
            before.append(self.enter("compile"))

        def end(*_: object) -> None:
            self.enter(before.pop())

        callback_handler.register_start_callback(begin)
        callback_handler.register_end_callback(end)
        self._undo.callback(callback_handler.remove_start_callback, begin)
        self._undo.callback(callback_handler.remove_end_callback, end)


def _end(process: subprocess.Popen[bytes], lifeline: int, dump: int) -> None:
    os.close(lifeline)
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:  # what this process has forked may hold the pipe, too
        process.kill()
        process.wait()
    faulthandler.unregister(DUMP_SIGNAL)
    os.close(dump)
