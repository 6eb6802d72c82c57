"""A child process together with everything that it starts, ended as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

MARK = "MOGE_PROCESS_TREE"
"""Environment variable that every process of a tree inherits. Sessions and parents cannot tell the members: torchrun
opens a session for each worker, and the children of a launcher that died belong to init."""


class ProcessTree:
    """Runs `argv` in a session of its own, outside the reach of the terminal's Ctrl-C, and tied to this process's life.

    Args:
        argv: the command, never a shell line.
        env: the whole environment of the command.
        cwd: its working directory.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, stdout: int | None = None) -> None:
        self.mark = uuid.uuid4().hex
        # A nested tree keeps the marks of those around it, so that ending an outer tree ends the inner ones.
        marks = f"{env[MARK]}:{self.mark}" if env.get(MARK) else self.mark
        guard = [sys.executable, "-m", "moge_pipeline.process_guard", str(os.getpid())]
        self.process = subprocess.Popen(
            [*guard, *argv],
            env={**env, MARK: marks},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT if stdout is not None else None,
            start_new_session=True,
        )

    def wait(self, timeout_s: float | None = None) -> int:
        """Block until the command ends; its exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended after `timeout_s` seconds.
        """
        return self.process.wait(timeout_s)

    def members(self) -> list[psutil.Process]:
        """Processes of the tree that are alive."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def terminate(self, grace_s: float, spare: Callable[[psutil.Process], bool] = lambda _: False) -> bool:
        """SIGTERM to every member, then SIGKILL to those alive after `grace_s` seconds. True if none needed SIGKILL.

        Args:
            spare: members that get no SIGTERM because they end with their children, and would kill them if asked to
            end.
        """
        deadline = time.monotonic() + grace_s
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                if not spare(process):
                    process.terminate()
        gone = self._wait_until(deadline)
        while not gone:
            for process in self.members():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if self._wait_until(time.monotonic() + 1):
                return False
        return True

    def _wait_until(self, deadline: float) -> bool:
        """Whether the tree is empty at the deadline."""
        while True:
            if not self.members():
                self.process.poll()  # takes the exit code of a child that just ended
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)

    def _owns(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # The child has no environment of its own before it runs; once its exit code is taken its number may be
            # another's.
            is_child = process.pid == self.process.pid and self.process.returncode is None
            return is_child or self.mark in process.environ().get(MARK, "")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM inside the block.

    One Ctrl-C reaches a step's process twice, from the terminal and from Dagster's executor; the second must not cut
    the cleanup short.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in held]
    try:
        yield
    finally:
        for number, handler in zip(held, before, strict=True):
            signal.signal(number, handler)
