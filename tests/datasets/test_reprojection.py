"""Where meta.json has poses, neighbouring frames must see one and the same world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import moge_core.datasets.refresh as refresh_module
from moge_core.datasets import index_dataset, validate_dataset
from moge_core.io import write_depth, write_image, write_meta

WIDTH, HEIGHT, FOCAL = 96, 72, 70.0
ROOM = np.array([2.0, 1.4, 3.0])


def look(yaw: float, position: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    c, s = np.cos(yaw), np.sin(yaw)
    pose = np.eye(4)
    pose[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    pose[:3, 3] = position
    return pose


def rays() -> npt.NDArray[np.float64]:
    u = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL
    v = (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) / FOCAL
    return np.stack([*np.meshgrid(u, v), np.ones((HEIGHT, WIDTH))], -1)


def depth_in_room(pose: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """z of the walls of a box around the origin, from inside."""
    directions = rays() @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        reach = (np.sign(directions) * ROOM - pose[:3, 3]) / directions
    return reach.min(axis=-1).astype(np.float32)


POSES = [look(0.12 * step, (0.25 * step - 0.5, 0.05 * step, -0.2 * step)) for step in range(5)]


def write_scene(root: Path, change: Any = lambda depth: depth, poses: list[Any] | None = None) -> None:
    rng = np.random.default_rng(0)
    for number, pose in enumerate(POSES):
        folder = root / "scene" / str(number)
        folder.mkdir(parents=True)
        write_image(folder / "image.jpg", rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        write_depth(folder / "depth.png", change(depth_in_room(pose)).astype(np.float32))
        intrinsics = [[FOCAL / WIDTH, 0, 0.5], [0, FOCAL / HEIGHT, 0.5], [0, 0, 1]]
        told = pose.tolist() if poses is None else poses[number]
        write_meta(folder / "meta.json", {"intrinsics": intrinsics, "depth_unit": 1.0, "pose": told})


def reprojecting(root: Path) -> list[str]:
    return [finding.evidence for finding in validate_dataset(root) if finding.rule == "reprojects"]


def test_index_and_validation_find_the_same_and_index_remembers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(tmp_path, lambda depth: depth / 5)
    first = index_dataset(tmp_path).findings
    assert [finding.evidence for finding in first if finding.rule == "reprojects"] == reprojecting(tmp_path) != []
    monkeypatch.setattr(refresh_module, "check_reprojection", lambda *_: pytest.fail("nothing has changed"))
    assert index_dataset(tmp_path).findings == first


def test_frames_that_see_one_world_are_left_in_peace(tmp_path: Path) -> None:
    write_scene(tmp_path)
    assert reprojecting(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda depth: depth * np.linalg.norm(rays(), axis=-1),
        lambda depth: depth / 5,
        lambda depth: depth.min() * depth.max() / depth,
    ],
    ids=["ray lengths", "a fifth", "disparity"],
)
def test_depth_that_does_not_fit_the_poses_is_told(tmp_path: Path, change: Any) -> None:
    write_scene(tmp_path, change)
    assert len(reprojecting(tmp_path)) >= 2


@pytest.mark.parametrize("pose", [None, "left", [[1, 0], [0, 1]], [[0.0] * 4] * 4], ids=str)
def test_poses_that_are_none_are_passed_by(tmp_path: Path, pose: Any) -> None:
    write_scene(tmp_path, poses=[pose] * len(POSES))
    assert reprojecting(tmp_path) == []
