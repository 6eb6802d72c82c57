"""Steps whose losses or gradients are not finite: skipped, counted, kept for a look, and too many end the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moge_core.errors import MoGeError, NonFiniteError
from moge_core.io import atomic_open
from moge_core.loading import TrainLoader

logger = logging.getLogger(__name__)

_MOST_DUMPS = 10


class SkippedSteps:
    """Counts the steps of a run that changed no weight.

    Args:
        folder: where batches of such steps are kept, the first ten of a process.
        most_in_a_row: more than that end the run.
        rank: of this process.
    """

    def __init__(self, folder: Path, most_in_a_row: int, rank: int) -> None:
        self._folder, self._most, self._rank = folder, most_in_a_row, rank
        self._num_dumped = 0
        self.total = self.in_a_row = 0

    def went_well(self) -> None:
        """A step was made."""
        self.in_a_row = 0

    def skipped(self, step: int, reason: str, loader: TrainLoader, losses: Sequence[torch.Tensor]) -> None:
        """A step was skipped; its batches are kept.

        Args:
            step: which.
            reason: why.
            loader: it can load the step's batches once more.
            losses: of each micro-batch; only batches whose loss is not finite are kept, or all if all are.

        Raises:
            NonFiniteError: too many in a row.
        """
        self.total += 1
        self.in_a_row += 1
        logger.warning("step %d skipped (%d in a row): %s", step, self.in_a_row, reason)
        suspects = [i for i, loss in enumerate(losses) if not bool(torch.isfinite(loss).all())]
        for micro in suspects or range(len(losses)):
            self._dump(step, micro, loader)
        if self.in_a_row >= self._most:
            raise NonFiniteError(
                "training",
                f"must not skip {self._most} steps in a row",
                found=f"{reason}; batches are in {self._folder}",
                fix="Lower the learning rate, use bf16 instead of fp16, or look at the data with `moge validate`.",
            )

    def _dump(self, step: int, micro: int, loader: TrainLoader) -> None:
        if self._num_dumped >= _MOST_DUMPS:
            return
        self._num_dumped += 1
        path = self._folder / f"{step:08d}_{micro}_{self._rank}.pt"
        try:
            batch: Mapping[str, Any] = loader.load_again(step, micro)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_open(path) as file:
                torch.save(dict(batch), file)
        except (OSError, RuntimeError, MoGeError) as error:  # it is only for looking at
            logger.warning("the batch cannot be kept: %s", error)
            return
        names = [f"{info['dataset']}/{info['instance']}" for info in batch["info"]]
        logger.warning("its batch (%s) is in %s", ", ".join(names[:8]), path)
