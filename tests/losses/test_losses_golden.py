"""Objectives, metrics and gradients of the published losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moge_core.geometry import depth_map_to_point_map
from moge_core.losses import (
    affine_invariant_global_loss,
    affine_invariant_local_loss,
    get_loss,
    mask_bce_loss,
    mask_l2_loss,
    metric_scale_loss,
    normal_map_loss,
)
from moge_core.losses.common import LossAndMetrics

SCENES = ("a", "b")


class Golden:
    """The recorded arrays as tensors with a leading batch dimension, and the recorded numbers."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "losses.npz") as stored:
            self.arrays = dict(stored)
        self.numbers: dict[str, Any] = json.loads((folder / "manifest.json").read_text())

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key].copy())[None]

    def points(self, case: str) -> Tensor:
        """True points, unknown where the depth is not finite."""
        if f"{case}.gt" in self.arrays:
            return self[f"{case}.gt"]
        depth = self[f"{case}.gt_depth"]
        points: Tensor = depth_map_to_point_map(depth, self[f"{case}.K"])
        return torch.where(depth.isfinite()[..., None], points, torch.nan)


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir / "losses")


def assert_gradient(found: Tensor | None, golden: Golden, key: str, expected: dict[str, Any], rtol: float) -> None:
    """Against the recorded gradient, where there is one, and its recorded length."""
    assert found is not None
    if f"{key}.grad" in golden.arrays:
        gradient = golden[f"{key}.grad"]
        assert float((found - gradient).norm()) <= rtol * float(gradient.norm())
    if "grad_l2" in expected:
        assert float(found.norm()) == pytest.approx(expected["grad_l2"], rel=rtol, abs=1e-9)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("case", ["r16", "r32", "r32.beta=0.1", "r32.trunc=0.3", "r32.sparsity_aware=True", "mirrored"])
def test_the_global_loss_is_the_published_one(golden: Golden, scene: str, case: str) -> None:
    key = f"{scene}.global_mirrored" if case == "mirrored" else f"{scene}.global.{case}"
    expected = golden.numbers[key]
    pred = (-golden[f"{scene}.pred"] if case == "mirrored" else golden[f"{scene}.pred"]).requires_grad_()
    loss, metrics, scale = affine_invariant_global_loss(
        pred, golden.points(scene), **expected.get("params", {"align_resolution": 32})
    )
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=2e-6)
    assert scale.item() == pytest.approx(expected["scale"], rel=1e-6)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected["misc"], abs=1e-6)
    assert_gradient(pred.grad, golden, key, expected, rtol=1e-4)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(("name", "rtol"), [("normal", 1e-4), ("edge", 1e-5)])
def test_losses_of_orientation_are_the_published_ones(golden: Golden, scene: str, name: str, rtol: float) -> None:
    expected = golden.numbers[f"{scene}.{name}"]
    pred = golden[f"{scene}.pred"].requires_grad_()
    loss, metrics = get_loss(expected["fn"])(pred, golden.points(scene))
    loss.sum().backward()
    assert not metrics
    assert loss.item() == pytest.approx(expected["loss"], rel=5e-6)
    assert_gradient(pred.grad, golden, f"{scene}.{name}", expected, rtol=rtol)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("kind", ["not_inf", "finite"])
@pytest.mark.parametrize("loss_function", [mask_l2_loss, mask_bce_loss])
def test_mask_losses_are_the_published_ones(golden: Golden, scene: str, kind: str, loss_function: Any) -> None:
    key = f"{scene}.{loss_function.__name__.removesuffix('_loss')}.fin={kind}"
    expected = golden.numbers[key]
    depth = golden[f"{scene}.gt_depth"]
    pred = golden[f"{scene}.pred_mask"].requires_grad_()
    loss, metrics = loss_function(pred, ~depth.isinf() if kind == "not_inf" else depth.isfinite(), depth.isinf())
    loss.sum().backward()
    assert not metrics
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-6)
    assert_gradient(pred.grad, golden, key, expected, rtol=1e-6)


def test_the_normal_map_loss_is_the_published_one(golden: Golden) -> None:
    pred = golden["a.pred_normal"].requires_grad_()
    loss, _ = normal_map_loss(pred, golden["a.gt_normal"])
    loss.sum().backward()
    assert loss.item() == pytest.approx(golden.numbers["a.normal_map"]["loss"], rel=1e-6)
    assert_gradient(pred.grad, golden, "a.normal_map", {}, rtol=1e-5)


def test_the_metric_scale_loss_is_the_published_one(golden: Golden) -> None:
    pred = golden["metric_scale.pred"][0].requires_grad_()
    loss, _ = metric_scale_loss(pred, golden["metric_scale.gt"][0])
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), golden["metric_scale.loss"][0])
    torch.testing.assert_close(pred.grad, golden["metric_scale.grad"][0])


def local_loss(golden: Golden, level: str, pred: Tensor, **arguments: Any) -> LossAndMetrics:
    case = golden.numbers[f"local.{level}"]
    arguments.setdefault("global_scale", torch.tensor([case["global_scale"]]))
    return affine_invariant_local_loss(
        pred, golden.points(f"local.{level}"), torch.tensor([case["focal"]]), **case["params"] | arguments
    )


# The reference breaks ties between equally near samples by its rounding; see the figures' README.
@pytest.mark.parametrize(("level", "loss_rtol", "gradient_rtol"), [("L4", 3e-4, 2e-2), ("L16", 5e-7, 1e-5)])
@pytest.mark.parametrize("run", ["global_scale.seed0", "global_scale.seed1", "none.seed0", "none.seed1"])
def test_the_local_loss_of_recorded_anchors_is_the_published_one(
    golden: Golden, level: str, run: str, loss_rtol: float, gradient_rtol: float
) -> None:
    key = f"local.{level}.{run}"
    expected = golden.numbers[f"local.{level}"]["runs"][run]
    anchors = torch.stack([golden[f"{key}.anchor_i"], golden[f"{key}.anchor_j"]], dim=-1).long()
    pred = golden[f"local.{level}.pred"].requires_grad_()
    scale = {"global_scale": None} if run.startswith("none") else {}
    loss, metrics = local_loss(golden, level, pred, anchors=anchors, **scale)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected["loss"][0], rel=loss_rtol)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected["misc"], abs=5e-5)
    assert_gradient(pred.grad, golden, key, expected, rtol=gradient_rtol)


@pytest.mark.parametrize("level", ["L4", "L16"])
def test_the_local_loss_of_random_anchors_has_the_published_distribution(golden: Golden, level: str) -> None:
    published = golden.numbers[f"local.{level}"]["loss_distribution"]
    pred = golden[f"local.{level}.pred"]
    losses = [
        local_loss(golden, level, pred, generator=torch.Generator().manual_seed(seed))[0].item() for seed in range(8)
    ]
    bound = 4 * published["std"] * (1 / published["n"] + 1 / len(losses)) ** 0.5
    assert abs(float(np.mean(losses)) - published["mean"]) < bound
    assert 0.4 * published["std"] < float(np.std(losses)) < 2.5 * published["std"]
