"""What the families of losses share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from moge_core.errors import InputError

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
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(first.device.type, enabled=False):
            return loss(*map(_raise, args), **{name: _raise(value) for name, value in kwargs.items()})  # type: ignore[arg-type]

    return run


def _raise(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """mean(values * mask) / (mean(mask) + 1e-7) over all but the first dimension; what the mask hides may be NaN."""
    values, mask = torch.where(mask, values, 0).flatten(1), mask.flatten(1).to(values.dtype)
    return values.mean(1) / (mask.mean(1) + 1e-7)


def smooth_l1(error: Tensor, beta: float) -> Tensor:
    """Huber loss in its smooth-L1 form of errors >= 0: the error itself for beta 0."""
    if beta == 0:
        return error
    return torch.where(error < beta, 0.5 * error.square() / beta, error - 0.5 * beta)


def check_point_maps(predicted: Tensor, true: Tensor, name: str) -> None:
    """Both must be (B, H, W, 3)."""
    if predicted.dim() != 4 or predicted.shape[-1] != 3:
        raise InputError(name, "must be (B, H, W, 3)", found=tuple(predicted.shape))
    if true.shape != predicted.shape:
        raise InputError(
            "ground truth", f"must have the shape of {name}, {tuple(predicted.shape)}", found=tuple(true.shape)
        )
