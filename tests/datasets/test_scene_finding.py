"""Scenes are found from folders, records, names, poses and, last, pictures; in doubt instances are one scene."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moge_core.datasets import likeness, render_sample_scenes
from moge_core.datasets.scene_finding import find_scenes
from moge_core.datasets.scene_names import parse_frame_name
from moge_core.io import read_image, write_image

Write = Callable[..., Path]
NOWHERE = Path("/nonexistent")
NUMBERS = [f"{number:04d}" for number in range(1, 212)]


def scenes_of(instances: list[str], root: Path = NOWHERE) -> set[frozenset[str]]:
    """The scenes as sets, found in any order of the instances."""
    found = find_scenes(root, instances)
    shuffled = random.Random(0).sample(instances, len(instances))
    assert dict(find_scenes(root, shuffled).scene_of) == dict(found.scene_of)
    return {frozenset(members) for members in found.members().values()}


@pytest.mark.parametrize(
    "instances",
    [
        NUMBERS,
        [f"seq/{number}" for number in NUMBERS],
        [f"frame-{number}.color" for number in NUMBERS],
        [f"kitchen/cam{camera}/{number}" for camera in (0, 1) for number in NUMBERS],
        [f"cam{camera}/{number}" for camera in (0, 1) for number in NUMBERS],
        [f"left/kitchen/{number}" for number in NUMBERS] + [f"right/kitchen/{number}" for number in NUMBERS],
        [f"{number}_{side}" for side in ("left", "right") for number in NUMBERS],
        [f"image_0{camera}/{number}" for camera in (2, 3) for number in NUMBERS],
        [f"{number}/color" for number in NUMBERS],
        [f"{1305031102.1 + number / 30:.6f}" for number in range(90)],
        [f"cam{camera}/{1600000000000 + 33 * number + 7 * camera}" for camera in (0, 1) for number in range(90)],
        [f"frame_{10 * number:05d}" for number in range(40)],
        [f"part{int(number) // 50}/{number}" for number in NUMBERS],
    ],
    ids=lambda names: names[-1],
)
def test_one_video_is_one_scene_however_its_frames_and_cameras_are_named(instances: list[str]) -> None:
    assert scenes_of(instances) == {frozenset(instances)}


@pytest.mark.parametrize(
    ("instances", "number"),
    [
        ([f"{scene}/{number}" for scene in "abc" for number in NUMBERS], 3),
        ([f"{scene}/cam{camera}/{number}" for scene in "ab" for camera in "01" for number in NUMBERS], 2),
        ([f"{room}/seq-0{seq}/frame-{number}" for room in ("chess", "fire") for seq in "12" for number in NUMBERS], 2),
        ([f"chess/seq-0{seq}/frame-{number}" for seq in "12" for number in NUMBERS], 2),
        ([f"train/seq-0{seq}/{number}" for seq in "123" for number in NUMBERS], 3),
        ([f"scene000{scene}_0{scan}/{number}" for scene in "12" for scan in "01" for number in NUMBERS], 2),
        ([f"office/Hard/P00{seq}/{number}" for seq in "12" for number in NUMBERS] + ["barn/Easy/P000/1"], 2),
        ([f"{room}_{number}" for room in ("hall", "attic") for number in NUMBERS], 2),
        (["kitchen", "forest", "harbour", "street"], 4),
        ([f"sequences/0{seq}/{number}" for seq in "012" for number in NUMBERS], 3),
        ([*NUMBERS, *(f"other/{number}" for number in NUMBERS)], 2),
    ],
)
def test_folders_and_families_of_names_are_scenes(instances: list[str], number: int) -> None:
    assert len(scenes_of(instances)) == number


def test_what_was_rendered_one_by_one_is_a_scene_each(tmp_path: Path) -> None:
    names = render_sample_scenes(tmp_path, 6, 3, size=(48, 36))
    assert scenes_of(names, tmp_path) == {frozenset([name]) for name in names}
    assert len(scenes_of([*names, "video/0001", "video/0002"], tmp_path)) == 7


@pytest.mark.parametrize(
    ("images", "number"),
    [
        ({"0001": "houseA/rgb/0001.png", "0002": "houseA/rgb/0002.png", "0003": "houseB/rgb/0001.png"}, 2),
        ({"0001": "photos/kitchen.jpg", "0002": "photos/forest.jpg", "0003": "photos/harbour.jpg"}, 3),
        ({"x": "rgb/0001.png", "y": "rgb/0002.png", "z": "rgb/0003.png"}, 1),
        ({"x": "0001/color.png", "y": "0002/color.png", "z": "0003/color.png"}, 1),
        ({"0001": "nyu.mat#1", "0002": "nyu.mat#2", "0003": "nyu.mat#3"}, 1),
    ],
)
def test_import_records_tell_what_the_names_of_instances_do_not(
    data: Path, write_instance: Write, images: dict[str, str], number: int
) -> None:
    for name, image in images.items():
        write_instance(name, meta={"source": {"importer": "table", "image": image, "depth": "x", "digest": "y"}})
    assert len(scenes_of(list(images), data)) == number


def test_names_without_numbers_but_with_poses_are_one_reconstruction_held_out_by_place(
    data: Path, write_instance: Write
) -> None:
    names = ["q", "b", "x", "d", "e"]
    for place, name in enumerate(names):
        pose = np.eye(4)
        pose[0, 3] = place**1.1
        write_instance(name, meta={"pose": pose.tolist()})
    assert len(scenes_of(names, data)) == 1
    video = find_scenes(data, names).video(".", names)
    ordered = sorted(names, key=lambda name: video.place_of[name])
    assert ordered in (names, names[::-1])


def picture(seed: int, shift: int = 0) -> Any:
    """A window of 96x72 pixels of a large random picture; with a small shift it is nearly the same."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (4, 10, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((24, 24, 1), np.uint8))[:72, shift : shift + 96])


