"""The commands that people type, with the real trainer: materialize, look, cancel, go on, finetune."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from pipeline_project import Project

from moge_core.datasets import render_sample_scenes
from moge_core.training import Workspace
from moge_pipeline.process_tree import MARK

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project on disk as a user has it, with rendered scenes."""
    project = Project(tmp_path_factory.mktemp("shop"))
    project.train("sample")
    project.finetune("sample", run={"num_iterations": 2})
    render_sample_scenes(project.root / "data" / "sample", 4, 1, size=(96, 72))
    for name in ("workspace.yaml", "dagster.yaml", "dg.toml"):
        shutil.copy(REPOSITORY / name, project.root)
    return project


def environment(mark: str) -> dict[str, str]:
    """The environment of a terminal that knows nothing of the test run."""
    ours = ("MOGE_", "MLFLOW_", "DAGSTER_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {
        **env,
        "DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME": "moge_pipeline.definitions",
        MARK: mark,
        "OMP_NUM_THREADS": "1",
    }


def materialize(project: Project, select: str, config: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "dagster", "asset", "materialize", "--select", select]
    if config is not None:
        argv += ["--config-json", json.dumps({"ops": {select: {"config": config}}})]
    mark = f"test-{os.getpid()}-{select}"
    # A file, not a pipe: reading to the end of a pipe would wait for orphans, which are what is looked for.
    log = (project.root / "output.log").open("w")
    with log:
        return subprocess.Popen(
            argv,
            cwd=project.root,
            env=environment(mark),
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def output_of(project: Project) -> str:
    return (project.root / "output.log").read_text()


def succeed(project: Project, select: str, config: dict[str, Any] | None = None) -> None:
    assert materialize(project, select, config).wait(300) == 0, output_of(project)


@contextlib.contextmanager
def instance_of(project: Project) -> Iterator[dg.DagsterInstance]:
    before = Path.cwd()
    os.chdir(project.root)
    try:
        with dg.DagsterInstance.from_config(str(project.root)) as instance:
            yield instance
    finally:
        os.chdir(before)


def latest(project: Project, asset: str) -> dict[str, Any]:
    with instance_of(project) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None and event.asset_materialization is not None
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def alive(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and mark in process.environ().get(MARK, ""):
                found.append(" ".join(process.cmdline()))
    return found


def mlflow_run(project: Project, metadata: dict[str, Any]) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db").get_run(metadata["mlflow_run_id"])


def test_one_command_goes_from_raw_to_a_checkpoint_and_a_second_finetunes_it(shop: Project) -> None:
    succeed(shop, "+train_sample")
    trained = latest(shop, "train_sample")
    assert trained["step"] == 3
    assert Path(trained["checkpoint"]).is_file()
    run = mlflow_run(shop, trained)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == pytest.approx(trained["loss"])
    assert run.data.params["dataset.sample.digest"] == trained["datasets"].records[0].data["digest"]

    succeed(shop, "finetune_sample")
    tuned = latest(shop, "finetune_sample")
    assert tuned["parent_checkpoint"] == trained["checkpoint"]
    checkpoint = Workspace(tuned["workspace"]).latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.manifest["parent"]["path"] == trained["checkpoint"]
    assert checkpoint.manifest["parent"]["sha256"] == tuned["parent_sha256"]


def begin_endless_training(project: Project, num_processes: int) -> tuple[subprocess.Popen[str], Workspace]:
    """A training that is past its first steps, and its workspace."""
    succeed(project, "index/sample")
    workspaces = project.root / "workspace" / "train_sample"
    before = set(workspaces.glob("*"))
    config = {
        "num_iterations": 100000,
        "log_every": 1,
        "resume": "never",
        "num_processes": num_processes,
        "batch_size_forward": 1,
    }
    running = materialize(project, "train_sample", config)
    deadline = time.monotonic() + 120
    while True:
        assert running.poll() is None and time.monotonic() < deadline, output_of(project)
        for path in set(workspaces.glob("*")) - before:
            metrics = Workspace(path).metrics_path
            if metrics.is_file() and len(metrics.read_text().splitlines()) >= 2:
                return running, Workspace(path)
        time.sleep(0.2)


@pytest.mark.parametrize(("number", "num_processes"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_cancelled_training_saves_leaves_no_process_and_goes_on(
    shop: Project, number: signal.Signals, num_processes: int
) -> None:
    running, workspace = begin_endless_training(shop, num_processes)
    running.send_signal(number)
    assert running.wait(60) != 0
    assert alive(f"test-{os.getpid()}-train_sample") == []

    status, checkpoint = workspace.status(), workspace.latest_checkpoint()
    assert status is not None and (status.state, status.resumable) == ("interrupted", True)
    assert checkpoint is not None and checkpoint.step == status.step
    with instance_of(shop) as instance:
        assert instance.get_runs(limit=1)[0].status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)

    flags = {"num_iterations": status.step + 3, "num_processes": num_processes, "batch_size_forward": 1}
    succeed(shop, "train_sample", flags)
    goes_on = latest(shop, "train_sample")
    assert (goes_on["workspace"], goes_on["step"]) == (str(workspace.path), status.step + 2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_a_killed_step_worker_takes_its_training_along_which_saves_first(shop: Project) -> None:
    running, workspace = begin_endless_training(shop, 1)
    mark = f"test-{os.getpid()}-train_sample"
    launcher = next(
        p for p in psutil.process_iter() if "accelerate.commands.launch" in p.cmdline() and mark in p.environ()[MARK]
    )
    worker = launcher.parent()
    assert worker is not None and worker.pid != running.pid
    worker.kill()
    deadline = time.monotonic() + 15
    while any("training_process" in command for command in alive(mark)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert running.wait(60) != 0
    status, checkpoint = workspace.status(), workspace.latest_checkpoint()
    assert status is not None and status.state == "interrupted"
    assert checkpoint is not None and checkpoint.step == status.step


def test_a_training_of_two_processes_ends_well(shop: Project) -> None:
    succeed(shop, "index/sample")
    succeed(shop, "train_sample", {"num_iterations": 2, "num_processes": 2, "batch_size_forward": 1, "resume": "never"})
    checkpoint = Workspace(latest(shop, "train_sample")["workspace"]).latest_checkpoint()
    assert checkpoint is not None and checkpoint.manifest["batch_size_total"] == 2


def test_missing_data_is_told_within_seconds(shop: Project) -> None:
    shop.train("lost", [{"name": "lost", "path": "data/lost"}])
    try:
        assert materialize(shop, "train_lost").wait(120) != 0
    finally:
        (shop.root / "configs/train/lost.json").unlink()
    text = output_of(shop)
    assert str(shop.root / "data/lost") in text and "moge index" in text
    assert not (shop.root / "workspace" / "train_lost").exists()
