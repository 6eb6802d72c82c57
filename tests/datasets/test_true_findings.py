"""What validation tells is true: good data of every kind is left in peace; a fault is told once, with its remedy."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from planted_faults import Depth, no_return, of_camera, of_depth, sparse, with_sky
from real_frames import NUM_FRAMES, import_real_frames, instances_below
from walks import change_walk, write_walk

from moge_core.datasets import RULES, Finding, render_sample_scenes, validate_dataset
from moge_core.datasets.validation import examine_instance
from moge_core.io import read_depth

# Options that the importers of depth files share.
VOCABULARY = {
    *("--kind", "--scale", "--offset", "--encoding", "--invalid", "--infinite", "--infinite-from", "--depth-unit"),
    *("--depth-array", "--normal-axes", "--max-depth", "--intrinsics", "--intrinsics-size"),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rooms and outdoor scenes, untouched."""
    folder = tmp_path_factory.mktemp("scenes")
    render_sample_scenes(folder, 12, 23, size=(320, 240))
    return folder


def changed(scenes: Path, tmp_path: Path, instance: str, change: Callable[[Path], None]) -> list[Finding]:
    """Findings of one instance after a change."""
    folder = Path(shutil.copytree(scenes / instance, tmp_path / "data" / "x"))
    change(folder)
    return list(examine_instance(tmp_path / "data", "x").findings)


@pytest.mark.slow
def test_real_frames_that_are_imported_rightly_are_left_in_peace(samples_dir: Path, tmp_path: Path) -> None:
    datasets = import_real_frames(samples_dir, tmp_path)
    assert len(instances_below(*datasets)) == NUM_FRAMES
    for dataset in datasets:
        assert validate_dataset(dataset) == []
    # Two samples do have one picture in common.
    assert {finding.rule for finding in validate_dataset(tmp_path)} <= {"not-duplicated"}


@pytest.mark.parametrize("share", [0.002, 0.005])
def test_single_returns_of_lidar_show_neither_shape_nor_edges(scenes: Path, tmp_path: Path, share: float) -> None:
    for number, instance in enumerate(instances_below(scenes)):
        name = instance.relative_to(scenes).as_posix()
        found = changed(scenes, tmp_path / str(number), name, of_depth(lambda depth, _: sparse(depth, share)))
        assert not {one.rule for one in found} & {"registered", "depth-not-disparity", "depth-not-inverted"}


