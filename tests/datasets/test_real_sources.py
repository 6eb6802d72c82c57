"""Every published source of the rgbd-folder layout imports with one command and reads back as its manifest says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from moge_core.cli import cli
from moge_core.datasets import validate_dataset
from moge_core.geometry import depth_map_to_point_map, intrinsics_to_fov
from moge_core.io import read_depth, read_meta

Points = npt.NDArray[np.float64]

COMMANDS = {
    "tum_rgbd/public": "--intrinsics 520.9,521.0,325.1,249.7 --depth-scale 5000",
    "icl_nuim_living_room/public": "--intrinsics 481.2,-480.0,319.5,239.5 --depth-scale 5000",
    "icl_livingroom1_clean/public": "--intrinsics 525,525,319.5,239.5 --depth-scale 1000",
    "open3d_livingroom1_simkinect/public": "--intrinsics camera_primesense.json --depth-scale 1000",
    "3dmatch_kinect/public": "--intrinsics camera-intrinsics.txt --depth-scale 1000 --invalid 0 --invalid 65535",
    "nyu_v2/public/nyu_demo": "--intrinsics 518.8579,519.46961,325.58245,253.73617 --depth-scale 1000",
    "nyu_v2/public/ch5": "--intrinsics 518,519,325.5,253.5 --depth-scale 1000 --depth rgbd/depth/*.pgm",
    "replica_office0/public": "--intrinsics cam_params.json --depth-scale 6553.5",
    "kitti_depth_png/public": "--intrinsics 707.0493,707.0493,604.0814,180.5066 --depth-scale 256",
}


@pytest.mark.parametrize("source", COMMANDS)
def test_a_real_source_imports_with_one_command(samples_dir: Path, tmp_path: Path, source: str) -> None:
    frames = [
        frame
        for frame in json.loads((samples_dir / "MANIFEST.json").read_text())
        if frame["image"] and frame["image"].startswith(f"{source}/")
    ]
    arguments = ["import", "rgbd-folder", str(samples_dir / source), "-o", str(tmp_path), *COMMANDS[source].split()]
    runner = CliRunner()
    result = runner.invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert runner.invoke(cli, ["index", str(tmp_path), "--strict"]).exit_code == 0
    assert validate_dataset(tmp_path) == []

    made = {}
    for path in tmp_path.rglob("meta.json"):
        meta = read_meta(path)
        made[f"{source}/{meta['source']['image']}"] = (path.parent, meta["intrinsics"])
    assert set(made) == {frame["image"] for frame in frames}
    for frame in frames:
        folder, intrinsics = made[frame["image"]]
        check_frame(read_depth(folder / "depth.png"), intrinsics, frame["expected"])


def check_frame(depth: npt.NDArray[np.float32], intrinsics: npt.NDArray[np.float32], expected: dict[str, Any]) -> None:
    known = np.isfinite(depth)
    assert depth.shape == tuple(expected["shape"])
    assert np.median(depth[known]) == pytest.approx(expected["zmed"], rel=0.005)
    assert known.mean() == pytest.approx(expected["valid"], rel=0.005)
    assert np.degrees(intrinsics_to_fov(intrinsics)[0]) == pytest.approx(expected["fovx"], rel=0.005)
    points = depth_map_to_point_map(depth, intrinsics)[known].astype(np.float64)
    expected_normal = np.array(expected["plane"]["normal"])
    expected_normal /= np.linalg.norm(expected_normal)
    first, num_first, rest = largest_plane(points)
    if angle_between(first, expected_normal) >= 2:
        # Of two planes of one size, the random sample decides which is the largest.
        first, num_second, _ = largest_plane(rest)
        assert num_first - num_second < 0.03 * len(points)
    assert angle_between(first, expected_normal) < 2


def angle_between(first: Points, second: Points) -> float:
    return float(np.degrees(np.arccos(min(1.0, abs(float(first @ second))))))


def largest_plane(points: Points) -> tuple[Points, int, Points]:
    """The plane that the most points (N, 3) are within 1 % of their depth of: unit normal, how many, and the others."""
    rng = np.random.default_rng(0)
    sample = points[rng.choice(len(points), min(len(points), 4000), replace=False)]
    corners = sample[rng.integers(len(sample), size=(1500, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    corners, normals = corners[lengths > 0], normals[lengths > 0] / lengths[lengths > 0, None]
    offsets = np.einsum("ij,ij->i", normals, corners[:, 0])
    votes = (np.abs(normals @ sample.T - offsets[:, None]) < 0.01 * sample[:, 2]).sum(axis=1)
    normal, offset = normals[votes.argmax()], offsets[votes.argmax()]
    for _ in range(5):
        near = np.abs(points @ normal - offset) < 0.01 * points[:, 2]
        centre = points[near].mean(axis=0)
        normal = np.linalg.eigh((points[near] - centre).T @ (points[near] - centre))[1][:, 0]
        offset = normal @ centre
    return normal, int(near.sum()), points[~near]
