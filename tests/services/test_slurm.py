"""Trainings as Slurm jobs of two tasks, with the real trainer and a real cluster whose two nodes are this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_project import Project
from shop import alive, instance_of, latest, materialize, open_shop, output_of, succeed

from moge_core.training import Workspace
from moge_pipeline.defs.resources.launchers import LAUNCH_TAG, end_abandoned_launch

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

COMMON = {"type": "slurm", "partition": "gpu", "cpus_per_task": 1, "poll_s": 0.5}
LAUNCHERS = {
    "launchers": {"two_nodes": {**COMMON, "nodes": 2}, "one_node": {**COMMON, "tasks_per_node": 2}},
    "assets": {"train_sample": "two_nodes"},
}
FLAGS = {"num_processes": 2, "batch_size_forward": 1, "log_every": 1}
ENDLESS = {**FLAGS, "num_iterations": 100000, "resume": "never", "max_retries": 0}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, slurm: Path) -> Project:
    """A project whose trainings run on the cluster, with its data in place."""
    project = open_shop(tmp_path_factory.mktemp("shop"))
    (project.root / "configs" / "launchers.json").write_text(json.dumps(LAUNCHERS))
    succeed(project, "index/sample")
    return project


def wait_for(
    condition: Callable[[], Any], running: subprocess.Popen[str], project: Project, seconds: float = 240
) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert running.poll() is None and time.monotonic() < deadline, output_of(project)
        time.sleep(0.2)
    return found


def begin(project: Project, config: dict[str, Any]) -> tuple[subprocess.Popen[str], Workspace, str]:
    """A training that is past its first steps, its workspace, and the number of its job."""
    workspaces = project.root / "workspace" / "train_sample"
    before = set(workspaces.glob("*"))
    running = materialize(project, "train_sample", config)

    def training() -> Workspace | None:
        new = [Workspace(path) for path in set(workspaces.glob("*")) - before]
        return next((each for each in new if len(steps(each)) >= 2), None)

    workspace = wait_for(training, running, project)
    return running, workspace, record_of(project)["id"]


def record_of(project: Project) -> dict[str, str]:
    with instance_of(project) as instance:
        record: dict[str, str] = json.loads(instance.get_runs(limit=1)[0].tags[LAUNCH_TAG])
    return record


def steps(workspace: Workspace) -> list[int]:
    path = workspace.metrics_path
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.is_file() else []


def job_state(job_id: str) -> str:
    answer = subprocess.run(["scontrol", "show", "job", "-o", job_id], capture_output=True, text=True, check=True)
    return re.findall(r"JobState=(\S+)", answer.stdout)[0]


def mark() -> str:
    return f"test-{os.getpid()}-train_sample"


def test_a_training_of_two_tasks_ends_well_and_its_output_is_the_steps(shop: Project) -> None:
    succeed(shop, "train_sample", {**FLAGS, "num_iterations": 3})
    trained = latest(shop, "train_sample")
    assert trained["step"] == 2 and trained["loss"] > 0
    checkpoint = Workspace(trained["workspace"]).latest_checkpoint()
    assert checkpoint is not None and checkpoint.manifest["batch_size_total"] == 2, "the tasks trained together"
    assert record_of(shop)["launcher"] == "slurm"
    with instance_of(shop) as instance:
        run = instance.get_runs(limit=1)[0]
        messages = [entry.user_message for entry in instance.all_logs(run.run_id)]
    assert any(message.startswith("Step ") for message in messages), "log lines come while it trains"
    assert job_state(record_of(shop)["id"]) == "COMPLETED"
    captured = [path.read_text() for path in (shop.root / ".dagster").rglob("*.out") if run.run_id in str(path)]
    assert any("INFO step 2 of 3" in text for text in captured), "the job's output"


def test_a_failure_tells_the_trainers_reason_and_is_not_retried(shop: Project) -> None:
    failed = materialize(shop, "train_sample", {**FLAGS, "resume": "never", "init": "/no/such/weights.pt"})
    assert failed.wait(200) != 0
    text = output_of(shop)
    assert "/no/such/weights.pt" in text
    assert "STEP_UP_FOR_RETRY" not in text
    assert job_state(record_of(shop)["id"]) == "FAILED"
    assert alive(mark()) == []


def test_a_cancelled_run_saves_and_leaves_neither_job_nor_process(shop: Project) -> None:
    running, workspace, job_id = begin(shop, {**ENDLESS, "terminate_grace_s": 60})
    running.send_signal(signal.SIGINT)
    assert running.wait(120) != 0
    assert job_state(job_id) in ("FAILED", "CANCELLED")
    assert alive(mark()) == []
    status, checkpoint = workspace.status(), workspace.latest_checkpoint()
    assert status is not None and (status.state, status.resumable) == ("interrupted", True)
    assert checkpoint is not None and checkpoint.step == status.step


def test_a_requeued_job_goes_on_from_its_latest_checkpoint_to_its_end(shop: Project) -> None:
    config = {**FLAGS, "launcher": "one_node", "num_iterations": 80, "resume": "never", "save_every": 5}
    running, workspace, job_id = begin(shop, config)
    wait_for(workspace.latest_checkpoint, running, shop)
    subprocess.run(["scontrol", "requeue", job_id], check=True)
    wait_for(lambda: job_state(job_id) == "PENDING", running, shop)
    # Slurm lets a job that was put back wait for two minutes.
    subprocess.run(["scontrol", "update", f"JobId={job_id}", "StartTime=now"], check=True)
    assert running.wait(300) == 0, output_of(shop)
    assert record_of(shop)["id"] == job_id, "one launch saw the job through both attempts"
    assert latest(shop, "train_sample")["step"] == 79
    assert steps(workspace) == list(range(80)), "nothing was trained twice or left out"
    assert not (workspace.path / "set_aside").exists()


def test_an_abandoned_job_ends_when_it_is_told_to_and_saves(shop: Project) -> None:
    running, workspace, job_id = begin(shop, ENDLESS)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    end_abandoned_launch(record_of(shop))
    deadline = time.monotonic() + 100
    while job_state(job_id) not in ("FAILED", "CANCELLED"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    status = workspace.status()
    assert status is not None and status.state == "interrupted"