def test_pictures_decide_where_names_do_not(data: Path, write_instance: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    burst = {name: picture(1, shift) for shift, name in enumerate(("qa", "bd", "xe"))}
    others = {name: picture(seed) for seed, name in enumerate(("forest", "harbour", "street", "car"), start=2)}
    for name, image in (burst | others).items():
        write_instance(name, image=image, depth=np.ones(image.shape[:2], np.float32))
    assert scenes_of([*burst, *others], data) == {frozenset(burst), *(frozenset([name]) for name in others)}
    monkeypatch.setattr(likeness, "MAX_PICTURES", 2)
    assert len(find_scenes(data, [*burst, *others]).members()) >= 5, "no more than so many are looked at"


def test_numbers_with_holes_are_a_video_or_photographs_as_their_pictures_say(data: Path, write_instance: Write) -> None:
    rng = np.random.default_rng(0)
    numbers = np.cumsum(rng.integers(3, 400, 14)).tolist()
    for kind in ("video", "photos"):
        for place, number in enumerate(numbers):
            image = picture(0, place) if kind == "video" else picture(place)
            write_instance(f"{kind}/IMG_{number}", image=image, depth=np.ones(image.shape[:2], np.float32))
    for kind, expected in (("video", 1), ("photos", 14)):
        assert len(scenes_of([f"IMG_{number}" for number in numbers], data / kind)) == expected
    assert len(scenes_of([f"IMG_{number}" for number in numbers], NOWHERE)) == 1, "nobody can tell: one scene"
    assert len(scenes_of([f"IMG_{number}" for number in numbers[:5]], data / "photos")) == 1, "too few to tell"


def test_frames_far_apart_of_a_real_sequence_are_alike_and_different_rooms_are_not(
    samples_dir: Path, data: Path
) -> None:
    """Corners tell what thumbnails cannot."""
    rooms = {
        "icl": [samples_dir / "icl_nuim_living_room/public/color" / f"{number}.png" for number in (1, 2, 3)],
        "nyu": [samples_dir / "nyu_v2/public/nyu_demo/rgb" / f"rgb_000{number}.jpg" for number in ("00", "50")],
        "match": [samples_dir / "3dmatch_kinect/public/seq-01" / "frame-000000.color.png"],
        "tum": [samples_dir / "tum_rgbd/public/ch7/1.png"],
    }
    grey = {}
    for room, paths in rooms.items():
        for path in paths:
            folder = data / f"{room}{path.stem}"
            folder.mkdir()
            write_image(folder / "image.jpg", read_image(path))
            found = likeness._grey(data, folder.name)
            assert found is not None
            grey[folder.name] = found
    names = sorted(grey)
    shared = {
        (one, other)
        for one in names
        for other in names
        if one < other and likeness._share_corners(grey[one], grey[other])
    }
    assert ("icl1", "icl3") in shared
    assert all(one[:3] == other[:3] for one, other in shared)


@pytest.mark.parametrize(
    ("path", "place", "number", "stamp"),
    [
        ("chess/seq-01/frame-000116", "chess/seq-01", 116, None),
        ("rgb/1305031102.175304", "", 1305031102.175304, 1305031102.175304),
        ("scene/CAM_FRONT/n015__CAM_FRONT__1532402927612460", "scene", 1532402927612460, 1532402927.61246),
        ("42444949_116.733", "", 116.733, 116.733),
        ("IMG_20230101_120000", "", 1672574400, 1672574400),
        ("frame.0001", "", 1, None),
        ("0001/color", "", 1, None),
        ("kitchen", "", None, None),
        ("front_yard/0001", "front_yard", 1, None),
    ],
)
def test_names_are_taken_apart(path: str, place: str, number: float | None, stamp: float | None) -> None:
    parsed = parse_frame_name(path)
    assert (parsed.place, parsed.number, parsed.stamp_s) == (place, number, stamp)
