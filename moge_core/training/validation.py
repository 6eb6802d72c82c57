"""What a training holds out and is scored on: always the same instances."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moge_core.datasets import read_index
from moge_core.datasets.layout import VALIDATION_NAME
from moge_core.loading import DataConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """What is scored of a dataset."""

    name: str
    root: Path
    depth_name: str
    instances: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """What each dataset is trained on, by name, and what is held out."""

    train: dict[str, list[str]]
    held_out: list[HeldOut]

    def digest(self) -> str:
        """Changes with what is trained on."""
        return hashlib.sha256(json.dumps(self.train, sort_keys=True).encode()).hexdigest()[:16]


def split_datasets(data: DataConfig, fraction: float, most: int) -> Split:
    """Hold instances out of each dataset: those of its .val.txt, or else a share of its index.

    The choice depends on the names of instances alone. What is held out is never trained on.

    Args:
        data: the `data` section.
        fraction: share to hold out of datasets without a .val.txt; 0 holds nothing out of them.
        most: instances to score of each dataset, evenly spaced over what is held out.
    """
    train: dict[str, list[str]] = {}
    held_out: list[HeldOut] = []
    for dataset in data.datasets:
        if dataset.weight == 0:
            continue
        root = dataset.resolved_path()
        index = read_index(root, dataset.index)
        if (root / VALIDATION_NAME).is_file():
            chosen = read_index(root, VALIDATION_NAME)
        else:
            chosen = [name for name in index if _place(dataset.name, name) < fraction]
        barred = set(chosen)
        left = [name for name in index if name not in barred]
        if not chosen or not left:
            logger.warning("nothing is held out of %s, so it is not scored", dataset.name)
            train[dataset.name] = index
            continue
        train[dataset.name] = left
        held_out.append(HeldOut(dataset.name, root, dataset.depth, _spaced(chosen, most)))
    return Split(train, held_out)


def untrained_instances(data: DataConfig, fraction: float | None, most: int) -> list[HeldOut]:
    """What a training never saw of each dataset, and may be scored on.

    Args:
        data: the `data` section that it was trained with.
        fraction: the share that it held out of datasets without a .val.txt; None if it held nothing out, so that of a
            .val.txt only what its index does not name is left.
        most: as of `split_datasets`.
    """
    if fraction is not None:
        return split_datasets(data, fraction, most).held_out
    found = []
    for dataset in data.datasets:
        root = dataset.resolved_path()
        if dataset.weight == 0 or not (root / VALIDATION_NAME).is_file():
            continue
        trained = set(read_index(root, dataset.index))
        chosen = [name for name in read_index(root, VALIDATION_NAME) if name not in trained]
        if chosen:
            found.append(HeldOut(dataset.name, root, dataset.depth, _spaced(chosen, most)))
    return found


def _spaced(names: Sequence[str], most: int) -> tuple[str, ...]:
    places = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)
    return tuple(names[place] for place in places)


def _place(dataset: str, instance: str) -> float:
    """Where an instance falls in [0, 1), the same for ever."""
    digest = hashlib.sha256(f"{dataset}\0{instance}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
