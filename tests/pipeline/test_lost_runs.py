"""A killed worker's run gets its true ending; a run that is alive is never touched."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from moge_core.training import RunStatus, Workspace
from moge_pipeline.defs.resources import tracking
from moge_pipeline.defs.resources.tracking import TRACKING_CLOSED, TRACKING_OPEN, TRACKING_TAG, TRACKING_URI_TAG
from moge_pipeline.defs.runs import lost, worker
from moge_pipeline.defs.runs.endings import close_runs
from moge_pipeline.defs.runs.lost import LostRun, Outcome, end_unwanted_processes, reap_lost_runs
from moge_pipeline.defs.runs.sensors import lost_runs
from moge_pipeline.defs.runs.worker import Presence, Worker, marked_children, run_mark
from moge_pipeline.process_tree import MARK, with_mark

FAILURE, CANCELED, STARTED = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.STARTED
ANOTHER = "another"
WAITS = "import time; print(flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def storage_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """An instance with sqlite storage, whose tables take seconds to make."""
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as instance:
        yield instance


@pytest.fixture
def instance(storage_on_disk: dg.DagsterInstance) -> dg.DagsterInstance:
    """An empty instance."""
    for run in storage_on_disk.get_runs():
        storage_on_disk.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    storage_on_disk.event_log_storage.free_concurrency_slots_for_run(ANOTHER)
    storage_on_disk.wipe()
    return storage_on_disk


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that wait, and ends them after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(run_id: str = "") -> subprocess.Popen[str]:
        env = {**os.environ, MARK: with_mark(os.environ, run_mark(run_id))} if run_id else None
        process = subprocess.Popen([sys.executable, "-c", WAITS], env=env, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def gone(begin: Callable[..., subprocess.Popen[str]]) -> Worker:
    """A worker of this machine that was killed."""
    process = begin()
    known = Worker.here(process.pid)
    assert known.presence() is Presence.HERE
    process.kill()
    process.wait()
    return known


def a_run(
    instance: dg.DagsterInstance,
    known: Worker | None,
    status: dg.DagsterRunStatus = STARTED,
    tags: Mapping[str, str] | None = None,
) -> dg.DagsterRun:
    run = create_run_for_test(instance, "train_sample_job", status=status, tags=dict(tags or {}))
    instance.add_run_tags(run.run_id, known.tags(run.run_id) if known else {})
    return run


def status_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    now = instance.get_run_by_id(run.run_id)
    assert now is not None
    return now.status


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, STARTED])
def test_a_run_whose_worker_was_killed_has_failed_and_says_why(
    instance: dg.DagsterInstance, gone: Worker, status: dg.DagsterRunStatus
) -> None:
    run = a_run(instance, gone, status)
    assert reap_lost_runs(instance) == [LostRun(run.run_id, Outcome.FAILED)]
    assert status_of(instance, run) is FAILURE
    (event,) = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert f"process {gone.pid} of {gone.host}, is gone" in event.message
    assert reap_lost_runs(instance) == []


def test_a_run_that_was_being_cancelled_is_cancelled(instance: dg.DagsterInstance, gone: Worker) -> None:
    run = a_run(instance, gone, dg.DagsterRunStatus.CANCELING)
    assert reap_lost_runs(instance) == [LostRun(run.run_id, Outcome.CANCELED)]
    assert status_of(instance, run) is CANCELED


def test_a_lost_runs_place_in_the_pool_is_free(instance: dg.DagsterInstance, gone: Worker) -> None:
    storage = instance.event_log_storage
    storage.set_concurrency_slots("gpu", 1)
    run = a_run(instance, gone)
    assert storage.claim_concurrency_slot("gpu", run.run_id, "train_sample").is_claimed
    assert not storage.claim_concurrency_slot("gpu", ANOTHER, "train_sample").is_claimed
    reap_lost_runs(instance)
    assert storage.claim_concurrency_slot("gpu", ANOTHER, "train_sample").is_claimed


def test_a_place_of_a_run_that_is_over_is_free_once_its_processes_are(
    instance: dg.DagsterInstance, gone: Worker, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    storage = instance.event_log_storage
    storage.set_concurrency_slots("gpu", 1)
    run = a_run(instance, gone, FAILURE)
    assert storage.claim_concurrency_slot("gpu", run.run_id, "train_sample").is_claimed
    saving = begin(run.run_id)
    reap_lost_runs(instance)
    assert run.run_id in storage.get_concurrency_run_ids()
    saving.kill()
    saving.wait()
    reap_lost_runs(instance)
    assert run.run_id not in storage.get_concurrency_run_ids()


def unlike(known: Worker, **fields: Any) -> Worker:
    return replace(known, **fields)


def test_a_live_run_is_left_alone(instance: dg.DagsterInstance) -> None:
    run = a_run(instance, Worker.here())
    assert reap_lost_runs(instance) == []
    assert status_of(instance, run) is STARTED


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "elsewhere"},
        {"machine": "f" * 32},
        {"machine": "f" * 32, "boot": "another"},
        {"namespace": "pid:[1]"},
        {"start": ""},
    ],
    ids=["host", "machine of the same name", "its boot", "container", "without a start"],
)
def test_a_run_of_another_machine_is_left_alone(
    instance: dg.DagsterInstance, gone: Worker, fields: dict[str, str]
) -> None:
    run = a_run(instance, unlike(gone, **fields))
    assert reap_lost_runs(instance) == []
    assert status_of(instance, run) is STARTED


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, STARTED, dg.DagsterRunStatus.CANCELING])
@pytest.mark.parametrize("tags", [{}, {worker.WORKER_TAG: "{"}, {worker.WORKER_TAG: '{"pid": 1}'}])
def test_a_run_that_is_just_being_launched_or_names_no_worker_is_left_alone(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, tags: dict[str, str]
) -> None:
    run = a_run(instance, None, status, tags)
    assert reap_lost_runs(instance) == []
    assert status_of(instance, run) is status


def test_a_run_that_is_executed_again_is_not_taken_for_its_parent(instance: dg.DagsterInstance, gone: Worker) -> None:
    parent = a_run(instance, gone, FAILURE)
    again = a_run(instance, None, dg.DagsterRunStatus.STARTING, gone.tags(parent.run_id))
    assert reap_lost_runs(instance) == []
    assert status_of(instance, again) is dg.DagsterRunStatus.STARTING


def test_a_run_that_has_not_begun_is_left_alone(instance: dg.DagsterInstance, gone: Worker) -> None:
    run = a_run(instance, gone, dg.DagsterRunStatus.NOT_STARTED)
    assert reap_lost_runs(instance) == []
    assert status_of(instance, run) is dg.DagsterRunStatus.NOT_STARTED


def test_a_reused_process_number_is_no_sign_of_life(instance: dg.DagsterInstance) -> None:
    run = a_run(instance, unlike(Worker.here(), start="1"))
    reap_lost_runs(instance)
    assert status_of(instance, run) is FAILURE


def test_a_worker_that_nobody_has_waited_for_is_gone(begin: Callable[..., subprocess.Popen[str]]) -> None:
    process = begin()
    known = Worker.here(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert known.presence() is Presence.GONE


def test_a_process_that_cannot_be_seen_may_be_alive(monkeypatch: pytest.MonkeyPatch, gone: Worker) -> None:
    def forbidden(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    monkeypatch.setattr(worker, "_start_of", lambda pid: None)
    monkeypatch.setattr(worker.psutil, "Process", lambda pid: (_ for _ in ()).throw(worker.psutil.AccessDenied(pid)))
    assert gone.presence() is Presence.UNKNOWN


def test_no_worker_outlives_a_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Worker.here()
    known = replace(here, machine="a" * 32)
    monkeypatch.setattr(Worker, "here", classmethod(lambda cls, pid=None: replace(known, boot="later")))
    assert known.presence() is Presence.GONE
    nameless = replace(known, machine="")
    monkeypatch.setattr(Worker, "here", classmethod(lambda cls, pid=None: replace(nameless, boot="later")))
    assert nameless.presence() is Presence.UNKNOWN, "it may be another machine of this name"


def test_a_run_that_still_saves_is_settled_when_it_has_saved(
    instance: dg.DagsterInstance, gone: Worker, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    run = a_run(instance, gone)
    saving = begin(run.run_id)
    assert reap_lost_runs(instance) == [LostRun(run.run_id, Outcome.ENDING)]
    assert status_of(instance, run) is STARTED
    saving.kill()
    saving.wait()
    assert reap_lost_runs(instance) == [LostRun(run.run_id, Outcome.FAILED)]


def test_what_a_lost_run_has_on_a_cluster_is_ended_first(instance: dg.DagsterInstance, gone: Worker) -> None:
    record = {"launcher": "slurm", "job": "17"}
    run = a_run(instance, gone, tags={lost.LAUNCH_TAG: json.dumps(record)})
    ended: list[Mapping[str, Any]] = []

    def refuse(launch: Mapping[str, Any]) -> None:
        raise RuntimeError("the cluster does not answer")

    assert reap_lost_runs(instance, refuse) == [LostRun(run.run_id, Outcome.ENDING)]
    assert status_of(instance, run) is STARTED, "nobody would end the launch of a run that is over"
    assert reap_lost_runs(instance, ended.append) == [LostRun(run.run_id, Outcome.FAILED)]
    assert ended == [record]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of an MLflow store."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def mlflow_run(store: str, dagster_run_id: str, status: str = "RUNNING", **tags: str) -> Callable[[], str]:
    """An MLflow run; what is returned tells its status."""
    import mlflow

    client = mlflow.MlflowClient(store)
    run = client.create_run("0", tags={"dagster_run_id": dagster_run_id, **tags})
    if status != "RUNNING":
        client.set_terminated(run.info.run_id, status)
    return lambda: str(client.get_run(run.info.run_id).info.status)


def tracked(store: str) -> dict[str, str]:
    return {TRACKING_TAG: TRACKING_OPEN, TRACKING_URI_TAG: store}


def test_mlflow_shows_how_a_lost_run_ended(instance: dg.DagsterInstance, gone: Worker, store: str) -> None:
    run = a_run(instance, gone, tags=tracked(store))
    killed = mlflow_run(store, run.run_id)
    failed = mlflow_run(store, run.run_id, **{"moge.ending": "failed: NonFiniteError: 10 steps in a row"})
    interrupted = mlflow_run(store, run.run_id, **{"moge.ending": "interrupted: SIGTERM"})
    finished = mlflow_run(store, run.run_id, "FINISHED")
    another = mlflow_run(store, "another")
    reap_lost_runs(instance)
    assert [ask() for ask in (killed, failed, interrupted, finished, another)] == [
        "KILLED",
        "FAILED",
        "KILLED",
        "FINISHED",
        "RUNNING",
    ]
    now = instance.get_run_by_id(run.run_id)
    assert now is not None and now.tags[TRACKING_TAG] == TRACKING_CLOSED


def test_a_trainer_that_could_not_tell_mlflow_is_believed_by_its_workspace(store: str, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    Workspace(tmp_path / "w").write_status(RunStatus("failed", "disk full", 3, 10, resumable=False))
    ask = mlflow_run(store, "run", **{"moge.workspace": str(tmp_path / "w")})
    assert close_runs(store, "run")
    assert ask() == "FAILED"


def test_a_killed_steps_mlflow_run_is_closed_though_dagster_knows_the_ending(
    instance: dg.DagsterInstance, gone: Worker, store: str
) -> None:
    run = a_run(instance, gone, FAILURE, tracked(store))
    ask = mlflow_run(store, run.run_id)
    assert reap_lost_runs(instance) == []
    assert ask() == "KILLED"


def test_a_store_that_is_down_costs_seconds_and_is_asked_again(
    instance: dg.DagsterInstance, gone: Worker, store: str
) -> None:
    runs = [a_run(instance, gone, tags=tracked("http://127.0.0.1:9")) for _ in range(3)]
    began = time.monotonic()
    assert len(reap_lost_runs(instance)) == 3
    assert time.monotonic() - began < 30, "MLflow itself would have tried for minutes"
    assert {status_of(instance, run) for run in runs} == {FAILURE}
    ask = mlflow_run(store, runs[0].run_id)
    instance.add_run_tags(runs[0].run_id, {TRACKING_URI_TAG: store})
    reap_lost_runs(instance)
    assert ask() == "KILLED"


def test_a_closed_mlflow_run_is_not_looked_for_again(
    instance: dg.DagsterInstance, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.asset
    def trains(context: dg.AssetExecutionContext, mlflow: dg.ResourceParam[Any]) -> None:
        with mlflow.asset_run(context, "trains"):
            now = instance.get_run_by_id(context.run.run_id)
            assert now is not None and now.tags[TRACKING_TAG] == TRACKING_OPEN

    resource = tracking.mlflow_resource.configured({"mlflow_tracking_uri": store})
    result = dg.materialize([trains], resources={"mlflow": resource}, instance=instance)
    now = instance.get_run_by_id(result.run_id)
    assert now is not None and now.tags[TRACKING_TAG] == TRACKING_CLOSED
    monkeypatch.setattr(lost, "close_runs", lambda *_: pytest.fail("there is nothing to close"))
    reap_lost_runs(instance)


def ends(process: subprocess.Popen[str]) -> bool:
    try:
        return process.wait(10) == -signal.SIGTERM
    except subprocess.TimeoutExpired:
        return False


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.CANCELING, FAILURE, CANCELED])
def test_a_worker_whose_run_is_over_is_asked_to_end(
    instance: dg.DagsterInstance,
    begin: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
    status: dg.DagsterRunStatus,
) -> None:
    process = begin()
    run = a_run(instance, Worker.here(process.pid), status)
    step = begin(run.run_id)
    assert end_unwanted_processes(instance) == [], "it may be ending by itself"
    monkeypatch.setattr(lost, "SECONDS_TO_OBEY", -1)
    assert end_unwanted_processes(instance) == [run.run_id]
    assert ends(process)
    assert step.poll() is None, "steps are the worker's to end"


def test_workers_whose_run_goes_on_or_is_not_ours_are_not_asked_to_end(
    instance: dg.DagsterInstance,
    begin: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lost, "SECONDS_TO_OBEY", -1)
    process = begin()
    run = a_run(instance, Worker.here(process.pid))
    begin(run.run_id)
    begin("a-run-of-another-instance")
    assert end_unwanted_processes(instance) == []
    assert process.poll() is None


def test_the_daemon_looks_by_itself_and_says_what_it_did(instance: dg.DagsterInstance, gone: Worker) -> None:
    assert lost_runs.default_status is dg.DefaultSensorStatus.RUNNING
    context = dg.build_sensor_context(instance=instance)
    quiet: Any = lost_runs(context)
    assert quiet.skip_message == "No run has lost its worker."
    run = a_run(instance, gone)
    told: Any = lost_runs(context)
    assert f"{run.run_id} (failed)" in told.skip_message


def test_what_a_run_starts_bears_its_mark_and_knows_its_worker() -> None:
    code = f"import os; print(os.environ['{MARK}'], os.environ['{worker.WORKER_PID}'])"
    with marked_children("17"):
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    mark, pid = output.split()
    assert run_mark("17") in mark.split(":") and pid == str(os.getpid())
    assert worker.WORKER_PID not in os.environ and run_mark("17") not in os.environ.get(MARK, "")


STEP = """
import sys, time
from moge_pipeline.defs.runs.worker import begin_step
begin_step(); print(flush=True); time.sleep(600)
"""
WORKER = """
import subprocess, sys
from moge_pipeline.defs.runs.worker import marked_children
with marked_children(sys.argv[1]):
    step = subprocess.Popen([sys.executable, "-c", sys.argv[2]])
    print(step.pid, flush=True); step.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_a_step_ends_with_the_worker_of_its_run() -> None:
    import psutil

    argv = [sys.executable, "-c", WORKER, f"step-{os.getpid()}", STEP]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        step = psutil.Process(int(process.stdout.readline()))
        process.stdout.readline()
        process.kill()
    gone, _ = psutil.wait_procs([step], 20)
    assert gone == [step] or step.status() == psutil.STATUS_ZOMBIE
