"""Scores of a run's best checkpoint: on what it never saw, of the weights that are best, remembered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from played_accelerator import played_accelerator

from moge_core.datasets.layout import VALIDATION_NAME
from moge_core.datasets.lists import FOLDER_RULE, SCENE_RULE
from moge_core.errors import WorkspaceError
from moge_core.evaluation import are_comparable
from moge_core.training import Workspace, load_train_config, main
from moge_core.training.evaluation import evaluate_best, read_history
from moge_core.training.validation import split_datasets, untrained_instances

WriteConfig = Callable[..., Path]


def train(config: Path, workspace: Path, *flags: str) -> Workspace:
    """A training of two steps in this process, as a run of an asset leaves it."""
    workspace.mkdir(parents=True)
    shutil.copy(config, workspace / "config.json")
    argv = ["--config", str(config), "--workspace", str(workspace), "--num_iterations", "2", "--num_workers", "0"]
    assert main([*argv, "--enable_mlflow", "False", *flags]) == 0
    return Workspace(workspace)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_the_best_step_is_chosen_by_one_part_and_its_score_claimed_on_another(
    tiny_config: WriteConfig, many_scenes: dict[str, Any], runs: Path
) -> None:
    workspace = train(tiny_config(data=many_scenes), runs / "1", "--eval_every", "1", "--eval_fraction", "0.5")
    best = workspace.best()
    assert best is not None
    evaluation = evaluate_best(workspace)
    seen = {"model": best["scores"]["eval.rel"], "ema": best["scores"]["eval_ema.rel"]}
    assert evaluation.step == best["step"]
    assert evaluation.weights == best["claimed"]["weights"] == min(seen, key=lambda name: seen[name])
    assert evaluation.selection["rel"] == pytest.approx(min(seen.values()), rel=1e-5), "as during training"
    assert evaluation.scores == pytest.approx(best["claimed"]["scores"], rel=1e-5)
    assert evaluation.scores["rel"] != pytest.approx(evaluation.selection["rel"], rel=1e-3)
    assert evaluation.datasets["many"]["instances"] >= 8 and not evaluation.unclaimed
    checkpoint = workspace.checkpoint_at(best["step"])
    assert evaluation.sha256 == checkpoint.manifest["files"][Path(evaluation.checkpoint).name]["sha256"]
    assert checkpoint.manifest["held_out_rule"] == 2
    record = json.loads((workspace.path / "evaluation.json").read_text())
    assert record["scores"] == dict(evaluation.scores)
    assert are_comparable(record, best["claimed"]) and not are_comparable(record, best)

    split = untrained_instances(load_train_config(workspace.config_path).data, 0.5, 100)
    parts = [set(split.train["many"]), set(split.held_out[0].instances), set(split.claimed[0].instances)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 40

    told: list[str] = []
    with played_accelerator() as played:
        elsewhere = evaluate_best(workspace, device=played.device, batch_size=3, tell=told.append)
    assert told[0] == "device meta, precision fp32" and played.started["convolution"] > 10
    assert "rendered one by one" in told[1] and "others for the score" in told[2]
    assert elsewhere.scores == pytest.approx(dict(evaluation.scores), abs=1e-6)
    assert are_comparable(asdict(elsewhere), record)
    assert not are_comparable(asdict(evaluate_best(workspace, most=1)), record)


def test_a_finetuning_is_compared_with_its_parent_and_each_run_adds_to_the_history(
    tiny_config: WriteConfig, many_scenes: dict[str, Any], runs: Path
) -> None:
    held_out = ("--eval_every", "2", "--eval_fraction", "0.5")
    first = train(tiny_config(data=many_scenes), runs / "1", *held_out)
    parent = first.latest_checkpoint()
    assert parent is not None
    second = train(tiny_config(data=many_scenes), runs / "2", *held_out, "--checkpoint", str(parent.model_path))
    evaluate_best(first)
    evaluation = evaluate_best(second)
    assert evaluation.parent_scores is not None and set(evaluation.parent_scores) == {"rel", "delta1"}
    with (runs / "evaluations.jsonl").open("a") as file:
        file.write('{"cut')
    history = read_history(runs)
    assert [(each["workspace"], each["step"]) for each in history] == [("1", 1), ("2", 1)]
    assert history[0]["parent_scores"] is None


def test_of_fewer_than_eight_instances_no_score_is_claimed_and_that_is_said(
    tiny_config: WriteConfig, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "moge_core.training")
    workspace = train(tiny_config(), runs / "1", "--eval_every", "1", "--eval_fraction", "0.5")
    best = workspace.best()
    assert best is not None and "claimed" not in best and best["value"] > 0, "the step is chosen all the same"
    assert "no score is claimed: " in caplog.text
    evaluation = evaluate_best(workspace)
    assert evaluation.scores == {} and evaluation.selection["rel"] > 0
    assert "at least 8" in evaluation.unclaimed["scenes"]


def test_a_run_of_the_rule_of_before_keeps_it_by_its_manifest(
    tiny_config: WriteConfig, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = load_train_config(tiny_config()).data
    before, now = (split_datasets(data, 0.4, 10, rule) for rule in (FOLDER_RULE, SCENE_RULE))
    assert before.train != now.train and before.held_out == before.claimed
    flags = ["--eval_every", "1", "--eval_fraction", "0.4", "--checkpoint", "latest"]
    workspace = train(tiny_config(), runs / "1", *flags)
    for path in workspace.checkpoint_dir.glob("0*.json"):
        manifest = json.loads(path.read_text())
        assert manifest.pop("held_out_rule") == SCENE_RULE
        path.write_text(json.dumps(manifest | {"held_out": before.digest()}))
    argv = ["--config", str(tiny_config()), "--workspace", str(workspace.path), "--num_iterations", "3"]
    assert main([*argv, "--num_workers", "0", "--enable_mlflow", "False", *flags]) == 0
    assert "another held_out" not in caplog.text
    latest = workspace.latest_checkpoint()
    assert latest is not None
    assert (latest.manifest["held_out"], latest.manifest["held_out_rule"]) == (before.digest(), FOLDER_RULE)
    told: list[str] = []
    evaluation = evaluate_best(workspace, tell=told.append)
    assert evaluation.rule == FOLDER_RULE and evaluation.scores["rel"] > 0
    assert any("rule of before" in line for line in told)


def test_without_anything_held_out_no_score_is_claimed(tiny_config: WriteConfig, runs: Path) -> None:
    evaluation = evaluate_best(train(tiny_config(), runs / "1"))
    assert (dict(evaluation.scores), dict(evaluation.datasets)) == ({}, {})


def test_a_list_of_held_out_instances_that_training_read_too_is_not_held_out(
    tiny_config: WriteConfig, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path / "data"))
    data: Any = load_train_config(tiny_config()).data
    dataset = tmp_path / "data" / "scenes"
    names = (dataset / ".index.txt").read_text().splitlines()
    (dataset / VALIDATION_NAME).write_text("\n".join(names[:3]) + "\n")
    assert untrained_instances(data, None, 10).held_out == []
    (dataset / ".index.txt").write_text("\n".join(names[2:]) + "\n")
    (left,) = untrained_instances(data, None, 10).held_out
    assert left.instances == tuple(names[:2])
    (split,) = untrained_instances(data, 0.0, 10).held_out
    assert split.instances == tuple(names[:3]), "a training that evaluates never draws from that list"


def test_a_run_without_a_checkpoint_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="complete checkpoint"):
        evaluate_best(Workspace(tmp_path))
