"""Each rule is kept by a good instance and told when it is broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from moge_core.datasets import RULES, index_dataset, validate_dataset
from moge_core.datasets.validation import examine_instance
from moge_core.errors import DatasetError, MissingIndexError
from moge_core.io import write_depth

Write = Callable[..., Path]


def rules_of(data: Path, name: str = "x", *, full: bool = True) -> list[str]:
    findings = examine_instance(data, name, full=full).findings
    assert all(finding.rule in RULES and finding.fix and finding.evidence for finding in findings)
    return [finding.rule for finding in findings]


def test_a_good_instance_breaks_no_rule(data: Path, write_instance: Write) -> None:
    write_instance("x")
    assert rules_of(data) == rules_of(data, full=False) == []


@pytest.mark.parametrize("name", ["image.jpg", "depth.png", "meta.json"])
def test_each_missing_file_is_named(data: Path, write_instance: Write, name: str) -> None:
    (write_instance("x") / name).unlink()
    (finding,) = examine_instance(data, "x").findings
    assert (finding.rule, finding.severity) == ("files-present", "error")
    assert name in finding.evidence


def test_another_depth_file_beside_the_missing_one_is_pointed_out(data: Path, write_instance: Write) -> None:
    write_instance("x", depth_name="depth_completed.png")
    (finding,) = examine_instance(data, "x").findings
    assert "depth_completed.png" in finding.evidence
    assert "--depth" in finding.fix


@pytest.mark.parametrize("cut", [0, 10, 0.5, -2])
def test_a_truncated_image_is_found(data: Path, write_instance: Write, cut: float) -> None:
    path = write_instance("x") / "image.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
    assert rules_of(data) == ["image-decodable"]


@pytest.mark.parametrize("cut", [0, 20, 0.5, 0.9])
def test_a_truncated_depth_map_is_found(data: Path, write_instance: Write, cut: float) -> None:
    path = write_instance("x") / "depth.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
    assert rules_of(data) == ["depth-decodable"]


def test_a_plain_16_bit_png_is_no_depth_map_and_the_reason_is_given(data: Path, write_instance: Write) -> None:
    path = write_instance("x") / "depth.png"
    cv2.imwrite(str(path), np.full((12, 16), 1000, np.uint16))
    (finding,) = examine_instance(data, "x").findings
    assert finding.rule == "depth-has-range"
    assert "near" in finding.evidence


def test_sizes_that_differ_are_found_even_from_headers_alone(data: Path, write_instance: Write) -> None:
    write_instance("x", depth=np.ones((16, 12), np.float32))
    assert rules_of(data) == rules_of(data, full=False) == ["sizes-agree"]
    (finding,) = examine_instance(data, "x").findings
    assert "16x12" in finding.evidence
    assert "12x16" in finding.evidence


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_depth_without_a_known_pixel_is_found(data: Path, write_instance: Write, value: float) -> None:
    write_instance("x", depth=np.full((12, 16), value, np.float32))
    assert rules_of(data) == ["depth-known"]


@pytest.mark.parametrize(
    ("intrinsics", "rule", "named"),
    [
        ([[525, 0, 319.5], [0, 525, 239.5], [0, 0, 1]], "intrinsics-normalised", "pixels"),
        ([[1, 0, 0.5], [0, -1, 0.5], [0, 0, 1]], "focal-positive", "not positive"),
        ([[1, 0, 1.0], [0, 1, 0.5], [0, 0, 1]], "principal-point-inside", "outside the image"),
        ([[1, 0, 0.5], [0, 1, 0.0], [0, 0, 1]], "principal-point-inside", "outside the image"),
        ([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 1]], "intrinsics-row-major", "last row"),
        ([[300, 0, 0.5], [0, 300, 0.5], [0, 0, 1]], "intrinsics-normalised", "field of view"),
    ],
)
def test_intrinsics_that_are_not_normalised_are_named_for_what_they_are(
    data: Path, write_instance: Write, intrinsics: list[list[float]], rule: str, named: str
) -> None:
    write_instance("x", intrinsics=intrinsics)
    (finding,) = examine_instance(data, "x").findings
    assert (finding.rule, finding.severity) == (rule, "error")
    assert named in finding.evidence


def test_off_centre_principal_points_and_narrow_lenses_are_fine(data: Path, write_instance: Write) -> None:
    write_instance("x", intrinsics=[[9.0, 0, 0.02], [0, 12.0, 0.97], [0, 0, 1]])
    assert rules_of(data) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"intrinsics": [1, 2, 3]}', '{"intrinsics": "fx"}', '{"intrinsics": [[NaN]]}', "\xff"]
)
def test_a_meta_file_without_a_camera_is_found(data: Path, write_instance: Write, text: str) -> None:
    (write_instance("x") / "meta.json").write_bytes(text.encode("latin-1"))
    assert rules_of(data) == ["meta-readable"]


def test_several_faults_of_one_instance_are_all_told(data: Path, write_instance: Write) -> None:
    folder = write_instance("x", depth=np.full((5, 5), np.nan, np.float32))
    (folder / "meta.json").write_text(json.dumps({"intrinsics": [[500, 0, 320], [0, 500, 240], [0, 0, 1]]}))
    assert set(rules_of(data)) == {"intrinsics-normalised", "sizes-agree", "depth-known"}


def test_one_pixel_is_a_valid_instance(data: Path, write_instance: Write) -> None:
    write_instance("x", image=np.zeros((1, 1, 3), np.uint8), depth=np.ones((1, 1), np.float32))
    assert rules_of(data) == []


def test_a_whole_list_is_checked_in_its_order(data: Path, write_instance: Write) -> None:
    for name in ("c", "a", "b"):
        write_instance(name)
    write_depth(data / "a" / "depth.png", np.ones((2, 2), np.float32))
    shutil.rmtree(data / "c")
    (data / ".val.txt").write_text("c\nb\na\nb\n")
    findings = validate_dataset(data, index_name=".val.txt")
    assert [(finding.instance, finding.rule) for finding in findings] == [
        (".val.txt", "listed-once"),
        ("c", "files-present"),
        ("a", "sizes-agree"),
    ]


def test_a_dataset_with_neither_list_nor_instance_is_an_error_of_its_own(data: Path, write_instance: Write) -> None:
    with pytest.raises(MissingIndexError):
        validate_dataset(data)
    (data / ".index.txt").write_text("")
    with pytest.raises(DatasetError, match="empty"):
        validate_dataset(data)


def test_without_a_list_what_a_scan_finds_is_checked(data: Path, write_instance: Write) -> None:
    write_instance("good")
    (write_instance("bad") / "depth.png").unlink()
    (write_instance("lost") / "meta.json").unlink()
    found = {(finding.instance, finding.rule) for finding in validate_dataset(data)}
    assert found == {("bad", "files-present"), ("lost", "files-present")}


@pytest.mark.parametrize("line", ["", "  ", "/etc/passwd", "../../etc/passwd", "a/../../b", "a\\b", "C:/data/a", "out"])
def test_each_bad_line_of_a_list_is_a_finding_and_the_others_are_checked(
    data: Path, write_instance: Write, tmp_path: Path, line: str
) -> None:
    write_instance("good")
    (write_instance("bad") / "depth.png").unlink()
    (data / "out").symlink_to(tmp_path, target_is_directory=True)
    (data / ".index.txt").write_text(f"good\n{line}\nbad\n")
    findings = validate_dataset(data)
    assert [(finding.rule, finding.severity) for finding in findings] == [
        ("list-entry", "error"),
        ("files-present", "error"),
    ]
    assert findings[0].instance == f"{data / '.index.txt'}:2"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, {("loop", "inside-root", "warning"), ("stray", "files-present", "error")}),
        ({"off": ["inside-root"]}, {("stray", "files-present", "error")}),
        (
            {"severities": {"inside-root": "error", "files-present": "warning"}},
            {("loop", "inside-root", "error"), ("stray", "files-present", "warning")},
        ),
        ({"off": ["inside-root", "files-present"]}, set()),
    ],
)
def test_index_and_validation_judge_a_scan_by_the_same_settings(
    data: Path, write_instance: Write, settings: dict[str, object], told: set[tuple[str, str, str]]
) -> None:
    write_instance("good")
    (data / "loop").symlink_to(data)
    (data / "stray").mkdir()
    shutil.copy(data / "good" / "image.jpg", data / "stray" / "image.jpg")
    (data / ".moge").mkdir()
    (data / ".moge" / "validation.json").write_text(json.dumps(settings))
    for findings in (validate_dataset(data), index_dataset(data).findings):
        assert {(finding.instance, finding.rule, finding.severity) for finding in findings} == told
