"""Trainings and evaluations of one machine share its accelerators out among themselves."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from pipeline_project import Project, save_fake_checkpoint
from shop import endless, instance_of, materialize, open_shop, output_of

from moge_core.accelerators import find_accelerators
from moge_core.datasets import index_dataset
from moge_core.device_leases import LEASED, holders, leased_devices
from moge_core.errors import WorkspaceError
from moge_core.training import RunStatus, Workspace
from moge_pipeline.defs.resources.launchers import LaunchResources, LaunchResult, LocalLauncher
from moge_pipeline.defs.runs.pool import follow_devices
from moge_pipeline.process_tree import marked

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of leases of the test's own."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MOGE_LEASES", str(tmp_path / "leases"))
    return tmp_path / "leases"


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


# --- trainings ---

TELL = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"


def launched_with(folder: Path, num_processes: int) -> tuple[LaunchResult, dict[str, str]]:
    """The result of a local launch, and the environment of its command."""
    results = []

    @dg.asset
    def train_a(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        argv = [sys.executable, "-c", TELL, str(folder / "told")]
        resources = LaunchResources(folder, folder, num_processes, terminate_grace_s=1)
        results.append(LocalLauncher().run(context, argv, {}, resources))
        yield dg.MaterializeResult()

    dg.materialize([train_a])
    return results[0], json.loads((folder / "told").read_text())


def test_a_training_gets_as_many_free_devices_as_it_has_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOGE_ACCELERATORS", "0,1,2,3")
    with leased_devices(1, "another", print):
        result, environment = launched_with(tmp_path, 2)
    assert environment["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert result.tags == {"gpus": "1,2"}
    assert holders(find_accelerators()) == {}


def test_nothing_of_it_shows_on_a_machine_without_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leases: Path
) -> None:
    monkeypatch.setenv("MOGE_ACCELERATORS", "")
    result, environment = launched_with(tmp_path, 2)
    assert not {LEASED, "CUDA_VISIBLE_DEVICES"} & environment.keys()
    assert result.tags == {} and not leases.exists()


# A launcher, and a trainer in a session of its own that does not end when it is asked to.
TRAINER = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w'); time.sleep(1000)"
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"
STEP = """
import os, sys
from pathlib import Path
from moge_core.device_leases import leased_devices
from moge_pipeline.process_tree import ProcessTree
with leased_devices(1, "train_a", print) as devices:
    tree = ProcessTree(sys.argv[2:], {**os.environ, **devices.environment}, Path.cwd(), grace_s=600, spared=sys.argv[1])
    print(tree.mark, flush=True)
    tree.wait()
"""


def test_a_device_is_taken_until_the_last_process_of_its_training_is_gone_whichever_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOGE_ACCELERATORS", "0")
    argv = [sys.executable, "-c", STEP, LAUNCHER, sys.executable, "-c", LAUNCHER, TRAINER, str(tmp_path / "ready")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as step:
        assert step.stdout is not None
        mark = step.stdout.readline().strip()
        wait_for((tmp_path / "ready").exists)
        processes = sorted(marked(mark), key=lambda process: process.create_time())
        step.kill()
    try:
        for process in processes:  # the guard, the launcher, the trainer
            assert holders(find_accelerators()).keys() == {"0"}
            process.kill()
            wait_for(lambda process=process: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
        assert len(processes) == 3
        wait_for(lambda: holders(find_accelerators()) == {})
    finally:
        for process in marked(mark):
            process.kill()


def test_a_clusters_job_takes_what_it_was_given(tmp_path: Path, leases: Path) -> None:
    argv = [sys.executable, "-m", "moge_pipeline.job_task", "--", sys.executable, "-c", TELL, str(tmp_path / "told")]
    subprocess.run(argv, env={**os.environ, "MOGE_ACCELERATORS": "0,1"}, check=True)
    environment = (tmp_path / "told").read_text()
    assert "expandable_segments:True" in environment
    assert "CUDA_VISIBLE_DEVICES" not in environment and not leases.exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_trainings_side_by_side_work_on_different_devices(
    tmp_path: Path, leases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOGE_ACCELERATORS", "0,1")
    shop = open_shop(tmp_path / "shop")
    shop.train("other")
    index_dataset(shop.root / "data" / "sample")
    variables = {"MOGE_ACCELERATORS": "0,1", "MOGE_LEASES": str(leases)}
    workspaces, commands = [], []
    try:
        for number, name in enumerate(("train_sample", "train_other"), start=1):
            workspaces.append(Workspace(shop.root / "workspace" / name / "1"))
            commands.append(materialize(shop, name, endless(1, terminate_grace_s=60), **variables))
            # Not both at once: they would make Dagster's and MLflow's tables at the same time.
            wait_for(lambda number=number: len(holders(find_accelerators())) == number or not _run(commands), 200)
        wait_for(lambda: all(each.metrics_path.is_file() for each in workspaces) or not _run(commands), 200)
        assert _run(commands), output_of(shop)
        assert [_devices_of(each.path) for each in workspaces] == [{"0"}, {"1"}]
        for command in commands:
            command.kill()
        wait_for(lambda: holders(find_accelerators()) == {})
        statuses = [each.status() for each in workspaces]
        assert [status and status.state for status in statuses] == ["interrupted"] * 2, output_of(shop)
    finally:
        for process in (each for name in ("sample", "other") for each in marked(f"test-{os.getpid()}-train_{name}")):
            process.kill()
        for command in commands:
            command.wait()


def _run(commands: list[subprocess.Popen[str]]) -> bool:
    return all(command.poll() is None for command in commands)


def _devices_of(workspace: Path) -> set[str]:
    """What the processes of the workspace's training were given to see."""
    given = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "moge_pipeline.training_process" in words and str(workspace) in words:
                given.add(process.environ()["CUDA_VISIBLE_DEVICES"])
    return given


