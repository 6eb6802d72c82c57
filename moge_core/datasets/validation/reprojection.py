"""Where poses are known, one frame's points must lie on the depth that its neighbour sees."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import META_NAME, Finding
from moge_core.datasets.manifest import InstanceRecord
from moge_core.datasets.validation.instance import finding_of
from moge_core.datasets.validation.settings import ValidationSettings
from moge_core.errors import MoGeError

_POSE_KEYS = ("pose", "camera_to_world", "cam2world")
_PAIRS_OF_SCENE = 8
_LEAST_SEEN = 500


def check_reprojection(root: Path, records: Sequence[InstanceRecord], settings: ValidationSettings) -> list[Finding]:
    """Compare neighbouring frames of each scene; at most eight pairs a scene, spread over it.

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
        pairs = list(itertools.pairwise(members))
        # One frame tells whether a scene has poses at all.
        if not pairs or pose_of(root, members[0].path) is None:
            continue
        for position in np.unique(np.linspace(0, len(pairs) - 1, min(_PAIRS_OF_SCENE, len(pairs))).astype(int)):
            first, second = pairs[position]
            finding = _compare(root, first, second, settings)
            findings += [finding] if finding is not None else []
    return findings


def _compare(root: Path, first: InstanceRecord, second: InstanceRecord, settings: ValidationSettings) -> Finding | None:
    try:
        frames = [_Frame.load(root, record) for record in (first, second)]
    except (MoGeError, OSError):
        return None
    if frames[0] is None or frames[1] is None:
        return None
    as_z, seen = _error(frames[0], frames[1], along_ray=False)
    as_ray, _ = _error(frames[0], frames[1], along_ray=True)
    # With a short baseline ray lengths are off by less than the bound; that they fit far better as rays tells them.
    fits_as_rays = as_z > 0.02 and as_ray < 0.4 * as_z
    if seen < _LEAST_SEEN or not (as_z > settings.reprojection_error or fits_as_rays):
        return None
    evidence = (
        f"points of {first.path} miss its depth by {as_z:.1%} (median of {seen} pixels), and by {as_ray:.1%} when both"
        " are read as ray lengths"
    )
    return finding_of("reprojects", second.path, evidence, settings)


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
        return cls(grid_of(coded, 320) * np.float32(record.depth_unit or 1.0), intrinsics, pose)


def _error(source: _Frame, target: _Frame, *, along_ray: bool) -> tuple[float, int]:
    """Median relative error of the source's points on the target's depth, and over how many pixels."""
    height, width = source.depth.shape
    z = source.depth / source.rays if along_ray else source.depth
    u = ((np.arange(width) + 0.5) / width - source.intrinsics[0, 2]) / source.intrinsics[0, 0]
    v = ((np.arange(height) + 0.5) / height - source.intrinsics[1, 2]) / source.intrinsics[1, 1]
    points = np.stack([u[None, :] * z, v[:, None] * z, z], -1)[np.isfinite(z)]
    to_target = np.linalg.inv(target.pose) @ source.pose
    x, y, there = to_target[:3, :3] @ points.T + to_target[:3, 3:]
    in_front = there > 1e-6
    x, y, there = x[in_front], y[in_front], there[in_front]
    rows, columns = target.depth.shape
    column = np.floor((x / there * target.intrinsics[0, 0] + target.intrinsics[0, 2]) * columns).astype(np.int64)
    row = np.floor((y / there * target.intrinsics[1, 1] + target.intrinsics[1, 2]) * rows).astype(np.int64)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    row, column, there = row[inside], column[inside], there[inside]
    measured = target.depth[row, column]
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
    value = next((meta[key] for key in _POSE_KEYS if key in meta), None)
    try:
        pose = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    is_rigid = pose.shape == (4, 4) and np.isfinite(pose).all() and np.allclose(pose[3], (0, 0, 0, 1), atol=1e-6)
    return pose if is_rigid and abs(abs(np.linalg.det(pose[:3, :3])) - 1) < 0.05 else None
