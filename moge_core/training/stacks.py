"""Where a process that does not answer stands: the Python stack of each of its threads, read from outside.

py-spy reads the memory of the process, which works for one that is stopped or holds the interpreter's lock. Where the
kernel does not let it (ptrace is forbidden in some containers), faulthandler writes the stacks from a signal handler
in the process itself; it needs no lock, but a process that runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DUMP_SIGNAL = signal.SIGRTMIN + 5 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
"""Makes a rank write its stacks by faulthandler. Schedulers and libraries use the named signals."""

# Reading the memory of a process that runs may meet a half-changed list of frames.
_ATTEMPTS = 3
_PY_SPY_TIMEOUT_S = 20.0
_FAULTHANDLER_TIMEOUT_S = 5.0
# faulthandler is done when it has written nothing for so long.
_QUIET_S = 0.3


@dataclass(frozen=True)
class Stack:
    """What could be learnt of a process.

    Attributes:
        state: what the kernel says that it does, e.g. `T (stopped)`.
        where: innermost frame of its main thread, `function (file:line)`; empty where unknown.
        text: its stacks, or why they could not be had.
    """

    state: str
    where: str
    text: str


def take_stack(pid: int, dump: int, is_there: Callable[[], bool] = lambda: True) -> Stack:
    """The stacks of a process that may hang.

    Args:
        pid: of the process.
        dump: descriptor of the empty file that its faulthandler writes to at `DUMP_SIGNAL`.
        is_there: whether the number still is that process's; a stranger would die of the signal.
    """
    state = _status_of(pid).get("State", "gone")
    waits_in = _line(Path(f"/proc/{pid}/wchan"))  # a function of the kernel, 0 for none
    kernel = f"state {state}" + (f", waits in {waits_in}" if waits_in not in ("", "0") else "")
    threads, why_not = _from_py_spy(pid)
    if threads:
        return Stack(state, _innermost(threads), f"{kernel}\n\n{_as_text(threads)}")
    notes = f"{kernel}\nno stack by py-spy: {why_not}"
    if state.startswith(("T", "t")):
        return Stack(state, "", f"{notes}\nno stack by faulthandler: the process is stopped\n")
    written = _from_faulthandler(pid, dump) if is_there() else ""
    return Stack(state, "", f"{notes}\n\n{written or 'no stack by faulthandler: the process did not answer'}\n")


def _from_py_spy(pid: int) -> tuple[list[dict[str, Any]], str]:
    """The threads of the process, its main one first, and why there are none."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return [], "it is not installed"
    why_not = ""
    for _ in range(_ATTEMPTS):
        try:
            # Without --nonblocking it would stop the process, which one in an uninterruptible wait never does.
            command = [program, "dump", "--nonblocking", "--json", "--pid", str(pid)]
            result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PY_SPY_TIMEOUT_S)
            if result.returncode == 0:
                return sorted(json.loads(result.stdout), key=lambda thread: thread["os_thread_id"] != pid), ""
            why_not = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
            why_not = str(error)
    return [], why_not


def _from_faulthandler(pid: int, dump: int) -> str:
    os.kill(pid, DUMP_SIGNAL)
    size, deadline = 0, time.monotonic() + _FAULTHANDLER_TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(_QUIET_S)
        before, size = size, os.fstat(dump).st_size
        if size and size == before:
            break
    return os.pread(dump, size, 0).decode("utf-8", "replace")


def _innermost(threads: list[dict[str, Any]]) -> str:
    frames = threads[0]["frames"]
    return f"{frames[0]['name']} ({frames[0]['short_filename']}:{frames[0]['line']})" if frames else ""


def _as_text(threads: list[dict[str, Any]]) -> str:
    lines = []
    for thread in threads:
        lock = ", holds the interpreter's lock" if thread["owns_gil"] else ""
        lines.append(f"thread {thread['os_thread_id']} {thread['thread_name'] or ''}{lock}")
        lines += [f"    {frame['name']} ({frame['filename']}:{frame['line']})" for frame in thread["frames"]]
    return "\n".join([*lines, ""])


def _status_of(pid: int) -> Mapping[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
