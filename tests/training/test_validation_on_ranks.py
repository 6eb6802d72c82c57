"""Held-out scores are the same for any number of processes and any batch, and cost no process its own weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from launches import LAUNCH, NO_THREADS, SPREAD

from moge_core.evaluation import are_comparable
from moge_core.models import build_model, load_model, save_model
from moge_core.models.precision import Precision
from moge_core.training import Workspace, load_train_config
from moge_core.training.scoring import HeldOutScorer, HeldOutScores, scoring_tokens
from moge_core.training.validation import HeldOut, split_datasets

REPOSITORY = Path(__file__).resolve().parents[2]


WriteConfig = Callable[..., Path]


def launch(num_processes: int, *arguments: object, **environment: str) -> None:
    command = [*LAUNCH, "--num_processes", str(num_processes), *map(str, arguments)]
    surroundings = {**os.environ, **NO_THREADS, **environment}
    subprocess.run(command, check=True, timeout=200, env=surroundings, cwd=REPOSITORY)


def alone(path: Path, held_out: list[HeldOut], prefix: str = "eval", precision: Precision = "fp32") -> HeldOutScores:
    """Scores of a model file in one process, image by image."""
    model = load_model(path)
    return HeldOutScorer(held_out, scoring_tokens(model), precision=precision).score(model, prefix)


def write_weights(path: Path, config: Path, seed: int) -> None:
    """Random weights whose predictions depend on the image so much that the encoder's precision shows."""
    torch.manual_seed(seed)
    model = build_model("v1", **load_train_config(config).model)
    with torch.no_grad():
        model.get_parameter("head.output_block.0.2.weight").mul_(1000)
    save_model(path, model)


@pytest.fixture
def request_of(tiny_config: WriteConfig, scenes: Path, tmp_path: Path) -> Callable[..., Any]:
    """Writes what `score_on_ranks.py` is asked, and finds in one process what it must answer."""
    config = load_train_config(tiny_config())
    shutil.copytree(scenes / "scenes", tmp_path / "scenes")
    instances = (tmp_path / "scenes" / ".index.txt").read_text().split()
    # An instance that rank 1 of 2 and of 3 has: its header says nothing, or only its depth is broken.
    (tmp_path / "scenes" / instances[1] / "image.jpg").write_bytes(b"no image")
    (tmp_path / "scenes" / instances[7] / "depth.png").write_bytes(b"no depth")
    for number, name in enumerate(("weights", "average")):
        write_weights(tmp_path / f"{name}.pt", config.source, number)
    held_out = [HeldOut("scenes", tmp_path / "scenes", "depth.png", tuple(instances))]
    expected = alone(tmp_path / "weights.pt", held_out) | alone(tmp_path / "average.pt", held_out, "eval_ema")
    assert expected.values["eval.rel"] != expected.values["eval_ema.rel"]

    def write(batch_size: int, mixed_precision: str) -> tuple[Path, HeldOutScores]:
        path = tmp_path / f"request_{batch_size}.json"
        values = {name: str(tmp_path / f"{name}.pt") for name in ("weights", "average")}
        values |= {"config": str(config.source), "root": str(tmp_path / "scenes"), "mixed_precision": mixed_precision}
        path.write_text(json.dumps({**values, "instances": instances, "batch_size": batch_size}))
        return path, expected

    return write


def check_answers(
    path: Path, num_processes: int, expected: HeldOutScores, *, precision: str, most: float
) -> list[dict[str, Any]]:
    answers = [json.loads(Path(f"{path}.{rank}").read_text()) for rank in range(num_processes)]
    for answer in answers:
        assert answer["values"] == answers[0]["values"], "all ranks know all scores"
        assert answer["values"] == pytest.approx(expected.values, abs=most)
        assert answer["not_scored"] == expected.conditions.not_scored
        assert answer["precision"] == precision
        assert answer["restored"], "each rank has its own weights again, to the bit"
        assert len(answer["calls"]) == len(answers[0]["calls"]), "every rank makes the same number of forwards"
    assert len(expected.conditions.not_scored) == 2
    return answers


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("num_processes", "batch_size", "mixed_precision", "spread"),
    [
        (3, 2, "bf16", {}),  # the average is on rank 0 alone
        (2, 2, "no", SPREAD),
        (2, 2, "bf16", SPREAD),
    ],
)
def test_scores_dealt_over_processes_are_those_of_one(
    request_of: Callable[..., Any],
    num_processes: int,
    batch_size: int,
    mixed_precision: str,
    spread: dict[str, str],
) -> None:
    path, expected = request_of(batch_size, mixed_precision)
    script = "tests/support/score_on_ranks.py"
    launch(num_processes, script, path, **spread)
    # Spread weights are put together in bf16, and the score says so; these weights were made to depend on that.
    is_rounded = bool(spread) and mixed_precision == "bf16"
    precision, most = ("bf16", 0.02) if is_rounded else ("fp32", 1e-6)
    answers = check_answers(path, num_processes, expected, precision=precision, most=most)
    assert all(answer["sharded"] == bool(spread) for answer in answers)
    # Eight instances, each looked at twice, by one rank each; two broken ones that no rank looks at.
    assert sum(size for answer in answers for size in answer["calls"]) < 2 * 8 * num_processes


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_training_in_bf16_on_two_processes_has_the_scores_of_its_checkpoints_in_float32(
    tiny_config: WriteConfig, tmp_path: Path
) -> None:
    config, workspace = tiny_config(), Workspace(tmp_path / "w")
    flags = ["--num_iterations", 2, "--eval_every", 1, "--eval_fraction", 0.5, "--mixed_precision", "bf16"]
    flags += ["--num_workers", 0, "--enable_mlflow", "False", "--checkpoint", tmp_path / "weights.pt"]
    write_weights(tmp_path / "weights.pt", config, 0)
    training = ["-m", "moge_core.training", "--config", config, "--workspace", workspace.path, *flags]
    launch(2, *training)
    held_out = split_datasets(load_train_config(config).data, 0.5, 32).held_out
    assert len(held_out[0].instances) > 2
    last = json.loads(workspace.metrics_path.read_text().splitlines()[-1])
    (checkpoint,) = (each for each in workspace.checkpoints() if each.step == 1)
    assert checkpoint.ema_path is not None
    expected = alone(checkpoint.model_path, held_out) | alone(checkpoint.ema_path, held_out, "eval_ema")
    assert expected.values["eval.rel"] != expected.values["eval_ema.rel"]
    rounded = alone(checkpoint.model_path, held_out, precision="bf16")
    assert abs(rounded.values["eval.rel"] - expected.values["eval.rel"]) > 3e-6, "the test can tell"
    assert {name: last[name] for name in expected.values} == pytest.approx(dict(expected.values), abs=1e-6)
    best = workspace.best()
    assert best is not None and are_comparable(best, asdict(expected.conditions)) and best["precision"] == "fp32"
