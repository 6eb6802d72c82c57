from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moge_core.errors import ConfigError, InputError
from moge_core.losses import (
    LOSS_PARAMETERS,
    edge_loss,
    get_loss,
    mask_bce_loss,
    mask_l2_loss,
    metric_scale_loss,
    normal_loss,
    normal_map_loss,
)

PointLoss = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
RUNTIME_ARGUMENTS = {"focal", "global_scale", "generator", "anchors"}


def plane(height: int = 20, width: int = 30, slope: float = 0.5) -> Tensor:
    """Points (1, H, W, 3) of a slanted plane."""
    v, u = torch.meshgrid(torch.linspace(-0.4, 0.4, height), torch.linspace(-0.5, 0.5, width), indexing="ij")
    depth = 2 / (1 - slope * u)
    return torch.stack([u * depth, v * depth, depth], dim=-1)[None]


# The registry.


def test_configurable_parameters_are_those_of_the_signatures() -> None:
    for name, parameters in LOSS_PARAMETERS.items():
        signature = inspect.signature(get_loss(name)).parameters
        inputs = {key for key in signature if key.startswith(("pred", "gt", "points", "scale_"))} | RUNTIME_ARGUMENTS
        assert parameters == set(signature) - inputs, name


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(ConfigError, match="affine_loss"):
        get_loss("affine_loss")


def test_names_and_parameters_are_known_without_torch() -> None:
    check = "import sys, moge_core.losses as l; l.LOSS_PARAMETERS['edge_loss']; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


# Orientation.


@pytest.mark.parametrize(("loss_function", "floor"), [(normal_loss, 1.0), (edge_loss, 0.1)])
def test_a_perfect_point_map_has_the_loss_of_the_least_angle(loss_function: PointLoss, floor: float) -> None:
    points = plane().requires_grad_()
    loss, _ = loss_function(points, points.detach())
    loss.sum().backward()
    least = 0.5 * math.radians(floor) ** 2 / math.radians(3)
    assert loss.item() == pytest.approx(least / 30, rel=1e-4)
    assert not points.grad.any()  # type: ignore[union-attr]


@settings(max_examples=15, deadline=None)
@given(st.floats(1e-12, 1e9), st.floats(-3, 3))
@pytest.mark.parametrize("loss_function", [normal_loss, edge_loss])
def test_losses_of_orientation_do_not_depend_on_scale(loss_function: PointLoss, factor: float, offset: float) -> None:
    pred, true = plane(slope=0.9) + torch.tensor([0.0, 0.0, offset]), plane()
    expected, _ = loss_function(plane(slope=0.9), true)
    found, _ = loss_function(pred * factor, true / factor)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("loss_function", [normal_loss, edge_loss])
def test_orientation_where_truth_is_unknown_does_not_count(loss_function: PointLoss) -> None:
    pred, true = plane(slope=0.9), plane()
    true[:, :, 15:] = math.nan
    expected, _ = loss_function(torch.where(true.isnan(), 7.0, pred), true)
    pred[:, :, 15:] = math.nan
    pred.requires_grad_()
    loss, _ = loss_function(pred, true)
    loss.sum().backward()
    torch.testing.assert_close(loss, expected)
    assert loss.item() > 0
    assert pred.grad is not None
    assert pred.grad.isfinite().all()
    empty, _ = loss_function(pred, torch.full_like(true, math.nan))
    assert empty.item() == 0


@pytest.mark.parametrize("loss_function", [normal_loss, edge_loss])
@pytest.mark.parametrize("flat", [0.0, 1.0])
def test_a_collapsed_prediction_has_a_bounded_gradient(loss_function: PointLoss, flat: float) -> None:
    points = torch.full_like(plane(), flat).requires_grad_()
    loss, _ = loss_function(points, plane())
    loss.sum().backward()
    assert loss.item() > 0
    assert points.grad is not None
    assert points.grad.abs().max() < 1e3


