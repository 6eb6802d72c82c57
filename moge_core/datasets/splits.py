"""Splits by rule: whole scenes go to training or to validation, and stay there when the dataset grows.

A scene is the folder above an instance, because its frames see the same things; an instance right below the dataset is
a scene of its own. A hash of the scene's path decides, so every machine that holds the same folders makes the same
split. What a list of ours already holds stays where it is: among a handful of scenes one must be chosen against its
hash, and it must not change sides when more scenes come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moge_core.datasets.layout import TRAIN_NAME, VALIDATION_NAME, read_index, resolve_dataset
from moge_core.datasets.lists import Split, WrittenLists, back_up
from moge_core.datasets.manifest import locked
from moge_core.errors import DatasetError, InputError


@dataclass(frozen=True)
class SplitReport:
    """What splitting a dataset gave.

    Attributes:
        train, validation: instances of each list.
        num_scenes: how many scenes were held out for validation, and of how many.
    """

    train: list[str]
    validation: list[str]
    num_scenes: tuple[int, int]


def split_dataset(dataset_dir: str | Path, val_fraction: float, *, rebuild: bool = False) -> SplitReport:
    """Write `.train.txt` and `.val.txt` from `.index.txt`, scene by scene; see `split_scenes`.

    Scenes of a split that was made with this fraction stay where they are; another fraction makes it anew.

    Args:
        dataset_dir: the dataset, with a list.
        val_fraction: share of the scenes for validation.
        rebuild: write them even where the user made one of these lists, which is kept as `<name>.bak`.

    Raises:
        MissingIndexError: there is no list.
        DatasetError: a single scene, or a split of the user's own.
        InputError: a fraction outside its domain.
    """
    root = resolve_dataset(dataset_dir)
    with locked(root):
        lists = WrittenLists.load(root)
        instances = list(dict.fromkeys(read_index(root)))
        paths = [root / TRAIN_NAME, root / VALIDATION_NAME]
        kept: dict[str, bool] = {}
        if lists.split is not None and lists.split.val_fraction == val_fraction:
            kept = dict(lists.split.held_out)
            for path, is_held_out in zip(paths, (False, True), strict=True):
                kept |= {scene_of(name): is_held_out for name in lists.lines_of(path) or ()}
        train, validation = split_scenes(instances, val_fraction, kept)
        own = [path for path in paths if path.exists() and not lists.is_ours(path)]
        if own and not rebuild:
            raise DatasetError(
                own[0],
                "must not be replaced: this list is your own",
                fix="Say --rebuild to have it written anew; yours is kept as .bak.",
            )
        for path in own:
            back_up(path)
        for path, chosen in zip(paths, (train, validation), strict=True):
            lists.write(path, chosen)
        held_out, scenes = ({scene_of(name) for name in names} for names in (validation, [*train, *validation]))
        # Last: a split by another fraction that was interrupted is made anew, not taken for one by this fraction.
        placed = kept | {scene: scene in held_out for scene in scenes}
        against = {scene: held for scene, held in placed.items() if held != (_place(scene) < val_fraction)}
        lists.split = Split(val_fraction=val_fraction, held_out=dict(sorted(against.items())))
        lists.save()
    return SplitReport(train, validation, (len(held_out), len(scenes)))


def trim_splits(root: Path, lists: WrittenLists, listed: Collection[str]) -> list[str]:
    """Take what the full list does not name any more out of the splits that are ours; returns what to tell of it.

    Nothing is added: what is new has no place until the split is made again. The dataset is locked meanwhile.
    """
    told: list[str] = []
    names: frozenset[str] | None = None
    for path in (root / TRAIN_NAME, root / VALIDATION_NAME):
        before = lists.lines_of(path)
        if before is None:
            continue
        names = frozenset(listed) if names is None else names
        after = [name for name in before if name in names]
        if not after:
            told.append(
                f"{path.name} names only instances that are not listed any more; split again with --val-fraction"
            )
        elif len(after) < len(before):
            lists.write(path, after)
            told.append(f"{path.name}: {len(before) - len(after)} that are not listed any more were taken out")
    return told


def split_scenes(
    instances: Sequence[str], val_fraction: float, kept: Mapping[str, bool] | None = None
) -> tuple[list[str], list[str]]:
    """Training and validation instances, each in the order given.

    A scene whose hash is below the fraction is for validation. Where none is, as among a handful of scenes, the scene
    of the lowest hash is: a validation without instances says nothing, and no more does a training.

    Args:
        instances: paths as a list names them.
        val_fraction: share of the scenes for validation, between 0 and 1, both excluded.
        kept: scenes that have their place already, and whether it is the validation. They lose it only where one of
            the lists would be empty and no other scene is there.

    Raises:
        InputError: a fraction outside its domain.
        DatasetError: a single scene, which cannot be split.
    """
    if not 0 < val_fraction < 1:
        raise InputError("val_fraction", "must be between 0 and 1, such as 0.05", found=val_fraction)
    kept = kept or {}
    places = {scene: _place(scene) for scene in {scene_of(instance) for instance in instances}}
    if len(places) < 2:
        raise DatasetError(
            "val_fraction",
            "needs at least two scenes (folders above instances), so that one can be held out whole",
            found=f"{len(places)} in {len(instances)} instances",
            fix="Import with a --name-prefix for each scene, or write .train.txt and .val.txt by hand.",
        )
    held_out = {scene for scene, place in places.items() if kept.get(scene, place < val_fraction)}
    free = places.keys() - kept.keys() or places.keys()
    if not held_out:
        held_out = {min(free, key=places.__getitem__)}
    elif len(held_out) == len(places):
        held_out.remove(max(free, key=places.__getitem__))
    chosen = [scene_of(instance) in held_out for instance in instances]
    return (
        [instance for instance, is_held_out in zip(instances, chosen, strict=True) if not is_held_out],
        [instance for instance, is_held_out in zip(instances, chosen, strict=True) if is_held_out],
    )


def scene_of(instance: str) -> str:
    """The folder above an instance, or itself where there is none."""
    return instance.rpartition("/")[0] or instance


def _place(scene: str) -> float:
    return int.from_bytes(hashlib.sha256(scene.encode()).digest()[:8], "big") / 2**64
