from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moge_core.errors import InputError
from moge_core.losses import affine_invariant_global_loss, affine_invariant_local_loss, patches
from moge_core.losses.anchors import anchor_weights, draw_anchors
from moge_core.losses.common import in_full_precision

FOCAL = 1.0


def scene(seed: int, batch: int = 1, height: int = 24, width: int = 32, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """A wavy wall, and a prediction of it at half the scale, shifted in z, with noise; (B, H, W, 3) each."""
    generator = torch.Generator().manual_seed(seed)
    v, u = torch.meshgrid(torch.linspace(-0.4, 0.4, height), torch.linspace(-0.5, 0.5, width), indexing="ij")
    phase = torch.rand(batch, 1, 1, generator=generator) * 6
    depth = 3 + torch.sin(6 * u + phase) + 0.5 * v
    true = torch.stack([u * depth, v * depth, depth], dim=-1)
    pred = (true - torch.tensor([0.0, 0.0, 0.7])) / 2
    return pred + noise * torch.randn(pred.shape, generator=generator), true


def local(pred: Tensor, true: Tensor, scale: Tensor | None = None, level: int = 2, **arguments: Any) -> Any:
    arguments.setdefault("generator", torch.Generator().manual_seed(0))
    return affine_invariant_local_loss(pred, true, FOCAL, scale, level, align_resolution=8, **arguments)


# Both losses.


def test_a_perfect_prediction_up_to_scale_and_shift_has_no_loss() -> None:
    pred, true = scene(0, noise=0)
    loss, metrics, scale = affine_invariant_global_loss(pred, true, align_resolution=16)
    assert loss.item() < 1e-6
    assert scale.item() == pytest.approx(2, rel=1e-5)
    assert metrics["delta"].item() == pytest.approx(1, abs=1e-5)
    assert metrics["truncated_error"].item() < 1e-5
    loss, metrics = local(pred + torch.tensor([3.0, -1.0, 0.0]), true, scale)
    assert loss.item() < 1e-5
    assert metrics["delta"].item() == pytest.approx(1, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 20), st.floats(-1, 3))
