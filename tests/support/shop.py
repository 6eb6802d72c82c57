"""A project on disk as a user has it, and the commands that people type in it, with the real trainer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from pipeline_project import Project

from moge_core.datasets import render_sample_scenes
from moge_core.training import Workspace
from moge_pipeline.process_tree import MARK

REPOSITORY = Path(__file__).resolve().parents[2]


def open_shop(root: Path) -> Project:
    """A project with `train_sample`, `finetune_sample` and four rendered scenes."""
    project = Project(root)
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


def materialize(
    project: Project, select: str, config: dict[str, Any] | None = None, **variables: str
) -> subprocess.Popen[str]:
    """Begin `dagster asset materialize`, with more environment variables; its output is in the project's folder."""
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
            env=environment(mark) | variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def output_of(project: Project) -> str:
    path = project.root / "output.log"
    return path.read_text() if path.is_file() else ""


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
    """Command lines of what still runs. Python's own helper ends a moment after the process that it helped."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and mark in process.environ().get(MARK, ""):
                command = " ".join(process.cmdline())
                found += [command] if "multiprocessing.resource_tracker" not in command else []
    return found


def mlflow_run(project: Project, metadata: dict[str, Any]) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db").get_run(metadata["mlflow_run_id"])


def begin_endless_training(
    project: Project, num_processes: int, **config: Any
) -> tuple[subprocess.Popen[str], Workspace]:
    """A training that is past its first steps, and its workspace."""
    if not (project.root / "data" / "sample" / ".index.txt").is_file():
        succeed(project, "index/sample")
    before = workspaces_of(project)
    running = materialize(project, "train_sample", endless(num_processes, **config))
    workspace = wait_for_steps(project, before, lambda: running.poll() is None)
    return running, workspace


def endless(num_processes: int, **config: Any) -> dict[str, Any]:
    """Run configuration of a training that does not end by itself."""
    return {
        "num_iterations": 100000,
        "log_every": 1,
        "resume": "never",
        "num_processes": num_processes,
        "batch_size_forward": 1,
        **config,
    }


def workspaces_of(project: Project) -> set[Path]:
    """Folders of the runs of `train_sample`."""
    return set((project.root / "workspace" / "train_sample").glob("*"))


def wait_for_steps(project: Project, before: set[Path], goes_on: Callable[[], bool]) -> Workspace:
    """The workspace that is not among those `before`, once its training is past its first steps."""
    deadline = time.monotonic() + 120
    while True:
        assert goes_on() and time.monotonic() < deadline, output_of(project)
        for path in workspaces_of(project) - before:
            metrics = Workspace(path).metrics_path
            if metrics.is_file() and len(metrics.read_text().splitlines()) >= 2:
                return Workspace(path)
        time.sleep(0.2)
