"""Optimiser groups and learning rates of the published configurations, and the moving average."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moge_core.errors import ConfigError
from moge_core.models import build_model
from moge_core.training import build_lr_scheduler, build_optimizer, load_train_config
from moge_core.training.optimization import ExponentialMovingAverage, step_lr_scheduler

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "train"


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((golden_dir / "optim" / "optim.json").read_text())
    return values


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_parameters_fall_into_the_published_groups(golden: dict[str, Any], version: str) -> None:
    config = load_train_config(CONFIGS / f"{version}.json")
    with torch.device("meta"):
        model = build_model(config.model_version, **config.model)
    optimizer = build_optimizer(model, config.optimizer)
    names = {id(value): name for name, value in model.named_parameters()}
    groups = [{names[id(value)] for value in group["params"]} for group in optimizer.param_groups]
    assert groups == [set(group) for group in golden[version]["groups"]]
    for group, expected in zip(optimizer.param_groups, golden[version]["hyper"], strict=True):
        assert {key: list(v) if isinstance(v := group[key], tuple) else v for key in expected} == expected


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_learning_rates_follow_the_published_schedule(golden: dict[str, Any], version: str) -> None:
    config = load_train_config(CONFIGS / f"{version}.json")
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": group["lr"]} for group in config.optimizer.params]
    optimizer = torch.optim.AdamW(groups)
    scheduler = build_lr_scheduler(optimizer, config.lr_scheduler)
    expected = {int(step): rates for step, rates in golden[version]["lr_at_step"].items()}
    for step in range(max(expected) + 1):
        if step in expected:
            assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(expected[step], rel=1e-9, abs=1e-20), step
        step_lr_scheduler(scheduler)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["*weight"]], "every trainable parameter"),
        ([["*"], ["*bias"]], "must not share parameters"),
        ([["*"], ["nothing*"]], "at least one parameter"),
    ],
)
def test_a_parameter_in_no_group_or_in_two_is_an_error(groups: list[list[str]], message: str) -> None:
    config = {"type": "AdamW", "params": [{"params": {"include": patterns}, "lr": 1e-3} for patterns in groups]}
    with pytest.raises(ConfigError, match=message):
        build_optimizer(nn.Linear(2, 2), config)


def test_frozen_parameters_belong_to_no_group() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model, {"type": "SGD", "params": [{"params": {"include": ["*"]}, "lr": 1e-3}]})
    assert len(optimizer.param_groups[0]["params"]) == 1


def test_the_average_copies_first_then_decays_and_continues_after_a_reload() -> None:
    model = nn.BatchNorm1d(1)
    average = ExponentialMovingAverage(model, decay=0.9)
    seen = []
    for value in (5.0, 7.0, 9.0):
        nn.init.constant_(model.weight, value)
        model.running_mean.fill_(value)  # type: ignore[union-attr]
        average.update(model)
        seen.append(float(average.weights["weight"]))
    assert seen == pytest.approx([5.0, 5.2, 5.58])
    assert float(average.weights["running_mean"]) == 9.0

    resumed = ExponentialMovingAverage(model, decay=0.9)
    resumed.load(average.weights, average.num_updates)
    for each in (average, resumed):
        each.update(model)
    assert torch.equal(resumed.weights["weight"], average.weights["weight"])
