"""The best checkpoint is found by scores that were made alike, and by no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moge_core.evaluation import ScoringConditions
from moge_core.training import Workspace, main
from moge_core.training.best import best_record, is_better
from moge_core.training.scoring import HeldOutScores, scoring_precision

WriteConfig = Callable[..., Path]
STEPS = 3


@pytest.fixture
def train(tiny_config: WriteConfig, tmp_path: Path) -> Callable[..., Workspace]:
    """Trains, or goes on with the workspace `w`; a later flag wins over one of these."""
    config = tiny_config()

    def run(*flags: str) -> Workspace:
        argv = ["--config", str(config), "--workspace", str(tmp_path / "w"), "--checkpoint", "latest"]
        argv += ["--num_workers", "0", "--enable_mlflow", "False", "--num_iterations", str(STEPS)]
        argv += ["--save_every", "1", "--eval_every", "1", "--eval_fraction", "0.5"]
        assert main([*argv, *flags]) == 0
        return Workspace(tmp_path / "w")

    return run


def best_of(workspace: Workspace) -> dict[str, Any]:
    best = workspace.best()
    assert best is not None
    return best


def remember(workspace: Workspace, best: dict[str, Any]) -> None:
    """Let the newest checkpoint say that this is the best so far."""
    path = workspace.checkpoint_dir / f"{STEPS - 1:08d}.json"
    manifest = json.loads(path.read_text())
    manifest["counters"]["best"] = best
    path.write_text(json.dumps(manifest))


def test_a_best_that_was_scored_otherwise_is_scored_anew_at_a_resume(
    train: Callable[..., Workspace], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "moge_core.training")
    workspace = train()
    known = best_of(workspace)
    conditions = {"precision", "num_tokens", "instances_digest", "not_scored"}
    assert conditions <= known.keys() and known["precision"] == "fp32" and known["metric"] == "eval_ema.rel"
    train()
    assert "scored anew" not in caplog.text, "under the same conditions it stays as it is"

    too_good = {**known, "value": 1e-9}
    old = {key: value for key, value in too_good.items() if key not in conditions}
    for otherwise in (old, {**too_good, "precision": "bf16"}):
        remember(workspace, otherwise)
        caplog.clear()
        train()
        assert "scored anew" in caplog.text
        again = best_of(workspace)
        assert again == {**known, "value": pytest.approx(known["value"]), "scores": pytest.approx(known["scores"])}


def test_a_best_is_scored_anew_on_what_is_held_out_now(train: Callable[..., Workspace]) -> None:
    workspace = train()
    known = best_of(workspace)
    train("--eval_instances", "1", "--enable_ema", "False")
    now = best_of(workspace)
    assert now["step"] == known["step"] and now["instances_digest"] != known["instances_digest"]
    assert now["metric"] == "eval.rel" and now["value"] == now["scores"]["eval.rel"] != known["scores"]["eval.rel"]


def test_a_best_whose_weights_are_gone_is_given_up_with_a_warning(
    train: Callable[..., Workspace], caplog: pytest.LogCaptureFixture
) -> None:
    workspace = train()
    remember(workspace, {"step": 0, "metric": "eval_ema.rel", "value": 1e-9, "scores": {}})
    for path in workspace.checkpoint_dir.glob("00000000*"):
        path.unlink()
    train("--num_iterations", str(STEPS + 1))
    assert "of step 0, cannot be scored anew" in caplog.text
    assert best_of(workspace)["step"] == STEPS


def test_scores_on_other_instances_are_not_compared() -> None:
    def record(step: int, value: float, *not_scored: str) -> dict[str, Any]:
        conditions = ScoringConditions("fp32", 16, "abc", list(not_scored))
        found = best_record(step, "eval.rel", HeldOutScores({"eval.rel": value}, conditions))
        assert found is not None
        return found

    best = record(1, 0.5)
    assert is_better(record(2, 0.4), best) and not is_better(record(2, 0.6), best)
    assert not is_better(record(2, 0.1, "scenes/hard"), best), "a hard instance that could not be read is no progress"
    assert is_better(record(3, 0.5), record(2, 0.1, "scenes/hard")), "what was scored in full takes over"


def test_scores_are_float32_but_of_weights_that_are_spread_over_processes() -> None:
    assert [scoring_precision(mixed, sharded=False) for mixed in ("no", "fp16", "bf16")] == ["fp32"] * 3
    assert [scoring_precision(mixed, sharded=True) for mixed in ("no", "fp16", "bf16")] == ["fp32", "fp16", "bf16"]
