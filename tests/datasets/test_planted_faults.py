"""Every fault of `planted_faults` is found by its rule, and good data is left in peace."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_faults import FAULTS, finite, label_as, of_camera, of_depth, shifted, sparse

from moge_core.datasets import RULES, Finding, index_dataset, render_sample_scenes, validate_dataset
from moge_core.datasets.validation import examine_instance, geometry
from moge_core.io import read_depth, read_meta, write_depth, write_image, write_meta
from moge_core.io.png import encode_png

# Rules that compare instances or read lists have tests of their own below and in test_dataset_validation.py.
BY_OTHER_TESTS = {
    "list-entry",
    "listed-once",
    "not-quarantined",
    "inside-root",
    "listable-path",
    "folder-readable",
    "files-readable",
    "not-duplicated",
    "unit-consistent",
    "intrinsics-consistent",
    "density-consistent",
    "reprojects",
    "depth-steps",
    "mask-fits-depth",
    "segmentation-fits",
}
SUSPICIONS = {"registered"}
SIZE = (320, 240)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rooms and outdoor scenes, untouched."""
    folder = tmp_path_factory.mktemp("scenes")
    render_sample_scenes(folder, 12, 23, size=SIZE)
    return folder


def instances_of(root: Path) -> list[str]:
    return sorted(path.parent.relative_to(root).as_posix() for path in root.rglob("meta.json"))