def test_losses_do_not_depend_on_the_scale_and_shift_of_the_prediction(seed: int, factor: float, offset: float) -> None:
    pred, true = scene(seed)
    moved = factor * pred + torch.tensor([0.0, 0.0, offset])
    loss, metrics, scale = affine_invariant_global_loss(pred, true, align_resolution=8)
    moved_loss, moved_metrics, moved_scale = affine_invariant_global_loss(moved, true, align_resolution=8)
    torch.testing.assert_close(moved_loss, loss, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(moved_metrics, metrics, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(moved_scale * factor, scale, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(local(moved, true, moved_scale)[0], local(pred, true, scale)[0], rtol=1e-3, atol=1e-5)


def test_an_instance_has_the_same_losses_alone_and_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pred, true = scene(1, batch=3)
    true[1] = math.nan
    true[2, :, :20] = math.inf
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    loss, metrics, scale = affine_invariant_global_loss(pred, true, align_resolution=12, sparsity_aware=True)
    local_loss, local_metrics = local(pred, true, scale, generator=generators, sparsity_aware=True)
    monkeypatch.setattr(patches, "_CHUNK_PIXELS_CPU", 1)
    for row in range(3):
        own = slice(row, row + 1)
        alone = affine_invariant_global_loss(pred[own], true[own], align_resolution=12, sparsity_aware=True)
        torch.testing.assert_close(alone[0], loss[own])
        torch.testing.assert_close(alone[1], {name: v[own] for name, v in metrics.items()}, equal_nan=True)
        generator = torch.Generator().manual_seed(row)
        found = local(pred[own], true[own], alone[2], generator=generator, sparsity_aware=True)
        torch.testing.assert_close(found[0], local_loss[own])
        torch.testing.assert_close(found[1], {name: v[own] for name, v in local_metrics.items()}, equal_nan=True)
    assert loss[1] == 0
    assert local_loss[1] == 0
    assert metrics["delta"].isnan().tolist() == [False, True, False]
    assert local_metrics["delta"].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("valid", [0, 1, 2, 31, 32, 768])
def test_truth_from_empty_to_full_gives_finite_losses_and_gradients(valid: int) -> None:
    pred, true = scene(2)
    known = torch.zeros(24 * 32, dtype=torch.bool)
    known[torch.randperm(24 * 32, generator=torch.Generator().manual_seed(0))[:valid]] = True
    true = torch.where(known.reshape(1, 24, 32, 1), true, math.nan)
    pred.requires_grad_()
    for sparsity_aware in (False, True):
        loss, metrics, scale = affine_invariant_global_loss(
            pred, true, align_resolution=8, sparsity_aware=sparsity_aware
        )
        local_loss, local_metrics = local(pred, true, scale, level=1, sparsity_aware=sparsity_aware)
        (gradient,) = torch.autograd.grad((loss + local_loss).sum(), pred)
        assert loss.isfinite()
        assert local_loss.isfinite()
        assert gradient.isfinite().all()
        assert metrics["delta"].isnan().item() == (valid == 0)
        assert not local_metrics["delta"].isnan().item() or valid < 768
        assert not gradient[0].flatten(0, 1)[~known].any()
        if valid == 0:
            assert (loss.item(), local_loss.item(), scale.item()) == (0, 0, 0)
            assert not gradient.any()


def test_unknown_truth_hides_whatever_is_predicted_there() -> None:
    pred, true = scene(3)
    true[0, 5:9] = math.nan
    expected = affine_invariant_global_loss(pred, true, align_resolution=8)
    expected_local = local(pred, true, expected[2])
    pred[0, 5:9] = math.nan
    pred.requires_grad_()
    found = affine_invariant_global_loss(pred, true, align_resolution=8)
    found_local = local(pred, true, found[2])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_local, expected_local)
    (found[0] + found_local[0]).sum().backward()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_not_hidden(value: float) -> None:
    pred, true = scene(4)
    pred[:] = value
    loss, _, scale = affine_invariant_global_loss(pred, true, align_resolution=8)
    assert not loss.isfinite().any()
    assert not local(pred, true, scale)[0].isfinite().any()
    assert not local(pred, true)[0].isfinite().any()


def test_a_mirrored_prediction_has_scale_zero_and_neither_loss_nor_gradient() -> None:
    pred, true = scene(5)
    pred = (-pred).requires_grad_()
    loss, metrics, scale = affine_invariant_global_loss(pred, true, align_resolution=8)
    local_loss, local_metrics = local(pred, true, scale)
    (loss + local_loss).sum().backward()
    assert (loss.item(), local_loss.item(), scale.item()) == (0, 0, 0)
    assert not pred.grad.any()  # type: ignore[union-attr]
    assert metrics["delta"].item() == 0
    assert local_metrics["delta"].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision_do_not_reach_the_arithmetic(dtype: torch.dtype) -> None:
    pred, true = scene(6)
    pred = pred.to(dtype)
    expected = affine_invariant_global_loss(pred.float(), true, align_resolution=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, metrics, scale = affine_invariant_global_loss(pred, true, align_resolution=8)
        local_loss, _ = local(pred, true, scale)
    assert loss.dtype == metrics["delta"].dtype == scale.dtype == local_loss.dtype == torch.float32
    torch.testing.assert_close((loss, metrics, scale), expected)


def test_autocast_is_off_within_a_loss_and_on_again_after_it() -> None:
    seen = []

    @in_full_precision
    def loss(pred: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return pred

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
        seen.append(torch.is_autocast_enabled("cpu"))
    assert seen == [False, True]


def test_gradients_agree_with_finite_differences() -> None:
    pred, true = (v[:, :7, :7].double() for v in scene(7))
    pred.requires_grad_()
    anchors = torch.tensor([[[3, 3], [2, 5]]])

    def global_loss(p: Tensor) -> Tensor:
        return affine_invariant_global_loss(p, true, align_resolution=4, beta=0.1)[0]

    def local_loss(p: Tensor) -> Tensor:
        loss, _ = affine_invariant_local_loss(p, true, FOCAL, None, 1, align_resolution=4, beta=0.1, anchors=anchors)
        return loss

    assert local_loss(pred).item() > 0
    assert torch.autograd.gradcheck(global_loss, (pred,), eps=1e-7, atol=1e-5)
    assert torch.autograd.gradcheck(local_loss, (pred,), eps=1e-7, atol=1e-5)


def test_outliers_move_the_scale_little() -> None:
    pred, true = scene(8, noise=0)
    pred[0, ::5, ::5] *= 30
    _, _, scale = affine_invariant_global_loss(pred, true, align_resolution=16)
    assert scale.item() == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (7, 1), (3, 5)])
def test_small_images_are_no_special_case(height: int, width: int) -> None:
    pred, true = (v[:, :height, :width] for v in scene(9))
    loss, _, scale = affine_invariant_global_loss(pred, true, align_resolution=4)
    assert loss.isfinite().all()
    assert local(pred, true, scale)[0].item() == 0  # no patch has enough pixels


# The local loss.


def test_patches_whose_scale_is_far_from_the_global_one_are_dropped() -> None:
    pred, true = scene(10)
    _, _, scale = affine_invariant_global_loss(pred, true, align_resolution=8)
    assert local(pred, true, scale)[0].item() > 0
    for other in (scale * 15, scale / 15, scale * 0):
        loss, metrics = local(pred, true, other)
        assert loss.item() == 0
        assert metrics["truncated_error"].isnan().all()
    assert local(-pred, true, -scale)[0].item() == 0  # a mirrored instance, though its patches agree


def test_anchors_replace_the_drawing_and_are_averaged() -> None:
    pred, true = scene(11)
    anchors = torch.tensor([[[10, 10], [12, 20]]])
    both, _ = local(pred, true, anchors=anchors, generator=None)
    single = [local(pred, true, anchors=anchors[:, [i]], generator=None)[0] for i in range(2)]
    torch.testing.assert_close(both, (single[0] + single[1]) / 2)


def test_anchors_depend_on_the_generator_alone() -> None:
    pred, true = scene(12, batch=2)
    first, again = (local(pred, true, generator=torch.Generator().manual_seed(3))[0] for _ in range(2))
    other = local(pred, true, generator=torch.Generator().manual_seed(4))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_anchors_fall_on_known_pixels_in_proportion_to_their_weights() -> None:
    _, true = scene(13, height=12, width=16)
    true[0, :, :4] = math.nan
    radius = 0.125 * true[..., 2]
    anchors = draw_anchors(true, radius, 3, 4000, torch.Generator().manual_seed(0))[0]
    assert (anchors[:, 1] >= 4).all()
    weights = anchor_weights(true[0], radius[0], 3, torch.Generator().manual_seed(0))
    assert not weights[:, :4].any()
    expected = (weights / weights.sum() * 4000)[:, 4:].flatten()
    counts = torch.zeros(12, 16).index_put((anchors[:, 0], anchors[:, 1]), torch.ones(4000), accumulate=True)[:, 4:]
    chi_square = ((counts.flatten() - expected).square() / expected).sum()
    assert chi_square < 12 * 12 + 5 * math.sqrt(2 * 12 * 12)


def test_surface_with_few_neighbours_in_reach_weighs_more() -> None:
    _, true = scene(14)
    flat = torch.full_like(true[0, ..., 2], 2.0)
    v, u = torch.meshgrid(torch.linspace(-0.4, 0.4, 24), torch.linspace(-0.5, 0.5, 32), indexing="ij")
    flat[:, 16:] = 2 + 20 * u[:, 16:]  # a wall that recedes
    wall = torch.stack([u * flat, v * flat, flat], dim=-1)
    weights = anchor_weights(wall, 0.125 * flat, 5, torch.Generator().manual_seed(0))
    assert weights[:, 22:26].mean() > 2 * weights[:, 6:10].mean()


@pytest.mark.parametrize(
    "arguments",
    [
        {"anchors": torch.zeros(1, 4, 2)},
        {"anchors": torch.zeros(2, 4, 2, dtype=torch.long)},
        {"anchors": torch.tensor([[[24, 0]]])},
        {"anchors": torch.tensor([[[0, -1]]])},
        {"num_patches": 0},
        {"level": 0},
        {"generator": [torch.Generator(), torch.Generator()]},
        {"beta": -1.0},
    ],
)
def test_arguments_outside_their_domain_are_refused(arguments: dict[str, Any]) -> None:
    pred, true = scene(15)
    with pytest.raises(InputError):
        local(pred, true, **arguments)
    with pytest.raises(InputError, match="ground truth"):
        local(pred, true[:, 1:])
    with pytest.raises(InputError, match="align_resolution"):
        affine_invariant_global_loss(pred, true, align_resolution=0)
