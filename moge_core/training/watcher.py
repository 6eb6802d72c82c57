"""The process that watches one rank of a training: what hangs is found, shown and ended.

    python moge_core/training/watcher.py '{"workspace": ..., "timeout_s": 600, ...}'       started by `Watchdog`

A rank that hangs cannot say so: it may be stopped, loop for ever, or hold the interpreter's lock in C. Its watcher is
a child of its own that reads the rank's pulse from shared memory: the last finished step, the stage it is in, and how
many stages it has entered since. Between machines watchers know each other by files in the workspace:

    .heartbeats/rank_0.json      what the watcher of rank 0 last saw, written anew every few seconds
    .heartbeats/hang.json        the training hangs; made by the first to find it, obeyed by all
    stacks/00000012_20260102T030405Z/rank_0.txt, ..., summary.txt

A training hangs when no rank moves. One that waits in a collective for another that saves does not move, but the other
is allowed to take its time, and so are both. All watchers then write the stack of their rank and stop it, so that it
cannot react to the end of the others; that of rank 0 sets the status; last, each kills its rank.

Only the standard library is imported while nothing hangs: a watcher takes 10 MB and a few milliseconds an hour.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

STAGES = (
    *("step", "wait", "forward", "losses", "backward", "other", "optimiser"),
    *("start", "compile", "save", "evaluate", "pictures", "end"),
)
"""Where a rank can be; its number here stands in the shared memory. `step` is what lies between the others."""
PATIENT_STAGES = frozenset({"start", "compile", "save", "evaluate", "pictures", "end"})
"""Stages that may take long."""

PULSE_BYTES = mmap.PAGESIZE
PATIENCE_S = 3600.0
"""How much longer than a stage of a step another one may take: minutes of evaluation or of a slow disk are no hang."""

_MAX_POLL_S = 5.0
_POLLS_PER_TIMEOUT = 20
# A file of another rank that has not changed for so many polls tells nothing; shared disks show changes late.
_POLLS_UNTIL_STALE = 12
# How long the watcher of rank 0 waits for the stacks of the others. One takes well under a second.
_GRACE_S = 30.0


def longest_stage_s(timeout_s: float) -> float:
    """After how many seconds in one stage a rank is taken for hung, whatever the stage."""
    return timeout_s + PATIENCE_S


class Pulse(NamedTuple):
    """What a rank tells, in the order of the shared memory.

    Attributes:
        step: the last finished step.
        stage: number of the stage that it is in.
        num_stages: how often it entered or left one since that step.
        loader_rounds: how often its loader looked after its workers.
    """

    step: int
    stage: int
    num_stages: int
    loader_rounds: int


class Judge:
    """Whether one rank moves, from looks at its pulse.

    A rank moves when it enters another stage or finishes a step, or while it waits for data and its loader lives: the
    loader itself replaces workers that are stuck.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.pulse: Pulse | None = None
        self.in_stage_s = 0.0
        self._silent_s = 0.0

    @property
    def stage(self) -> str:
        """Name of the stage at the last look."""
        return STAGES[self.pulse.stage] if self.pulse else "start"

    def look(self, pulse: Pulse, seconds: float) -> None:
        """Take in the pulse of now, `seconds` after the last one."""
        before, self.pulse = self.pulse, pulse
        if before is None or before[:3] != pulse[:3]:
            self.in_stage_s = self._silent_s = 0.0
            return
        self.in_stage_s += seconds
        loads = self.stage == "wait" and before.loader_rounds != pulse.loader_rounds
        self._silent_s = 0.0 if loads else self._silent_s + seconds

    @property
    def is_over(self) -> bool:
        """Whether it has stood still for longer than it may."""
        is_silent = self._silent_s > self._timeout_s and self.stage not in PATIENT_STAGES
        return is_silent or self.in_stage_s > longest_stage_s(self._timeout_s)


@dataclass(frozen=True)
class Task:
    """What a watcher is told when it is started; `pulse`, `dump` and `lifeline` are descriptors that it inherits."""

    workspace: str
    timeout_s: float
    rank: int
    world_size: int
    num_iterations: int
    pid: int
    pulse: int
    dump: int
    lifeline: int

    @property
    def poll_s(self) -> float:
        """Seconds between looks."""
        return min(_MAX_POLL_S, self.timeout_s / _POLLS_PER_TIMEOUT)


