"""Importing what a table describes: every column has its meaning, and a bad row is named and costs only itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.datasets.importers.table import NEEDED, import_table
from moge_core.datasets.importers.writing import ImportReport
from moge_core.errors import DatasetError, FormatError
from moge_core.io import (
    read_depth,
    read_mask,
    read_meta,
    read_normal,
    read_segmentation,
    write_image,
    write_normal,
    write_segmentation,
)

W, H = 16, 12
FX, FY, CX, CY = 20.0, 21.0, 7.5, 5.5
CAMERA = {"fx": FX, "fy": FY, "cx": CX, "cy": CY}
STORED = 1000 + np.arange(W * H, dtype=np.uint16).reshape(H, W)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A picture, and depth in millimetres and metres."""
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    write_image(folder / "sub" / "image.jpg", np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8))
    cv2.imwrite(str(folder / "depth.png"), STORED)
    np.save(folder / "depth.npy", (STORED / 1000).astype(np.float32))
    return folder


Run = Callable[..., ImportReport]


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Run:
    """Write the rows as JSONL beside the files and import them; a row is what differs from a good one."""

    def run(*rows: Mapping[str, Any], **options: Any) -> ImportReport:
        good = {"image": "sub/image.jpg", "depth": "depth.png", **CAMERA}
        lines = [json.dumps({"name": f"f{i}", **good, **row}) for i, row in enumerate(rows)]
        (source / "frames.jsonl").write_text("\n".join(lines))
        return import_table(source / "frames.jsonl", tmp_path / "out", **options)

    return run


def depth_of(report: ImportReport, name: str = "f0") -> np.ndarray[Any, Any]:
    return read_depth(report.out_dir / name / "depth.png")


