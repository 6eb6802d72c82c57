"""Numbers of a list, and the drift of a dataset from one time to another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from moge_core.datasets import DatasetStatistics, compare_statistics, depth_statistics, index_dataset
from moge_core.datasets.manifest import InstanceRecord, Manifest, save_manifest

Write = Callable[..., Path]
Values = npt.NDArray[np.float64]


def statistics_of(
    root: Path, depths: Values, known: Values | float = 0.9, fov: Values | float = 60.0
) -> DatasetStatistics:
    """Of a dataset whose manifest says this, with no file behind it."""
    columns = (depths, np.broadcast_to(known, depths.shape), np.broadcast_to(fov, depths.shape))
    manifest = Manifest()
    for number, (depth, share, view) in enumerate(zip(*columns, strict=True)):
        manifest.put(
            InstanceRecord(
                f"i{number:06d}",
                "depth.png",
                "stamp",
                "fingerprint",
                depth_median=float(depth),
                valid_share=float(share),
                fov_x=float(view),
            )
        )
    root.mkdir(parents=True, exist_ok=True)
    (root / ".moge" / "manifest.parquet").unlink(missing_ok=True)
    save_manifest(root, manifest)
    (root / ".index.txt").write_text("".join(f"i{number:06d}\n" for number in range(depths.size)))
    return depth_statistics(root)


def told(before: DatasetStatistics, now: DatasetStatistics) -> dict[str, str]:
    return {drift.what: drift.severity for drift in compare_statistics(before, now)}


def depths_of(count: int, scale: float = 3.0, spread: float = 0.5, seed: int = 0) -> Values:
    return scale * np.exp(spread * np.random.default_rng(seed).standard_normal(count))


def test_statistics_are_those_of_the_listed_instances_that_the_manifest_knows(
    data: Path, write_instance: Write
) -> None:
    for name, depth in (("a", 1.0), ("b", 2.0), ("c", 4.0)):
        values = np.full((12, 16), depth, np.float32)
        values[0] = np.nan
        write_instance(name, depth=values)
    index_dataset(data)
    assert depth_statistics(data).measured == 3
    (data / ".val.txt").write_text("c\nb\nb\nnew\n")
    numbers = depth_statistics(data, ".val.txt")
    assert (numbers.instances, numbers.measured) == (3, 2)
    assert numbers.depth_median is not None and numbers.valid_share is not None and numbers.fov_x is not None
    assert (numbers.depth_median.q50, numbers.depth_median.mean) == pytest.approx((3, 3), rel=1e-4)
    assert numbers.valid_share.mean == pytest.approx(11 / 12)
    assert numbers.fov_x.q50 == pytest.approx(np.degrees(2 * np.arctan(0.5 / 0.8)))
    assert DatasetStatistics.model_validate(numbers.model_dump()) == numbers
    assert depth_statistics(data, depth_name="other.png").depth_median is None


@pytest.mark.parametrize(
    ("count", "scale", "expected"),
    [
        (400, 1.4, {}),
        (400, 1 / 1.4, {}),
        (400, 1.6, {"median depth": "warning"}),
        (400, 1 / 1.6, {"median depth": "warning"}),
        (400, 10.0, {"median depth": "error"}),
        (5, 1.6, {}),
        (3, 1000.0, {"median depth": "error"}),
        (1, 0.001, {"median depth": "error"}),
    ],
)
def test_another_scale_of_depth_is_drift(tmp_path: Path, count: int, scale: float, expected: dict[str, str]) -> None:
    depths = depths_of(count)
    assert told(statistics_of(tmp_path / "a", depths), statistics_of(tmp_path / "b", depths * scale)) == expected


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (1000, 900, {}),
        (1000, 890, {"instances": "warning"}),
        (1000, 499, {"instances": "error"}),
        (1000, 5000, {}),
        (4, 3, {}),
        (4, 2, {"instances": "warning"}),
        (4, 1, {"instances": "error"}),
        (1, 1, {}),
    ],
)
def test_a_list_that_shrank_is_drift_and_one_that_grew_is_not(before: int, now: int, expected: dict[str, str]) -> None:
    assert told(*(DatasetStatistics(instances=count, measured=0) for count in (before, now))) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.85, {}),
        (1.0, {}),
        (0.75, {"share of known pixels": "warning"}),
        (0.4, {"share of known pixels": "error"}),
    ],
)
def test_fewer_known_pixels_are_drift(tmp_path: Path, share: float, expected: dict[str, str]) -> None:
    depths = depths_of(100)
    assert told(statistics_of(tmp_path / "a", depths), statistics_of(tmp_path / "b", depths, share)) == expected


def test_a_fifth_without_depth_is_drift_although_the_median_is_the_same(tmp_path: Path) -> None:
    depths = depths_of(200)
    known = np.where(np.arange(200) % 5 == 0, 0.01, 0.9)
    assert told(statistics_of(tmp_path / "a", depths), statistics_of(tmp_path / "b", depths, known)) == {
        "share of known pixels": "warning"
    }


def test_other_focal_lengths_are_drift(tmp_path: Path) -> None:
    depths = depths_of(50)
    before = statistics_of(tmp_path / "a", depths, fov=60.0)
    twice = float(np.degrees(2 * np.arctan(np.tan(np.radians(30)) / 2)))
    (drift,) = compare_statistics(before, statistics_of(tmp_path / "b", depths, fov=twice))
    assert (drift.what, drift.severity) == ("focal length", "warning")
    assert drift.now / drift.before == pytest.approx(2)
    assert str(drift) == "focal length: 0.866 before, 1.732 now"


def test_instances_of_one_kind_do_not_drift_by_chance(tmp_path: Path) -> None:
    alarms = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        spread = rng.uniform(0.1, 0.7)
        pair = [
            statistics_of(tmp_path / name, depths_of(int(rng.integers(1, 30)), spread=spread, seed=2 * seed + place))
            for place, name in enumerate("ab")
        ]
        alarms += [drift for drift in compare_statistics(*pair) if drift.what != "instances"]
    assert len(alarms) <= 1


def test_datasets_of_which_nothing_is_known_are_compared_by_size_alone() -> None:
    empty = DatasetStatistics(instances=10, measured=0)
    assert compare_statistics(empty, empty) == []