def rules_by_instance(findings: list[Finding]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in findings:
        found.setdefault(finding.instance, set()).add(finding.rule)
    return found


def test_every_rule_has_a_planted_fault_or_a_test_of_its_own() -> None:
    assert {fault.rule for fault in FAULTS.values()} | BY_OTHER_TESTS == set(RULES)


def test_clean_scenes_have_no_error_and_hardly_a_suspicion(scenes: Path) -> None:
    findings = validate_dataset(scenes, depth_unit=1.0, label_type="synthetic")
    assert [finding for finding in findings if finding.severity == "error"] == []
    assert {finding.rule for finding in findings} <= SUSPICIONS
    assert len(findings) <= 1


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_by_its_rule_and_the_good_beside_it_are_left_in_peace(
    scenes: Path, tmp_path: Path, name: str
) -> None:
    fault = FAULTS[name]
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    # Some faults need something to show in, such as planes or a ceiling.
    planted = [instance for instance in instances_of(data) if fault.shows(data / instance)][1::3]
    listed = instances_of(data)
    for instance in planted:
        fault.plant(data / instance)
    (data / ".index.txt").write_text("".join(f"{instance}\n" for instance in listed))
    findings = validate_dataset(data)
    found = rules_by_instance(findings)
    num_caught = sum(fault.rule in found.get(instance, ()) for instance in planted)
    # A far field without an edge cannot show that its depth is shifted.
    assert num_caught >= len(planted) - (fault.rule in SUSPICIONS), found
    clean = set(listed) - set(planted)
    beside = [finding for finding in findings if finding.instance in clean and finding.rule not in SUSPICIONS]
    # Comparisons may name one of two that disagree.
    assert [finding for finding in beside if finding.severity == "error"] == []
    assert len(beside) <= 1
    severities = {finding.severity for finding in findings if finding.rule == fault.rule}
    assert severities == {RULES[fault.rule].severity}


def test_depth_of_another_frame_is_a_suspicion_for_most(scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    rooms = [instance for instance in instances_of(data) if instance.startswith("room")]
    depths = [read_depth(scenes / instance / "depth.png") for instance in rooms]
    swapped = 0
    for number, instance in enumerate(rooms):
        others = [other for other in depths if other.shape == depths[number].shape and other is not depths[number]]
        if others:
            write_depth(data / instance / "depth.png", others[0])
            swapped += 1
    found = rules_by_instance(validate_dataset(data))
    assert swapped >= 4
    assert sum("registered" in found.get(instance, ()) for instance in rooms) >= swapped // 2


def test_whole_metres_are_coarse_steps(scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    instance = instances_of(data)[-1]
    of_depth(lambda depth, _: np.maximum(np.round(depth), 1))(data / instance)
    assert {"depth-steps", "depth-levels"} <= rules_by_instance(validate_dataset(data))[instance]


def test_copies_name_the_original(scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    original = instances_of(data)[0]
    shutil.copytree(data / original, data / "zz" / "copy")
    shutil.copytree(data / original, data / "zz" / "other_depth")
    of_depth(lambda depth, _: depth * 1.01)(data / "zz" / "other_depth")
    findings = [finding for finding in validate_dataset(data) if finding.rule == "not-duplicated"]
    assert {finding.instance for finding in findings} == {"zz/copy", "zz/other_depth"}
    assert all(original in finding.evidence for finding in findings)
    assert "other depth" in findings[1].evidence


@pytest.mark.parametrize("factor", [5.0, 1 / 5, 1000.0])
def test_a_part_in_another_unit_stands_out_even_without_a_unit_in_meta(
    scenes: Path, tmp_path: Path, factor: float
) -> None:
    data = tmp_path / "data"
    rooms = [instance for instance in instances_of(scenes) if instance.startswith("room")]
    for instance in rooms:
        shutil.copytree(scenes / instance, data / instance)
        meta = read_meta(data / instance / "meta.json")
        meta.pop("depth_unit", None)
        write_meta(data / instance / "meta.json", meta)
    of_depth(lambda depth, _: depth * np.float32(factor))(data / rooms[0])
    assert {f.instance for f in validate_dataset(data) if f.rule == "unit-consistent"} == {rooms[0]}


@pytest.mark.parametrize("factor", [5.0, 1 / 5])
def test_a_whole_dataset_off_by_five_is_told_by_its_camera_height(scenes: Path, tmp_path: Path, factor: float) -> None:
    data = tmp_path / "data"
    for instance in instances_of(scenes):
        if instance.startswith("room"):
            shutil.copytree(scenes / instance, data / instance)
            of_depth(lambda depth, _: depth * np.float32(factor))(data / instance)
    rules = Counter(finding.rule for finding in validate_dataset(data))
    assert set(rules) <= {"unit-plausible", *SUSPICIONS}
    assert rules["unit-plausible"] >= 1


def test_another_focal_length_among_equal_ones_stands_out(scenes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (source,) = instances_of(scenes)[:1]
    for number in range(6):
        shutil.copytree(scenes / source, data / "scene" / str(number))
    of_camera(lambda K, _: K * np.array([[0.5, 1, 1], [1, 0.5, 1], [1, 1, 1]]))(data / "scene" / "4")
    found = {finding.instance for finding in validate_dataset(data) if finding.rule == "intrinsics-consistent"}
    assert found == {"scene/4"}


def test_a_sparse_map_among_dense_ones_stands_out(scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    instance = instances_of(data)[-1]
    of_depth(lambda depth, _: sparse(depth, 0.02))(data / instance)
    found = {finding.instance for finding in validate_dataset(data) if finding.rule == "density-consistent"}
    assert found == {instance}


def test_sparse_depth_is_fine_for_a_label_type_of_lidar(scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    for instance in instances_of(data):
        of_depth(lambda depth, _: sparse(depth, 0.04))(data / instance)
        label_as("lidar", data / instance)
    assert "density-fits-label" not in {finding.rule for finding in validate_dataset(data)}
    assert "density-fits-label" in {finding.rule for finding in validate_dataset(data, label_type="A")}


def test_without_a_unit_metres_are_presumed_and_scale_free_imports_are_left_in_peace(
    scenes: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    for instance in instances_of(data):
        of_depth(lambda depth, _: depth * np.float32(1000))(data / instance)
        meta = read_meta(data / instance / "meta.json")
        del meta["depth_unit"]
        if instance.startswith("outdoor"):
            meta["source"] = {"importer": "colmap"}
        write_meta(data / instance / "meta.json", meta)
    findings = [finding for finding in validate_dataset(data) if finding.rule == "unit-plausible"]
    assert {finding.instance for finding in findings} == {i for i in instances_of(data) if i.startswith("room")}
    assert all("if depth is in metres" in finding.evidence or "cameras are" in finding.evidence for finding in findings)


def test_depth_divided_by_its_maximum_is_not_metric(scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    instance = instances_of(data)[-1]
    of_depth(lambda depth, _: depth / finite(depth).max())(data / instance)
    assert "unit-plausible" in rules_by_instance(validate_dataset(data))[instance]


@pytest.mark.parametrize("share", [-0.04, 0.03, 0.08])
def test_depth_that_is_shifted_is_suspected_in_rooms(scenes: Path, tmp_path: Path, share: float) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    rooms = [instance for instance in instances_of(data) if instance.startswith("room")]
    for instance in rooms:
        of_depth(lambda depth, _: shifted(depth, share))(data / instance)
    found = rules_by_instance(validate_dataset(data))
    assert sum("registered" in found.get(instance, ()) for instance in rooms) >= len(rooms) - 1


def test_thresholds_severities_and_silence_are_configuration(scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    instance = instances_of(data)[0]
    (data / instance / "Thumbs.db").write_bytes(b"x")
    (data / ".moge").mkdir(exist_ok=True)
    settings = data / ".moge" / "validation.json"

    settings.write_text('{"severities": {"files-known": "error"}}  # stricter')
    (finding,) = [finding for finding in validate_dataset(data) if finding.rule == "files-known"]
    assert finding.severity == "error"
    settings.write_text('{"off": ["files-known"]}')
    assert "files-known" not in {finding.rule for finding in validate_dataset(data)}
    settings.write_text('{"max_fov_deg": 20}')
    assert "fov-plausible" in {finding.rule for finding in validate_dataset(data)}


@pytest.mark.parametrize(
    "near, far, unit",
    [
        ("1", "1.001", None),
        ("1e-45", "1e-44", None),
        ("1", "2", "1e-44"),
        ("1e-30", "1e30", None),
        ("1e37", "2e37", "1"),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (30, 40)])
def test_extreme_ranges_are_judged_without_a_word_from_numpy(
    scenes: Path, tmp_path: Path, near: str, far: str, unit: str | None, shape: tuple[int, int]
) -> None:
    folder = Path(shutil.copytree(scenes / instances_of(scenes)[0], tmp_path / "data" / "x"))
    text = {"near": near, "far": far} | ({} if unit is None else {"unit": unit})
    for codes in (
        np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16),
        np.full(shape, 65535, np.uint16),
        np.full(shape, 30000, np.uint16),
    ):
        (folder / "depth.png").write_bytes(encode_png(codes, text=text))
        write_image(folder / "image.jpg", np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8))
        findings = examine_instance(tmp_path / "data", "x").findings
        assert not [finding for finding in findings if finding.rule == "files-readable"]


def test_what_a_decoder_chokes_on_is_a_finding_of_its_instance(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    broken = instances_of(data)[2]
    original = geometry.count_votes

    def choke(*arguments: Any) -> Any:
        if not hasattr(choke, "done"):
            choke.done = True  # type: ignore[attr-defined]
            raise ZeroDivisionError("x")
        return original(*arguments)

    monkeypatch.setattr(geometry, "count_votes", choke)
    findings = [finding for finding in validate_dataset(data) if finding.rule == "files-readable"]
    assert len(findings) == 1
    assert "ZeroDivisionError" in findings[0].evidence
    assert broken in instances_of(data)


def test_a_pipe_in_an_instance_is_told_and_does_not_hang(scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    instance = instances_of(data)[0]
    (data / instance / "normal.png").unlink()
    os.mkfifo(data / instance / "normal.png")
    os.mkfifo(data / instance / "mask.png")
    assert "files-known" in rules_by_instance(validate_dataset(data))[instance]


def test_mending_a_further_map_or_removing_a_foreign_file_is_noticed_by_the_index(scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    first, second = instances_of(data)[:2]
    (data / first / "normal.png").write_text("404")
    (data / second / "Thumbs.db").write_bytes(b"x")
    report = index_dataset(data)
    assert first not in report.instances
    assert {finding.rule for finding in report.findings} >= {"maps-decodable", "files-known"}
    (data / first / "normal.png").unlink()
    (data / second / "Thumbs.db").unlink()
    report = index_dataset(data)
    assert first in report.instances
    assert not {finding.rule for finding in report.findings} & {"maps-decodable", "files-known"}
    (data / first / "normal.png").write_text("404")
    assert first not in index_dataset(data).instances
