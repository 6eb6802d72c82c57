"""One depth map against all that is known of depth: its values, their encoding, its shape, its image, its infinity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moge_core.datasets.validation import geometry
from moge_core.datasets.validation.encodings import judge_encoding
from moge_core.datasets.validation.infinity import judge_infinity
from moge_core.datasets.validation.registration import judge_registration, register
from moge_core.datasets.validation.settings import ValidationSettings
from moge_core.datasets.validation.values import HEAPS, DepthValues, Judgement, judge_values
from moge_core.io.depth import CodedDepth

# Depth in fewer different steps is made of terraces, whose shape says nothing.
_LEAST_LEVELS = 64


@dataclass(frozen=True)
class DepthVerdict:
    """What a depth map says.

    Attributes:
        broken: the rules that it breaks.
        values: its finite values, counted.
        planes: floor and ceiling, in units of the depth; None where shape was not looked at.
        telling: whether enough pixels are known, at different depths, for it to say something.
        is_length: False where all or many of the numbers seem to be no depth, so that their size says nothing.
    """

    broken: list[Judgement]
    values: DepthValues
    planes: geometry.LevelPlanes | None
    telling: bool
    is_length: bool


def judge_depth_map(
    coded: CodedDepth,
    grey: npt.NDArray[np.uint8] | None,
    intrinsics: npt.NDArray[np.float64] | None,
    settings: ValidationSettings,
    unit: float | None,
) -> DepthVerdict:
    """Judge a map by everything but its use.

    Args:
        coded: the map (H, W).
        grey: the image of the same field, of any size; None where it cannot be compared.
        intrinsics: (3, 3), normalised; None where there are none.
        settings: thresholds.
        unit: metres a unit of depth; None where depth has no unit.
    """
    values = DepthValues.of(coded)
    broken = list(judge_values(values, coded, settings, unit))
    telling = values.num_known >= settings.min_pixels and bool(values.levels[-1] > values.levels[0])
    encoding = list(judge_encoding(values, coded, intrinsics)) if telling else []
    is_depth = all(rule in settings.off for rule, _ in encoding)
    if not is_depth:
        # Whatever else such numbers look like has the same cause.
        broken = [(rule, evidence, None) for rule, evidence in encoding]
    planes = None
    if telling and is_depth:
        grid = geometry.grid_of(coded)
        # Tiny focal lengths and wide ranges overflow here and there; what is not finite votes for nothing.
        with np.errstate(all="ignore"):
            if intrinsics is not None and values.levels.size >= _LEAST_LEVELS and np.isfinite(grid).any():
                scaled, median = geometry.normalised_grid(grid)
                planes = geometry.find_level_planes(scaled, intrinsics).times(median)
                broken += _shape(values, scaled, intrinsics, settings)
            broken += _registration(values, grid, grey, settings)
    if values.num_infinite:
        evidence = judge_infinity(coded, grey, intrinsics, None if planes is None else planes.floor_normal, settings)
        broken += [] if evidence is None else [("infinity-is-sky", evidence, None)]
    is_length = is_depth and not any(rule in HEAPS for rule, _, _ in broken)
    return DepthVerdict(broken, values, planes, telling, is_length)


def _shape(
    values: DepthValues,
    scaled: npt.NDArray[np.float32],
    intrinsics: npt.NDArray[np.float64],
    settings: ValidationSettings,
) -> Iterator[Judgement]:
    if values.num_known >= settings.min_shape_density * values.num_pixels:
        for rule, evidence in geometry.judge_shape(geometry.count_votes(scaled, intrinsics), settings):
            yield rule, evidence, None


def _registration(
    values: DepthValues,
    grid: npt.NDArray[np.float32],
    grey: npt.NDArray[np.uint8] | None,
    settings: ValidationSettings,
) -> Iterator[Judgement]:
    # What is infinitely far has an edge, too: that of the sky.
    dense = (values.num_known + values.num_infinite) / values.num_pixels
    if grey is None or dense < settings.min_registration_density:
        return
    registration = register(grey, grid)
    if registration is not None:
        for rule, evidence in judge_registration(registration, settings):
            yield rule, evidence, None
