"""What every import command shares: its options, its report, and the entry for a training configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from moge_core.cli.importing import import_group
from moge_core.io import read_meta

COLUMNS = "name,image,depth,fx,fy,cx,cy,scale,kind"


def invoke(*arguments: object, code: int = 0) -> str:
    result: Result = CliRunner().invoke(import_group, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def entry_of(output: str) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(output[output.index("{") : output.index("}") + 1])
    return entry


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of two frames, of which the second has no depth map."""
    cv2.imwrite(str(tmp_path / "i.png"), np.full((12, 16, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "d.png"), np.full((12, 16), 1500, np.uint16))
    rows = ["a,i.png,d.png,20,20,7.5,5.5,1000,z", "b,i.png,gone.png,20,20,7.5,5.5,1000,z"]
    (tmp_path / "t.csv").write_text("\n".join([COLUMNS, *rows]))
    return tmp_path / "t.csv"


def test_an_import_says_what_it_did_what_it_left_out_and_what_comes_next(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    out = tmp_path / "data" / "set"
    output = invoke("table", table, "-o", out, "--label-type", "lidar")
    assert "1 instances written, 0 already there" in output
    assert "median depth 1.500 m, 100.0% of the pixels known" in output
    assert "error importable: 1 file" in output
    assert "t.csv row 2 (line 3)" in output
    assert f"all of it: {out / '.moge' / 'import.jsonl'}" in output
    expected = {"name": "set", "path": "data/set", "label_type": "lidar", "weight": 1.0, "depth_unit": 1.0}
    assert entry_of(output) == expected
    assert f"Next: moge index {out}" in output
    assert "0 instances written, 1 already there" in invoke("table", table, "-o", out, "--label-type", "lidar")


def test_strict_exits_with_1_when_a_frame_is_left_out(table: Path, tmp_path: Path) -> None:
    assert "1 instances written" in invoke("table", table, "-o", tmp_path / "out", "--strict", code=1)


def test_depth_without_unit_has_no_depth_unit_in_its_entry(table: Path, tmp_path: Path) -> None:
    table.write_text(f"{COLUMNS}\na,i.png,d.png,20,20,7.5,5.5,,disparity\n")
    output = invoke("table", table, "-o", tmp_path / "out")
    assert "depth_unit" not in entry_of(output)
    assert "without unit" in output
    table.write_text(table.read_text() + "b,i.png,d.png,20,20,7.5,5.5,1000,z\n")
    output = invoke("table", table, "-o", tmp_path / "both")
    assert "depth_unit" not in entry_of(output)
    assert "note: Instances differ in their unit, or some have none" in output


def test_common_options_reach_the_importer(table: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "d.png"), np.full((6, 8), 1500, np.uint16))
    shared = ("--name-prefix", "x/", "--max-depth", "1.4", "--resolution", "image")
    output = invoke("table", table, "-o", tmp_path / "out", *shared)
    assert "no known pixel" in output
    meta = read_meta(tmp_path / "out" / "x" / "a" / "meta.json")
    assert meta["label_type"] == "sfm"
    assert cv2.imread(str(tmp_path / "out" / "x" / "a" / "depth.png"), cv2.IMREAD_UNCHANGED).shape == (12, 16)


def test_a_known_source_needs_no_further_options(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    for name, value in (
        ("color", np.full((480, 640, 3), 90, np.uint8)),
        ("depth", np.full((480, 640), 900, np.uint16)),
    ):
        cv2.imwrite(str(tmp_path / "scan" / f"frame-000000.{name}.png"), value)
    output = invoke("rgbd-folder", tmp_path / "scan", "-o", tmp_path / "out", "--preset", "7scenes")
    assert "median depth 0.900 m" in output
    assert "must be one of" in invoke(
        "rgbd-folder", tmp_path / "scan", "-o", tmp_path / "out", "--preset", "nine", code=2
    )


def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for layout in ("kitti", "dgp", "nuscenes", "stereo"):
        output = invoke(layout, tmp_path / "empty", "-o", tmp_path / "out", code=2)
        assert len(output.strip().splitlines()) == 1
        assert output.startswith("Error: ")
