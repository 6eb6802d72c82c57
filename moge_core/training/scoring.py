"""Scores of a model on held-out instances, dealt over the processes of a training."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from moge_core.evaluation import HeldOutInstance, ScoringConditions, digest_instances, mean_scores, score_instances
from moge_core.models import MoGeModel
from moge_core.models.precision import Precision
from moge_core.training.validation import HeldOut

logger = logging.getLogger(__name__)

_OF_MIXED_PRECISION: Mapping[str, Precision] = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}


@dataclass(frozen=True)
class HeldOutScores:
    """What was found of one or several sets of weights.

    Attributes:
        values: `eval.DATASET.rel`, ..., and `eval.rel` over the datasets; only what could be scored.
        conditions: under which they were made.
    """

    values: Mapping[str, float]
    conditions: ScoringConditions

    def __or__(self, other: HeldOutScores) -> HeldOutScores:
        """Both, under the same conditions but for instances that only one of them could score."""
        missed = dict.fromkeys([*self.conditions.not_scored, *other.conditions.not_scored])
        return HeldOutScores({**self.values, **other.values}, replace(self.conditions, not_scored=list(missed)))


def scoring_tokens(model: MoGeModel) -> int:
    """The middle of the resolutions that a model is trained at, where it is scored."""
    least, most = model.num_tokens_range
    return (int(least) + int(most)) // 2


def training_precision(mixed_precision: str) -> Precision:
    """What `--mixed_precision` makes the network's encoder compute in."""
    return _OF_MIXED_PRECISION[mixed_precision]


def scoring_precision(mixed_precision: str, *, sharded: bool) -> Precision:
    """Of a training's scores: float32 whatever it trains in, so that they are those of `moge evaluate`.

    But weights that are spread over the ranks are put together in the precision that they are trained in.
    """
    return training_precision(mixed_precision) if sharded else "fp32"


class HeldOutScorer:
    """Scores models on the same instances, always under the same conditions.

    Each of several processes takes its share of the instances, in batches. Means are made in the order of the
    instances, so they depend on neither.

    Args:
        held_out: what to score.
        num_tokens: resolution of the predictions.
        batch_size: images of one size that a process predicts at once.
        precision: of the network's encoder.
        device: as of `score_instances`.
        rank, world_size: which of how many processes this is. All of them make the same calls.
    """

    def __init__(
        self,
        held_out: Sequence[HeldOut],
        num_tokens: int,
        *,
        batch_size: int = 1,
        precision: Precision = "fp32",
        device: torch.device | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._datasets = [each.name for each in held_out for _ in each.instances]
        self._names = [f"{each.name}/{instance}" for each in held_out for instance in each.instances]
        self._instances = [
            HeldOutInstance(each.root / instance, each.depth_name) for each in held_out for instance in each.instances
        ]
        self._batch_size, self._device, self._rank, self._world_size = batch_size, device, rank, world_size
        names = [f"{name}/{each.depth_name}" for name, each in zip(self._names, self._instances, strict=True)]
        self.conditions = ScoringConditions(precision, num_tokens, digest_instances(names))
        """Under which all that is held out is scored."""

    def score(self, model: MoGeModel, prefix: str = "eval") -> HeldOutScores:
        """Mean `rel` and `delta1` of affine-invariant points, the same on every process.

        An instance that cannot be read is warned of and left out.

        Args:
            model: in whatever mode it is; left in training mode.
            prefix: of the names of the values.
        """
        mine = range(self._rank, len(self._instances), self._world_size)

        def warn(position: int, reason: object) -> None:
            # A training of days must not end over a broken held-out instance.
            logger.warning("not scored: %s: %s", self._names[mine[position]], reason)

        model.eval()
        try:
            found = score_instances(
                model,
                [self._instances[place] for place in mine],
                num_tokens=self.conditions.num_tokens,
                batch_size=self._batch_size,
                precision=self.conditions.precision,
                device=self._device,
                on_failure=warn,
                agree_on_forwards=self._most_of_any_process,
            )
        finally:
            model.train()
        scores = dict(self._gather(list(zip(mine, found, strict=True))))
        return self._summary([scores[place] for place in range(len(scores))], prefix)

    def _summary(self, scores: Sequence[Mapping[str, float]], prefix: str) -> HeldOutScores:
        """Means of each dataset and over all of them, of instances that are scored in full."""
        scored: dict[str, list[Mapping[str, float]]] = {name: [] for name in dict.fromkeys(self._datasets)}
        not_scored = []
        for dataset, name, score in zip(self._datasets, self._names, scores, strict=True):
            if any(math.isnan(value) for value in score.values()):
                not_scored.append(name)
            else:
                scored[dataset].append(score)
        means = {dataset: mean_scores(each) for dataset, each in scored.items() if each}
        values = {f"{prefix}.{dataset}.{name}": mean for dataset in means for name, mean in means[dataset].items()}
        for name in next(iter(means.values()), {}):
            values[f"{prefix}.{name}"] = float(np.mean([each[name] for each in means.values()]))
        return HeldOutScores(values, replace(self.conditions, not_scored=not_scored))

    def _most_of_any_process(self, own: int) -> int:
        """Processes that share the weights of one model have to call it equally often."""
        return max(int(each) for each in self._gather([own]))

    def _gather(self, own: list[Any]) -> list[Any]:
        everything: list[Any] = gather_object(own) if self._world_size > 1 else own
        return everything
