"""`moge validate` compares normals, masks and segmentations with the depth, and leaves right ones in peace."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from moge_core.datasets import Finding, render_sample_scenes
from moge_core.datasets.importers.table import import_table
from moge_core.datasets.normal_axes import matrix_of
from moge_core.datasets.validation import examine_instance, maps
from moge_core.io import read_depth, read_meta, read_normal, write_mask, write_meta, write_normal, write_segmentation

RULES = {"normals-fit-depth", "mask-fits-depth", "segmentation-fits"}
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rooms and outdoor scenes with masks of what is known and segmentations by normals and depth."""
    folder = tmp_path_factory.mktemp("scenes")
    render_sample_scenes(folder, 8, 41, size=(320, 240))
    for instance in instances_of(folder):
        depth, normal = read_depth(folder / instance / "depth.png"), read_normal(folder / instance / "normal.png")
        write_mask(folder / instance / "mask.png", np.isfinite(depth))
        write_segmentation(folder / instance / "segmentation.png", segments(normal))
    return folder


@pytest.fixture
def copy(scenes: Path, tmp_path: Path) -> Path:
    """The scenes, to break."""
    return Path(shutil.copytree(scenes, tmp_path / "data"))


def instances_of(root: Path) -> list[str]:
    return sorted(path.parent.relative_to(root).as_posix() for path in root.rglob("meta.json"))


def segments(normal: Array) -> Array:
    return np.unique(np.nan_to_num(normal.round(1)).reshape(-1, 3), axis=0, return_inverse=True)[1].reshape(
        normal.shape[:2]
    )


def found(root: Path, instance: str) -> list[Finding]:
    return [finding for finding in examine_instance(root, instance).findings if finding.rule in RULES]


def replace_normal(root: Path, instance: str, matrix: Array) -> None:
    path = root / instance / "normal.png"
    write_normal(path, read_normal(path) @ matrix.T.astype(np.float32))


def test_right_maps_have_no_finding(scenes: Path) -> None:
    assert [found(scenes, instance) for instance in instances_of(scenes)] == [[]] * 8


@pytest.mark.parametrize(("code", "option"), [("RUB", "opengl"), ("LUB", "LUB"), ("FLU", "FLU"), ("RUF", "RUF")])
def test_normals_in_other_axes_are_named_with_the_option_that_converts_them(copy: Path, code: str, option: str) -> None:
    for instance in instances_of(copy):
        replace_normal(copy, instance, matrix_of(code))
        (finding,) = found(copy, instance)
        assert (finding.rule, finding.severity) == ("normals-fit-depth", "warning")
        assert finding.fix.startswith(f"Import again with --normal-axes {option}")


def test_normals_of_the_world_are_found_and_named_where_the_pose_is_known(copy: Path) -> None:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    for number, instance in enumerate(instances_of(copy)):
        replace_normal(copy, instance, turn)
        if number % 2:
            meta = read_meta(copy / instance / "meta.json")
            pose = np.eye(4)
            pose[:3, :3] = turn
            write_meta(copy / instance / "meta.json", {**meta, "pose": pose.tolist()})
        (finding,) = found(copy, instance)
        assert "--normal-axes world" in finding.fix if number % 2 else "world" in finding.fix


def test_vectors_that_were_left_in_a_range_of_0_to_1_are_found(copy: Path) -> None:
    for instance in instances_of(copy):
        path = copy / instance / "normal.png"
        write_normal(path, (read_normal(path) + 1) / 2)
        (finding,) = found(copy, instance)
        assert "no coordinate is negative" in finding.evidence


