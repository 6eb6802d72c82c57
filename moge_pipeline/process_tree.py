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
        stdout: where its output goes, as `subprocess.Popen` takes it; None leaves it with this process's own.
        grace_s: seconds that all of the tree has to end once this process is gone, however that came about. None
            sends a SIGTERM to the command alone, and leaves the rest to it.
        spared: members with this word among their arguments get no SIGTERM, because they end with their children and
            would kill them if asked to end.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        stdout: int | None = None,
        *,
        grace_s: float | None = None,
        spared: str = "",
    ) -> None:
        self.mark = uuid.uuid4().hex
        self._spared = spared
        self._is_watched = grace_s is not None
        guard = [sys.executable, "-m", "moge_pipeline.process_guard", str(os.getpid())]
        guard += ["-", "-"] if grace_s is None else [str(grace_s), spared]
        self.process = subprocess.Popen(
            [*guard, *argv],
            # A nested tree keeps the marks of those around it, so that ending an outer tree ends the inner ones.
            env={**env, MARK: with_mark(env, self.mark)},
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

    def terminate(self, grace_s: float) -> bool:
        """SIGTERM to every member, then SIGKILL to those alive after `grace_s` seconds. True if none needed SIGKILL."""

        def alive() -> list[psutil.Process]:
            self.process.poll()  # takes the exit code of a child that just ended
            return self.members()

        def is_spared(process: psutil.Process) -> bool:
            # The guard ends with the command, and hands on its exit code.
            is_guard = self._is_watched and process.pid == self.process.pid
            return is_guard or has_argument(process, self._spared)

        return end_processes(alive, grace_s, is_spared)

    def _owns(self, process: psutil.Process) -> bool:
        # The child has no environment of its own before it runs; once its exit code is taken its number may be
        # another's.
        is_child = process.pid == self.process.pid and self.process.returncode is None
        return (is_child and is_running(process)) or has_mark(process, self.mark)


def with_mark(env: Mapping[str, str], mark: str) -> str:
    """The value of `MARK` that adds a mark to those of `env`."""
    return f"{env[MARK]}:{mark}" if env.get(MARK) else mark


def marked(mark: str) -> list[psutil.Process]:
    """Processes of this machine, and of a user whose environment may be read, that run and have the mark."""
    return [process for process in psutil.process_iter() if has_mark(process, mark)]


def has_mark(process: psutil.Process, mark: str) -> bool:
    """Whether a process runs and has the mark."""
    try:
        return is_running(process) and mark in process.environ().get(MARK, "").split(":")
    except (psutil.Error, OSError):
        return False


def is_running(process: psutil.Process) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def has_argument(process: psutil.Process, word: str) -> bool:
    """Whether the word is one of the process's arguments."""
    try:
        return bool(word) and word in process.cmdline()
    except psutil.Error:
        return False


def end_processes(
    find: Callable[[], list[psutil.Process]], grace_s: float, spare: Callable[[psutil.Process], bool]
) -> bool:
    """SIGTERM to what `find` finds, then SIGKILL to what it still finds after `grace_s` seconds.

    Args:
        find: the processes that are alive now; those that it no longer finds have ended.
        grace_s: seconds between the signals. Processes that are started meanwhile get their SIGTERM, too.
        spare: which of them get no SIGTERM.

    Returns:
        whether none needed SIGKILL.
    """
    deadline = time.monotonic() + grace_s
    asked: set[psutil.Process] = set()
    while processes := find():
        if time.monotonic() >= deadline:
            _kill(find)
            return False
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if process not in asked and not spare(process):
                    process.terminate()
                    asked.add(process)
        time.sleep(0.1)
    return True


def _kill(find: Callable[[], list[psutil.Process]]) -> None:
    while processes := find():
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.1)


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
