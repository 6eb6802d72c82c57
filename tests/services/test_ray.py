"""Trainings as jobs of a local Ray head, with the real trainer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_project import Project
from shop import alive, instance_of, latest, materialize, open_shop, output_of, succeed

from moge_core.training import Workspace
from moge_pipeline.defs.resources.launchers import LAUNCH_TAG
from moge_pipeline.process_tree import MARK

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """The dashboard's address of a head of this machine."""
    # Sockets have short names only: pytest's folders may be too long.
    folder = tempfile.mkdtemp(prefix="ray-")
    port = free_port()
    argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0"]
    argv += [f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    argv += [f"--temp-dir={folder}", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    argv += [f"--object-store-memory={100 * 2**20}", "--include-dashboard=true"]
    mark = {MARK: f"test-{os.getpid()}-ray", "OMP_NUM_THREADS": "1"}
    with (Path(folder) / "head.out").open("wb") as log:
        head = subprocess.Popen(argv, env={**os.environ, **mark}, stdout=log, stderr=log, start_new_session=True)
    try:
        from ray.job_submission import JobSubmissionClient

        deadline = time.monotonic() + 240
        while True:
            try:
                JobSubmissionClient(f"http://127.0.0.1:{port}").list_jobs()
                break
            except (ConnectionError, RuntimeError):
                assert head.poll() is None and time.monotonic() < deadline, (Path(folder) / "head.out").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        head.terminate()
        try:
            head.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Project:
    project = open_shop(tmp_path_factory.mktemp("shop"))
    cluster = {"type": "ray", "address": ray_address, "poll_s": 0.5}
    (project.root / "configs" / "launchers.json").write_text(json.dumps({"launchers": {"rays": cluster}}))
    succeed(project, "index/sample")
    return project


def test_a_training_on_ray_ends_well_and_its_output_is_the_steps(shop: Project) -> None:
    succeed(shop, "train_sample", {"launcher": "rays", "num_iterations": 3, "log_every": 1})
    trained = latest(shop, "train_sample")
    assert trained["step"] == 2 and trained["loss"] > 0
    with instance_of(shop) as instance:
        run = instance.get_runs(limit=1)[0]
    assert json.loads(run.tags[LAUNCH_TAG])["launcher"] == "ray"
    captured = [path.read_text() for path in (shop.root / ".dagster").rglob("*.out") if run.run_id in str(path)]
    assert any("INFO step 2 of 3" in text for text in captured), "the job's output"


def test_a_failure_on_ray_tells_the_trainers_reason(shop: Project) -> None:
    config = {"launcher": "rays", "resume": "never", "init": "/no/such/weights.pt"}
    assert materialize(shop, "train_sample", config).wait(200) != 0
    assert "/no/such/weights.pt" in output_of(shop)


def test_a_cancelled_run_on_ray_saves_and_leaves_no_process(shop: Project, ray_address: str) -> None:
    config: dict[str, Any] = {"launcher": "rays", "resume": "never", "num_iterations": 100000, "log_every": 1}
    before = set((shop.root / "workspace" / "train_sample").glob("*"))
    running = materialize(shop, "train_sample", {**config, "max_retries": 0, "terminate_grace_s": 60})
    deadline = time.monotonic() + 240
    while True:
        new = set((shop.root / "workspace" / "train_sample").glob("*")) - before
        if new and (path := Workspace(new.copy().pop()).metrics_path).is_file() and path.stat().st_size > 0:
            break
        assert running.poll() is None and time.monotonic() < deadline, output_of(shop)
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    assert running.wait(120) != 0
    workspace = Workspace(new.pop())
    status, checkpoint = workspace.status(), workspace.latest_checkpoint()
    assert status is not None and (status.state, status.resumable) == ("interrupted", True)
    assert checkpoint is not None and checkpoint.step == status.step
    assert [command for command in alive(f"test-{os.getpid()}-") if "moge_pipeline" in command] == []
