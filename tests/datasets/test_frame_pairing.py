"""Images and depth maps are paired by frame tokens, never by order."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.datasets.importers.pairing import Pairing, pair_by_frame
from moge_core.errors import DatasetError


def pair(images: list[str], depths: list[str]) -> Pairing:
    return pair_by_frame([PurePosixPath(name) for name in images], [PurePosixPath(name) for name in depths])


@pytest.mark.parametrize(
    ("image", "depth", "instance"),
    [
        ("ch7/1.png", "ch7/1_depth.png", "ch7/1"),
        ("color/1.png", "depth/1.pgm", "1"),
        ("rgb/rgb_00050.jpg", "depth/sync_depth_00050.png", "00050"),
        ("results/frame000000.jpg", "results/depth000000.png", "results/000000"),
        ("seq-01/frame-000116.color.png", "seq-01/frame-000116.depth.png", "seq-01/frame-000116"),
        ("scene0/color/10.jpg", "scene0/depth/10.png", "scene0/10"),
        ("d/image_02/data/0005.png", "d/proj_depth/groundtruth/image_02/0005.png", "d/image_02/0005"),
        ("kitchen.png", "kitchen_depth.png", "kitchen"),
        ("a/00007.jpg", "b/7.png", "00007"),
        ("rgb/küche.jpg", "depth/küche.png", "küche"),
    ],
)
def test_usual_layouts_pair_and_get_plain_names(image: str, depth: str, instance: str) -> None:
    (found,) = pair([image], [depth]).pairs
    assert (str(found.image), str(found.depth), str(found.instance)) == (image, depth, instance)


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.integers(0, 10**6), min_size=1, max_size=20),
    st.sets(st.integers(0, 10**6), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_a_missing_frame_never_shifts_the_others(images: set[int], depths: set[int], random: object) -> None:
    image_names = [f"rgb/frame{number:06d}.jpg" for number in images]
    depth_names = [f"depth/{number}.png" for number in depths]
    random.shuffle(image_names)  # type: ignore[attr-defined]
    if not images & depths:
        with pytest.raises(DatasetError, match="frame token"):
            pair(image_names, depth_names)
        return
    found = pair(image_names, depth_names)
    assert {int(each.depth.stem) for each in found.pairs} == images & depths
    assert all(int(each.image.stem[5:]) == int(each.depth.stem) for each in found.pairs)
    assert len(found.lone_images) == len(images - depths)
    assert len(found.lone_depths) == len(depths - images)


@pytest.mark.parametrize(
    ("images", "depths"),
    [
        (["1.png"], ["2_depth.png"]),
        (["kitchen.png"], ["bath_depth.png"]),
        (["b_1.png", "c_1.png"], ["d_1_depth.png", "e_1_depth.png"]),
        (["rgb/1305031102.175304.png"], ["depth/1305031102.160407.png"]),
    ],
)
def test_files_of_different_frames_are_not_paired(images: list[str], depths: list[str]) -> None:
    with pytest.raises(DatasetError, match="frame token"):
        pair(images, depths)


def test_two_images_for_one_depth_map_are_ambiguous_and_named() -> None:
    with pytest.raises(DatasetError, match=r"rgb_1\.png and rgb_01\.png: .*--image"):
        pair(["rgb_1.png", "rgb_01.png"], ["1.png"])
    with pytest.raises(DatasetError, match="2 depth maps"):
        pair(["1.jpg", "2.jpg"], ["1.png", "01.png", "2.png"])


def test_equal_frame_numbers_in_different_scenes_stay_apart() -> None:
    found = pair([f"s{i}/rgb/0.jpg" for i in range(3)], [f"s{i}/depth/0.png" for i in range(2)])
    assert [str(each.instance) for each in found.pairs] == ["s0/0", "s1/0"]
    assert [str(path) for path in found.lone_images] == ["s2/rgb/0.jpg"]
