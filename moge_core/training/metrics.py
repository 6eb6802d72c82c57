"""Means of what the objective reports, summed up on the device and reduced over ranks only when they are logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from moge_core.loading import DataConfig
from moge_core.training.config import LossTerm
from moge_core.training.objective import metric_names


class MetricSums:
    """Sums and counts of every metric since the last log; what is not finite counts for nothing.

    Args:
        loss_sets: the configuration's `loss` section.
        data: its `data` section; each dataset's loss is a metric of its own.
        device: of the sums.
    """

    def __init__(self, loss_sets: Mapping[str, Mapping[str, LossTerm]], data: DataConfig, device: torch.device) -> None:
        per_dataset = [dataset_metric(dataset.name) for dataset in data.datasets if dataset.weight > 0]
        self.names = [*metric_names(loss_sets), *per_dataset]
        self._row_of = {name: row for row, name in enumerate(self.names)}
        self._sums = torch.zeros(len(self.names), 2, dtype=torch.float64, device=device)

    def add(self, metrics: Mapping[str, Tensor], datasets: Sequence[str]) -> None:
        """Take in a micro-batch: each metric of the instances (B,) that have it, and the dataset of each instance."""
        found = dict(metrics)
        for name in set(datasets):
            rows = torch.tensor([row for row, own in enumerate(datasets) if own == name])
            found[dataset_metric(name)] = metrics["loss"][rows.to(metrics["loss"].device, non_blocking=True)]
        for name, each in found.items():
            row = self._row_of.get(name)
            if row is None:
                continue
            values = each.double()
            known = torch.isfinite(values)
            self._sums[row, 0] += torch.where(known, values, 0.0).sum()
            self._sums[row, 1] += known.sum()

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all ranks and instances since the last call; only what occurred."""
        sums = accelerator.reduce(self._sums.clone(), reduction="sum").cpu()
        self._sums.zero_()
        return {name: float(total / count) for name, (total, count) in zip(self.names, sums, strict=True) if count > 0}

    def state(self, accelerator: Accelerator) -> dict[str, Any]:
        """The sums over all ranks, for a checkpoint between two logs."""
        sums = accelerator.reduce(self._sums.clone(), reduction="sum").tolist()
        return dict(zip(self.names, sums, strict=True))

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with the sums of a checkpoint; to be called on one rank alone."""
        for name, pair in state.items():
            if name in self._row_of:
                self._sums[self._row_of[name]] += self._sums.new_tensor(pair)


def dataset_metric(name: str) -> str:
    """Name of the mean loss of a dataset's instances."""
    return f"dataset.{name}.loss"
