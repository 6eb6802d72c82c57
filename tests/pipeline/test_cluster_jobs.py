"""What every cluster's job relies on: the task that runs there, its reports over files, and the look at its state."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from moge_pipeline.defs.resources.launchers import LaunchResources, LaunchResult
from moge_pipeline.defs.resources.launchers.jobs import watch
from moge_pipeline.defs.resources.launchers.pipes import pipes_session, reported
from moge_pipeline.defs.resources.launchers.slurm import SlurmJob

TRAINER = """
import pathlib, signal, sys, time
marks = pathlib.Path(sys.argv[1])
def stop(*_):
    (marks / "asked").touch()
    if sys.argv[2] == "obeys":
        (marks / "saved").touch()
        sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(marks / "ready").touch()
while sys.argv[2] != "ends":
    time.sleep(0.05)
sys.exit(7)
"""


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(manner: str, *options: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "moge_pipeline.job_task", *options]
        argv += ["--", sys.executable, "-c", TRAINER, str(tmp_path), manner]
        started.append(subprocess.Popen(argv))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


# --- the task ---


def test_the_task_has_the_exit_code_of_its_command(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    assert start("ends").wait(60) == 7


def test_a_task_that_is_asked_to_end_lets_its_command_save(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    task = start("obeys", "--grace_s", "60")
    wait_for((tmp_path / "ready").exists)
    task.send_signal(signal.SIGTERM)
    assert task.wait(60) == 75
    assert (tmp_path / "saved").exists()


def test_a_task_kills_what_does_not_end_in_its_grace_period(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    task = start("ignores", "--grace_s", "1")
    wait_for((tmp_path / "ready").exists)
    task.send_signal(signal.SIGTERM)
    assert task.wait(60) == 128 + signal.SIGKILL
    assert (tmp_path / "asked").exists()


def test_a_task_that_nobody_watches_any_more_saves_and_ends_by_itself(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    heartbeat = tmp_path / "heartbeat"
    task = start("obeys", "--heartbeat", str(heartbeat), "--abandoned_after_s", "4")
    wait_for((tmp_path / "ready").exists)
    for beat in range(12):
        heartbeat.write_text(str(beat))
        time.sleep(0.5)
    assert task.poll() is None, "it goes on as long as the heart beats"
    assert task.wait(60) == 75
    assert (tmp_path / "saved").exists()


# --- its reports ---


def in_asset(work: Callable[[dg.AssetExecutionContext], None]) -> None:
    @dg.asset
    def launched(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        work(context)
        yield dg.MaterializeResult()

    assert dg.materialize([launched]).success


def test_of_a_command_that_was_started_again_the_last_attempt_tells_how_it_ended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    attempt = (
        "import sys; from dagster_pipes import open_dagster_pipes\n"
        "with open_dagster_pipes() as pipes:\n"
        "    pipes.report_custom_message({'attempt': int(sys.argv[1])})\n"
    )
    results: list[LaunchResult] = []

    def work(context: dg.AssetExecutionContext) -> None:
        with pipes_session(context, tmp_path) as session:
            env = {**os.environ, **session.get_bootstrap_env_vars()}
            for number in (1, 2):
                subprocess.run([sys.executable, "-c", attempt, str(number)], env=env, check=True)
                # What a process leaves that is killed while it writes.
                with (tmp_path / "pipes_messages.jsonl").open("a") as file:
                    file.write('{"method": "report_cus\n')
        results.append(reported(session, 0))

    in_asset(work)
    assert results[0].messages == ({"attempt": 2},)
    assert "unexpected message received after closed" not in "".join(capfd.readouterr())


def test_a_message_that_dagster_cannot_take_does_not_cost_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[LaunchResult] = []

    def work(context: dg.AssetExecutionContext) -> None:
        with pipes_session(context, tmp_path) as session:
            handler = session.message_handler
            monkeypatch.setattr(handler, "_handle_log", lambda **_: 1 / 0)
            script = (
                "from dagster_pipes import open_dagster_pipes\n"
                "with open_dagster_pipes() as pipes:\n"
                "    pipes.log.info('x'); pipes.report_custom_message({'n': 1})"
            )
            env = {**os.environ, **session.get_bootstrap_env_vars()}
            subprocess.run([sys.executable, "-c", script], env=env, check=True)
        results.append(reported(session, 0))

    in_asset(work)
    assert results[0].messages == ({"n": 1},)


# --- its state ---


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plays Slurm's controller: what `scontrol` answers next."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("scontrol", "scancel", "sacct"):
        program = programs / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $@" >> {tmp_path}/calls\ncat {tmp_path}/{name}.out 2>/dev/null\n'
            f"cat {tmp_path}/{name}.err >&2 2>/dev/null && exit 1\nexit 0\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def answers(out: str = "", error: str = "") -> None:
        (tmp_path / "scontrol.out").write_text(out)
        (tmp_path / "scontrol.err").unlink(missing_ok=True)
        if error:
            (tmp_path / "scontrol.err").write_text(error)

    return answers


def looked_at(job: SlurmJob) -> int | None:
    job._next_look = 0.0
    return job.poll()


def test_a_controller_that_does_not_answer_ends_no_job(tmp_path: Path, controller: Callable[..., None]) -> None:
    job = SlurmJob("7", tmp_path, 0.0)
    controller(error="slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    (tmp_path / "exit_code.0").write_text("0")
    assert looked_at(job) is None
    controller("JobId=7 JobState=RUNNING Restarts=0 ExitCode=0:0")
    assert looked_at(job) is None and job.has_started()


def test_a_job_that_is_put_back_into_the_queue_has_not_ended(tmp_path: Path, controller: Callable[..., None]) -> None:
    job = SlurmJob("7", tmp_path, 0.0)
    controller("JobId=7 JobState=PREEMPTED Restarts=0 ExitCode=0:15")
    assert looked_at(job) is None, "seen once, it may be on its way back"
    controller("JobId=7 JobState=PENDING Restarts=1 ExitCode=0:0")
    assert looked_at(job) is None
    controller("JobId=7 JobState=TIMEOUT Restarts=1 ExitCode=0:15")
    assert looked_at(job) is None
    assert looked_at(job) == -15
    assert (job.state, job.num_restarts) == ("TIMEOUT", 1)


@pytest.mark.parametrize(("left", "accounted", "code"), [("3", "", 3), ("", "FAILED|5:0", 5), ("", "", 1)])
def test_a_job_that_the_controller_forgot_is_judged_by_what_it_left(
    tmp_path: Path, controller: Callable[..., None], left: str, accounted: str, code: int
) -> None:
    job = SlurmJob("7", tmp_path, 0.0)
    if left:
        (tmp_path / "exit_code.0").write_text(left)
    (tmp_path / "sacct.out").write_text(accounted)
    controller(error="slurm_load_jobs error: Invalid job id specified")
    assert looked_at(job) == code


@pytest.mark.parametrize(("state", "call"), [("PENDING", "scancel 7"), ("RUNNING", "scancel --signal=TERM 7")])
def test_a_job_that_waits_is_cancelled_and_one_that_runs_is_asked_once(
    tmp_path: Path, controller: Callable[..., None], state: str, call: str
) -> None:
    job = SlurmJob("7", tmp_path, 0.0)
    controller(f"JobId=7 JobState={state} Restarts=0 ExitCode=0:0")
    looked_at(job)
    job.ask_to_end()
    job.ask_to_end()
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("scancel")]
    assert calls == [call]


# --- the wait for it ---


class StubbornJob:
    """A job that ends only when it is killed."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def poll(self) -> int | None:
        return -9 if "kill" in self.calls else None

    def has_started(self) -> bool:
        return True

    def ask_to_end(self) -> None:
        self.calls.append("ask")

    def kill(self) -> None:
        self.calls.append("kill")


@pytest.mark.parametrize("why", ["interrupted", "its time is over"])
def test_a_job_that_does_not_obey_is_killed_after_its_grace_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr("moge_pipeline.defs.resources.launchers.jobs.MARGIN_S", 0.5)
    job, results = StubbornJob(), []
    limit = 0.5 if why == "its time is over" else None
    resources = LaunchResources(tmp_path, tmp_path, terminate_grace_s=1, max_runtime_s=limit)

    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if why == "interrupted" and len(ticks) == 1:
            raise KeyboardInterrupt

    def work(context: dg.AssetExecutionContext) -> None:
        try:
            results.append(watch(context, job, resources, tick))
        except KeyboardInterrupt:
            results.append("interrupted")

    in_asset(work)
    assert results == ["interrupted" if why == "interrupted" else (-9, True)]
    assert job.calls[0] == "ask" and job.calls[-1] == "kill"