def write_csv(path: Path, columns: Sequence[str], *rows: Sequence[object], delimiter: str = ",") -> None:
    lines = [delimiter.join(str(value) for value in row) for row in (columns, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_spreadsheets_csv_is_read_whatever_separates_its_columns(
    source: Path, tmp_path: Path, delimiter: str
) -> None:
    columns = ["Depth", " name", "image", "fx", "fy", "cx", "cy", "scale"]
    rows = [["depth.png", "kitchen/1", "sub/image.jpg", FX, FY, CX, CY, 500], [""] * 8]
    write_csv(source / "frames.csv", columns, *rows, delimiter=delimiter)
    report = import_table(source / "frames.csv", tmp_path / "out")
    assert report.instances == ["kitchen/1"]
    assert (report.skipped, report.notes, report.label_type, report.metric) == ([], [], "sfm", True)
    np.testing.assert_allclose(depth_of(report, "kitchen/1"), STORED / 500, rtol=1e-4)
    expected = [[FX / W, 0, 0.5], [0, FY / H, 0.5], [0, 0, 1]]
    np.testing.assert_allclose(read_meta(report.out_dir / "kitchen/1/meta.json")["intrinsics"], expected, rtol=1e-6)


def test_scale_is_millimetres_for_integers_and_metres_for_floats_where_it_is_not_given(run: Run) -> None:
    report = run({}, {"depth": "depth.npy"}, {"scale": 2000}, {"depth": "depth.npy", "scale": "0.5"})
    for name, factor in (("f0", 1), ("f1", 1), ("f2", 0.5), ("f3", 2)):
        np.testing.assert_allclose(depth_of(report, name), STORED * factor / 1000, rtol=1e-4)
    assert report.notes == ["No scale was given for depth stored as integers; it was read as millimetres."]


@pytest.mark.parametrize("markers", ["1005 inf  nan", [1005, "inf", "nan"]])
def test_several_invalid_values_are_unknown(run: Run, source: Path, markers: object) -> None:
    values = STORED.astype(np.float32)
    values[0, :4] = 0, np.inf, np.nan, -5
    np.save(source / "depth.npy", values)
    depth = depth_of(run({"depth": "depth.npy", "scale": 1000, "invalid": markers}))
    unknown = np.zeros((H, W), bool)
    unknown[0, [0, 1, 2, 3, 5]] = True
    np.testing.assert_array_equal(np.isnan(depth), unknown)


def test_an_infinity_that_is_not_called_invalid_is_the_sky(run: Run, source: Path) -> None:
    values = (STORED / 1000).astype(np.float32)
    values[0] = np.inf
    np.save(source / "depth.npy", values)
    assert np.isposinf(depth_of(run({"depth": "depth.npy"}))[0]).all()


@given(
    kind=st.sampled_from(["z", "ray", "disparity", "inverse"]),
    baseline=st.floats(0.05, 1),
    doffs=st.floats(-2, 40),
    scale=st.floats(0.5, 4),
)
@settings(max_examples=25, deadline=None)
def test_every_kind_of_depth_gives_back_the_z_that_it_was_made_from(
    tmp_path_factory: pytest.TempPathFactory, kind: str, baseline: float, doffs: float, scale: float
) -> None:
    folder = tmp_path_factory.mktemp("kinds")
    z = np.random.default_rng(1).uniform(1, 2, (H, W))
    u, v = np.meshgrid((np.arange(W) - CX) / FX, (np.arange(H) - CY) / FY)
    value = {
        "z": z,
        "ray": z * np.sqrt(1 + u**2 + v**2),
        "disparity": baseline * FX / z - doffs,
        "inverse": 1 / z,
    }[kind]
    np.save(folder / "d.npy", (value * scale).astype(np.float64))
    write_image(folder / "i.png", np.zeros((H, W, 3), np.uint8))
    own = [baseline, doffs] if kind == "disparity" else ["", ""]
    columns = [*NEEDED, "kind", "scale", "baseline", "doffs"]
    write_csv(folder / "t.csv", columns, ["a", "i.png", "d.npy", FX, FY, CX, CY, kind, scale, *own])
    report = import_table(folder / "t.csv", folder / "out")
    np.testing.assert_allclose(depth_of(report, "a"), z, rtol=2e-4)
    assert report.metric is True


def test_a_disparity_without_baseline_makes_depth_without_unit(run: Run) -> None:
    report = run({"kind": "disparity"})
    assert report.metric is False
    assert "depth_unit" not in read_meta(report.out_dir / "f0" / "meta.json")
    np.testing.assert_allclose(depth_of(report), FX / STORED, rtol=1e-4)
    assert run({"kind": "disparity"}, {}).metric is None


def test_intrinsics_of_another_size_are_scaled_and_a_negative_fy_is_told(run: Run) -> None:
    report = run({"fx": 2 * FX, "fy": -2 * FY, "cx": 15.5, "cy": 11.5, "width": 2 * W, "height": 2 * H, "scale": 1000})
    expected = [[FX / W, 0, 0.5], [0, FY / H, 0.5], [0, 0, 1]]
    np.testing.assert_allclose(read_meta(report.out_dir / "f0/meta.json")["intrinsics"], expected, rtol=1e-6)
    assert any("negative fy" in note for note in report.notes)
    assert any("32x24" in note for note in report.notes)


def test_normals_masks_and_segmentations_come_along(run: Run, source: Path) -> None:
    rng = np.random.default_rng(2)
    normal = rng.normal(size=(H, W, 3))
    normal = (normal / np.linalg.norm(normal, axis=-1, keepdims=True)).astype(np.float32)
    write_normal(source / "normal.png", normal)
    np.savez(source / "normal.npz", normals=normal)
    mask = rng.random((H, W)) < 0.5
    cv2.imwrite(str(source / "mask.png"), np.repeat(mask[..., None] * np.uint8(7), 3, axis=-1))
    np.save(source / "mask.npy", mask)
    ids = rng.integers(0, 3, (H, W)).astype(np.uint8)
    write_segmentation(source / "ids.png", ids, {"wall": 1, "sky": 2})
    report = run(
        {"normal": "normal.png", "mask": "mask.png", "segmentation": "ids.png"},
        {"normal": "normal.npz", "mask": "mask.npy", "segmentation": ""},
        {"normal": None},
    )
    assert report.skipped == []
    for name in ("f0", "f1"):
        folder = report.out_dir / name
        np.testing.assert_allclose(read_normal(folder / "normal.png"), normal, atol=1e-4)
        np.testing.assert_array_equal(read_mask(folder / "mask.png"), mask)
        np.testing.assert_array_equal(np.isfinite(depth_of(report, name)), mask)
    found, labels = read_segmentation(report.out_dir / "f0" / "segmentation.png")
    np.testing.assert_array_equal(found, ids)
    assert labels == {"wall": 1, "sky": 2}
    assert sorted(path.name for path in (report.out_dir / "f2").iterdir()) == ["depth.png", "image.jpg", "meta.json"]


@pytest.mark.parametrize(
    ("row", "evidence"),
    [
        ({"image": "gone.jpg"}, "gone.jpg"),
        ({"depth": ""}, "depth"),
        ({"depth": None}, "depth"),
        ({"normal": "gone.png"}, "gone.png"),
        ({"fx": "wide"}, "'wide'"),
        ({"fx": -3}, "fx = -3"),
        ({"fx": 0.8, "fy": 0.9, "cx": 0.5, "cy": 0.5}, "normalised"),
        ({"cy": None}, "cy"),
        ({"cy": "nan"}, "cy"),
        ({"scale": 0}, "scale"),
        ({"scale": "inf"}, "scale"),
        ({"invalid": "0 x"}, "'x'"),
        ({"kind": "depth"}, "'depth'"),
        ({"baseline": 0.1}, "disparity"),
        ({"width": 16}, "width"),
        ({"width": 16, "height": 11.5}, "16 x 11.5"),
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"name": "../out"}, "../out"),
        ({"name": "/etc"}, "/etc"),
        ({"name": ".moge/x"}, ".moge"),
        ({"name": "a\nb"}, "inside"),
        ({"name": "f0"}, "row 1"),
        ({"name": "./f0"}, "row 1"),
    ],
)
def test_a_bad_row_is_named_by_its_number_and_the_rest_goes_on(run: Run, row: dict[str, Any], evidence: str) -> None:
    report = run({}, row, {})
    assert report.instances == ["f0", "f2"]
    (finding,) = report.skipped
    assert finding.instance == "frames.jsonl row 2 (line 2)"
    assert evidence in finding.evidence
    assert finding.severity == "error"
    logged = json.loads(report.log_path.read_text().splitlines()[-1])["skipped"]
    assert [entry["file"] for entry in logged] == [finding.instance]
    assert {path.name for path in report.out_dir.iterdir()} == {".moge", "f0", "f2"}


