"""Ties a command to the process that started it, so that nothing outlives a killed parent.

    python -m moge_pipeline.process_guard PARENT_PID - - COMMAND...
    python -m moge_pipeline.process_guard PARENT_PID GRACE_S SPARED COMMAND...

The first asks the kernel for SIGTERM at the parent's death and becomes COMMAND. The second stays beside COMMAND: when
the parent is gone, or this process is asked to end, every process of the tree gets SIGTERM, except for those that have
the word SPARED among their arguments, and what still runs after GRACE_S seconds is killed. A trainer that hangs in a
collective operation would otherwise be there for ever.

A process of its own instead of code between fork and exec: Dagster's processes have threads, and Python code after the
fork of a threaded process can deadlock. Where the kernel does not signal a parent's death (it does on Linux only), the
second form looks for it every second, and the first is unguarded.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
SECONDS_BETWEEN_LOOKS = 1.0


def die_with_parent(parent_pid: int | None = None, death_signal: signal.Signals = signal.SIGTERM) -> None:
    """Ask for `death_signal` when the parent ends. Leaves at once if `parent_pid`, when given, is already gone."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    # The parent may have died before the call above; the kernel does not signal for the past.
    if parent_pid is not None and os.getppid() != parent_pid:
        sys.exit(128 + death_signal)


def become(parent_pid: int, command: Sequence[str]) -> None:
    """Guard this process, then turn into the command."""
    die_with_parent(parent_pid)
    # What a shell starts with `&` ignores SIGINT and would hand that on; the command must hear the one that ends it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execvp(command[0], list(command))  # noqa: S606  # an argument list, no shell


def watch(parent_pid: int, grace_s: float, spared: str, command: Sequence[str]) -> int:
    """Run the command beside this process; its exit code, negative for a signal.

    Args:
        parent_pid: whose death ends the tree.
        grace_s: seconds between SIGTERM and SIGKILL.
        spared: processes with this word among their arguments get no SIGTERM.
        command: an argument list.
    """
    from moge_pipeline.process_tree import MARK, end_processes, has_argument, marked

    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    asked_to_end = False

    def note(number: int, _: object) -> None:
        nonlocal asked_to_end
        asked_to_end = asked_to_end or number == signal.SIGTERM

    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, note)
    die_with_parent(parent_pid)
    myself = os.getpid()
    # This process has no threads, so code before the exec is safe; should this one be killed, the command hears of it.
    child = subprocess.Popen(command, preexec_fn=lambda: die_with_parent(myself))  # noqa: PLW1509
    while child.poll() is None and not asked_to_end and os.getppid() == parent_pid:
        select.select([woken], [], [], SECONDS_BETWEEN_LOOKS)
        while select.select([woken], [], [], 0)[0]:
            os.read(woken, 512)
    if asked_to_end or os.getppid() != parent_pid:
        mark = os.environ[MARK].rpartition(":")[2]

        def members() -> list[object]:
            child.poll()  # takes the exit code of a child that just ended
            return [process for process in marked(mark) if process.pid != myself]

        end_processes(members, grace_s, spare=lambda process: has_argument(process, spared))
    return child.wait()


def main(arguments: list[str]) -> int:
    """The two forms of the command line; the exit code is the command's."""
    parent_pid, grace_s, spared, *command = arguments
    if grace_s == "-":
        become(int(parent_pid), command)
    code = watch(int(parent_pid), float(grace_s), spared, command)
    if code < 0:
        # Whoever waits for this process must see the signal that ended the command; its core is of no use.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