@pytest.mark.parametrize("name", ["normal.png", "segmentation.png"])
@pytest.mark.parametrize("how", ["shifted", "of another frame"])
def test_maps_of_another_frame_or_shifted_are_found(copy: Path, scenes: Path, name: str, how: str) -> None:
    instances = instances_of(copy)
    normals = {instance: read_normal(scenes / instance / "normal.png") for instance in instances}
    num_planted = num_found = 0
    for instance in instances:
        others = [other for other in instances if other != instance and normals[other].shape == normals[instance].shape]
        if how == "shifted":
            normal = np.roll(normals[instance], round(0.05 * normals[instance].shape[1]), axis=1)
        elif others:
            normal = normals[others[0]]
        else:
            continue
        if name == "normal.png":
            write_normal(copy / instance / name, normal)
        else:
            write_segmentation(copy / instance / name, segments(normal))
        num_planted += 1
        num_found += len(found(copy, instance)) == 1
    assert num_planted >= 6
    assert num_found >= num_planted - 1


def test_an_inverted_mask_is_found_with_the_option_that_turns_it(copy: Path) -> None:
    num_planted = 0
    for instance in instances_of(copy):
        known = np.isfinite(read_depth(copy / instance / "depth.png"))
        if 0.05 < known.mean() < 0.95:
            write_mask(copy / instance / "mask.png", ~known)
            (finding,) = found(copy, instance)
            assert (finding.rule, finding.fix) == ("mask-fits-depth", "Import again with --invert-mask.")
            num_planted += 1
    assert num_planted >= 3


@pytest.mark.parametrize("shape", ["frame", "circle", "noise", "all", "none"])
def test_masks_that_lenses_and_people_draw_are_left_in_peace(copy: Path, shape: str) -> None:
    for instance in instances_of(copy):
        height, width = read_depth(copy / instance / "depth.png").shape
        rows, columns = np.mgrid[:height, :width]
        mask = {
            "frame": (abs(rows - height / 2) < 0.4 * height) & (abs(columns - width / 2) < 0.45 * width),
            "circle": np.hypot(rows - height / 2, columns - width / 2) < 0.45 * min(height, width),
            "noise": np.random.default_rng(0).random((height, width)) < 0.7,
            "all": np.ones((height, width), bool),
            "none": np.zeros((height, width), bool),
        }[shape]
        write_mask(copy / instance / "mask.png", mask)
        assert found(copy, instance) == []


def test_the_quick_pass_and_instances_without_maps_decode_none(
    copy: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps.FurtherMaps, "__init__", lambda *_: pytest.fail("maps were looked at"))
    instance = instances_of(copy)[0]
    assert examine_instance(copy, instance, full=False).usable
    for name in ("normal.png", "mask.png", "segmentation.png"):
        (copy / instance / name).unlink()
    assert examine_instance(copy, instance).usable


def test_pixels_that_cannot_be_decoded_are_told_as_such(copy: Path) -> None:
    path = copy / instances_of(copy)[0] / "normal.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)
    findings = examine_instance(copy, instances_of(copy)[0]).findings
    assert {finding.rule for finding in findings} == {"maps-decodable"}


def test_the_option_that_a_finding_names_makes_the_import_right(copy: Path, tmp_path: Path) -> None:
    instance = instances_of(copy)[1]
    K = read_meta(copy / instance / "meta.json")["intrinsics"].astype(float)
    depth, normal = read_depth(copy / instance / "depth.png"), read_normal(copy / instance / "normal.png")
    height, width = depth.shape
    np.save(tmp_path / "d.npy", depth)
    np.save(tmp_path / "n.npy", normal @ matrix_of("RUB").T.astype(np.float32))
    camera = (K[0, 0] * width, K[1, 1] * height, K[0, 2] * width - 0.5, K[1, 2] * height - 0.5)
    row = f"a,{copy / instance / 'image.jpg'},d.npy,n.npy,{','.join(map(str, camera))}"
    (tmp_path / "t.csv").write_text(f"name,image,depth,normal,fx,fy,cx,cy\n{row}\n")
    replace_normal(copy, instance, matrix_of("RUB"))
    (finding,) = found(copy, instance)
    axes = finding.fix.removeprefix("Import again with --normal-axes ").removesuffix(".")
    report = import_table(tmp_path / "t.csv", tmp_path / "out", normal_axes=axes)
    assert found(report.out_dir, "a") == []
    np.testing.assert_allclose(read_normal(report.out_dir / "a" / "normal.png"), normal, atol=1e-3)
