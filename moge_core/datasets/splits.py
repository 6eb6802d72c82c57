"""Splits by rule: whole scenes go to training or to validation, and stay there when the dataset grows.

A scene is the folder above an instance, because its frames see the same things; an instance right below the dataset is
a scene of its own. A hash of the scene's path decides, so nothing needs to be remembered, and every machine that holds
the same folders makes the same split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from moge_core.errors import DatasetError, InputError

TRAIN_NAME, VALIDATION_NAME = ".train.txt", ".val.txt"


def split_scenes(instances: Sequence[str], val_fraction: float) -> tuple[list[str], list[str]]:
    """Training and validation instances, each in the order given.

    A scene whose hash is below the fraction is for validation. Where none is, as among a handful of scenes, the scene
    of the lowest hash is: a validation without instances says nothing.

    Args:
        instances: paths as a list names them.
        val_fraction: share of the scenes for validation, between 0 and 1, both excluded.

    Raises:
        InputError: a fraction outside its domain.
        DatasetError: a single scene, which cannot be split.
    """
    if not 0 < val_fraction < 1:
        raise InputError("val_fraction", "must be between 0 and 1, such as 0.05", found=val_fraction)
    places = {scene: _place(scene) for scene in {scene_of(instance) for instance in instances}}
    if len(places) < 2:
        raise DatasetError(
            "val_fraction",
            "needs at least two scenes (folders above instances), so that one can be held out whole",
            found=f"{len(places)} in {len(instances)} instances",
            fix="Import with a --name-prefix for each scene, or write .train.txt and .val.txt by hand.",
        )
    held_out = {scene for scene, place in places.items() if place < val_fraction}
    held_out = held_out or {min(places, key=places.__getitem__)}
    if len(held_out) == len(places):
        held_out.remove(max(places, key=places.__getitem__))
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