# --- evaluations ---


def test_an_evaluation_holds_a_device(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(project.root / "workspace/train_sample/1")
    save_fake_checkpoint(workspace, 3)
    workspace.write_status(RunStatus("finished", "reached 4 iterations", 3, 4, resumable=False))
    workspace.config_path.write_bytes(project.train("sample").read_bytes())
    monkeypatch.setenv("MOGE_ACCELERATORS", "0,1")
    seen: list[dict[str, str]] = []

    def evaluate_best(*_: Any, **__: Any) -> None:
        seen.append(holders(find_accelerators()))
        raise WorkspaceError("workspace", "ends here")

    monkeypatch.setattr("moge_core.training.evaluation.evaluate_best", evaluate_best)
    with leased_devices(1, "train_other", print):
        project.materialize("evaluation_train_sample")
    (holding,) = seen
    assert holding["1"].startswith("evaluation_train_sample, run ")
    assert holders(find_accelerators()) == {}


# --- the pool ---


@pytest.fixture
def instance(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance with the project's own settings."""
    monkeypatch.setenv("MOGE_PROJECT_ROOT", str(project.root))
    (project.root / "dagster.yaml").write_bytes((REPOSITORY / "dagster.yaml").read_bytes())
    with instance_of(project) as opened:
        yield opened


def limit_with(devices: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """The pool's limit after the start of a run on a machine with these devices; None where none is set."""
    monkeypatch.setenv("MOGE_ACCELERATORS", devices)
    follow_devices(instance)
    return next((pool.limit for pool in instance.event_log_storage.get_pool_limits() if pool.name == "gpu"), None)


def test_the_limit_of_the_pool_follows_the_devices(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = ["", "0", "0,1,2", "0,1", ""]
    assert [limit_with(each, instance, monkeypatch) for each in devices] == [None, None, 3, 2, 1]


def test_a_limit_that_a_person_set_stays(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    instance.event_log_storage.set_concurrency_slots("gpu", 1)
    assert limit_with("0,1,2", instance, monkeypatch) == 1
    instance.event_log_storage.delete_concurrency_limit("gpu")
    assert limit_with("0,1,2", instance, monkeypatch) == 3
    instance.event_log_storage.set_concurrency_slots("gpu", 2)
    assert limit_with("0,1,2,3", instance, monkeypatch) == 2


def test_a_default_that_a_person_wrote_stays(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOGE_PROJECT_ROOT", str(project.root))
    text = (REPOSITORY / "dagster.yaml").read_text()
    assert "default_limit: 1" in text
    (project.root / "dagster.yaml").write_text(text.replace("default_limit: 1", "default_limit: 6"))
    with instance_of(project) as instance:
        assert limit_with("0,1", instance, monkeypatch) is None


def test_the_limit_of_a_deployment_with_a_cluster_is_left_alone(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.root / "configs").mkdir(exist_ok=True)
    (project.root / "configs/launchers.json").write_text('{"launchers": {"cluster": {"type": "slurm"}}}')
    assert limit_with("0,1", instance, monkeypatch) is None