@pytest.mark.parametrize("loss_function", [normal_loss, edge_loss])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 1), (2, 2)])
def test_small_images_have_finite_losses_of_orientation(loss_function: PointLoss, height: int, width: int) -> None:
    points = plane(height, width)
    assert loss_function(points, points)[0].isfinite().all()


def test_orientation_gradients_agree_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    pred = (plane(4, 5).double() + 0.05 * torch.randn(1, 4, 5, 3, generator=generator)).requires_grad_()
    for loss_function in (normal_loss, edge_loss):
        assert torch.autograd.gradcheck(lambda p, f=loss_function: f(p, plane(4, 5).double())[0], (pred,))


# Normal maps.


def rotated(angle: Tensor) -> Tensor:
    return torch.stack([angle.sin(), torch.zeros_like(angle), -angle.cos()], dim=-1)


def test_the_normal_map_loss_is_the_mean_squared_angle() -> None:
    angles = torch.tensor([[[0.0, 0.3], [1.5, 3.0]]])
    true = rotated(torch.zeros(1, 2, 2))
    loss, _ = normal_map_loss(rotated(angles), true)
    assert loss.item() == pytest.approx(angles.square().mean().item(), rel=1e-5)
    true[0, 1] = math.nan
    assert normal_map_loss(rotated(angles), true)[0].item() == pytest.approx(0.3**2 / 4, rel=1e-5)


@pytest.mark.parametrize(
    "pred", [rotated(torch.zeros(1, 2, 2)), -rotated(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2, 3)]
)
def test_the_normal_map_loss_has_finite_gradients_at_its_extremes(pred: Tensor) -> None:
    pred = pred.clone().requires_grad_()
    normal_map_loss(pred, rotated(torch.zeros(1, 2, 2)))[0].sum().backward()
    assert pred.grad is not None
    assert pred.grad.abs().max() < 1e3


# Mask and scale.


def test_mask_losses_ignore_pixels_of_neither_kind_but_count_them_in_the_mean() -> None:
    pred = torch.tensor([[[0.9, 0.2, 0.4, 0.7]]])
    finite, infinite = torch.tensor([[[True, False, False, False]]]), torch.tensor([[[False, True, False, False]]])
    assert mask_l2_loss(pred, finite, infinite)[0].item() == pytest.approx((0.1**2 + 0.2**2) / 4)
    entropy = -(math.log(0.9) + math.log(0.8)) / 4
    assert mask_bce_loss(pred, finite, infinite)[0].item() == pytest.approx(entropy, rel=1e-6)


@pytest.mark.parametrize("loss_function", [mask_l2_loss, mask_bce_loss])
def test_mask_losses_work_under_autocast_and_refuse_other_shapes(
    loss_function: Callable[..., tuple[Tensor, dict]],
) -> None:
    masks = torch.ones(2, 3, 4, dtype=torch.bool), torch.zeros(2, 3, 4, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = loss_function(torch.full((2, 3, 4), 0.5, dtype=torch.bfloat16), *masks)
    assert loss.dtype == torch.float32
    assert loss.shape == (2,)
    with pytest.raises(InputError, match="gt_mask_pos"):
        loss_function(torch.rand(2, 3, 5), *masks)
    with pytest.raises(InputError, match="pred_mask"):
        loss_function(torch.rand(3, 4), *masks)


def test_the_metric_scale_counts_where_the_true_one_is_known() -> None:
    pred = torch.tensor([2.0, 3.0, 4.0], requires_grad=True)
    loss, _ = metric_scale_loss(pred, torch.tensor([1.0, 0.0, math.nan]))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([math.log(2) ** 2, 0, 0])
    assert pred.grad is not None
    assert pred.grad.tolist() == pytest.approx([2 * math.log(2) / 2, 0, 0])
    with pytest.raises(InputError):
        metric_scale_loss(pred, torch.ones(2))
