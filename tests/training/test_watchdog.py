"""A training that hangs is shown, ended and can go on; one that merely takes its time is left alone."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from launches import LAUNCH, NO_THREADS, wait_for

from moge_core.loading import TrainLoader
from moge_core.loading.shared_memory import anonymous_file
from moge_core.training import ExitCode, Workspace, load_train_config, main, watcher
from moge_core.training.devices import build_accelerator
from moge_core.training.flags import TrainFlags
from moge_core.training.stacks import DUMP_SIGNAL, take_stack
from moge_core.training.watchdog import Watchdog
from moge_core.training.watcher import PATIENT_STAGES, STAGES, Group, Judge, Pulse, Task, explain, longest_stage_s

Config = Callable[..., Path]
TIMEOUT_S = 600.0


def judged(*looks: tuple[float, str, int, int]) -> Judge:
    """A judge that has seen (seconds since the last look, stage, stages entered, rounds of the loader)."""
    judge = Judge(TIMEOUT_S)
    for seconds, stage, num_stages, rounds in looks:
        judge.look(Pulse(4, STAGES.index(stage), num_stages, rounds), seconds)
    return judge


def task_of(workspace: Path, rank: int = 0, world_size: int = 2, **values: Any) -> Task:
    given = {"timeout_s": TIMEOUT_S, "num_iterations": 10, "pid": os.getppid(), "pulse": -1, "dump": -1, "lifeline": -1}
    return Task(workspace=str(workspace), rank=rank, world_size=world_size, **{**given, **values})


# --- what is a hang ---


@pytest.mark.parametrize("stage", ["step", "wait", "forward", "losses", "backward", "optimiser"])
def test_a_part_of_a_step_that_takes_longer_than_the_limit_is_a_hang(stage: str) -> None:
    assert not judged((5, stage, 1, 0), (595, stage, 1, 0)).is_over
    assert judged((5, stage, 1, 0), (595, stage, 1, 0), (10, stage, 1, 0)).is_over


def test_every_stage_that_is_entered_begins_the_time_anew() -> None:
    looks = [(500.0, "forward" if number % 2 else "losses", number, 0) for number in range(20)]
    assert not judged(*looks).is_over


@pytest.mark.parametrize("stage", sorted(PATIENT_STAGES))
def test_saving_scoring_drawing_and_compiling_may_take_an_hour_more_and_not_for_ever(stage: str) -> None:
    assert not judged((5, stage, 1, 0), (TIMEOUT_S + 3500, stage, 1, 0)).is_over
    assert judged((5, stage, 1, 0), (TIMEOUT_S + 3700, stage, 1, 0)).is_over


def test_a_wait_for_data_counts_only_while_the_loader_shows_no_life() -> None:
    lively = [(500.0, "wait", 1, number) for number in range(5)]
    assert not judged(*lively).is_over
    assert judged(*lively, (601, "wait", 1, 4)).is_over
    for_ever = [(500.0, "wait", 1, number) for number in range(20)]
    assert judged(*for_ever).is_over
    # Life of the loader excuses nothing else.
    assert judged(*[(500.0, "losses", 1, number) for number in range(5)]).is_over


def test_a_sleep_of_the_machine_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look comes hours after the one before, as when all of the training was stopped in between."""
    pulse = anonymous_file()
    os.ftruncate(pulse, watcher.PULSE_BYTES)
    looks, hours = iter(range(30)), itertools.count(step=10_000)
    monkeypatch.setattr(watcher.time, "monotonic", lambda: next(hours))
    monkeypatch.setattr(watcher, "_has_ended", lambda *_: next(looks, None) is None)
    monkeypatch.setattr(watcher, "_end_rank", lambda *_: pytest.fail("a training that slept was ended"))
    watcher.watch(task_of(tmp_path, world_size=1, pulse=pulse))
    os.close(pulse)


