"""The objective of a batch: labels, their sets of losses, and losses of other packages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_accelerator import MetaAccelerator
from objective_batches import LABELS, batch_of

from moge_core.errors import ConfigError
from moge_core.losses import get_loss
from moge_core.training import load_train_config, main
from moge_core.training.config import LossTerm
from moge_core.training.objective import check_losses, compute_objective, labels_with_normals, metric_names

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "train"


@pytest.mark.parametrize("version", LABELS)
def test_losses_never_wait_for_the_values_of_an_accelerator(version: str) -> None:
    output, batch = batch_of(LABELS[version], "meta")
    with MetaAccelerator() as counted:
        compute_objective(output, batch, load_train_config(CONFIGS / f"{version}.json").loss, 0).total.backward()
    assert not counted.waits and not counted.mixed


@pytest.mark.parametrize("version", LABELS)
def test_the_order_of_configuration_keys_changes_nothing(version: str) -> None:
    loss_sets = load_train_config(CONFIGS / f"{version}.json").loss
    backwards = {label: dict(reversed(terms.items())) for label, terms in reversed(loss_sets.items())}
    results = []
    for sets in (loss_sets, backwards):
        output, batch = batch_of(LABELS[version])
        objective = compute_objective(output, batch, sets, 3)
        objective.total.backward()
        results.append((objective, output["points"].grad))
    (first, first_gradient), (second, second_gradient) = results
    assert torch.equal(first.total, second.total)
    torch.testing.assert_close(first_gradient, second_gradient, rtol=0, atol=0)
    assert first.metrics.keys() == second.metrics.keys()


@pytest.mark.parametrize("version", LABELS)
def test_a_mixed_batch_is_the_sum_of_its_instances(version: str) -> None:
    loss_sets = load_train_config(CONFIGS / f"{version}.json").loss
    output, batch = batch_of(LABELS[version])
    whole = compute_objective(output, batch, loss_sets, 3)
    parts = []
    for row in range(len(LABELS[version])):
        own = {name: value[row : row + 1] for name, value in batch.items()}
        parts.append(compute_objective({n: v[row : row + 1] for n, v in output.items()}, own, loss_sets, 3))
    torch.testing.assert_close(whole.total, torch.stack([part.total for part in parts]).sum())
    assert whole.num_valid == sum(int(part.num_valid) for part in parts)


def test_an_instance_without_finite_truth_contributes_nothing_and_breaks_nothing() -> None:
    loss_sets = load_train_config(CONFIGS / "v2.json").loss
    output, batch = batch_of(["A", "A"])
    alone = compute_objective(
        {name: value[:1] for name, value in output.items()}, {n: v[:1] for n, v in batch.items()}, loss_sets, 0
    )
    batch["depth"][1] = torch.nan
    objective = compute_objective(output, batch, loss_sets, 0)
    objective.total.backward()
    assert objective.num_valid == 1
    torch.testing.assert_close(objective.total, alone.total)
    assert all(not value.grad[1].any() for value in output.values() if value.grad is not None)


# Losses of other packages.

THIRD_PARTY = """
def depth_l1(output, truth, *, clip=1.0):
    known = truth["gt_points"][..., 2].isfinite()
    error = (output["points"][..., 2] - truth["gt_points"][..., 2].nan_to_num()).abs().clamp(max=clip)
    return (error * known).mean((1, 2)), {"known": known.float().mean((1, 2))}

depth_l1.metrics = ("known",)
depth_l1.needs_normals = True
number = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package with a loss that it announces as `depth_l1_of_acme`."""
    (tmp_path / "acme_losses.py").write_text(THIRD_PARTY)
    info = tmp_path / "acme_losses-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme_losses\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[moge.losses]\ndepth_l1_of_acme = acme_losses:depth_l1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "acme_losses", raising=False)
    get_loss.cache_clear()
    return "acme_losses"


@pytest.mark.parametrize("name", ["depth_l1_of_acme", "acme_losses:depth_l1"])
def test_a_loss_of_another_package_is_used_by_entry_point_and_by_path(package: str, name: str) -> None:
    loss_sets = {"a": {"own": LossTerm(function=name, weight=2.0, params={"clip": 0.5})}}
    check_losses(loss_sets)
    assert labels_with_normals(loss_sets) == ("a",)
    assert metric_names(loss_sets) == ["loss", "own", "own.known", "monitoring.std"]
    output, batch = batch_of(["a"])
    objective = compute_objective(output, batch, loss_sets, 0)
    known = batch["depth"].isfinite()
    error = (output["points"][..., 2] - batch["depth"].nan_to_num(posinf=0)).abs().clamp(max=0.5) * known
    torch.testing.assert_close(objective.total, 2 * error.mean())
    torch.testing.assert_close(objective.metrics["own.known"], known.float().mean((1, 2)))


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"function": "acme_losses:depth_l1", "params": {"clap": 1}}, "loss.a.own.params.*clap"),
        ({"function": "acme_losses:depth_l2"}, "loss.a.own.function.*depth_l2"),
        ({"function": "acme_losses:number"}, "loss.a.own.function.*must be a function"),
        ({"function": "no_such_package:loss"}, "loss.a.own.function.*no_such_package"),
    ],
)
def test_what_is_wrong_with_a_loss_of_another_package_is_named(
    package: str, term: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_losses({"a": {"own": LossTerm(**term)}})


def test_code_is_imported_from_allowed_modules_only(
    package: str, tiny_config: Callable[..., Path], tmp_path: Path
) -> None:
    loss = {"synthetic": {"own": {"function": "acme_losses:depth_l1"}}}
    with pytest.raises(ConfigError, match=r"loss\.synthetic\.own\.function: must lie in a module .*loss_modules"):
        load_train_config(tiny_config(loss=loss))
    assert "acme_losses" not in sys.modules
    config = tiny_config(loss=loss, loss_modules=["acme_losses"])
    assert load_train_config(config).loss_modules == ["acme_losses"]
    flags = ["--num_iterations", "1", "--enable_mlflow", "False", "--num_workers", "0"]
    assert main(["--config", str(config), "--workspace", str(tmp_path / "run"), *flags]) == 0
    assert '"own.known"' in (tmp_path / "run" / "metrics.jsonl").read_text()
