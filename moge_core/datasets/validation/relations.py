"""What only shows when instances are compared: copies, and those that disagree with all others."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import Finding
from moge_core.datasets.manifest import InstanceRecord
from moge_core.datasets.validation.instance import finding_of
from moge_core.datasets.validation.settings import ValidationSettings


def compare_instances(records: Sequence[InstanceRecord], settings: ValidationSettings) -> list[Finding]:
    """Findings of the pass over the whole dataset, in the order of the records."""
    found = [
        finding_of(rule, path, evidence, settings)
        for judge in (_copies, _typical_height, _other_units, _other_cameras, _other_densities)
        for rule, path, evidence in judge(records, settings)
    ]
    position = {record.path: number for number, record in enumerate(records)}
    return sorted((one for one in found if one is not None), key=lambda one: position[one.instance])


# Copies that are named one by one. Where a whole dataset is a copy, a list of it helps nobody.
_MOST_COPIES = 1000

# Instances of a folder that are compared among themselves.
_LEAST_PART = 5

# Instances that show a floor before the dataset's typical camera height is judged.
_LEAST_HEIGHTS = 3

# Focal lengths that differ by less are those of one camera; so many frames of another are a second camera, not a fault.
_SAME_FOCAL = 0.02
_LEAST_OF_CAMERA = 3

# How far apart the logarithms of both measures of scale may be for an outlier to be believed.
_AGREEMENT = 0.6
# Of the logarithm that makes an outlier, what the other measure must reach, too.
_OTHER_SHARE = 0.9

Judgement = Iterator[tuple[str, str, str]]
"""(rule, instance, evidence)."""


def _copies(records: Sequence[InstanceRecord], settings: ValidationSettings) -> Judgement:
    first: dict[str, InstanceRecord] = {}
    num_copies = 0
    last = None
    for record in records:
        if record.image_digest is None:
            continue
        original = first.setdefault(record.image_digest, record)
        if original is record:
            continue
        num_copies += 1
        if num_copies <= _MOST_COPIES:
            same = "image and depth" if original.depth_digest == record.depth_digest else "image, with other depth,"
            yield "not-duplicated", record.path, f"has the same {same} as {original.path}"
        last = record
    if last is not None and num_copies > _MOST_COPIES:
        yield "not-duplicated", last.path, f"is the last of {num_copies - _MOST_COPIES} further copies"


def _typical_height(records: Sequence[InstanceRecord], settings: ValidationSettings) -> Judgement:
    """One scale for all that is off by five shows in how high the camera seems to be.

    Where most instances show it by themselves, the same fault is not told a second time.
    """
    known = [
        (record, record.camera_height * record.presumed_unit)
        for record in records
        if record.camera_height is not None and record.presumed_unit is not None
    ]
    if len(known) < _LEAST_HEIGHTS:
        return
    told = [any(one.rule == "unit-plausible" for one in record.findings) for record, _ in known]
    if 2 * sum(told) >= len(told):
        return
    typical = float(np.median([height for _, height in known]))
    if not settings.min_typical_height_m <= typical <= settings.max_typical_height_m:
        evidence = f"cameras are {typical:.3g} m above the floor (median of {len(known)} instances), as if the depth of"
        factor = "too large" if typical > settings.max_typical_height_m else "too small"
        yield "unit-plausible", known[told.index(False)][0].path, f"{evidence} the dataset were several times {factor}"


def _other_units(records: Sequence[InstanceRecord], settings: ValidationSettings) -> Judgement:
    """Outliers of camera height or of median depth among the instances of a part, where the other does not object.

    Scenes differ by themselves, so a ratio counts only where it is far outside the spread of the others; and another
    unit changes both by the same factor, while a high place has a high camera alone.
    """
    least = _OTHER_SHARE * float(np.log(settings.outlier_factor))
    for members in _parts(records):
        heights = _ratios(members, [record.camera_height for record in members], settings)
        medians = _ratios(members, [record.depth_median for record in members], settings)
        for record in members:
            height, median = heights.get(record.path), medians.get(record.path)
            for what, ratio, other in (
                ("camera height above the floor", height, median),
                ("median depth", median, height),
            ):
                if ratio is None or not ratio.is_outlier:
                    continue
                if other is None or (abs(other.log - ratio.log) < _AGREEMENT and abs(other.log) > least):
                    evidence = f"its {what} is {np.exp(ratio.log):.3g} times that of the others ({ratio.typical:.4g})"
                    yield "unit-consistent", record.path, evidence
                    break


@dataclass(frozen=True)
class _Ratio:
    """Logarithm of a value over the typical one, and whether it is outside the spread of the others."""

    log: float
    typical: float
    is_outlier: bool


def _ratios(
    members: Sequence[InstanceRecord], values: Sequence[float | None], settings: ValidationSettings
) -> dict[str, _Ratio]:
    known = [(record, value) for record, value in zip(members, values, strict=True) if value is not None and value > 0]
    if len(known) < settings.min_siblings:
        return {}
    logs = np.log([value for _, value in known])
    centre = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - centre)))
    allowed = max(float(np.log(settings.outlier_factor)), 4 * spread)
    return {
        record.path: _Ratio(float(log - centre), float(np.exp(centre)), bool(abs(log - centre) > allowed))
        for (record, _), log in zip(known, logs, strict=True)
    }


def _other_cameras(records: Sequence[InstanceRecord], settings: ValidationSettings) -> Judgement:
    """Focal lengths off those of the same scene and size, where nearly all others agree; a camera of a rig is none."""
    groups: dict[tuple[str, int, int], list[InstanceRecord]] = defaultdict(list)
    for record in records:
        if record.fov_x is not None and record.width and record.height:
            groups[_scene(record.path), record.width, record.height].append(record)
    # A rig whose frames lie in a folder each has one frame of each camera there, under the same names.
    by_name: dict[tuple[str, float], int] = Counter(
        (PurePosixPath(member.path).name, _rounded(value))
        for members in groups.values()
        for member, value in zip(members, _focal(members), strict=True)
    )
    for members in groups.values():
        if len(members) < settings.min_siblings:
            continue
        focal = _focal(members)
        typical = float(np.median(focal))
        ratio = focal / typical
        if np.mean(np.abs(ratio - 1) < _SAME_FOCAL) < 0.7:
            continue
        names = [PurePosixPath(member.path).name for member in members]
        for number in np.flatnonzero(np.abs(ratio - 1) > settings.focal_tolerance):
            same = np.abs(focal / focal[number] - 1) < _SAME_FOCAL
            if by_name[names[number], _rounded(focal[number])] > 1 or _is_camera(names, same):
                continue
            evidence = f"its focal length is {ratio[number]:.3g} times that of the others of this size beside it"
            yield "intrinsics-consistent", members[number].path, evidence


def _is_camera(names: Sequence[str], same: npt.NDArray[np.bool_]) -> bool:
    """Whether the frames of one focal length are those of another camera: several, or called so by all their names."""
    if np.count_nonzero(same) >= _LEAST_OF_CAMERA:
        return True
    words = [set(re.findall(r"[a-z]+\d*|\d+", name.lower())) for name in names]
    theirs = set.intersection(*(of for of, is_one in zip(words, same, strict=True) if is_one))
    others = set.union(set(), *(of for of, is_one in zip(words, same, strict=True) if not is_one))
    # Numbers alone count frames; a word with letters that no other frame has names a camera.
    return any(word[0].isalpha() for word in theirs - others)


def _rounded(focal: float) -> float:
    return float(f"{focal:.2g}")


def _other_densities(records: Sequence[InstanceRecord], settings: ValidationSettings) -> Judgement:
    """Far sparser than the others of a scene, or of the small scenes whose pictures have its size.

    Other sizes are other sensors: LiDAR beside renders is no failed scan.
    """
    infinite = {record.path: record.inf_share or 0.0 for record in records}
    for members in _parts_of_sensors(records):
        shares = [record.valid_share or None for record in members]
        for record, ratio in _ratios(members, shares, settings).items():
            share = ratio.typical * float(np.exp(ratio.log))
            sparse = ratio.log < np.log(settings.density_outlier) and ratio.is_outlier
            if sparse and infinite.get(record, 0.0) < 0.5:
                evidence = f"{share:.2%} of its pixels are known, {ratio.typical:.1%} typically"
                yield "density-consistent", record, evidence


def _parts_of_sensors(records: Sequence[InstanceRecord]) -> list[list[InstanceRecord]]:
    """Instances of one scene, and of the small scenes those of one size."""
    scenes: dict[str, list[InstanceRecord]] = defaultdict(list)
    for record in records:
        scenes[_scene(record.path)].append(record)
    large = [members for members in scenes.values() if len(members) >= _LEAST_PART]
    sizes: dict[tuple[int | None, int | None], list[InstanceRecord]] = defaultdict(list)
    for members in scenes.values():
        if len(members) < _LEAST_PART:
            for record in members:
                sizes[record.width, record.height].append(record)
    return [*large, *sizes.values()]


def _parts(records: Sequence[InstanceRecord]) -> list[list[InstanceRecord]]:
    """Instances that may be compared: those of one top folder, and the rest of small ones together."""
    groups: dict[str, list[InstanceRecord]] = defaultdict(list)
    for record in records:
        groups[PurePosixPath(record.path).parts[0]].append(record)
    large = [members for members in groups.values() if len(members) >= _LEAST_PART]
    rest = [record for members in groups.values() if len(members) < _LEAST_PART for record in members]
    return [*large, rest] if rest else large


def _scene(path: str) -> str:
    return PurePosixPath(path).parent.as_posix()


def _focal(members: Sequence[InstanceRecord]) -> npt.NDArray[np.float64]:
    return 0.5 / np.tan(np.radians([record.fov_x for record in members if record.fov_x is not None]) / 2)