def test_ranks_that_wait_for_one_that_may_take_its_time_are_no_hang(tmp_path: Path) -> None:
    saving, waiting = (Group(task_of(tmp_path, rank, timeout_s=0.2)) for rank in (0, 1))
    waiting.publish({"over": True})
    assert not waiting.others_move()  # nothing is known of the other
    saving.publish({"over": False})
    assert waiting.others_move()
    time.sleep(0.2)
    assert not waiting.others_move()  # its watcher tells nothing any more
    saving.publish({"over": False})
    assert waiting.others_move()
    saving.publish({"over": True})
    assert not waiting.others_move()
    name = waiting.declare(3)
    assert name is not None and name.startswith("00000003_")
    assert saving.verdict() == saving.declare(4) == name


def test_the_hang_of_an_earlier_training_ends_no_later_one(tmp_path: Path) -> None:
    earlier = Group(task_of(tmp_path, 1))
    name = earlier.declare(3)
    assert earlier.verdict() == name
    later = Group(task_of(tmp_path, 1))
    assert later.verdict() is None
    Group(task_of(tmp_path, 0))
    assert later.verdict() is None
    own = later.declare(5)
    assert own is not None and own.startswith("00000005_") and later.verdict() == own


def test_the_rank_that_keeps_the_others_waiting_is_named() -> None:
    common = {"in_stage_s": 600, "step": 7, "state": "S (sleeping)", "where": ""}
    first = common | {"rank": 0, "num_stages": 9, "stage": "backward"}
    second = common | {"rank": 1, "num_stages": 6, "stage": "losses", "where": "f (x.py:3)"}
    assert "rank 1 is behind, in `losses` for 600 s, after step 7, at f (x.py:3)" in explain([first, second], 2, 600)
    same = first | {"rank": 1}
    assert "no rank is behind" in explain([first, same], 2, 600)
    assert "rank 1 is behind" in explain([first, same | {"state": "T (stopped)"}], 2, 600)
    assert "nothing is known of rank 1, 3" in explain([first, first | {"rank": 2}], 4, 600)


# --- what a training tells ---


@pytest.fixture
def stage_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The stage that the newest watchdog was told last."""
    now: dict[str, str] = {}
    enter = Watchdog.enter

    def remember(self: Watchdog, stage: str) -> str:
        now["stage"] = stage
        return enter(self, stage)

    monkeypatch.setattr(Watchdog, "enter", remember)
    return now


@pytest.mark.slow
def test_a_training_tells_its_watchdog_when_it_scores_draws_saves_and_ends(
    tiny_config: Config, tmp_path: Path, stage_of: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moge_core.training import trainer as module

    seen: dict[str, set[str]] = {}

    def spy(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            seen.setdefault(name, set()).add(stage_of["stage"])
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, run)

    spy(module.HeldOutScorer, "score")
    spy(module, "compute_objective")
    spy(module, "build_network")
    spy(module.PredictionPictures, "draw")
    spy(module.CheckpointWriter, "save")
    spy(module.CheckpointWriter, "close")
    spy(module.Trainer, "_finish_saving")
    spy(TrainLoader, "__next__")
    flags = ["--config", str(tiny_config()), "--workspace", str(tmp_path / "w"), "--enable_mlflow", "False"]
    flags += ["--num_iterations", "2", "--eval_every", "1", "--eval_fraction", "0.3", "--vis_every", "1"]
    assert main([*flags, "--num_vis_images", "2"]) == ExitCode.FINISHED
    assert seen.pop("__next__") == {"wait", "pictures"}
    assert seen == {
        "score": {"evaluate"},
        "compute_objective": {"losses"},
        "build_network": {"start"},
        "draw": {"pictures"},
        "save": {"save"},
        "close": {"end"},
        "_finish_saving": {"end"},
    }


def test_compiling_in_the_middle_of_a_step_is_a_stage_of_its_own(tmp_path: Path, stage_of: dict[str, str]) -> None:
    compiled_in = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        compiled_in.append(stage_of["stage"])
        return graph.forward

    watchdog = Watchdog(tmp_path, 0, rank=0, world_size=1, num_iterations=1, compiles=True)
    with watchdog.stage("forward"):
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
        assert stage_of["stage"] == "forward"
    watchdog.close()
    torch.compile(lambda x: x + 2, backend=backend)(torch.ones(2))
    assert compiled_in == ["compile", "start"]


def test_a_loader_shows_life_while_nobody_asks_for_a_batch(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moge_core.loading.workers._POLL_S", 0.05)
    rounds: list[None] = []
    data = load_train_config(tiny_config()).data
    with TrainLoader(data, 1, 0, num_workers=1, prefetch_batches=1, on_round=lambda: rounds.append(None)) as loader:
        next(loader)
        before = len(rounds)
        wait_for(lambda: len(rounds) > before + 20)


# --- the limits of others ---


def test_collectives_and_nccl_are_more_patient_than_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", raising=False)
    for timeout_s in (600.0, 20_000.0):
        accelerator = build_accelerator(TrainFlags(Path("c.json"), hang_timeout_s=timeout_s))
        assert accelerator.init_handler.timeout.total_seconds() > longest_stage_s(timeout_s)
        assert float(os.environ["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"]) > longest_stage_s(600)
    monkeypatch.setenv("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", "77")
    build_accelerator(TrainFlags(Path("c.json")))
    assert os.environ["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] == "77"


# --- the watcher's life ---


def watchers_of(workspace: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if watcher.__file__ in process.cmdline() and f'"{workspace}"' in process.cmdline()[-1]:
                found.append(process)
    return found


def test_a_watcher_outlives_no_training_and_no_signal_that_reaches_them_both_ends_it(tmp_path: Path) -> None:
    keywords: dict[str, Any] = {"rank": 0, "world_size": 1, "num_iterations": 1, "compiles": False}
    Watchdog(tmp_path, 0, **keywords).close()
    assert not watchers_of(tmp_path)
    watchdog = Watchdog(tmp_path, 60, **keywords)
    (process,) = watchers_of(tmp_path)

    def has_begun() -> bool:
        status = Path(f"/proc/{process.pid}/status").read_text()
        ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn"))
        return bool(int(ignored, 16) & 1 << (signal.SIGHUP - 1))  # the last that it ignores

    wait_for(has_begun)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    watchdog.finished(0)
    time.sleep(0.2)
    assert process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    watchdog.close()
    assert not process.is_running()
    dropped = Watchdog(tmp_path, 60, **keywords)
    assert watchers_of(tmp_path)
    del dropped
    assert not watchers_of(tmp_path)


# --- stacks ---

HOLDER = """
import ctypes, faulthandler, sys


