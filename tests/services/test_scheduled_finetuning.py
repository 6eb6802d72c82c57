"""A finetuning on a schedule as it runs at night: a real daemon, real ticks, the real trainer."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus
from pipeline_project import Project
from shop import environment, instance_of, latest, open_shop, succeed

from moge_core.training import Workspace

pytestmark = [pytest.mark.services, pytest.mark.timeout(1500)]

SCHEDULE, ASSET = "finetune_sample_schedule", "finetune_sample"
PATIENCE_S = 600


@contextlib.contextmanager
def daemon(project: Project) -> Iterator[None]:
    """`dagster-daemon run` in the project's folder; it starts the code location and the runs."""
    argv = [sys.executable, "-m", "dagster._daemon", "run", "--workspace", "workspace.yaml"]
    env = {**environment(f"test-{os.getpid()}-daemon"), "DAGSTER_HOME": str(project.root)}
    with (project.root / "daemon.log").open("w") as log:
        process = subprocess.Popen(
            argv, cwd=project.root, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ticks(project: Project) -> list[InstigatorTick]:
    """Ticks of the schedule, and those of sensors that requested something or failed, oldest first."""
    with instance_of(project) as instance:
        found = [
            tick
            for state in instance.all_instigator_state()
            for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
            if state.instigator_name == SCHEDULE or tick.status not in (TickStatus.SKIPPED, TickStatus.STARTED)
        ]
    return sorted(found, key=lambda tick: tick.timestamp)


def runs(project: Project) -> list[dg.DagsterRun]:
    """Runs of the schedule, oldest first."""
    with instance_of(project) as instance:
        return instance.get_runs(dg.RunsFilter(job_name=f"{ASSET}_refresh_job"))[::-1]


def wait_for(what: str, look: Callable[[], Any], project: Project) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        log = (project.root / "daemon.log").read_text()[-6000:]
        assert time.monotonic() < deadline, f"waited in vain for {what}; the daemon's log ends with\n{log}"
        time.sleep(2)
    return found


def wait_for_success(project: Project, number: int) -> dg.DagsterRun:
    """The schedule's run of this number, once it has succeeded."""

    def ended() -> dg.DagsterRun | None:
        found = runs(project)
        return found[number - 1] if len(found) >= number and found[number - 1].is_finished else None

    run: dg.DagsterRun = wait_for(f"run {number}", ended, project)
    assert run.status == dg.DagsterRunStatus.SUCCESS, (project.root / "daemon.log").read_text()[-6000:]
    return run


def wait_for_skip(project: Project) -> None:
    """A tick that says that nothing has changed."""
    wait_for(
        "a tick that is skipped because nothing has changed",
        lambda: [
            tick
            for tick in ticks(project)
            if tick.status == TickStatus.SKIPPED
            and tick.skip_reason == "Neither data, base nor configuration have changed since the newest result."
        ],
        project,
    )


def parent_of(metadata: dict[str, Any]) -> tuple[str, str]:
    """Path and digest of the parent, by the manifest that the trainer wrote."""
    checkpoint = Workspace(metadata["workspace"]).latest_checkpoint()
    assert checkpoint is not None
    return checkpoint.manifest["parent"]["path"], checkpoint.manifest["parent"]["sha256"]


def digest_of(metadata: dict[str, Any]) -> str:
    checkpoint = Workspace(metadata["workspace"]).latest_checkpoint()
    assert checkpoint is not None
    return str(checkpoint.manifest["files"][checkpoint.model_path.name]["sha256"])


def test_a_scheduled_finetuning_trains_waits_for_new_data_and_goes_on_in_one_line(tmp_path: Path) -> None:
    shop = open_shop(tmp_path)
    shop.finetune(
        "sample", run={"num_iterations": 2}, schedule={"cron": "* * * * *", "timezone": "UTC", "enabled": True}
    )
    succeed(shop, "+train_sample")
    base = latest(shop, "train_sample")

    with daemon(shop):
        first_run = wait_for_success(shop, 1)
        first = latest(shop, ASSET)
        wait_for_skip(shop)
        assert len(runs(shop)) == 1, "a tick that is skipped runs nothing"

        # In one move, as a folder that is copied aside and then renamed arrives.
        source = next(path.parent for path in sorted((shop.root / "data/sample").rglob("meta.json")))
        shutil.copytree(source, shop.root / "aside")
        (shop.root / "aside").rename(shop.root / "data/sample/dropped")

        second_run = wait_for_success(shop, 2)
        second = latest(shop, ASSET)

    assert first_run.tags["moge/reason"] == "changed: no result yet"
    assert second_run.tags["moge/reason"] == "changed: dataset sample"
    assert {tick.status for tick in ticks(shop)} <= {TickStatus.SUCCESS, TickStatus.SKIPPED}
    requesting = [tick for tick in ticks(shop) if tick.status == TickStatus.SUCCESS]
    assert [tick.run_ids for tick in requesting] == [[first_run.run_id], [second_run.run_id]]

    rows = [(each["datasets"].records[0].data["instances"], each["step"]) for each in (first, second)]
    assert rows == [(4, 1), (5, 1)]
    assert parent_of(first) == (base["checkpoint"], digest_of(base))
    assert parent_of(second) == (first["checkpoint"], digest_of(first))
    assert first["base_sha256"] == second["base_sha256"] == digest_of(base)
