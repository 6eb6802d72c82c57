"""What a cluster's job runs: the command, watched, and ended as a whole when the job is asked to end.

    python -m moge_pipeline.job_task --grace_s 120 --heartbeat FILE --abandoned_after_s 300 -- COMMAND...

SIGTERM, from the cluster or because a time limit is near, gives the command `grace_s` seconds to save and end, then
SIGKILL. The same happens when FILE has not changed for `abandoned_after_s` seconds: the launcher that watches the job
changes it all the time, so it is gone, and nobody else would ever end this job.

The tasks of a Slurm job are the machines of one training. Each fits `accelerate launch` to its place among them.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from moge_core.accelerators import allocator_environment
from moge_pipeline.accelerate_command import ACCELERATE, Machine, fitted_to, patience
from moge_pipeline.process_tree import ProcessTree

RENDEZVOUS_HOST = "MOGE_RENDEZVOUS_HOST"
"""Environment variable with the name of the node that runs a job's first task."""

_FIRST_PORT, _NUM_PORTS = 15000, 15000  # below those that systems hand out by themselves


class Heartbeat:
    """A file that changes as long as somebody watches.

    Its content is compared, not its time, because clocks of machines differ.
    """

    def __init__(self, path: Path | None, patience_s: float | None) -> None:
        self._path, self._patience_s = path, patience_s
        self._last, self._since = "", time.monotonic()

    def has_stopped(self) -> bool:
        """Whether the file has been the same for too long."""
        if self._path is None or self._patience_s is None:
            return False
        try:
            now = self._path.read_text()
        except OSError:
            now = self._last
        if now != self._last:
            self._last, self._since = now, time.monotonic()
        return time.monotonic() - self._since > self._patience_s


def machine_of_task() -> Machine:
    """The place of this task among those of its Slurm job; the only one outside of Slurm."""
    count = int(os.environ.get("SLURM_NTASKS", "1"))
    if RENDEZVOUS_HOST not in os.environ or count == 1:
        return Machine()
    host = "127.0.0.1" if os.environ.get("SLURM_JOB_NUM_NODES") == "1" else os.environ[RENDEZVOUS_HOST]
    # Jobs that follow each other never share a port, so two on one node do not get into each other's way.
    port = _FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % _NUM_PORTS
    return Machine(int(os.environ["SLURM_PROCID"]), count, host, port)


def run(command: Sequence[str], grace_s: float, heartbeat: Heartbeat) -> int:
    """Run `command` to its end, or until the job is asked to end; its exit code, as a shell would give it."""
    asked: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(signal.Signals(number).name))
    machine = machine_of_task()
    environment = {**patience(grace_s), **os.environ, **allocator_environment()}
    tree = ProcessTree(fitted_to(command, machine), environment, Path.cwd(), grace_s=grace_s, spared=ACCELERATE)
    while True:
        try:
            code = tree.wait(1.0)
            break
        except subprocess.TimeoutExpired:
            if machine.rank == 0 and heartbeat.has_stopped():
                asked.append("no sign of the launcher")
        if asked:
            print(f"Asking the training to save and end ({asked[0]}); it has {grace_s:g} s.", flush=True)
            break
    tree.terminate(grace_s)
    code = tree.wait()
    return code if code >= 0 else 128 - code


def main(arguments: Sequence[str]) -> int:
    """Parse what stands before `--` and run what stands after it."""
    parser = argparse.ArgumentParser(prog="moge_pipeline.job_task")
    parser.add_argument("--grace_s", type=float, default=120.0)
    parser.add_argument("--heartbeat", type=Path, default=None)
    parser.add_argument("--abandoned_after_s", type=float, default=None)
    split = list(arguments).index("--")
    options = parser.parse_args(arguments[:split])
    return run(arguments[split + 1 :], options.grace_s, Heartbeat(options.heartbeat, options.abandoned_after_s))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
