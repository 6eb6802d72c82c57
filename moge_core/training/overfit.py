"""`moge preflight`: a few minutes on a handful of the user's own instances tell whether a training can work at all.

A model that cannot fit eight fixed views will not learn from millions: data and losses that contradict each other,
frozen or unreached weights and a learning rate that explodes all show here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from moge_core.devices import choose_device
from moge_core.errors import InputError
from moge_core.loading import DataConfig, TrainLoader
from moge_core.models import build_model, check_version, init_backbone, load_weights
from moge_core.training.checkpoints import TrainingState, load_training_state
from moge_core.training.config import TrainConfig
from moge_core.training.devices import on_device
from moge_core.training.objective import check_losses, compute_objective, labels_with_normals
from moge_core.training.optimization import build_optimizer, freeze
from moge_core.training.trainer import MAX_GRADIENT_NORM
from moge_core.training.workspace import Workspace

LEAST_FALL = 0.1
"""Share of the first loss by which the last one must be lower."""

# Rates of a finetuning change nothing within minutes; the greatest of them is raised to this one.
_RATE = 1e-4
_NUM_TOKENS, _IMAGE_SIZE = 130, (182, 140)
_FEWEST_STEPS, _SMOOTHED = 20, 5


@dataclass(frozen=True)
class Preflight:
    """What came of it.

    Attributes:
        instances: what was fitted.
        losses: mean over the instances, by step.
        seconds: how long it took.
        problems: what is wrong, empty if nothing is.
    """

    instances: tuple[str, ...]
    losses: tuple[float, ...]
    seconds: float
    problems: tuple[str, ...]

    @property
    def fall(self) -> float:
        """Share of the first losses by which the last ones are lower."""
        first, last = (sum(part) / len(part) for part in (self.losses[:_SMOOTHED], self.losses[-_SMOOTHED:]))
        return 1 - last / first if first > 0 else 0.0


def preflight(
    config: TrainConfig,
    *,
    checkpoint: str | None = None,
    init: str = "random",
    num_instances: int = 8,
    max_steps: int = 200,
    max_seconds: float = 180.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Preflight:
    """Fit fixed views of a few instances, without augmentation and at a low resolution.

    Args:
        config: of the training that is planned.
        checkpoint: `.pt` file to start from.
        init: backbone of a new model, as the flag of the training.
        num_instances: how many, drawn as the training draws them.
        max_steps: steps at most; as many as there is time for.
        max_seconds: time at most, but at least 20 steps are made.
        seed: of the draws.
        device: where the model runs, see `choose_device`.
        progress: called with (steps done, steps at most).

    Raises:
        MoGeError: configuration, data or checkpoint do not fit together.
    """
    device = choose_device(device)
    if device.type == "mps":
        raise InputError("--device", "must have float64, which losses are aligned in", found="mps", fix="Use cpu.")
    check_losses(config.loss)
    model = _model(config, checkpoint, init, seed).to(device).train()
    optimizer = build_optimizer(model, config.optimizer)
    _raise_rates(optimizer)
    batches = _fixed_batches(config, num_instances, seed, device)
    instances = [f"{info['dataset']}/{info['instance']}" for batch in batches for info in batch["info"]]
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    unreached = set(before)

    losses: list[float] = []
    start = time.monotonic()
    while len(losses) < max_steps and (time.monotonic() - start < max_seconds or len(losses) < _FEWEST_STEPS):
        total, valid = 0.0, 0
        for batch in batches:
            objective = compute_objective(model(batch["image"], _NUM_TOKENS), batch, config.loss, seed)
            objective.total.backward()  # type: ignore[no-untyped-call]
            total, valid = total + float(objective.total.detach()), valid + int(objective.num_valid)
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        unreached -= {name for name in unreached & gradients.keys() if bool(gradients[name].any())}
        torch._foreach_div_(list(gradients.values()), max(valid, 1))
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        losses.append(total / max(valid, 1))
        if not math.isfinite(losses[-1]) or not valid:
            break
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress:
            progress(len(losses), max_steps)
    unmoved = [name for name, value in model.named_parameters() if name in before and torch.equal(value, before[name])]
    result = Preflight(tuple(instances), tuple(losses), time.monotonic() - start, ())
    return replace(result, problems=tuple(_problems(result, unmoved, unreached, valid)))


def _model(config: TrainConfig, checkpoint: str | None, init: str, seed: int) -> Any:
    torch.manual_seed(seed)
    model = build_model(config.model_version, **config.model)
    if checkpoint is None:
        init_backbone(model, init)
    else:
        state = load_training_state(Workspace("."), checkpoint)
        assert isinstance(state, TrainingState)  # a file, not `latest`
        check_version(state.model_config, config.model_version, where=state.source)
        load_weights(model, state.model, where=state.source, strict=True)
    freeze(model, config.freeze)
    return model


def _fixed_batches(config: TrainConfig, num_instances: int, seed: int, device: torch.device) -> list[Mapping[str, Any]]:
    """Whole, small, unaugmented views of different instances where there are enough."""
    section = config.data.model_dump(exclude_none=True)
    plain = {"image_augmentation": [], "center_augmentation": 0.0, "fov_range_relative": (1.0, 1.0)}
    section |= {**plain, "image_sizes": [_IMAGE_SIZE], "fov_range_absolute": (1.0, 179.0)}
    for dataset in section["datasets"]:
        for key in (*plain, "fov_range_absolute"):
            dataset.pop(key, None)
    batches: list[Mapping[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    data = DataConfig.model_validate(section)
    with TrainLoader(data, 1, seed, num_workers=0, normals_for=labels_with_normals(config.loss)) as loader:
        stream = on_device(loader, device)
        for _ in range(20 * num_instances):
            batch = next(stream)
            drawn = batch["info"][0]["dataset"], batch["info"][0]["instance"]
            if drawn not in seen:
                seen.add(drawn)
                batches.append(batch)
            if len(batches) == num_instances:
                break
    return batches


def _raise_rates(optimizer: torch.optim.Optimizer) -> None:
    greatest = max((group["lr"] for group in optimizer.param_groups), default=0.0)
    if 0 < greatest < _RATE:
        for group in optimizer.param_groups:
            group["lr"] *= _RATE / greatest


def _problems(result: Preflight, unmoved: list[str], unreached: set[str], valid: int) -> list[str]:
    if not valid:
        return ["none of the instances has a finite depth and a loss: look at them with `moge preview-batches`"]
    if not math.isfinite(result.losses[-1]):
        return [
            f"the loss of step {len(result.losses) - 1} is {result.losses[-1]}: depth of an absurd range, or a "
            "learning rate that is too high; look at the data with `moge validate`"
        ]
    problems = []
    if result.fall < LEAST_FALL:
        problems.append(
            f"the loss fell by {result.fall:.1%} in {len(result.losses)} steps on {len(result.instances)} fixed views, "
            f"not by {LEAST_FALL:.0%}: the labels contradict the images (wrong intrinsics, unit or pairing of files?), "
            "or nothing that matters is trained; look at `moge preview-batches`"
        )
    # A mask token is there for checkpoints' sake and takes part in nothing.
    still = sorted(name for name in unmoved if not name.endswith("mask_token"))
    if still:
        why = "no gradient reaches them" if set(still) & unreached else "their learning rate is 0 or vanishes"
        problems.append(f"{len(still)} weights did not move ({', '.join(still[:4])}, ...): {why}; see `freeze`")
    return problems
