"""Scores given weights, and others as the average, as a training does, on every rank of `accelerate launch`.

    accelerate launch ... tests/support/score_on_ranks.py REQUEST

REQUEST is a JSON file with `config`, `root`, `instances`, `weights`, `average`, `batch_size` and `mixed_precision`.
Rank r writes `REQUEST.r` with its scores, its calls of the model, and whether its own weights are what they were.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from moge_core.models.checkpoint import read_model_file
from moge_core.training import load_train_config
from moge_core.training.devices import build_accelerator
from moge_core.training.flags import TrainFlags
from moge_core.training.network import build_network
from moge_core.training.scoring import HeldOutScorer, HeldOutScores, scoring_precision, scoring_tokens
from moge_core.training.sharding import deal_weights, local
from moge_core.training.validation import HeldOut


def main(path: str) -> None:
    request: dict[str, Any] = json.loads(Path(path).read_text())
    config = load_train_config(request["config"])
    flags = TrainFlags(
        config.source, init="random", seed=3, mixed_precision=request["mixed_precision"], enable_ema=True
    )
    accelerator = build_accelerator(flags)
    network = build_network(config, flags, accelerator, None)
    weights, average = (read_model_file(request[name]).weights for name in ("weights", "average"))
    if network.ema is not None:
        network.ema.load(deal_weights(network.raw_model, average) if network.sharded else average, 1)
    scorer = HeldOutScorer(
        [HeldOut("scenes", Path(request["root"]), "depth.png", tuple(request["instances"]))],
        scoring_tokens(network.raw_model),
        batch_size=request["batch_size"],
        precision=scoring_precision(accelerator.mixed_precision, sharded=network.sharded),
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    calls: list[int] = []
    network.raw_model.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    before = _copies(network.raw_model)
    with network.lent(weights if accelerator.is_main_process else {}):
        scores: HeldOutScores = scorer.score(network.raw_model)
    with network.averaged():
        scores |= scorer.score(network.raw_model, "eval_ema")
    after = _copies(network.raw_model)
    answer = {
        "values": dict(scores.values),
        "not_scored": scores.conditions.not_scored,
        "precision": scores.conditions.precision,
        "sharded": network.sharded,
        "calls": calls,
        "restored": all(torch.equal(before[name], after[name]) for name in before),
    }
    Path(f"{path}.{accelerator.process_index}").write_text(json.dumps(answer))
    accelerator.end_training()


def _copies(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: local(value).clone() for name, value in model.state_dict().items()}


if __name__ == "__main__":
    main(sys.argv[1])
