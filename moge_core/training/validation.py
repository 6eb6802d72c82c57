"""What a training holds out: always the same instances, some to choose weights by and others to claim a score on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from moge_core.datasets import read_index
from moge_core.datasets.holding_out import Holding, divide, hold_out, neighbours_trained_on
from moge_core.datasets.layout import INDEX_NAME, VALIDATION_NAME
from moge_core.datasets.lists import FOLDER_RULE, SCENE_RULE, WrittenLists
from moge_core.datasets.scene_finding import Scenes, find_scenes
from moge_core.datasets.splits import split_again
from moge_core.errors import DatasetError
from moge_core.loading import DataConfig
from moge_core.loading.config import DatasetConfig

logger = logging.getLogger(__name__)

_OF_BEFORE = (
    "the run keeps the rule of before: single instances are held out, so that frames next to them are trained on, and"
    " the score is on what chose the weights"
)

# The share that is advised where none is known.
_USUAL_FRACTION = 0.05


@dataclass(frozen=True)
class HeldOut:
    """What is scored of a dataset."""

    name: str
    root: Path
    depth_name: str
    instances: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """What each dataset is trained on, by name, and what is held out.

    Attributes:
        train: instances of each dataset.
        held_out: what the best step, and its plain or averaged weights, are chosen by.
        claimed: what a score is claimed on: nothing that weights were chosen by, but for the rule of before.
        told: how each dataset was divided, a sentence each.
        unclaimed: why there is no score to claim of a dataset, by its name.
        rule: see `lists.SCENE_RULE`.
    """

    train: dict[str, list[str]]
    held_out: list[HeldOut]
    claimed: list[HeldOut] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    unclaimed: dict[str, str] = field(default_factory=dict)
    rule: int = SCENE_RULE

    def digest(self) -> str:
        """Changes with what is trained on."""
        return hashlib.sha256(json.dumps(self.train, sort_keys=True).encode()).hexdigest()[:16]

    def is_claimed_apart(self) -> bool:
        """Whether a score can be claimed on what weights were not chosen by."""
        return self.rule != FOLDER_RULE and bool(self.claimed)


def rule_of(manifest: Mapping[str, Any]) -> int:
    """The rule by which the training of a checkpoint held out: a run keeps its own."""
    recorded = manifest.get("held_out_rule")
    if recorded in (FOLDER_RULE, SCENE_RULE):
        return int(recorded)
    return SCENE_RULE if manifest.get("held_out") is None else FOLDER_RULE


def split_datasets(data: DataConfig, fraction: float, most: int, rule: int = SCENE_RULE) -> Split:
    """Hold instances out of each dataset: those of its .val.txt, or else a share of the scenes of its index.

    What is held out is never trained on, nor what is in the gaps around it. The choice depends on the dataset alone.

    Args:
        data: the `data` section.
        fraction: share to hold out of datasets without a .val.txt; 0 holds nothing out of them.
        most: instances to score of each part of each dataset, evenly spaced over it.
        rule: see `lists.SCENE_RULE`. By the one of before each instance is held out for itself.
    """
    split = Split({}, [], rule=rule)
    for dataset in data.datasets:
        if dataset.weight == 0:
            continue
        index = read_index(dataset.resolved_path(), dataset.index)
        listed = _listed_for_validation(dataset)
        if rule == FOLDER_RULE:
            chosen = listed if listed is not None else [n for n in index if _place(dataset.name, n) < fraction]
            barred = set(chosen)
            train = [name for name in index if name not in barred]
        elif listed is None and not fraction:
            train, chosen = index, []
        else:
            scenes = _scenes_of(dataset, index, listed)
            held = _by_lists(dataset, scenes, index, listed) if listed else _by_share(dataset, scenes, fraction)
            train, chosen = held.train, held.held_out
            split.told.extend(f"{dataset.name}: {line}" for line in held.told)
        if not chosen or not train:
            logger.warning("nothing is held out of %s, so it is not scored", dataset.name)
            split.train[dataset.name] = index
            continue
        split.train[dataset.name] = train
        _divide(split, dataset, chosen, None if rule == FOLDER_RULE else scenes, most)
    return split


def untrained_instances(data: DataConfig, fraction: float | None, most: int, rule: int = SCENE_RULE) -> Split:
    """What a training never saw of each dataset, and may be scored on; what it was trained on is not told.

    Args:
        data: the `data` section that it was trained with.
        fraction: the share that it held out of datasets without a .val.txt; None if it held nothing out, so that of a
            .val.txt only what its index does not name is left.
        most: as of `split_datasets`.
        rule: by which it held out.
    """
    if fraction is not None:
        return split_datasets(data, fraction, most, rule)
    split = Split({}, [], rule=rule)
    for dataset in data.datasets:
        listed = _listed_for_validation(dataset)
        if dataset.weight == 0 or listed is None:
            continue
        index = read_index(dataset.resolved_path(), dataset.index)
        trained = set(index)
        chosen = [name for name in listed if name not in trained]
        if chosen:
            _divide(split, dataset, chosen, _scenes_of(dataset, index, chosen), most)
    return split


def _listed_for_validation(dataset: DatasetConfig) -> list[str] | None:
    root = dataset.resolved_path()
    return read_index(root, VALIDATION_NAME) if (root / VALIDATION_NAME).is_file() else None


def _scenes_of(dataset: DatasetConfig, index: Sequence[str], listed: Sequence[str] | None) -> Scenes:
    """The scenes of what is trained on and held out; beside a split also of what is in neither, as gaps are."""
    root = dataset.resolved_path()
    everything: Sequence[str] = ()
    if listed and dataset.index != INDEX_NAME and (root / INDEX_NAME).is_file():
        everything = read_index(root)
    return find_scenes(root, [*index, *(listed or ()), *everything])


def _by_share(dataset: DatasetConfig, scenes: Scenes, fraction: float) -> Holding:
    try:
        return hold_out(scenes, fraction)
    except DatasetError as error:
        logger.warning("%s: %s", dataset.name, error)
        return Holding(list(scenes.scene_of), [], [], (0, 1), ())


def _by_lists(dataset: DatasetConfig, scenes: Scenes, index: Sequence[str], listed: list[str]) -> Holding:
    """What a .val.txt leaves to train on: of one of ours nothing that is in its gaps or new in its scenes."""
    root = dataset.resolved_path()
    again = split_again(root, scenes)
    if again is None:
        barred = set(listed)
        train = [name for name in index if name not in barred]
        _tell_of_neighbours(dataset, scenes, listed, train)
        return Holding(train, listed, [], (0, 0), ())
    barred = {*listed, *again.held_out, *again.gap}
    num_new = len(set(again.held_out) - set(listed))
    if num_new:
        logger.warning(
            "%s: %d instances came into held-out scenes since .val.txt was made; they are neither trained on nor"
            " scored. `moge index %s --val-fraction %g` adds them",
            *(dataset.name, num_new, root, _fraction_of_lists(root)),
        )
    return replace(again, train=[name for name in index if name not in barred], held_out=listed)


def _tell_of_neighbours(dataset: DatasetConfig, scenes: Scenes, listed: Sequence[str], train: Sequence[str]) -> None:
    """Warn of a .val.txt whose instances lie next to what is trained on."""
    root = dataset.resolved_path()
    number = neighbours_trained_on(scenes, listed, train)
    if not number:
        return
    remedy = f"`moge index {root} --val-fraction {_fraction_of_lists(root):g} --rebuild` makes one by scenes"
    if not WrittenLists.load(root).is_ours(root / VALIDATION_NAME):
        remedy += " and keeps yours as .val.txt.bak"
    logger.warning(
        "%s: %d of the %d instances of .val.txt lie next to frames of their scene that are trained on, so that their"
        " score flatters; %s",
        *(dataset.name, number, len(listed), remedy),
    )


def _fraction_of_lists(root: Path) -> float:
    split = WrittenLists.load(root).split
    return split.val_fraction if split is not None else _USUAL_FRACTION


def _divide(split: Split, dataset: DatasetConfig, chosen: Sequence[str], scenes: Scenes | None, most: int) -> None:
    """Add what is held out of a dataset to what weights are chosen by and what a score is claimed on."""
    root = dataset.resolved_path()

    def part(instances: Sequence[str]) -> HeldOut:
        return HeldOut(dataset.name, root, dataset.depth, _spaced(instances, most))

    if split.rule == FOLDER_RULE or scenes is None:
        split.held_out.append(part(chosen))
        split.claimed.append(part(chosen))
        split.told.append(f"{dataset.name}: {_OF_BEFORE}")
        return
    parts = divide(scenes, chosen)
    split.held_out.append(part(parts.selection))
    split.told.append(f"{dataset.name}: {parts.told}")
    if parts.claimed:
        split.claimed.append(part(parts.claimed))
    else:
        split.unclaimed[dataset.name] = parts.told


def _spaced(names: Sequence[str], most: int) -> tuple[str, ...]:
    places = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)
    return tuple(names[place] for place in places)


def _place(dataset: str, instance: str) -> float:
    """Where an instance falls in [0, 1) by the rule of before, the same for ever."""
    digest = hashlib.sha256(f"{dataset}\0{instance}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
