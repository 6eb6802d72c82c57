"""The orphan matrix: whatever is killed, and however, nothing of a training survives and everything tells the truth.

Each cell begins a training of one or two processes, ends something by a signal or by a request, and then asks: is no
process left after 15 seconds, does the last checkpoint load, do Dagster and MLflow show how it really ended?

The cells can be spread (`-n 2` of pytest-xdist): each process has a project and a `dagster dev` of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import dagster as dg
import psutil
import pytest
from dagster_dev import DagsterDev
from pipeline_project import Project
from shop import (
    alive,
    begin_endless_training,
    endless,
    instance_of,
    open_shop,
    output_of,
    succeed,
    wait_for_steps,
    workspaces_of,
)

from moge_core.datasets import index_dataset
from moge_core.training import Workspace
from moge_pipeline.defs.runs.worker import Worker, processes_of, run_mark
from moge_pipeline.process_tree import MARK, marked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

GRACE_S = 5
SECONDS_TO_VANISH = 15
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
KINDS = {1: "one-process", 2: "two-processes"}
NUM_PROCESSES = pytest.mark.parametrize("num_processes", KINDS, ids=KINDS.values())
EACH_SIGNAL = pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
# Dagster calls a run canceled whose end was asked for, and failed what a signal ended; each says which it was.
FAILURE, CANCELED = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED
_names = itertools.count()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose data is indexed."""
    return indexed_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """A cell that fails leaves no training to the next one."""
    yield
    for process in marked(f"test-{os.getpid()}-train_sample"):
        process.kill()


@pytest.fixture(scope="module")
def dev(shop: Project) -> Iterator[DagsterDev]:
    """`dagster dev` for the cells that leave it alive."""
    server = DagsterDev(shop, f"orphans-dev-{os.getpid()}")
    yield server
    server.close()


@pytest.fixture
def own_dev(tmp_path: Path) -> Iterator[Callable[[], DagsterDev]]:
    """Starts `dagster dev` for the cells that end it, in a project of their own: two daemons would share the work."""
    shop = indexed_shop(tmp_path)
    mark = f"orphans-dev-{os.getpid()}-{next(_names)}"
    started: list[DagsterDev] = []

    def start() -> DagsterDev:
        started.append(DagsterDev(shop, mark))
        return started[-1]

    yield start
    for server in started:
        server.close()


def indexed_shop(root: Path) -> Project:
    """A project that can train at once."""
    shop = open_shop(root)
    index_dataset(root / "data" / "sample")
    return shop


class TestCommandLine:
    """`dagster asset materialize --select train_sample`, whose process is also the run's worker."""

    @EACH_SIGNAL
    @NUM_PROCESSES
    def test_the_command_is_ended(self, shop: Project, number: signal.Signals, num_processes: int) -> None:
        running, training = begin(shop, num_processes)
        running.send_signal(number)
        training.check_ending(running, FAILURE)

    @EACH_SIGNAL
    @NUM_PROCESSES
    def test_its_process_group_is_ended(self, shop: Project, number: signal.Signals, num_processes: int) -> None:
        running, training = begin(shop, num_processes)
        os.killpg(running.pid, number)
        training.check_ending(running, FAILURE)

    @EACH_SIGNAL
    @NUM_PROCESSES
    def test_the_step_worker_is_ended(self, shop: Project, number: signal.Signals, num_processes: int) -> None:
        running, training = begin(shop, num_processes)
        training.step_worker().send_signal(number)
        training.check_ending(running, FAILURE)


class TestDagsterDev:
    """A run that was launched in the user interface."""

    @EACH_SIGNAL
    @NUM_PROCESSES
    def test_the_run_worker_is_ended(self, dev: DagsterDev, number: signal.Signals, num_processes: int) -> None:
        training = launch(dev, num_processes)
        os.kill(training.worker.pid, number)
        training.check_ending(None, FAILURE)
        assert dev.status(training.run_id) == training.status().value

    @NUM_PROCESSES
    def test_terminate_is_pressed(self, dev: DagsterDev, num_processes: int) -> None:
        training = launch(dev, num_processes)
        dev.terminate(training.run_id)
        training.check_ending(None, CANCELED)

    @NUM_PROCESSES
    def test_ctrl_c_in_the_terminal(self, own_dev: Callable[[], DagsterDev], num_processes: int) -> None:
        server = own_dev()
        training = launch(server, num_processes)
        server.interrupt()
        training.check_ending(None, FAILURE)
        server.process.wait(60)
        wait_until(lambda: alive(server.mark) == [], 60, lambda: str(alive(server.mark)))

    @NUM_PROCESSES
    def test_killing_dagster_dev_leaves_a_training_that_a_restarted_one_shows_and_cancels(
        self, own_dev: Callable[[], DagsterDev], num_processes: int
    ) -> None:
        server = own_dev()
        training = launch(server, num_processes)
        server.process.kill()
        server.process.wait()
        done = training.num_steps()
        wait_until(lambda: training.num_steps() > done + 5, 60)
        restarted = own_dev()
        assert restarted.status(training.run_id) == "STARTED"
        done = training.num_steps()
        wait_until(lambda: training.num_steps() > done + 5, 60)
        restarted.terminate(training.run_id)
        training.check_ending(None, CANCELED)
        assert restarted.status(training.run_id) == "CANCELED"

    def test_a_training_is_cancelled_though_all_servers_that_knew_it_are_killed(
        self, own_dev: Callable[[], DagsterDev]
    ) -> None:
        server = own_dev()
        training = launch(server, 1)
        worker = psutil.Process(training.worker.pid)
        of_run = {process.pid for process in (worker, *worker.children(recursive=True))}
        for process in marked(server.mark):
            if process.pid not in of_run:
                process.kill()
        server.process.wait()
        restarted = own_dev()
        assert restarted.status(training.run_id) == "STARTED"
        with contextlib.suppress(HTTPError):  # Dagster cannot reach the worker, and says so
            restarted.terminate(training.run_id)
        wait_until(lambda: not training.left(), 120)
        training.check_ending(None, CANCELED)


