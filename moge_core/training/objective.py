"""The training objective of a batch: each instance's label selects its set of losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moge_core.errors import ConfigError
from moge_core.geometry import depth_map_to_point_map
from moge_core.losses import get_loss
from moge_core.training.config import LossTerm

LossSets = Mapping[str, Mapping[str, LossTerm]]
Inputs = dict[str, Any]
Result = tuple[Tensor, dict[str, Tensor]]

GLOBAL_LOSS = "affine_invariant_global_loss"
NORMAL_MAP_LOSS = "normal_map_loss"
_POINT_METRICS = ("truncated_error", "delta")


def check_losses(loss_sets: LossSets) -> None:
    """Import every loss and see whether those of other packages take their parameters.

    Raises:
        ConfigError: names the loss set, the key and what is wrong.
    """
    for label, terms in loss_sets.items():
        for key, term in terms.items():
            where = f"loss.{label}.{key}"
            try:
                function = get_loss(term.function)
            except ConfigError as error:
                raise ConfigError(f"{where}.function", str(error)) from error
            if term.function in _CALLS or term.function == GLOBAL_LOSS:
                continue
            try:
                inspect.signature(function).bind({}, {}, **term.params)
            except TypeError as error:
                raise ConfigError(f"{where}.params", f"do not fit {term.function}: {error}") from error


def labels_with_normals(loss_sets: LossSets) -> tuple[str, ...]:
    """Labels whose losses read true normal maps; the loader computes them for these only."""
    return tuple(sorted(label for label, terms in loss_sets.items() if any(map(_needs_normals, terms.values()))))


def _needs_normals(term: LossTerm) -> bool:
    return term.function == NORMAL_MAP_LOSS or bool(getattr(get_loss(term.function), "needs_normals", False))


def metric_names(loss_sets: LossSets) -> list[str]:
    """Every metric that the objective can report, in a fixed order that all ranks share."""
    names = {
        f"{key}{suffix}"
        for terms in loss_sets.values()
        for key, term in terms.items()
        for suffix in ("", *(f".{name}" for name in getattr(get_loss(term.function), "metrics", _POINT_METRICS)))
    }
    return ["loss", *sorted(names), "monitoring.std"]


@dataclass
class Objective:
    """What one micro-batch contributes.

    Attributes:
        total: sum over the valid instances of their weighted losses, a scalar.
        num_valid: number of valid instances, a scalar tensor.
        metrics: name -> (B',) values of the instances that have them; NaN where undefined.
    """

    total: Tensor
    num_valid: Tensor
    metrics: dict[str, Tensor]


def compute_objective(
    output: Mapping[str, Tensor], batch: Mapping[str, Any], loss_sets: LossSets, seed: int
) -> Objective:
    """Losses of a batch, in float32 whatever the network's precision.

    Args:
        output: the model's `points` (B, H, W, 3), `mask` (B, H, W) and, where it has them, `normal`, `metric_scale`.
        batch: a loader's batch.
        loss_sets: the configuration's `loss` section.
        seed: with an instance's sample number, the source of its random patches.

    Returns:
        The objective. An instance is valid when it has a finite depth and its label has losses; others count for
        nothing.
    """
    output = {name: value.float() for name, value in output.items()}
    device = output["points"].device
    depth, intrinsics = batch["depth"], batch["intrinsics"]
    labels: Sequence[str] = batch["label_type"]
    has_losses = _on_device([bool(loss_sets[label]) for label in labels], device)
    valid = has_losses & torch.isfinite(depth).flatten(1).any(dim=1)
    # One scalar in which every output takes part: all ranks then have the same gradients, and DDP need not search for
    # unused parameters.
    total = sum((value * 0).nan_to_num().sum() for value in output.values())
    assert isinstance(total, Tensor)
    metrics: dict[str, list[Tensor]] = {}
    per_instance = torch.zeros(len(labels), device=device)
    for label in sorted(set(labels)):
        if not loss_sets[label]:
            continue
        row_numbers = [row for row, own in enumerate(labels) if own == label]
        rows = _on_device(row_numbers, device)
        inputs: Inputs = {name: value[rows] for name, value in output.items()}
        inputs |= {
            "gt_points": depth_map_to_point_map(depth[rows], intrinsics[rows]),
            "mask_fin": batch["depth_mask_fin"][rows],
            "mask_inf": batch["depth_mask_inf"][rows],
            "gt_normal": batch["normal"][rows] if "normal" in batch else None,
            "focal": _focal_relative_to_diagonal(intrinsics[rows]),
            "is_metric": batch["is_metric"][rows],
            "generators": [
                torch.Generator().manual_seed(patch_seed(seed, batch["info"][row]["sample_number"]))
                for row in row_numbers
            ],
        }
        weighted, found = _label_losses(inputs, loss_sets[label], label)
        per_instance = per_instance.index_copy(0, rows, weighted)
        for name, values in found.items():
            metrics.setdefault(name, []).append(torch.where(valid[rows], values.detach().float(), torch.nan))
    total = total + torch.where(valid, per_instance, 0.0).sum()
    metrics["loss"] = [torch.where(valid, per_instance.detach(), torch.nan)]
    metrics["monitoring.std"] = [output["points"].detach().flatten(1).std(dim=1)]
    return Objective(total, valid.sum(), {name: torch.cat(parts) for name, parts in metrics.items()})


def _on_device(values: Sequence[int], device: torch.device) -> Tensor:
    """A list as a tensor, without the device waiting for the host to have it."""
    return torch.tensor(values).to(device, non_blocking=True)


def patch_seed(seed: int, sample_number: int) -> int:
    """Seed of the random patches of one training sample."""
    return int(np.random.SeedSequence((seed, sample_number)).generate_state(1, np.uint64)[0] >> 1)


def _label_losses(inputs: Inputs, terms: Mapping[str, LossTerm], label: str) -> Result:
    """Weighted sum of one label's losses (B,) and the metrics of each."""
    scale: Tensor | None = None
    weighted = torch.zeros(inputs["points"].shape[0], device=inputs["points"].device)
    metrics: dict[str, Tensor] = {}
    # The global loss finds the scale that others refer to, so it comes first; then the order of their keys, not that of
    # the configuration, tells in which order losses draw random patches and are added up.
    for key, term in sorted(terms.items(), key=lambda item: (item[1].function != GLOBAL_LOSS, item[0])):
        function = get_loss(term.function)
        if term.function == GLOBAL_LOSS:
            loss, details, scale = function(inputs["points"], inputs["gt_points"], **term.params)
        else:
            call = _CALLS.get(term.function, _foreign)
            try:
                loss, details = call(function, inputs, scale, term.params)
            except KeyError as error:
                raise ConfigError(
                    f"loss.{label}.{key}", f"needs an output that the model does not have: {error.args[0]}"
                ) from error
        metrics[key] = loss
        metrics.update({f"{key}.{name}": value for name, value in details.items()})
        weighted = weighted + term.weight * loss
    return weighted, metrics


def _local(function: Callable[..., Result], inputs: Inputs, scale: Tensor | None, params: Mapping[str, Any]) -> Result:
    return function(
        inputs["points"], inputs["gt_points"], inputs["focal"], scale, generator=inputs["generators"], **params
    )


def _metric_scale(
    function: Callable[..., Result], inputs: Inputs, scale: Tensor | None, params: Mapping[str, Any]
) -> Result:
    if scale is None:
        raise KeyError(f"the scale that {GLOBAL_LOSS} finds; add it to this label's losses")
    # A scale of zero is how the losses write "unknown": it takes the instance out of this loss.
    return function(inputs["metric_scale"], torch.where(inputs["is_metric"], scale, 0.0), **params)


def _foreign(
    function: Callable[..., Result], inputs: Inputs, scale: Tensor | None, params: Mapping[str, Any]
) -> Result:
    """A loss of another package: `function(output, truth, **params)`, see docs/training.md."""
    output = {name: inputs[name] for name in ("points", "mask", "normal", "metric_scale") if name in inputs}
    names = ("gt_points", "mask_fin", "mask_inf", "gt_normal", "focal", "is_metric")
    return function(output, {**{name: inputs[name] for name in names}, "scale": scale}, **params)


_CALLS: Mapping[str, Callable[[Callable[..., Result], Inputs, Tensor | None, Mapping[str, Any]], Result]] = {
    "affine_invariant_local_loss": _local,
    "normal_loss": lambda f, inputs, _, params: f(inputs["points"], inputs["gt_points"], **params),
    "edge_loss": lambda f, inputs, _, params: f(inputs["points"], inputs["gt_points"], **params),
    "mask_l2_loss": lambda f, inputs, _, params: f(inputs["mask"], inputs["mask_fin"], inputs["mask_inf"], **params),
    "mask_bce_loss": lambda f, inputs, _, params: f(inputs["mask"], inputs["mask_fin"], inputs["mask_inf"], **params),
    "metric_scale_loss": _metric_scale,
    "normal_map_loss": lambda f, inputs, _, params: f(inputs["normal"], inputs["gt_normal"], **params),
}


def _focal_relative_to_diagonal(intrinsics: Tensor) -> Tensor:
    """Focal length relative to the image diagonal, 1 / sqrt(1 / fx^2 + 1 / fy^2); (B, 3, 3) -> (B,)."""
    return 1 / (1 / intrinsics[:, 0, 0] ** 2 + 1 / intrinsics[:, 1, 1] ** 2).sqrt()
