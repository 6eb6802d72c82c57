"""The quality report shows what was sampled and says what could not be shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moge_core.datasets import index_dataset, write_quality_report
from moge_core.errors import DatasetError, InputError, MissingIndexError
from moge_core.io import read_image, read_ply

Write = Callable[..., Path]


def test_every_sampled_instance_has_its_point_cloud_and_its_row(
    data: Path, write_instance: Write, tmp_path: Path
) -> None:
    for scene in "ab":
        for i in range(4):
            write_instance(f"{scene}/{i}")
    index_dataset(data)
    report = write_quality_report(data, tmp_path / "out", num_samples=5)
    assert len(set(report.instances)) == 5
    assert list(report.ply_paths) == report.instances
    assert len(set(report.ply_paths.values())) == 5
    assert all(len(read_ply(path).points) == 12 * 16 for path in report.ply_paths.values())
    few = write_quality_report(data, tmp_path / "few", num_samples=1)
    assert read_image(report.contact_sheet).shape[0] > 4 * read_image(few.contact_sheet).shape[0]
    assert report.depth_histogram.read_bytes().startswith(b"\x89PNG")
    assert report.statistics["num_instances"] == report.statistics["num_measured"] == 8
    assert 1 <= report.statistics["depth_min"] < report.statistics["depth_max"] <= 5.01
    assert report.statistics["valid_share"] == 1
    assert report.problems == {}


def test_the_sample_depends_on_the_seed_alone(data: Path, write_instance: Write, tmp_path: Path) -> None:
    for i in range(9):
        write_instance(str(i))
    index_dataset(data)
    drawn = [write_quality_report(data, tmp_path / "out", num_samples=3, seed=seed).instances for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_cannot_be_shown_is_replaced_and_named(data: Path, write_instance: Write, tmp_path: Path) -> None:
    for i in range(3):
        write_instance(f"good{i}")
    (write_instance("bad") / "image.jpg").write_bytes(b"no")
    write_instance("empty", depth=np.full((12, 16), np.nan, np.float32))
    (data / ".index.txt").write_text("good0\ngood1\ngood2\nbad\nempty\ngone\n")
    report = write_quality_report(data, tmp_path / "out", num_samples=6)
    assert sorted(report.instances) == ["good0", "good1", "good2"]
    assert set(report.problems) == {"bad", "empty", "gone"}
    assert not (tmp_path / "out" / "pointclouds" / "empty").exists()


def test_a_list_with_nothing_to_show_is_refused(data: Path, write_instance: Write, tmp_path: Path) -> None:
    with pytest.raises(MissingIndexError):
        write_quality_report(data, tmp_path / "out")
    (data / ".index.txt").write_text("gone\n")
    with pytest.raises(DatasetError, match="gone"):
        write_quality_report(data, tmp_path / "out")
    with pytest.raises(InputError, match="num_samples"):
        write_quality_report(data, tmp_path / "out", num_samples=0)