class Training:
    """A training that a run is at, and what is left of it afterwards."""

    def __init__(self, shop: Project, workspace: Workspace, run_id: str) -> None:
        self.shop, self.workspace, self.run_id = shop, workspace, run_id
        worker = Worker.of_run(self._run())
        assert worker is not None
        self.worker = worker

    def step_worker(self) -> psutil.Process:
        """The step's process: a child of the worker, and the parent of the training."""
        of_training = {process.pid for process in self._of_training()}
        (step,) = {process.ppid() for process in self._of_training()} - of_training
        assert psutil.Process(step).ppid() == self.worker.pid
        return psutil.Process(step)

    def num_steps(self) -> int:
        """How far the training is."""
        return len(self.workspace.metrics_path.read_text().splitlines())

    def status(self) -> dg.DagsterRunStatus:
        """What Dagster shows."""
        return self._run().status

    def check_ending(self, command: subprocess.Popen[str] | None, expected: dg.DagsterRunStatus) -> None:
        """Nothing is left, the last checkpoint loads, Dagster shows what is expected and MLflow the same.

        Args:
            command: the command line that ran it, if any; another one then puts right what it left.
            expected: the ending in Dagster.
        """
        wait_until(lambda: not self._of_training(), SECONDS_TO_VANISH, lambda: str(self._of_training()))
        # The step and the command have something to record yet.
        wait_until(lambda: not self.left(), 60, lambda: str(self.left()))
        if command is not None:
            assert command.wait(60) != 0
            assert alive(f"test-{os.getpid()}-train_sample") == []
        self._check_checkpoint()
        if command is not None and not self._is_settled():
            succeed(self.shop, "index/sample")
            assert self._is_settled()
        # Where a daemon runs, it looks every half minute.
        wait_until(self._is_settled, 90, lambda: f"{self.status().value}, in MLflow {self._mlflow_status()}")
        assert self.status() is expected, output_of(self.shop)
        assert self._mlflow_status() == "KILLED"

    def _is_settled(self) -> bool:
        """Whether Dagster and MLflow know of the end, and the place in the pool is another's to take."""
        with instance_of(self.shop) as instance:
            slots = instance.event_log_storage.get_concurrency_info("gpu")
        is_free = self.run_id not in slots.active_run_ids | slots.pending_run_ids
        return self._run().is_finished and self._mlflow_status() != "RUNNING" and is_free

    def _check_checkpoint(self) -> None:
        import torch

        status, checkpoint = self.workspace.status(), self.workspace.latest_checkpoint()
        assert status is not None and (status.state, status.resumable) == ("interrupted", True), status
        assert checkpoint is not None and checkpoint.step == status.step, "it saved before it ended"
        assert torch.load(checkpoint.model_path, weights_only=True)["model"]
        assert torch.load(checkpoint.optimizer_path, weights_only=True)

    def _of_training(self) -> list[psutil.Process]:
        """Processes of the tree that the launcher started: their marks are longer than the step's."""
        found = []
        for process in processes_of(self.run_id):
            with contextlib.suppress(psutil.Error):
                if not process.environ()[MARK].endswith(run_mark(self.run_id)):
                    found.append(process)
        return found

    def left(self) -> list[psutil.Process]:
        """Processes of the run, its worker aside."""
        return processes_of(self.run_id)

    def _run(self) -> dg.DagsterRun:
        with instance_of(self.shop) as instance:
            run = instance.get_run_by_id(self.run_id)
        assert run is not None
        return run

    def _mlflow_status(self) -> str:
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{self.shop.root}/mlflow.db")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        (run,) = client.search_runs(experiments, f"tags.dagster_run_id = '{self.run_id}'")
        return str(run.info.status)


def begin(shop: Project, num_processes: int) -> tuple[subprocess.Popen[str], Training]:
    """A training of the command line that is past its first steps."""
    running, workspace = begin_endless_training(shop, num_processes, terminate_grace_s=GRACE_S)
    with instance_of(shop) as instance:
        (run,) = instance.get_runs(limit=1)
    return running, Training(shop, workspace, run.run_id)


def launch(dev: DagsterDev, num_processes: int) -> Training:
    """A training of the user interface that is past its first steps."""
    before = workspaces_of(dev.project)
    config: dict[str, Any] = {"ops": {"train_sample": {"config": endless(num_processes, terminate_grace_s=GRACE_S)}}}
    run_id = dev.launch("train_sample_job", config)
    workspace = wait_for_steps(dev.project, before, lambda: dev.status(run_id) not in ("FAILURE", "CANCELED"))
    return Training(dev.project, workspace, run_id)


def wait_until(condition: Callable[[], bool], seconds: float, found: Callable[[], str] = str) -> None:
    """Wait for a condition; `found` tells what there is instead of it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {seconds} s: {found()}"
        time.sleep(0.2)