def test_a_camera_on_a_table_or_a_phone_held_close_is_plausible(scenes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for instance in (scenes / "outdoor").iterdir():
        shutil.copytree(instance, data / instance.name)
        of_depth(lambda depth, _: depth / 8)(data / instance.name)
    assert "unit-plausible" not in {finding.rule for finding in validate_dataset(data)}


@pytest.mark.parametrize("sky", [np.inf, np.nan])
def test_the_last_rows_of_a_plain_before_its_horizon_are_no_sky(scenes: Path, tmp_path: Path, sky: float) -> None:
    def plain(depth: Depth, _: object) -> Depth:
        below = np.arange(depth.shape[0])[:, None] - 119.5
        z = np.where(below > 0, 10 * 300 / np.where(below > 0, below, 1), sky)
        return np.broadcast_to(z, depth.shape).astype(np.float32)

    instance = instances_below(scenes / "outdoor")[0].relative_to(scenes).as_posix()
    found = changed(scenes, tmp_path, instance, of_depth(plain))
    assert "sky-infinite" not in {one.rule for one in found}


def test_the_remedy_of_depth_that_ends_at_a_far_plane_keeps_the_sky_above_it(scenes: Path, tmp_path: Path) -> None:
    def clipped(depth: Depth, _: object) -> Depth:
        known = depth[np.isfinite(depth)]
        return np.minimum(np.where(np.isinf(depth), np.float32(1e9), depth), np.quantile(known, 0.95))

    under_the_sky = [
        path
        for path in instances_below(scenes / "outdoor")
        if float(np.isinf(read_depth(path / "depth.png")[0]).mean()) > 0.9
    ]
    assert under_the_sky
    for number, instance in enumerate(under_the_sky):
        name = instance.relative_to(scenes).as_posix()
        found = changed(scenes, tmp_path / str(number), name, of_depth(clipped))
        (wall,) = [one for one in found if one.rule in {"depth-unsaturated", "sky-infinite"}]
        assert wall.fix.startswith("Import again with --infinite-from ")


def test_a_table_top_in_whole_millimetres_is_no_picture_of_8_bits(scenes: Path, tmp_path: Path) -> None:
    def on_a_table(step: float) -> Callable[[Depth, object], Depth]:
        def stored(depth: Depth, _: object) -> Depth:
            known = depth[np.isfinite(depth)]
            near, far = np.quantile(known, 0.05), np.quantile(known, 0.9)
            top = 0.3 + (depth - near) / (far - near) * 0.15
            return np.where((depth >= near) & (depth <= far), np.rint(top / step) * step, np.nan).astype(np.float32)

        return stored

    for number, instance in enumerate(instances_below(scenes / "room")):
        name = instance.relative_to(scenes).as_posix()
        for step, is_coarse in ((0.001, False), (0.0013, True)):
            found = changed(scenes, tmp_path / f"{number} {step}", name, of_depth(on_a_table(step)))
            assert ("depth-levels" in {one.rule for one in found}) == is_coarse


@pytest.mark.parametrize("factor", [5.0, 12.0, 1000.0, 1 / 5])
def test_no_instance_is_told_twice_by_one_rule(scenes: Path, tmp_path: Path, factor: float) -> None:
    data = Path(shutil.copytree(scenes / "room", tmp_path / "data"))
    for instance in instances_below(data):
        of_depth(lambda depth, _: depth * np.float32(factor))(instance)
    told = Counter((finding.rule, finding.instance) for finding in validate_dataset(data))
    assert any(rule == "unit-plausible" for rule, _ in told)
    assert set(told.values()) == {1}


@pytest.mark.parametrize(
    "names",
    [
        [f"drive/{frame:06d}_cam{camera}" for frame in range(3) for camera in range(4)],
        [f"drive/{4 * frame + camera:06d}" for frame in range(3) for camera in range(4)],
        [
            f"drive/{frame:03d}/CAM_{name}"
            for frame in range(2)
            for name in ("FRONT", "LEFT", "RIGHT", "REAR", "SIDE", "BACK")
        ],
    ],
    ids=["in names", "interleaved", "a folder a frame"],
)
def test_a_rig_has_several_cameras_and_that_is_no_fault(scenes: Path, tmp_path: Path, names: list[str]) -> None:
    source = instances_below(scenes)[0]
    for number, name in enumerate(names):
        shutil.copytree(source, tmp_path / name)
        if number % 4 == 3 if len(names[0].split("/")) == 2 else name.endswith("BACK"):
            of_camera(lambda K, _: K * np.array([[0.6, 1, 1], [1, 0.6, 1], [1, 1, 1]]))(tmp_path / name)
    assert "intrinsics-consistent" not in {finding.rule for finding in validate_dataset(tmp_path)}


def test_renders_beside_lidar_of_another_size_are_no_failed_scans(scenes: Path, tmp_path: Path) -> None:
    for instance in sorted((scenes / "room").iterdir()):
        shutil.copytree(instance, tmp_path / "a" / instance.name / "view")
    render_sample_scenes(tmp_path / "b", 2, 1, size=(400, 120))
    for instance in instances_below(tmp_path / "b"):
        of_depth(lambda depth, _: sparse(depth, 0.003))(instance)
    assert "density-consistent" not in {finding.rule for finding in validate_dataset(tmp_path)}


@pytest.mark.parametrize("where", ["pixels", "blobs", "hole", "side"])
def test_infinity_that_is_no_sky_is_told_and_unknown_is_the_remedy(scenes: Path, tmp_path: Path, where: str) -> None:
    for number, instance in enumerate(("room/000004", "outdoor/000003")):
        found = changed(scenes, tmp_path / str(number), instance, of_depth(no_return(where)))
        (finding,) = [one for one in found if one.rule == "infinity-is-sky"]
        assert "--invalid inf" in finding.fix


def farther_than(depth: Depth, metres: float) -> Depth:
    return np.where(depth > metres, np.float32(np.inf), depth)


def test_a_wall_beyond_the_range_of_the_sensor_is_no_sky(scenes: Path, tmp_path: Path) -> None:
    rooms = instances_below(scenes / "room")
    told = 0
    for number, instance in enumerate(rooms):
        name = instance.relative_to(scenes).as_posix()
        change = of_depth(lambda depth, _: farther_than(depth, float(np.nanquantile(depth[np.isfinite(depth)], 0.8))))
        told += any(one.rule == "infinity-is-sky" for one in changed(scenes, tmp_path / str(number), name, change))
    assert told >= len(rooms) - 1


@pytest.mark.parametrize("value", [1e4, 655.35, 65.535, 1e9])
def test_a_huge_constant_over_the_upper_part_is_offered_as_infinitely_far(
    scenes: Path, tmp_path: Path, value: float
) -> None:
    # The format spans five decades at most; what is nearer than a thousandth of the constant is left out.
    def plant(depth: Depth, _: Path) -> Depth:
        return with_sky(np.where(np.isinf(depth), np.nan, depth), min(value, 9e4 * float(np.nanmin(depth))))

    found = changed(scenes, tmp_path, "outdoor/000003", of_depth(plant))
    (finding,) = [one for one in found if one.rule in {"sky-infinite", "marker-not-depth"}]
    assert "--infinite" in finding.fix
    assert "--invalid" not in finding.fix


def test_a_marker_in_specks_is_offered_as_unknown(scenes: Path, tmp_path: Path) -> None:
    def plant(depth: Depth, folder: Path) -> Depth:
        return np.where(np.isinf(no_return("blobs")(depth, folder)), np.float32(65.535), depth)

    (finding,) = [
        one for one in changed(scenes, tmp_path, "room/000004", of_depth(plant)) if one.rule == "marker-not-depth"
    ]
    assert "--invalid 65535" in finding.fix


def test_the_remedy_for_sky_never_makes_it_unknown() -> None:
    assert "--infinite" in RULES["sky-infinite"].fix
    assert "--invalid" not in RULES["sky-infinite"].fix


def test_remedies_name_options_that_importers_have() -> None:
    named = {option for rule in RULES.values() for option in re.findall(r"--[a-z][a-z-]*", rule.fix)}
    assert named - VOCABULARY <= {"--depth", "--release"}


@pytest.mark.parametrize(
    ("factors", "told"),
    [
        ({"scale": 2.0}, "depth 0.5 times"),
        ({"scale": 0.5}, "depth 2 times"),
        ({"focal": 1.3}, "focal length 0.77 times"),
        ({"focal": 0.7}, "focal length 1.43 times"),
    ],
    ids=str,
)
def test_frames_with_poses_tell_a_wrong_unit_and_a_wrong_focal_length(
    tmp_path: Path, factors: dict[str, float], told: str
) -> None:
    for index in (0, 4):
        write_walk(tmp_path / str(index), 2024, index, frames=5)
    assert "reprojects" not in {finding.rule for finding in validate_dataset(tmp_path)}
    change_walk(tmp_path, **factors)
    findings = [finding for finding in validate_dataset(tmp_path) if finding.rule == "reprojects"]
    assert {finding.instance[0] for finding in findings} == {"0", "4"}
    assert len({finding.instance for finding in findings}) == len(findings)
    assert any(told in finding.evidence for finding in findings)
