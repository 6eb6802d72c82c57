"""What the families of losses share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moge_core.errors import InputError
from moge_core.tensors import at_least_single

Metrics = dict[str, Tensor]
LossAndMetrics = tuple[Tensor, Metrics]

P = ParamSpec("P")
R = TypeVar("R")


def in_full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Run a loss outside autocast, its half-precision arguments raised to float32; float64 stays.

    The first argument tells the device.
    """

    @functools.wraps(loss)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).device.type
        has_autocast = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if has_autocast else contextlib.nullcontext():
            return loss(*map(_raise, args), **{name: _raise(value) for name, value in kwargs.items()})  # type: ignore[arg-type]

    return run


def _raise(value: object) -> object:
    return at_least_single(value) if isinstance(value, Tensor) else value


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """mean(values * mask) / (mean(mask) + 1e-7) over all but the first dimension; what the mask hides may be NaN."""
    values, mask = torch.where(mask, values, 0).flatten(1), mask.flatten(1).to(values.dtype)
    return values.mean(1) / (mask.mean(1) + 1e-7)


def smooth_l1(error: Tensor, beta: float) -> Tensor:
    """Huber loss in its smooth-L1 form of errors >= 0: the error itself for beta 0."""
    if beta == 0:
        return error
    quadratic = error.clamp(max=beta)
    return quadratic.square() * (0.5 / beta) + (error - quadratic)


def slope_of_smooth_l1(error: Tensor, weight: Tensor, beta: float) -> Tensor:
    """Derivative of `smooth_l1(|error| weight, beta)` by the error."""
    slope = error.sign().mul_(weight)
    return slope if beta == 0 else slope.mul_(error.abs().mul_(weight).div_(beta).clamp_(max=1))


def share_of_true(mask: Tensor) -> Tensor:
    """Share (N,) of true pixels of masks (N, ...)."""
    return mask.flatten(1).float().mean(1)


def check_alignment_options(align_resolution: int, beta: float) -> None:
    """A resolution of at least 1 and beta >= 0."""
    if align_resolution < 1:
        raise InputError("align_resolution", "must be at least 1", found=align_resolution)
    if beta < 0:
        raise InputError("beta", "must be >= 0", found=beta)


def with_gradient(values: Tensor, loss: Tensor, gradient: Tensor | None) -> Tensor:
    """The loss (B,) as a function of `values` (B, ...) whose gradient is known; `gradient` None makes it a constant.

    Losses that know their gradient keep no graph: what they need of memory is gone when they return.
    """
    if gradient is None:
        return loss
    known: Tensor = _KnownGradient.apply(values, loss, gradient)  # type: ignore[no-untyped-call]
    return known


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * by_loss.view(-1, *[1] * (gradient.dim() - 1)), None, None


def check_point_maps(predicted: Tensor, true: Tensor, name: str) -> None:
    """Both must be (B, H, W, 3)."""
    if predicted.dim() != 4 or predicted.shape[-1] != 3:
        raise InputError(name, "must be (B, H, W, 3)", found=tuple(predicted.shape))
    if true.shape != predicted.shape:
        raise InputError(
            "ground truth", f"must have the shape of {name}, {tuple(predicted.shape)}", found=tuple(true.shape)
        )
