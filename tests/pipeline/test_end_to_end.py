"""The commands that people type, with the real trainer: materialize, look, cancel, go on, finetune."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import dagster as dg
import pytest
from pipeline_project import Project
from shop import (
    alive,
    begin_endless_training,
    instance_of,
    latest,
    materialize,
    mlflow_run,
    open_shop,
    output_of,
    succeed,
)

from moge_core.training import Workspace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project on disk as a user has it, with rendered scenes."""
    return open_shop(tmp_path_factory.mktemp("shop"))


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


def test_a_cancelled_training_saves_leaves_no_process_and_goes_on(shop: Project) -> None:
    running, workspace = begin_endless_training(shop, 1)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) != 0
    assert alive(f"test-{os.getpid()}-train_sample") == []

    status, checkpoint = workspace.status(), workspace.latest_checkpoint()
    assert status is not None and (status.state, status.resumable) == ("interrupted", True)
    assert checkpoint is not None and checkpoint.step == status.step
    with instance_of(shop) as instance:
        assert instance.get_runs(limit=1)[0].status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)

    flags = {"num_iterations": status.step + 3, "num_processes": 1, "batch_size_forward": 1}
    succeed(shop, "train_sample", flags)
    goes_on = latest(shop, "train_sample")
    assert (goes_on["workspace"], goes_on["step"]) == (str(workspace.path), status.step + 2)


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
