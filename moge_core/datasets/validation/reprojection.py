"""Where poses are known, one frame's points must lie on the depth that another frame of its scene sees.

Unit and focal length change what the points of one frame miss by. Where another factor of either makes them fit far
better than they do, and the frames of a scene agree on it, the factor is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import META_NAME, POSE_KEYS, Finding
from moge_core.datasets.manifest import InstanceRecord
from moge_core.datasets.validation.instance import finding_of
from moge_core.datasets.validation.settings import ValidationSettings
from moge_core.errors import MoGeError

_PAIRS_OF_SCENE = 8
_LEAST_SEEN = 500

# How many frames further on the other frame of a pair is looked for.
_STEPS = (1, 2, 4, 8, 16, 32)
# The camera should have moved by this share of the median depth, no more than this, and turned by no more than this.
_BASELINE, _MOST_BASELINE, _MOST_TURN = 0.25, 0.6, np.radians(30)

# Longer side of the grids that are compared, and of those on which other factors are tried.
_GRID, _COARSE = 160, 96
# Factors of depth and of focal length that are tried.
_SCALES = (0.1, 0.2, 0.33, 0.5, 0.7, 1.4, 2.0, 3.0, 5.0, 10.0)
_FOCALS = (0.6, 0.7, 0.77, 1.3, 1.43, 1.6)
# The spacing of the grid alone makes about this median error; another factor must leave no more than this share of it.
_NOISE, _FITS = 0.005, 0.55
# Pairs of a scene on which factors are tried: they differ little.
_PAIRS_TRIED = 4


def check_reprojection(root: Path, records: Sequence[InstanceRecord], settings: ValidationSettings) -> list[Finding]:
    """Compare frames of each scene with others near them; at most eight pairs a scene, spread over it.

    Both readings of the depth are tried, as z and as length of the ray: where neither fits, something else is wrong.

    Args:
        root: the dataset.
        records: its instances in order.
        settings: thresholds.
    """
    if "reprojects" in settings.off:
        return []
    scenes: dict[str, list[InstanceRecord]] = defaultdict(list)
    for record in records:
        if record.usable and record.depth_median is not None:
            scenes[record.path.rpartition("/")[0]].append(record)
    findings = []
    for members in scenes.values():
        # One frame tells whether a scene has poses at all.
        if len(members) < 2 or pose_of(root, members[0].path) is None:
            continue
        compared = [_compare(root, *pair) for pair in _pairs(root, members)]
        findings += _judge([one for one in compared if one is not None], settings)
    return findings


def _pairs(root: Path, members: Sequence[InstanceRecord]) -> list[tuple[InstanceRecord, InstanceRecord]]:
    """Frames spread over a scene, each with the one after it from which the camera sees it best from another place."""
    poses: dict[int, npt.NDArray[np.float64] | None] = {}

    def promise(first: int, second: int) -> float:
        for position in (first, second):
            if position not in poses:
                poses[position] = pose_of(root, members[position].path)
        a, b = poses[first], poses[second]
        if a is None or b is None:
            return -1.0
        median = (members[first].depth_median or 0.0) * (members[first].depth_unit or 1.0)
        baseline = float(np.linalg.norm(a[:3, 3] - b[:3, 3])) / max(median, 1e-30)
        turn = float(np.arccos(np.clip(a[:3, 2] @ b[:3, 2], -1, 1)))
        return min(baseline, _BASELINE) if baseline <= _MOST_BASELINE and turn <= _MOST_TURN else 0.0

    number = min(_PAIRS_OF_SCENE, len(members) - 1)
    pairs = []
    for first in dict.fromkeys(np.linspace(0, len(members) - 2, number).astype(int).tolist()):
        others = [first + step for step in _STEPS if first + step < len(members)]
        pairs.append((members[first], members[max(others, key=lambda other: promise(first, other))]))
    return pairs


@dataclass(frozen=True)
class _Comparison:
    """How far the points of the first frame miss what the second sees.

    Attributes:
        as_z, as_ray: median relative error for both readings of the depth.
        seen: over how many pixels.
        frames: for trying other factors.
    """

    first: InstanceRecord
    second: InstanceRecord
    as_z: float
    as_ray: float
    seen: int
    frames: tuple[_Frame, _Frame]

    @property
    def names(self) -> tuple[str, str]:
        """The two instances."""
        return self.first.path, self.second.path


def _compare(root: Path, first: InstanceRecord, second: InstanceRecord) -> _Comparison | None:
    try:
        frames = [_Frame.load(root, record) for record in (first, second)]
    except (MoGeError, OSError):
        return None
    if frames[0] is None or frames[1] is None:
        return None
    as_z, seen = _error(frames[0], frames[1])
    as_ray, _ = _error(frames[0], frames[1], along_ray=True)
    return _Comparison(first, second, as_z, as_ray, seen, (frames[0], frames[1])) if seen >= _LEAST_SEEN else None


def _judge(compared: Sequence[_Comparison], settings: ValidationSettings) -> list[Finding]:
    """Findings about the pairs of one scene, one for each second frame: that of the pair which is farthest off."""
    better = _better_factors(compared)
    findings: dict[str, Finding] = {}
    for pair in sorted(compared, key=lambda pair: -pair.as_z):
        # With a short baseline ray lengths are off by less than the bound; that they fit far better as rays tells them.
        fits_as_rays = pair.as_z > 0.02 and pair.as_ray < 0.4 * pair.as_z
        factor = None if fits_as_rays else better.get(pair.names)
        if not (pair.as_z > settings.reprojection_error or fits_as_rays or factor is not None):
            continue
        evidence = f"points of {pair.first.path} miss its depth by {pair.as_z:.1%} (median of {pair.seen} pixels)"
        if factor is None:
            evidence += f", and by {pair.as_ray:.1%} when both are read as ray lengths"
        else:
            evidence += f", and by {factor.error:.1%} with {factor.what} {factor.value:g} times as large"
        fix = "Import again with --kind ray." if fits_as_rays else None if factor is None else factor.fix
        finding = finding_of("reprojects", pair.second.path, evidence, settings, fix)
        if finding is not None:
            findings.setdefault(pair.second.path, finding)
    return list(findings.values())


@dataclass(frozen=True)
class _Factor:
    """What fits better than the data does as it is."""

    what: str
    value: float
    error: float

    @property
    def fix(self) -> str:
        if self.what == "depth":
            return f"Import again with a --scale {1 / self.value:.3g} times the one used (stored units a metre)."
        return (
            f"Import again with --intrinsics whose focal length is {self.value:g} times the one given, or name the"
            " resolution that it refers to: --intrinsics-size."
        )


def _better_factors(compared: Sequence[_Comparison]) -> Mapping[tuple[str, str], _Factor]:
    """The factor that fits far better by pair; empty unless most pairs of the scene have one."""
    noisy = [pair for pair in compared if pair.as_z > _NOISE]
    chosen = sorted({round(x) for x in np.linspace(0, len(noisy) - 1, _PAIRS_TRIED)}) if noisy else []
    tried = [noisy[number] for number in chosen]
    found = {pair.names: factor for pair in tried if (factor := _best_factor(pair)) is not None}
    # Noise, and poses that drift, let one pair or the other fit another factor better.
    larger = [factor for factor in found.values() if factor.value > 1]
    agree = 2 * len(found) > len(tried) and len(larger) in (0, len(found))
    return found if agree else {}


def _best_factor(pair: _Comparison) -> _Factor | None:
    """The factor that is chosen on few pixels, where it also fits far better on all."""
    first, second = (frame.coarser() for frame in pair.frames)
    best: tuple[float, str, float] | None = None
    for what, values in (("depth", _SCALES), ("focal length", _FOCALS)):
        for value in values:
            error, seen = _error_with(first, second, what, value)
            if seen > 0 and (best is None or error < best[0]):
                best = error, what, value
    if best is None:
        return None
    _, what, value = best
    error, seen = _error_with(*pair.frames, what, value)
    # What leaves the other frame's view does not fit better.
    return _Factor(what, value, error) if seen >= 0.4 * pair.seen and error < _FITS * pair.as_z else None


def _error_with(source: _Frame, target: _Frame, what: str, value: float) -> tuple[float, int]:
    scale, focal = (value, 1.0) if what == "depth" else (1.0, value)
    return _error(source, target, scale=scale, focal=focal)


class _Frame:
    """Depth on a grid with its camera."""

    def __init__(
        self, depth: npt.NDArray[np.float32], intrinsics: npt.NDArray[Any], pose: npt.NDArray[np.float64]
    ) -> None:
        from moge_core.geometry.rays import ray_lengths

        self.depth = depth
        self.intrinsics = intrinsics
        self.pose = pose
        self.rays = ray_lengths(depth.shape[0], depth.shape[1], intrinsics)

    @classmethod
    def load(cls, root: Path, record: InstanceRecord) -> _Frame | None:
        from moge_core.datasets.validation.geometry import grid_of
        from moge_core.io import read_meta
        from moge_core.io.depth import read_depth_codes

        pose = pose_of(root, record.path)
        if pose is None:
            return None
        intrinsics = read_meta(root / record.path / META_NAME)["intrinsics"].astype(np.float64)
        coded = read_depth_codes(root / record.path / record.depth_name)
        return cls(grid_of(coded, _GRID) * np.float32(record.depth_unit or 1.0), intrinsics, pose)

    def coarser(self) -> _Frame:
        """Fewer pixels of the same frame."""
        step = max(1, round(max(self.depth.shape) / _COARSE))
        return _Frame(self.depth[step // 2 :: step, step // 2 :: step], self.intrinsics, self.pose)


def _error(
    source: _Frame, target: _Frame, *, along_ray: bool = False, scale: float = 1.0, focal: float = 1.0
) -> tuple[float, int]:
    """Median relative error of the source's points on the target's depth, and over how many pixels.

    Args:
        source, target: the frames.
        along_ray: read depth as the length of the viewing ray.
        scale, focal: factors of the depth and of the focal lengths of both.
    """
    height, width = source.depth.shape
    z = (source.depth / source.rays if along_ray else source.depth) * scale
    u = ((np.arange(width) + 0.5) / width - source.intrinsics[0, 2]) / (source.intrinsics[0, 0] * focal)
    v = ((np.arange(height) + 0.5) / height - source.intrinsics[1, 2]) / (source.intrinsics[1, 1] * focal)
    points = np.stack([u[None, :] * z, v[:, None] * z, z], -1)[np.isfinite(z)]
    to_target = np.linalg.inv(target.pose) @ source.pose
    x, y, there = to_target[:3, :3] @ points.T + to_target[:3, 3:]
    in_front = there > 1e-6
    x, y, there = x[in_front], y[in_front], there[in_front]
    rows, columns = target.depth.shape
    column = np.floor((x / there * target.intrinsics[0, 0] * focal + target.intrinsics[0, 2]) * columns).astype(
        np.int64
    )
    row = np.floor((y / there * target.intrinsics[1, 1] * focal + target.intrinsics[1, 2]) * rows).astype(np.int64)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    row, column, there = row[inside], column[inside], there[inside]
    measured = target.depth[row, column] * scale
    if along_ray:
        measured = measured / target.rays[row, column]
    # What is much nearer in the target hides the point; that is no error.
    comparable = np.isfinite(measured) & (measured > 0.7 * there)
    if not comparable.any():
        return float("nan"), 0
    return float(np.median(np.abs(measured / there - 1)[comparable])), int(comparable.sum())


def pose_of(root: Path, instance: str) -> npt.NDArray[np.float64] | None:
    """Camera-to-world matrix (4, 4) of an instance; None where meta.json has none."""
    from moge_core.io import read_meta

    try:
        meta = read_meta(root / instance / META_NAME)
    except (MoGeError, OSError):
        return None
    value = next((meta[key] for key in POSE_KEYS if key in meta), None)
    try:
        pose = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    is_rigid = pose.shape == (4, 4) and np.isfinite(pose).all() and np.allclose(pose[3], (0, 0, 0, 1), atol=1e-6)
    return pose if is_rigid and abs(abs(np.linalg.det(pose[:3, :3])) - 1) < 0.05 else None
