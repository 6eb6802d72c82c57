"""Samples with LiDAR, disparity or a table import with one documented command and read back as their manifest says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from test_real_sources import check_frame, largest_plane

from moge_core.cli.importing import import_group
from moge_core.geometry import depth_map_to_point_map
from moge_core.io import read_depth, read_meta


def run_import(*arguments: object) -> str:
    result = CliRunner().invoke(import_group, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def frames_of(samples_dir: Path, sample: str) -> dict[str, dict[str, Any]]:
    manifest = json.loads((samples_dir / "MANIFEST.json").read_text())
    return {frame["frame"]: frame for frame in manifest if frame["sample"] == sample}


def read_instance(folder: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    return read_depth(folder / "depth.png"), read_meta(folder / "meta.json")["intrinsics"]


def camera_height(depth: npt.NDArray[np.float32], intrinsics: npt.NDArray[np.float32]) -> float:
    """How far the camera is from the plane of the road near it; farther off, roads bend."""
    points = depth_map_to_point_map(depth, intrinsics)[np.isfinite(depth)].astype(np.float64)
    near = points[(points[:, 2] < 15) & (points[:, 1] > 0.8)]
    normal, _, _ = largest_plane(near)
    assert abs(normal[1]) > 0.99
    below = np.abs(near @ normal)
    heights = np.linspace(0.8, 3, 221)
    votes = [(np.abs(below - height) < 0.01 * near[:, 2]).sum() for height in heights]
    return float(heights[int(np.argmax(votes))])


@pytest.mark.parametrize(
    ("layout", "sample", "instances"),
    [
        ("kitti", "kitti_object_velodyne", {"000000": "training/image_2/000000", "000001": "training/image_2/000001"}),
        (
            "dgp",
            "dgp_ddad_style",
            {name: f"scene_01/{name}/15569195938415230" for name in ("CAMERA_01", "CAMERA_05")},
        ),
    ],
)
def test_lidar_of_a_real_drive_agrees_with_its_manifest_and_stands_on_the_road(
    samples_dir: Path, tmp_path: Path, layout: str, sample: str, instances: dict[str, str]
) -> None:
    output = run_import(layout, samples_dir / sample / "public", "-o", tmp_path / "out")
    assert '"label_type": "lidar"' in output
    assert '"depth_unit": 1.0' in output
    frames = frames_of(samples_dir, sample)
    assert set(frames) == set(instances)
    for frame, instance in instances.items():
        depth, intrinsics = read_instance(tmp_path / "out" / instance)
        check_frame(depth, intrinsics, frames[frame]["expected"])
        assert 1.3 <= camera_height(depth, intrinsics) <= 1.75


def test_the_motorcycle_with_its_doffs_agrees_with_its_manifest(samples_dir: Path, tmp_path: Path) -> None:
    command = "--left *_left.png --disparity *_disp.npz --baseline 0.193001 --doffs 31.086"
    camera = "994.978,994.978,311.193,254.877"
    source = samples_dir / "middlebury2014_motorcycle" / "public"
    output = run_import("stereo", source, "-o", tmp_path / "out", *command.split(), "--intrinsics", camera)
    assert '"depth_unit": 1.0' in output
    (frame,) = frames_of(samples_dir, "middlebury2014_motorcycle").values()
    check_frame(*read_instance(tmp_path / "out" / "motorcycle"), frame["expected"])


# Stored units a metre, values that mean unknown, and the intrinsics as published, digits beyond the manifest's.
TABLE = {
    "icl_livingroom1_clean": ("1000", "0", "525 525 319.5 239.5"),
    "open3d_livingroom1_simkinect": ("1000", "0", "525 525 319.5 239.5"),
    "tum_rgbd": ("5000", "0", "520.9 521.0 325.1 249.7"),
    "3dmatch_kinect": ("1000", "0 65535", "570.342205 570.342205 320 240"),
    "nyu_v2": ("1000", "0", ""),
    "replica_office0": ("6553.5", "0", "600 600 599.5 339.5"),
    "icl_nuim_living_room": ("5000", "0", "481.2 -480.0 319.5 239.5"),
    "kitti_depth_png": ("256", "0", "707.0493 707.0493 604.0814 180.5066"),
}


def test_one_table_over_eight_real_sources_agrees_with_their_manifest(samples_dir: Path, tmp_path: Path) -> None:
    frames = {
        f"{sample}/{frame.replace(' ', '_')}": (record, TABLE[sample])
        for sample in TABLE
        for frame, record in frames_of(samples_dir, sample).items()
    }
    table = tmp_path / "frames.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "image", "depth", "fx", "fy", "cx", "cy", "scale", "invalid"])
        for name, (record, (scale, invalid, camera)) in frames.items():
            files = [str(samples_dir / record[key]) for key in ("image", "depth")]
            writer.writerow([name, *files, *(camera.split() or record["expected"]["K"]), scale, invalid])
    output = run_import("table", table, "-o", tmp_path / "out", "--strict")
    assert f"{len(frames)} instances written" in output
    assert "negative fy" in output
    for name, (record, _) in frames.items():
        check_frame(*read_instance(tmp_path / "out" / name), record["expected"])
    assert "0 instances written" in run_import("table", table, "-o", tmp_path / "out")
