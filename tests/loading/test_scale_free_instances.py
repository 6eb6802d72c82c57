"""What has no unit never trains the metric scale, whatever the configuration says of its dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_planes import data_section

from moge_core.datasets.importers.table import import_table
from moge_core.io import write_image
from moge_core.loading import TrainLoader


@pytest.mark.parametrize(
    ("meta", "is_metric"),
    [
        ({}, True),
        ({"depth_unit": 1.0, "source": {"importer": "table"}}, True),
        ({"source": {"importer": "table"}}, False),
        ({"source": "a text that somebody wrote"}, True),
        ({"source": {"importer": "table"}, "depth_unit": None}, False),
    ],
)
def test_an_instance_whose_import_left_the_unit_out_is_not_metric(
    make_dataset: Callable[..., Path], meta: dict[str, object], is_metric: bool
) -> None:
    root = make_dataset("a")
    for path in root.rglob("meta.json"):
        known = {key: value for key, value in json.loads(path.read_text()).items() if key == "intrinsics"}
        path.write_text(json.dumps({**known, **meta}))
    with TrainLoader(data_section({"name": "a", "path": root, "depth_unit": 2.0}), 4, 0, num_workers=0) as loader:
        batch = next(iter(loader))
    assert batch["is_metric"].tolist() == [is_metric] * 4
    assert batch["is_metric"].dtype == torch.bool


@pytest.mark.parametrize(
    "row", [{"kind": "inverse"}, {"kind": "disparity"}, {"depth_unit": "none"}, {"depth": "r.npy"}]
)
def test_data_imported_without_a_unit_is_not_metric_in_a_configuration_that_says_one(
    tmp_path: Path, row: dict[str, str]
) -> None:
    z = np.linspace(1.5, 4, 48 * 64).reshape(48, 64)
    np.save(tmp_path / "z.npy", z.astype(np.float32))
    np.save(tmp_path / "r.npy", ((z - z.min()) / (z.max() - z.min())).astype(np.float32))
    write_image(tmp_path / "i.png", np.zeros((48, 64, 3), np.uint8))
    good = {"name": "a", "image": "i.png", "depth": "z.npy", "fx": 60, "fy": 60, "cx": 31.5, "cy": 23.5}
    (tmp_path / "t.jsonl").write_text(json.dumps({**good, **row}))
    report = import_table(tmp_path / "t.jsonl", tmp_path / "out")
    assert report.metric is False
    (tmp_path / "out/.index.txt").write_text("a\n")
    section = data_section({"name": "a", "path": tmp_path / "out", "depth_unit": 1.0})
    with TrainLoader(section, 1, 0, num_workers=0) as loader:
        assert next(iter(loader))["is_metric"].tolist() == [False]
