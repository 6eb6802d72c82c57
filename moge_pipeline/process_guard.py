"""Ties a process to its parent, so that nothing outlives a killed parent.

    python -m moge_pipeline.process_guard PARENT_PID COMMAND...

asks the kernel for SIGTERM at the parent's death and then becomes COMMAND. A wrapper instead of code between fork and
exec: Dagster's processes have threads, and Python code after the fork of a threaded process can deadlock. Only Linux
offers this; elsewhere the command runs unguarded.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


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


def main(arguments: list[str]) -> None:
    """Guard this process, then become the command."""
    parent_pid, *command = arguments
    die_with_parent(int(parent_pid))
    # What a shell starts with `&` ignores SIGINT and would hand that on; the command must hear the one that ends it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execvp(command[0], command)  # noqa: S606  # an argument list, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
