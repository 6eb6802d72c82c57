"""Nothing that a launcher starts survives it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from moge_pipeline.defs.resources.launchers import LaunchResources, LocalLauncher
from moge_pipeline.process_tree import ProcessTree, interrupts_held, marked

# A launcher that dies of SIGTERM at once, and a child in a session of its own that its death would orphan, as
# accelerate and torchrun have them. The child says when it listens, and what it did when asked to end.
CHILD = """
import signal, sys, time, pathlib
marks = pathlib.Path(sys.argv[1])
def stop(*_):
    (marks / "asked").touch()
    if sys.argv[2] == "obeys":
        time.sleep(0.2)
        (marks / "saved").touch()
        sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(marks / "ready").touch()
while True:
    time.sleep(0.05)
"""
LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True).wait())
"""


def command(marks: Path, manner: str) -> list[str]:
    return [sys.executable, "-c", LAUNCHER, CHILD, str(marks), manner]


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def trees() -> Iterator[list[ProcessTree]]:
    started: list[ProcessTree] = []
    yield started
    for tree in started:
        tree.terminate(0)


def start(trees: list[ProcessTree], marks: Path, manner: str, **kinds: Any) -> ProcessTree:
    tree = ProcessTree(command(marks, manner), os.environ, marks, **kinds)
    trees.append(tree)
    wait_for((marks / "ready").exists)
    return tree


def test_a_tree_knows_its_members_across_sessions(trees: list[ProcessTree], tmp_path: Path) -> None:
    tree = start(trees, tmp_path, "obeys")
    assert len(tree.members()) == 2
    assert os.getpid() not in {process.pid for process in tree.members()}


def test_sigterm_reaches_the_whole_tree_and_leaves_no_process(trees: list[ProcessTree], tmp_path: Path) -> None:
    tree = start(trees, tmp_path, "obeys")
    assert tree.terminate(grace_s=20)
    assert (tmp_path / "saved").exists(), "the child had the time to finish"
    assert tree.members() == []


def test_what_does_not_obey_is_killed_after_the_grace_period(trees: list[ProcessTree], tmp_path: Path) -> None:
    tree = start(trees, tmp_path, "ignores")
    began = time.monotonic()
    assert not tree.terminate(grace_s=1)
    assert 1 <= time.monotonic() - began < 10
    assert (tmp_path / "asked").exists()
    assert tree.members() == []


def test_a_spared_launcher_ends_with_its_child(trees: list[ProcessTree], tmp_path: Path) -> None:
    tree = start(trees, tmp_path, "obeys", grace_s=20, spared=LAUNCHER)
    assert tree.terminate(20)
    assert tree.process.returncode == 75, "the launcher lived to hand on its child's exit code"