def test_lines_that_are_no_rows_are_named(source: Path, tmp_path: Path, run: Run) -> None:
    run({})
    good = (source / "frames.jsonl").read_text()
    (source / "frames.jsonl").write_text(f'{good}\n\n{{"name": \n[1]\n')
    report = import_table(source / "frames.jsonl", tmp_path / "out")
    found = [finding.instance for finding in report.skipped]
    assert found == ["frames.jsonl row 2 (line 3)", "frames.jsonl row 3 (line 4)"]
    rows = [["a", "sub/image.jpg", "depth.png", FX, FY, CX, CY], ["b", "sub/image.jpg", "depth.png", FX, FY, CX, CY, 9]]
    write_csv(source / "t.csv", NEEDED, *rows, ["c", "sub/image.jpg"])
    report = import_table(source / "t.csv", tmp_path / "csv")
    assert report.instances == ["a"]
    assert [finding.instance for finding in report.skipped] == ["t.csv row 2 (line 3)", "t.csv row 3 (line 4)"]


def test_missing_columns_are_an_error_that_names_them_and_unknown_ones_a_note(
    source: Path, tmp_path: Path, run: Run
) -> None:
    write_csv(source / "t.csv", ["name", "image", "depth", "fx", "focal"], ["a", "sub/image.jpg", "depth.png", 20, 20])
    with pytest.raises(FormatError, match="no fy, cx, cy among"):
        import_table(source / "t.csv", tmp_path / "out")
    report = run({"pose": "x", "colour": 3, "scale": 1000})
    assert report.notes == ["These columns are not known and were passed by: pose, colour."]


@pytest.mark.parametrize("column", ["depth_scale", "Disparity_Scale"])
def test_columns_have_the_other_names_of_their_options_too(run: Run, column: str) -> None:
    np.testing.assert_allclose(depth_of(run({column: 2000})), STORED / 2000, rtol=1e-4)
    with pytest.raises(DatasetError, match="a column twice"):
        run({column: 2000, "scale": 1000})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("distortion", "-0.2 0.1 0 0 0"),
        ("dist_k1", -0.2),
        ("D", [-0.2, 0.1, 0, 0]),
        ("distortion_model", "fisheye"),
        ("projection", "equirectangular"),
    ],
)
def test_columns_that_speak_of_a_lens_are_never_passed_by(run: Run, column: str, value: object) -> None:
    with pytest.raises(FormatError, match=f"camera_model, k1.*{column.lower()}"):
        run({}, {column: value})
    assert run({column: value}, distortion="ignore").num_written == 1


@pytest.mark.parametrize(("column", "value"), [("distortion", "0 0 0 0"), ("dist", 12.5), ("projection", "pinhole")])
def test_columns_that_speak_of_no_distortion_are_passed_by(run: Run, column: str, value: object) -> None:
    assert run({column: value}).notes[0] == f"These columns are not known and were passed by: {column}."


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", b""),
        ("t.csv", b"name,name,image,depth,fx,fy,cx,cy\n"),
        ("t.csv", b"\xff\xfe\x00"),
        ("t.xlsx", b"PK"),
        ("t.jsonl", b"[]\n"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=name):
        import_table(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_without_rows_or_files_says_so(source: Path, tmp_path: Path) -> None:
    write_csv(source / "t.csv", NEEDED)
    with pytest.raises(DatasetError, match="without rows"):
        import_table(source / "t.csv", tmp_path / "out")
    with pytest.raises(DatasetError, match="no such file"):
        import_table(source / "gone.csv", tmp_path / "out")


def test_a_second_run_does_only_what_a_changed_row_asks(run: Run) -> None:
    assert run({"scale": 1000}, {"scale": 1000}).num_written == 2
    assert run({"scale": 1000}, {"scale": 1000}).num_written == 0
    report = run({"scale": 1000}, {"scale": 500})
    assert report.num_written == 1
    np.testing.assert_allclose(depth_of(report, "f1"), STORED / 500, rtol=1e-4)


def test_absolute_paths_and_options_are_taken(run: Run, source: Path) -> None:
    report = run(
        {"depth": str(source / "depth.png"), "scale": 1000}, name_prefix="set/", max_depth=1.1, label_type="lidar"
    )
    assert report.instances == ["set/f0"]
    depth = depth_of(report, "set/f0")
    np.testing.assert_array_equal(np.isnan(depth), STORED > 1100)
    assert read_meta(report.out_dir / "set/f0/meta.json")["label_type"] == "lidar"
