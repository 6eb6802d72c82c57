"""Scores as assets: of what was never trained on, over time, with what a person wants to see beside them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pipeline_project import InProcessLauncher, Project, failure_text, metadata_of

from moge_core.datasets import render_sample_scenes
from moge_core.training.evaluation import Evaluation
from moge_pipeline.defs.evaluation.assets import _check_results, _comparable_lines
from moge_pipeline.defs.resources.tracking import mlflow_resource

EVALUATES = {"num_iterations": 2, "eval_every": 1, "eval_fraction": 0.5, "vis_every": 1, "num_vis_images": 2}


@pytest.fixture
def shop(project: Project) -> Project:
    """A project whose training really trains, in this process."""
    project.train("sample", run={**EVALUATES, "batch_size_forward": 2, "init": "random", "num_processes": 1})
    project.finetune("sample")
    render_sample_scenes(project.root / "data" / "sample", 40, 1, size=(96, 72))
    return project


def make(project: Project, *assets: str, **options: Any) -> dg.ExecuteInProcessResult:
    result = project.materialize(*assets, launcher=InProcessLauncher(), **options)
    assert result.success, failure_text(result)
    return result


def test_a_training_is_scored_on_what_it_never_saw_and_its_scores_have_a_history(
    shop: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shop.root}/mlflow.db")
    trained = make(shop, "index/sample", "train_sample")
    shown = {
        name: value.value
        for event in trained.get_asset_materialization_events()
        for name, value in event.materialization.metadata.items()
    }
    for picture in ("loss_over_time", "predictions"):
        assert shown[picture].startswith("![") and "data:image/png;base64," in shown[picture]

    first = make(shop, "evaluation_train_sample", mlflow=mlflow_resource)
    metadata = metadata_of(first)
    assert metadata["rel"] > 0 and 0 <= metadata["delta1"] <= 1
    assert Path(metadata["checkpoint"]).is_file() and metadata["workspace"].endswith("train_sample/1")
    (dataset,) = metadata["datasets"].records
    assert dataset.data["dataset"] == "sample" and dataset.data["instances"] >= 8
    assert metadata["selection_rel"] > 0 and "unclaimed" not in metadata
    passed = {each.check_name: each.passed for each in first.get_asset_check_evaluations()}
    assert passed == {"scored_on_unseen_data": True, "no_worse_than_before": True}

    import mlflow

    run = mlflow.MlflowClient(f"sqlite:///{shop.root}/mlflow.db").get_run(metadata["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["heldout/rel"] == pytest.approx(metadata["rel"])
    assert run.data.tags["moge.checkpoint"] == metadata["checkpoint"]

    again = metadata_of(make(shop, "evaluation_train_sample"))
    assert [row.data["run"] for row in again["history"].records] == ["1", "1"]
    assert "data:image/png;base64," in again["score_over_time"]


def test_a_score_that_got_worse_is_told(shop: Project) -> None:
    make(shop, "index/sample", "train_sample")
    make(shop, "evaluation_train_sample")
    history = shop.root / "workspace" / "train_sample" / "evaluations.jsonl"
    before = json.loads(history.read_text())
    before["scores"]["rel"] *= 0.5
    history.write_text(json.dumps(before) + "\n")
    result = make(shop, "evaluation_train_sample")
    (check,) = [each for each in result.get_asset_check_evaluations() if each.check_name == "no_worse_than_before"]
    assert not check.passed and check.severity == dg.AssetCheckSeverity.WARN

    history.write_text(json.dumps({**before, "precision": "bf16"}) + "\n")
    result = make(shop, "evaluation_train_sample")
    (check,) = [each for each in result.get_asset_check_evaluations() if each.check_name == "no_worse_than_before"]
    assert check.passed and "same resolution and precision" in str(check.description), "scored otherwise: not compared"
    assert [row.data["precision"] for row in metadata_of(result)["history"].records] == ["fp32", "bf16"]


def test_no_line_connects_scores_that_were_made_otherwise() -> None:
    conditions = {"num_tokens": 20, "instances_digest": "abc", "not_scored": []}
    rel = [0.5, 0.4, 0.3, 0.2, 0.1]
    history = [{"scores": {"rel": value}, **conditions, "precision": "bf16"} for value in rel]
    del history[0]["precision"]  # of before it was recorded
    history[2]["precision"] = history[4]["precision"] = "fp32"
    lines = _comparable_lines(history)
    assert lines["rel"] == ([3, 5], [0.3, 0.1]), "those that are like the newest"
    (x, y) = lines["rel, scored otherwise"]
    assert x == [1, 2, 2, 4] and math.isnan(y[1]) and [y[0], *y[2:]] == [0.5, 0.4, 0.2]


def test_a_finetuning_on_data_that_grew_is_compared_with_its_parent() -> None:
    parent = {"rel": 0.1, "delta1": 0.9}
    evaluation = Evaluation(
        *("w/1/checkpoint/00000001.pt", None, 1, "model", {"rel": 0.2}, {}, parent, "now"),
        *("fp32", 20, "abc", []),
    )
    before = {"scores": {"rel": 0.3}, "precision": "fp32", "num_tokens": 20, "instances_digest": "of fewer"}
    history = [{**before, "not_scored": []}, asdict(evaluation)]
    (check,) = [each for each in _check_results(evaluation, history) if each.check_name == "no_worse_than_before"]
    assert not check.passed and check.description == "rel was 0.1000 and is 0.2000"


def test_a_training_that_held_nothing_out_is_not_scored_and_learns_how_to_be(shop: Project) -> None:
    shop.train("sample", run={"num_iterations": 1, "batch_size_forward": 2, "init": "random"})
    make(shop, "index/sample", "train_sample")
    result = make(shop, "evaluation_train_sample")
    assert "rel" not in metadata_of(result)
    (check,) = [each for each in result.get_asset_check_evaluations() if each.check_name == "scored_on_unseen_data"]
    assert not check.passed and "--val-fraction" in str(check.description)


def test_too_few_instances_to_claim_a_score_on_are_told_with_their_number(shop: Project) -> None:
    shop.train("sample", run={**EVALUATES, "eval_fraction": 0.15, "batch_size_forward": 2, "init": "random"})
    make(shop, "index/sample", "train_sample")
    result = make(shop, "evaluation_train_sample")
    assert "rel" not in metadata_of(result) and metadata_of(result)["selection_rel"] > 0
    (check,) = [each for each in result.get_asset_check_evaluations() if each.check_name == "scored_on_unseen_data"]
    assert not check.passed and "sample: no score is claimed" in str(check.description)


def test_without_a_finished_run_the_failure_says_what_to_do(shop: Project) -> None:
    text = failure_text(shop.materialize("evaluation_finetune_sample"))
    assert "dagster asset materialize --select finetune_sample" in text
    assert "number" in failure_text(shop.materialize("evaluation_train_sample", config={"workspace": "../x"}))