class Group:
    """The watchers of all ranks, as far as the workspace shows them."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._folder = Path(task.workspace) / ".heartbeats"
        self._verdict = self._folder / "hang.json"
        self._num_published = 0
        self._seen: dict[int, tuple[Any, float]] = {}
        if task.rank == 0:  # what an earlier training left
            self._verdict.unlink(missing_ok=True)
        self._old_verdict = _identity(self._verdict)

    def publish(self, report: dict[str, Any]) -> None:
        """Tell the others of this rank."""
        self._num_published += 1
        report |= {"rank": self._task.rank, "tick": f"{os.getpid()}.{self._num_published}"}
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank_{self._task.rank}.json"
        fragment = path.with_suffix(".tmp")
        fragment.write_text(json.dumps(report), encoding="utf-8")
        fragment.replace(path)

    def reports(self) -> list[dict[str, Any]]:
        """What is known of the ranks, in their order."""
        found = (_read(self._folder / f"rank_{rank}.json") for rank in range(self._task.world_size))
        return [report for report in found if report is not None]

    def others_move(self) -> bool:
        """Whether any other rank may still take its time, as far as it has been heard of lately."""
        moving, now = False, time.monotonic()
        for report in self.reports():
            rank = report["rank"]
            if rank == self._task.rank:
                continue
            if rank not in self._seen or self._seen[rank][0] != report["tick"]:
                self._seen[rank] = report["tick"], now
            is_stale = now - self._seen[rank][1] > _POLLS_UNTIL_STALE * self._task.poll_s
            moving = moving or not (report["over"] or is_stale)
        return moving

    def verdict(self) -> str | None:
        """Name of the hang that a watcher of this training has found."""
        if _identity(self._verdict) == self._old_verdict:
            return None
        name = (_read(self._verdict) or {}).get("name")
        return name if isinstance(name, str) else None

    def declare(self, step: int) -> str | None:
        """Say that the training hangs; the name of the hang, of whoever was first to say so."""
        if self._old_verdict is not None and _identity(self._verdict) == self._old_verdict:
            self._verdict.unlink(missing_ok=True)
        name = f"{max(step, 0):08d}_{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        self._folder.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: half a file on a full disk would be nobody's verdict, and in everybody's way.
        fragment = self._folder / f"hang_{self._task.rank}.tmp"
        fragment.write_text(json.dumps({"name": name}), encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(fragment, self._verdict)
        fragment.unlink()
        return self.verdict()

    def leave(self) -> None:
        """Remove what this rank alone needed, and the folder with the last."""
        with contextlib.suppress(OSError):
            (self._folder / f"rank_{self._task.rank}.json").unlink(missing_ok=True)
            if self._task.rank == 0 and _identity(self._verdict) != self._old_verdict:
                self._verdict.unlink(missing_ok=True)
            self._folder.rmdir()


def watch(task: Task) -> None:
    """Look at the rank until it ends, or all of the training hangs."""
    pulse = memoryview(mmap.mmap(task.pulse, PULSE_BYTES)).cast("q")
    judge, group = Judge(task.timeout_s), Group(task)
    began, looked = time.time(), time.monotonic()
    while not _has_ended(task, task.poll_s):
        now = time.monotonic()
        # After a sleep of the machine, or of this process with all of the training, only what was watched counts.
        judge.look(Pulse(*pulse[: len(Pulse._fields)]), min(now - looked, 2 * task.poll_s))
        looked = now
        try:
            hang = _find_hang(task, judge, group)
        except OSError as error:  # a full or absent disk: whoever hangs is found when it is back
            print(f"warning: the watchdog of rank {task.rank} cannot use {task.workspace}: {error}", file=sys.stderr)
            continue
        if hang is not None:
            _end_rank(task, judge, group, hang, began)
            return
    group.leave()


def _find_hang(task: Task, judge: Judge, group: Group) -> str | None:
    assert judge.pulse is not None
    if task.world_size > 1:
        group.publish(_report(judge))
        verdict = group.verdict()
        if verdict is not None:
            return verdict
    if judge.is_over and not group.others_move():
        return group.declare(judge.pulse.step)
    return None


def _report(judge: Judge) -> dict[str, Any]:
    assert judge.pulse is not None
    return {
        "host": socket.gethostname(),
        "step": judge.pulse.step,
        "num_stages": judge.pulse.num_stages,
        "stage": judge.stage,
        "in_stage_s": round(judge.in_stage_s, 1),
        "over": judge.is_over,
    }


def _has_ended(task: Task, seconds: float) -> bool:
    """Wait; True as soon as the rank is gone, or needs no watching any more."""
    # Its end of the pipe may also be held by what it forked, so its death is looked for, too.
    return bool(select.select([task.lifeline], [], [], seconds)[0]) or os.getppid() != task.pid


def _end_rank(task: Task, judge: Judge, group: Group, hang: str, began: float) -> None:
    """Write the rank's stack, have the status set, kill the rank."""
    folder = Path(task.workspace) / "stacks" / hang
    try:
        from moge_core.training.stacks import take_stack

        stack = take_stack(task.pid, task.dump, is_there=lambda: os.getppid() == task.pid)
        # What it would do when it sees the others end must not hide the reason.
        if os.getppid() == task.pid:
            os.kill(task.pid, signal.SIGSTOP)
        report = _report(judge) | {"state": stack.state, "where": stack.where}
        group.publish(report)
        folder.mkdir(parents=True, exist_ok=True)
        header = f"rank {task.rank} of {task.world_size}, process {task.pid} on {report['host']}\n{_place(report)}\n"
        (folder / f"rank_{task.rank}.txt").write_text(f"{header}\n{stack.text}", encoding="utf-8")
        summary = folder / "summary.txt"
        if task.rank == 0:
            _wait_for(lambda: all((folder / f"rank_{rank}.txt").exists() for rank in range(task.world_size)), _GRACE_S)
            _conclude(task, judge, group.reports(), summary, began)
        else:
            _wait_for(summary.exists, 2 * _GRACE_S)
    except Exception as error:  # a full disk, code that was changed meanwhile; the training must end all the same
        print(f"error: the training hung, which cannot be recorded: {error}", file=sys.stderr, flush=True)
    finally:
        if os.getppid() == task.pid:
            os.kill(task.pid, signal.SIGKILL)
        group.leave()