def holds_the_lock():
    ctypes.PyDLL(None).sleep(1000)


faulthandler.register(int(sys.argv[1]), file=int(sys.argv[2]), all_threads=True, chain=False)
print("ready", flush=True)
holds_the_lock()
"""


def stop(process: psutil.Process) -> None:
    process.suspend()
    wait_for(lambda: bool(process.status() == psutil.STATUS_STOPPED))


@pytest.fixture
def holder() -> Iterator[tuple[psutil.Process, int]]:
    """A process whose main thread sleeps in C with the interpreter's lock, and the file of its faulthandler."""
    dump = anonymous_file()
    command = [sys.executable, "-c", HOLDER, str(int(DUMP_SIGNAL)), str(dump)]
    with subprocess.Popen(command, pass_fds=[dump], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        wait_for(lambda: "sleep" in Path(f"/proc/{process.pid}/wchan").read_text())
        yield psutil.Process(process.pid), dump
        process.kill()
    os.close(dump)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_stack_of_a_process_that_holds_the_lock_is_read_from_outside(
    holder: tuple[psutil.Process, int], stopped: bool
) -> None:
    process, dump = holder
    if stopped:
        stop(process)
    stack = take_stack(process.pid, dump)
    assert stack.where.startswith("holds_the_lock (")
    assert "holds the interpreter's lock" in stack.text and "holds_the_lock (<string>:6)" in stack.text
    assert stack.state == ("T (stopped)" if stopped else "S (sleeping)")


@pytest.fixture
def no_ptrace(holder: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """py-spy as it is where the kernel forbids what it does."""
    program = tmp_path / "bin" / "py-spy"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Permission Denied: ptrace' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))


@pytest.mark.usefixtures("no_ptrace")
def test_where_ptrace_is_forbidden_the_process_writes_its_stack_itself(holder: tuple[psutil.Process, int]) -> None:
    process, dump = holder
    text = take_stack(process.pid, dump).text
    assert "no stack by py-spy: Permission Denied: ptrace" in text
    assert "in holds_the_lock" in text


@pytest.mark.usefixtures("no_ptrace")
def test_a_stack_that_cannot_be_had_is_said_with_the_reason(holder: tuple[psutil.Process, int]) -> None:
    process, dump = holder
    stop(process)
    text = take_stack(process.pid, dump).text
    assert "no stack by py-spy: Permission Denied" in text
    assert "no stack by faulthandler: the process is stopped" in text


# --- the whole ---

HANGING = '''
import atexit, ctypes, gc, os, signal
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

num_calls = 0


def stops_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


def loops_for_ever():
    while True:
        pass


def holds_the_lock():
    ctypes.PyDLL(None).sleep(10**6)


def notes_what_a_step_sends_and_what_is_left_at_the_end():
    note = Path(os.environ["NOTES"], os.environ["RANK"])
    (wrapped,) = [each for each in gc.get_objects() if isinstance(each, DistributedDataParallel)]
    sent = wrapped.will_sync_module_buffers()
    atexit.register(lambda: note.write_text(f"sent {sent}, connected {torch.distributed.is_initialized()}"))


def loss(output, truth):
    """In its third call rank 1, or the only one, does what the environment asks for."""
    global num_calls
    num_calls += 1
    is_last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
    how = os.environ["HOW"]
    if num_calls == 3 and (is_last or how.startswith("notes")):
        globals()[how]()
    return output["points"].flatten(1).abs().mean(dim=1) * 0.01, {}
'''


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_rank_a_loop_and_a_held_lock_are_each_shown_and_ended_and_the_run_goes_on(
    tiny_config: Config, tmp_path: Path
) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    term = {"function": "hanging:loss"}
    config = tiny_config(loss={"synthetic": {"extra": term}}, loss_modules=["hanging"])
    workspace, notes = Workspace(tmp_path / "w"), tmp_path / "notes"
    notes.mkdir()
    python_path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**NO_THREADS, "PYTHONPATH": python_path, "NOTES": str(notes)}

    def launch(how: str, num_processes: int, *flags: str) -> tuple[int, str]:
        words = ["--config", str(config), "--workspace", str(workspace.path), "--enable_mlflow", "False"]
        words += ["--checkpoint", "latest", "--save_every", "1", "--num_iterations", "12", *flags]
        start = [sys.executable] if num_processes == 1 else [*LAUNCH, "--num_processes", str(num_processes)]
        command = [*start, "-m", "moge_core.training", *words]
        result = subprocess.run(
            command,
            env={**os.environ, **settings, "HOW": how},
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        return result.returncode, result.stderr

    steps = [-1]
    for how, num_processes in (("stops_itself", 2), ("loops_for_ever", 2), ("holds_the_lock", 1)):
        code, said = launch(how, num_processes, "--hang_timeout_s", "6")
        assert code != 0
        folder = max(workspace.path.glob("stacks/*"))  # their names begin with the step
        texts = [(folder / f"rank_{rank}.txt").read_text() for rank in range(num_processes)]
        assert how in texts[-1] and not any(how in text for text in texts[:-1])
        status = workspace.status()
        assert status is not None and (status.state, status.resumable) == ("failed", True)
        assert re.search(r"no progress for \d+ s; .*; the stacks are in ", status.reason)
        assert str(folder) in status.reason
        assert how in status.reason and ("rank 1 is behind" in status.reason) == (num_processes == 2)
        assert status.reason in said and status.reason in (folder / "summary.txt").read_text()
        assert status.step > steps[-1]
        steps.append(status.step)
        assert not watchers_of(workspace.path)
    assert len(list(workspace.path.glob("stacks/*"))) == 3
    code, said = launch("notes_what_a_step_sends_and_what_is_left_at_the_end", 2)
    assert code == 0, said
    assert [path.read_text() for path in sorted(notes.iterdir())] == ["sent False, connected False"] * 2
    status = workspace.status()
    assert status is not None and (status.state, status.step) == ("finished", 11)
    assert [json.loads(line)["step"] for line in workspace.metrics_path.read_text().splitlines()] == list(range(12))
    assert not (workspace.path / ".heartbeats").exists()
