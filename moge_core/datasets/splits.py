"""Splits by rule: scenes go to training or to validation, and stay there when the dataset grows.

A hash of the scene decides, so every machine that holds the same data makes the same split. What a list of ours already
holds stays where it is: among a handful of scenes one must be chosen against its hash, and it must not change sides
when more scenes come. What scenes are, and what is held out of a single one, is said in `scene_finding` and
`holding_out`. Lists of before that rule keep their own, by which a scene was the folder above an instance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moge_core.datasets.holding_out import Holding, choose_scenes, divide, hold_out, place_of
from moge_core.datasets.layout import TRAIN_NAME, VALIDATION_NAME, read_index, resolve_dataset
from moge_core.datasets.lists import FOLDER_RULE, SCENE_RULE, Split, WrittenLists, back_up
from moge_core.datasets.manifest import locked
from moge_core.datasets.scene_finding import Scenes, find_scenes
from moge_core.errors import DatasetError, InputError


@dataclass(frozen=True)
class SplitReport:
    """What splitting a dataset gave.

    Attributes:
        train, validation: instances of each list.
        num_scenes: how many scenes were held out for validation, wholly or a block of them, and of how many.
        gap: instances that are in neither list, because they are next to both.
        told: how scenes were found and what was held out, a sentence each.
        rule: see `lists.SCENE_RULE`.
    """

    train: list[str]
    validation: list[str]
    num_scenes: tuple[int, int]
    gap: list[str]
    told: tuple[str, ...]
    rule: int


def split_dataset(dataset_dir: str | Path, val_fraction: float, *, rebuild: bool = False) -> SplitReport:
    """Write `.train.txt` and `.val.txt` from `.index.txt`, scene by scene; see `holding_out.hold_out`.

    Scenes of a split that was made with this fraction stay where they are; another fraction makes it anew.

    Args:
        dataset_dir: the dataset, with a list.
        val_fraction: share of the scenes for validation, or of the frames of the only one.
        rebuild: write them even where the user made one of these lists, which is kept as `<name>.bak`, and make a
            split of the rule of before by the present one.

    Raises:
        MissingIndexError: there is no list.
        DatasetError: a single scene that is too short, or a split of the user's own.
        InputError: a fraction outside its domain.
    """
    check_fraction(val_fraction)
    root = resolve_dataset(dataset_dir)
    with locked(root):
        lists = WrittenLists.load(root)
        instances = list(dict.fromkeys(read_index(root)))
        paths = [root / TRAIN_NAME, root / VALIDATION_NAME]
        before = lists.split if lists.split is not None and lists.split.val_fraction == val_fraction else None
        rule = SCENE_RULE if before is None or rebuild else before.rule
        if before is not None and before.rule != rule:
            before = None
        if rule == FOLDER_RULE:
            found, sides = _by_folders(lists, instances, val_fraction, paths)
            told = found.told
        else:
            scenes = find_scenes(root, instances)
            found, sides = _by_scenes(scenes, lists if before is not None else None, root, val_fraction)
            told = (*found.told, f"of .val.txt {divide(scenes, found.held_out).told}")
        own = [path for path in paths if path.exists() and not lists.is_ours(path)]
        if own and not rebuild:
            raise DatasetError(
                own[0],
                "must not be replaced: this list is your own",
                fix="Say --rebuild to have it written anew; yours is kept as .bak.",
            )
        for path in own:
            back_up(path)
        for path, chosen in zip(paths, (found.train, found.held_out), strict=True):
            lists.write(path, chosen)
        # Last: a split by another fraction that was interrupted is made anew, not taken for one by this fraction.
        against = {scene: held for scene, held in sides.items() if held != (place_of(scene) < val_fraction)}
        lists.split = Split(val_fraction=val_fraction, rule=rule, held_out=dict(sorted(against.items())))
        lists.save()
    return SplitReport(found.train, found.held_out, found.num_scenes, found.gap, told, rule)


def split_again(root: Path, scenes: Scenes) -> Holding | None:
    """What `split_dataset` would make of the instances of these scenes, by the lists that it wrote; writes nothing.

    Returns:
        None where the lists are the user's own, or were made by the rule of before.
    """
    lists = WrittenLists.load(root)
    is_ours = all(lists.is_ours(root / name) for name in (TRAIN_NAME, VALIDATION_NAME))
    if not is_ours or lists.split is None or lists.split.rule != SCENE_RULE:
        return None
    return _by_scenes(scenes, lists, root, lists.split.val_fraction)[0]


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


def check_fraction(val_fraction: float) -> None:
    """Refuse a share that would leave one of the lists empty.

    Raises:
        InputError: not between 0 and 1.
    """
    if not 0 < val_fraction < 1:
        raise InputError("val_fraction", "must be between 0 and 1, such as 0.05", found=val_fraction)


def split_scenes(
    instances: Sequence[str], val_fraction: float, kept: Mapping[str, bool] | None = None
) -> tuple[list[str], list[str]]:
    """Training and validation instances by the rule of before, each in the order given.

    A folder above instances whose hash is below the fraction is for validation; see `holding_out.choose_scenes`.

    Args:
        instances: paths as a list names them.
        val_fraction: share of the scenes for validation, between 0 and 1, both excluded.
        kept: scenes that have their place already, and whether it is the validation.

    Raises:
        InputError: a fraction outside its domain.
        DatasetError: a single scene, which cannot be split.
    """
    check_fraction(val_fraction)
    places = {scene: place_of(scene) for scene in {scene_of(instance) for instance in instances}}
    if len(places) < 2:
        raise DatasetError(
            "val_fraction",
            "needs at least two scenes (folders above instances), so that one can be held out whole",
            found=f"{len(places)} in {len(instances)} instances",
            fix="Import with a --name-prefix for each scene, or write .train.txt and .val.txt by hand.",
        )
    held_out = choose_scenes(places, val_fraction, kept or {})
    chosen = [scene_of(instance) in held_out for instance in instances]
    return (
        [instance for instance, is_held_out in zip(instances, chosen, strict=True) if not is_held_out],
        [instance for instance, is_held_out in zip(instances, chosen, strict=True) if is_held_out],
    )


def scene_of(instance: str) -> str:
    """The folder above an instance, or itself where there is none: its scene by the rule of before."""
    return instance.rpartition("/")[0] or instance


def _by_folders(
    lists: WrittenLists, instances: Sequence[str], val_fraction: float, paths: Sequence[Path]
) -> tuple[Holding, dict[str, bool]]:
    """The split by the rule of before, and the side of each scene."""
    assert lists.split is not None
    kept = dict(lists.split.held_out)
    for path, is_held_out in zip(paths, (False, True), strict=True):
        kept |= {scene_of(name): is_held_out for name in lists.lines_of(path) or ()}
    train, validation = split_scenes(instances, val_fraction, kept)
    held_out, scenes = ({scene_of(name) for name in names} for names in (validation, [*train, *validation]))
    told = (
        "made by the rule of before, by which each folder above an instance is a scene; --rebuild makes it by scenes",
    )
    sides = kept | {scene: scene in held_out for scene in scenes}
    return Holding(train, validation, [], (len(held_out), len(scenes)), told), sides


def _by_scenes(
    scenes: Scenes, before: WrittenLists | None, root: Path, val_fraction: float
) -> tuple[Holding, dict[str, bool]]:
    """The split by scenes, and the side of each that is wholly on one.

    Args:
        scenes: what to split.
        before: the lists that decide of what they hold already.
        root: the dataset.
        val_fraction: share to hold out.
    """
    kept: dict[str, bool] = {}
    placed: dict[str, bool] = {}
    if before is not None and before.split is not None:
        placed = before.split.held_out
        for name, is_held_out in ((TRAIN_NAME, False), (VALIDATION_NAME, True)):
            kept |= dict.fromkeys(before.lines_of(root / name) or (), is_held_out)
    found = hold_out(scenes, val_fraction, kept, placed)
    side_of = dict.fromkeys(found.train, False) | dict.fromkeys(found.held_out, True)
    sides = dict(placed)
    for scene, members in scenes.members().items():
        known = {side_of.get(name) for name in members}
        if known in ({True}, {False}):
            sides[scene] = known == {True}
    return found, sides