def test_ending_an_outer_tree_ends_the_trees_inside(trees: list[ProcessTree], tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib, time; from moge_pipeline.process_tree import ProcessTree\n"
        "tree = ProcessTree(sys.argv[1:], os.environ, pathlib.Path.cwd()); tree.wait()"
    )
    tree = ProcessTree([sys.executable, "-c", code, *command(tmp_path, "obeys")], os.environ, tmp_path)
    trees.append(tree)
    wait_for((tmp_path / "ready").exists)
    assert len(tree.members()) == 3
    assert tree.terminate(20)
    assert tree.members() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_a_killed_parent_takes_its_command_along(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from moge_pipeline.process_tree import ProcessTree\n"
        "tree = ProcessTree(sys.argv[1:], os.environ, pathlib.Path.cwd())\n"
        "print(tree.process.pid, flush=True); tree.wait()"
    )
    child = [sys.executable, "-c", CHILD, str(tmp_path), "obeys"]
    with subprocess.Popen([sys.executable, "-c", code, *child], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_for((tmp_path / "ready").exists)
        parent.kill()
    wait_for((tmp_path / "saved").exists)
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(("manner", "saves"), [("obeys", True), ("ignores", False)])
def test_a_killed_parent_takes_the_whole_tree_along_even_what_does_not_obey(
    tmp_path: Path, manner: str, saves: bool
) -> None:
    code = (
        "import os, sys, pathlib; from moge_pipeline.process_tree import ProcessTree\n"
        "tree = ProcessTree(sys.argv[2:], os.environ, pathlib.Path.cwd(), grace_s=1, spared=sys.argv[1])\n"
        "print(tree.mark, flush=True); tree.wait()"
    )
    argv = [sys.executable, "-c", code, LAUNCHER, *command(tmp_path, manner)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        mark = parent.stdout.readline().strip()
        wait_for((tmp_path / "ready").exists)
        assert len(marked(mark)) == 3, "the guard, the launcher and its child"
        parent.kill()
    wait_for(lambda: not marked(mark))
    assert (tmp_path / "asked").exists()
    assert (tmp_path / "saved").exists() == saves


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_a_killed_guard_takes_its_command_along(trees: list[ProcessTree], tmp_path: Path) -> None:
    child = [sys.executable, "-c", CHILD, str(tmp_path), "obeys"]
    tree = ProcessTree(child, os.environ, tmp_path, grace_s=20)
    trees.append(tree)
    wait_for((tmp_path / "ready").exists)
    tree.process.kill()
    wait_for((tmp_path / "saved").exists)
    wait_for(lambda: not tree.members())


@pytest.mark.parametrize("grace_s", [None, 5.0])
@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_a_tree_tells_the_exit_code_of_its_command(
    trees: list[ProcessTree], tmp_path: Path, grace_s: float | None, code: str, expected: int
) -> None:
    tree = ProcessTree([sys.executable, "-c", code], os.environ, tmp_path, grace_s=grace_s)
    trees.append(tree)
    assert tree.wait(20) == expected


def test_a_process_that_is_started_while_the_tree_ends_is_asked_to_end_too(
    trees: list[ProcessTree], tmp_path: Path
) -> None:
    # As a launcher that is still importing when its run is cancelled.
    late = (
        "import pathlib, subprocess, sys, time; marks = pathlib.Path(sys.argv[2]); (marks / 'begun').touch()\n"
        "while not (marks / 'go').exists(): time.sleep(0.05)\n"
        "sys.exit(subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]).wait())"
    )
    argv = [sys.executable, "-c", late, CHILD, str(tmp_path), "obeys"]
    tree = ProcessTree(argv, os.environ, tmp_path, grace_s=30, spared=late)
    trees.append(tree)
    wait_for((tmp_path / "begun").exists)
    go = subprocess.Popen(["sh", "-c", f"sleep 1; touch {tmp_path}/go"])
    assert tree.terminate(30)
    go.wait()


def test_interrupts_are_held_and_then_work_again() -> None:
    with interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


@pytest.mark.parametrize(("manner", "grace", "saves"), [("obeys", 20, True), ("ignores", 0.5, False)])
def test_an_interrupted_step_ends_its_command_before_it_ends_itself(
    tmp_path: Path, manner: str, grace: float, saves: bool
) -> None:
    @dg.asset
    def launched(context: dg.AssetExecutionContext) -> None:
        LocalLauncher().run(
            context, command(tmp_path, manner), {}, LaunchResources(tmp_path, tmp_path, terminate_grace_s=grace)
        )

    interrupter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, pathlib, signal, sys, time\n"
            "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)\n"
            # One Ctrl-C arrives twice: from the terminal and from Dagster's executor.
            "for _ in range(2): os.kill(int(sys.argv[2]), signal.SIGINT); time.sleep(0.1)",
            str(tmp_path / "ready"),
            str(os.getpid()),
        ]
    )
    with pytest.raises(dg.DagsterExecutionInterruptedError):
        dg.materialize([launched])
    interrupter.wait()
    assert (tmp_path / "asked").exists()
    assert (tmp_path / "saved").exists() == saves
    left = [process for process in psutil.process_iter() if str(tmp_path) in " ".join(_cmdline(process))]
    assert left == []


def test_a_command_whose_time_is_up_saves_and_ends(tmp_path: Path) -> None:
    results = []

    @dg.asset
    def launched(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        resources = LaunchResources(tmp_path, tmp_path, terminate_grace_s=20, max_runtime_s=6)
        results.append(LocalLauncher().run(context, command(tmp_path, "obeys"), {}, resources))
        yield dg.MaterializeResult()

    dg.materialize([launched])
    assert results[0].timed_out
    assert (tmp_path / "saved").exists()


def test_the_exit_code_and_what_the_command_reports_come_back(tmp_path: Path) -> None:
    script = (
        "from dagster_pipes import open_dagster_pipes\n"
        "with open_dagster_pipes() as pipes:\n"
        "    pipes.report_custom_message({'n': 1}); pipes.report_asset_materialization(metadata={'loss': 0.5})\n"
        "raise SystemExit(7)"
    )
    results = []

    @dg.asset
    def launched(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        results.append(
            LocalLauncher().run(
                context, [sys.executable, "-c", script], {}, LaunchResources(tmp_path, tmp_path, terminate_grace_s=1)
            )
        )
        yield dg.MaterializeResult()

    assert dg.materialize([launched]).success
    assert results[0].exit_code == 7
    assert results[0].messages == ({"n": 1},)
    assert results[0].metadata["loss"].value == 0.5


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.NoSuchProcess:
        return []