def _conclude(task: Task, judge: Judge, reports: Sequence[dict[str, Any]], summary: Path, began: float) -> None:
    """Set the status of the training and, last, since the others wait for it, write the summary.

    A rank that failed before has told why: that the others then hung is what came of it.
    """
    from moge_core.training.workspace import RunStatus, Workspace

    assert judge.pulse is not None
    reason = f"{explain(reports, task.world_size, judge.in_stage_s)}; the stacks are in {summary.parent}"
    workspace = Workspace(task.workspace)
    before = workspace.status()
    has_ended = before is not None and before.state in ("failed", "finished")
    if not (has_ended and (workspace.path / "status.json").stat().st_mtime > began):
        workspace.write_status(RunStatus("failed", reason, judge.pulse.step, task.num_iterations, resumable=True))
    print(f"error: {reason}", file=sys.stderr, flush=True)
    lines = [f"rank {report['rank']} on {report['host']}: {_place(report)}" for report in reports]
    summary.write_text("\n".join([reason, "", *lines, ""]), encoding="utf-8")


def explain(reports: Sequence[dict[str, Any]], world_size: int, seconds: float) -> str:
    """One line: that the training hung, and which rank keeps the others waiting, as far as that can be told."""
    text = f"the training hung: no progress for {seconds:.0f} s"
    if world_size == 1:
        return f"{text}; it is {_place(reports[0])}"
    # Of those that stand in a collective the one that is behind is to blame, or else the one that somebody stopped.
    places = [(report["step"], report["num_stages"]) for report in reports]
    behind = [report for report, place in zip(reports, places, strict=True) if place == min(places)]
    stopped = [report for report in reports if str(report.get("state")).startswith("T")]
    blamed = stopped or (behind if len(behind) < len(reports) else [])
    if blamed:
        return "; ".join([text, *(f"rank {report['rank']} is behind, {_place(report)}" for report in blamed)])
    silent = sorted(set(range(world_size)) - {report["rank"] for report in reports})
    if silent:
        return f"{text}; nothing is known of rank {', '.join(map(str, silent))}"
    return f"{text}; no rank is behind the others, rank 0 is {_place(reports[0])}"


def _place(report: dict[str, Any]) -> str:
    """Where a rank stands, in words."""
    text = f"in `{report['stage']}` for {report['in_stage_s']:.0f} s, after step {report['step']}"
    text += f", at {report['where']}" if report.get("where") else ""
    return text + (f", {report['state']}" if report.get("state") else "")


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells a file from another one that took its name later."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


if __name__ == "__main__":
    # They reach the whole process group while the rank still saves; a watcher ends with its rank.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    watch(Task(**json.loads(sys.argv[1])))
