"""One machine trains one thing at a time, and nothing waits for a run that is gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log.base import ConcurrencyClaimStatus
from pipeline_project import Project
from shop import (
    begin_endless_training,
    instance_of,
    latest,
    materialize,
    open_shop,
    output_of,
    succeed,
    workspaces_of,
)

from moge_core.training import Workspace
from moge_pipeline.process_tree import marked

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project on disk."""
    yield open_shop(tmp_path_factory.mktemp("shop"))
    for process in marked(f"test-{os.getpid()}-train_sample"):
        process.kill()


def claim(instance: dg.DagsterInstance, run_id: str) -> ConcurrencyClaimStatus:
    """Ask for a place in the pool `gpu` as Dagster's executor does."""
    instance.event_log_storage.initialize_concurrency_limit_to_default("gpu")
    return instance.event_log_storage.claim_concurrency_slot("gpu", run_id, "train_sample")


def test_the_pool_of_trainings_has_one_place_by_default(project: Project) -> None:
    (project.root / "dagster.yaml").write_bytes((REPOSITORY / "dagster.yaml").read_bytes())
    with instance_of(project) as instance:
        assert claim(instance, "one").is_claimed
        assert not claim(instance, "another").is_claimed
        instance.event_log_storage.free_concurrency_slots_for_run("one")
        assert claim(instance, "another").is_claimed


def test_trainings_share_a_pool_and_work_on_datasets_is_done_side_by_side(project: Project) -> None:
    project.train("sample")
    project.finetune("sample")
    graph = project.definitions().resolve_asset_graph()
    pools = {key.to_user_string(): graph.get(key).pools for key in graph.materializable_asset_keys}
    assert pools["train_sample"] == pools["finetune_sample"] == {"gpu"}
    assert pools["index/sample"] == pools["quality/sample"] == set()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_training_waits_for_the_first(shop: Project) -> None:
    first, _ = begin_endless_training(shop, 1, terminate_grace_s=5)
    before = workspaces_of(shop)
    second = materialize(shop, "train_sample", {"num_iterations": 2, "resume": "never"})
    deadline = time.monotonic() + 120
    with instance_of(shop) as instance:
        while not instance.event_log_storage.get_concurrency_info("gpu").pending_step_count:
            assert second.poll() is None and time.monotonic() < deadline, output_of(shop)
            time.sleep(0.2)
    assert workspaces_of(shop) == before and first.poll() is None
    first.send_signal(signal.SIGINT)
    assert second.wait(200) == 0, output_of(shop)
    assert first.wait(60) != 0
    assert latest(shop, "train_sample")["step"] == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_does_not_wait_for_one_that_was_killed(shop: Project) -> None:
    first, workspace = begin_endless_training(shop, 1, terminate_grace_s=5)
    first.kill()
    first.wait()
    # At once: what is left of the first is still saving.
    succeed(shop, "train_sample", {"num_iterations": 2, "resume": "never"})
    status = workspace.status()
    assert status is not None and status.state == "interrupted"
    with instance_of(shop) as instance:
        statuses = [run.status for run in instance.get_runs(limit=2)]
    assert statuses == [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_saves_and_ends_when_its_time_is_up_and_is_not_tried_again(shop: Project) -> None:
    before = workspaces_of(shop)
    config = {"num_iterations": 100000, "resume": "never", "max_runtime_s": 20, "terminate_grace_s": 30}
    assert materialize(shop, "train_sample", config).wait(300) != 0
    (path,) = workspaces_of(shop) - before
    status, checkpoint = Workspace(path).status(), Workspace(path).latest_checkpoint()
    assert status is not None and (status.state, status.resumable) == ("interrupted", True)
    assert checkpoint is not None and checkpoint.step == status.step
    with instance_of(shop) as instance:
        (run,) = instance.get_runs(limit=1)
        assert run.status is dg.DagsterRunStatus.FAILURE
        assert not instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_UP_FOR_RETRY)
    assert "has run for 20 s, its maximum" in output_of(shop)
