"""The process that executes a run, known well enough to tell later whether it is still there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from multiprocessing import resource_tracker
from pathlib import Path

import dagster as dg
import psutil

from moge_pipeline.process_guard import die_with_parent
from moge_pipeline.process_tree import MARK, marked, with_mark

WORKER_TAG = "moge/worker"
"""Tag of a run: its worker, and the run itself, as JSON."""
WORKER_PID = "MOGE_RUN_WORKER"
"""Environment variable by which a step's process knows the run's worker, its parent."""


_HAS_PROC = Path("/proc/self/stat").is_file()


class Presence(Enum):
    """What this machine can say of a worker."""

    HERE = "here"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Worker:
    """A process on a machine, not to be confused with another that has its number.

    Attributes:
        host: name of the machine.
        machine: identity of its installation, since names are given twice; empty where there is none.
        namespace: of the process numbers: each container counts its own.
        boot: identity of the machine's boot.
        pid: number of the process.
        start: when it began, in a unit of its own: numbers are reused, and clocks are set.
    """

    host: str
    machine: str
    namespace: str
    boot: str
    pid: int
    start: str

    @classmethod
    def here(cls, pid: int | None = None) -> Worker:
        """The process of this machine with the number `pid`, by default the current one."""
        pid = os.getpid() if pid is None else pid
        return cls(
            host=socket.gethostname(),
            machine=_line(Path("/etc/machine-id")),
            namespace=_namespace(),
            boot=_line(Path("/proc/sys/kernel/random/boot_id")),
            pid=pid,
            start=_start_of(pid) or "",
        )

    @classmethod
    def of_run(cls, run: dg.DagsterRun) -> Worker | None:
        """The worker that a run names; None where it names none.

        A run that is executed again has the tags of its parent, and the parent's worker is none of its own.
        """
        try:
            values = json.loads(run.tags.get(WORKER_TAG, "null"))
            return cls(**values["worker"]) if values["run"] == run.run_id else None
        except (KeyError, TypeError, ValueError):
            return None

    def tags(self, run_id: str) -> dict[str, str]:
        """How a run names this worker."""
        return {WORKER_TAG: json.dumps({"run": run_id, "worker": asdict(self)})}

    def presence(self) -> Presence:
        """Whether the process is there. Only what is known for certain counts: UNKNOWN for all of another machine."""
        here = Worker.here()
        if (self.host, self.machine) != (here.host, here.machine) or not self.start:
            return Presence.UNKNOWN
        if self.boot != here.boot:
            # No process outlives a boot; but without an identity it may be another machine of the same name.
            return Presence.GONE if self.machine else Presence.UNKNOWN
        if self.namespace != here.namespace:
            return Presence.UNKNOWN
        start = _start_of(self.pid)
        if start is None:
            return Presence.UNKNOWN if _exists(self.pid) else Presence.GONE
        return Presence.HERE if start == self.start else Presence.GONE


def run_mark(run_id: str) -> str:
    """What all processes of a run bear in `MARK`, except for its worker."""
    return f"run-{run_id}"


def processes_of(run_id: str) -> list[psutil.Process]:
    """Steps and trainings of a run that are alive on this machine."""
    return marked(run_mark(run_id))


@contextmanager
def marked_children(run_id: str) -> Iterator[None]:
    """What this process starts inside the block bears the run's mark and knows its worker."""
    # Python's own helper for its child processes is started with the first of them, and ends with this process.
    resource_tracker.ensure_running()
    before = {name: os.environ.get(name) for name in (MARK, WORKER_PID)}
    os.environ |= {MARK: with_mark(os.environ, run_mark(run_id)), WORKER_PID: str(os.getpid())}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def begin_step() -> None:
    """Tie a step's process to the run's worker: without it nobody would hear how the step ends.

    To be called first of all by every asset that works for longer than a moment. The step is interrupted, as if it
    were cancelled, when the worker has been killed.
    """
    worker = os.environ.get(WORKER_PID)
    if worker is not None and worker == str(os.getppid()):
        die_with_parent(int(worker))


def _start_of(pid: int) -> str | None:
    """When a process began; None for none, a zombie, or one that cannot be seen."""
    if _HAS_PROC:
        try:
            # Ticks since the boot, which no clock changes. The name, second of the fields, may hold anything.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
    except psutil.Error:
        return None


def _exists(pid: int) -> bool:
    """Whether there is a process that cannot be seen, such as another user's; a zombie is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
