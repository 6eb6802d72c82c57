"""Images and depth maps are paired by frame tokens, never by order."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

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


@pytest.mark.parametrize(
    ("images", "depths"),
    [
        (["kitchen/rgb/0.jpg"], ["bath/depth/0.png"]),
        (["kitchen/0.jpg"], ["bath/0_depth.png"]),
        (["rgb/kitchen/0.jpg"], ["depth/bath/0.png"]),
        (["kitchen_rgb_0.jpg"], ["bath_depth_0.png"]),
        (["kitchen/0.jpg"], ["bath/0.png"]),
        (["seq1/rgb/0.jpg"], ["seq2/depth/0.png"]),
        (["cam1/0.jpg"], ["cam2/depth/0.png"]),
        (["image_2/0.jpg"], ["depth_3/0.png"]),
        (["kitchen/rgb/0.jpg", "kitchen/rgb/1.jpg"], ["depth/0.png", "bath/depth/1.png"]),
        (["2/rgb/3.jpg"], ["depth3/2.png"]),
        (["rgb/2/1.jpg", "rgb/3/1.jpg"], ["depth2/1.png"]),
    ],
)
def test_a_folder_of_one_scene_never_pairs_with_anothers(images: list[str], depths: list[str]) -> None:
    with pytest.raises(DatasetError, match="frame token"):
        pair(images, depths)


def test_two_scenes_are_named_by_the_refusal() -> None:
    with pytest.raises(DatasetError, match=r"'kitchen' and all depth maps of 'bath'.*--image and --depth"):
        pair(["kitchen/rgb/0.jpg"], ["bath/depth/0.png"])


def test_a_number_in_the_folders_of_one_side_alone_is_told() -> None:
    found = pair(["image_2/0.jpg", "image_2/1.jpg"], ["depth/0.png", "depth/1.png"])
    assert [str(each.instance) for each in found.pairs] == ["0", "1"]
    assert any("number 2" in note for note in found.notes)
    with pytest.raises(DatasetError, match="frame token"):
        pair(["image_2/0.jpg", "image_3/0.jpg"], ["depth/0.png"])


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(1, 999), min_size=1, max_size=12), st.sets(st.integers(1, 999), min_size=1, max_size=12))
def test_digits_behind_a_point_are_decimals(images: set[int], depths: set[int]) -> None:
    # As Python prints them: 0.5 is 500 thousandths, and 0.05 are 50.
    names = [f"rgb/{number / 1000}.png" for number in images], [f"depth/{number / 1000}.png" for number in depths]
    if not images & depths:
        with pytest.raises(DatasetError, match="frame token"):
            pair(*names)
        return
    found = pair(*names).pairs
    assert {each.image.stem for each in found} == {str(number / 1000) for number in images & depths}
    assert all(each.image.stem == each.depth.stem for each in found)


def test_one_decimal_may_be_printed_in_two_ways() -> None:
    assert len(pair(["rgb/1548266469.84231.png"], ["depth/1548266469.842310.png"]).pairs) == 1
    assert len(pair(["rgb/5e-05.png", "rgb/0.1.png"], ["depth/0.00005.png", "depth/0.10000.png"]).pairs) == 2


def test_folders_that_differ_by_zeros_are_two_where_both_are_there() -> None:
    found = pair(["1/a/7.jpg", "01/a/7.jpg"], ["01/d/7.png"])
    assert [(str(each.image), str(each.depth)) for each in found.pairs] == [("01/a/7.jpg", "01/d/7.png")]
    assert len(pair(["rgb/seq1/7.jpg"], ["depth/seq01/7.png"]).pairs) == 1


def test_counts_that_are_set_apart_by_points_stay_apart() -> None:
    found = pair([f"{i}.{j}.jpg" for i in (1, 2) for j in range(12)], [f"1.{j}_depth.png" for j in (1, 10)])
    assert {(str(each.image), str(each.depth)) for each in found.pairs} == {
        ("1.1.jpg", "1.1_depth.png"),
        ("1.10.jpg", "1.10_depth.png"),
    }


def test_a_count_behind_a_point_is_no_shorter_decimal() -> None:
    found = pair([f"5.{j}.jpg" for j in range(1, 10)] + ["5.20.jpg"], ["5.9_depth.png", "5.10_depth.png"])
    assert [(str(each.image), str(each.depth)) for each in found.pairs] == [("5.9.jpg", "5.9_depth.png")]


SCENES = ("kitchen", "bath", "office2", "scene0000_00", "scene0000_01", "seq-01", "seq-02", "day/7", "normal_street")
IMAGE_KINDS = st.sampled_from(["rgb", "color", "image", "images", "Color", "frame", "rgb8", "photo"])
DEPTH_KINDS = st.sampled_from(["depth", "depths", "Depth", "depth_map", "sync_depth", "depth16", "gt"])
NUMBERINGS = st.sampled_from(
    ["{n}", "{n:06d}", "{x:.3f}", "{x}", "{s:.6f}", "{ns}", "frame-{n:04d}", "{h}", "{n}_{n:03d}"]
)
PLACES = st.sampled_from(
    [
        "{kind}/{scene}/{n}",
        "{scene}/{kind}/{n}",
        "{scene}/{n}_{kind}",
        "{scene}/{kind}_{n}",
        "{scene}/{kind}/{kind}_{n}",
        "{scene}/{n}/{kind}",
        "{scene}/{n}.{kind}",
        "{scene}_{n}_{kind}",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(SCENES), min_size=1, max_size=3, unique=True),
    st.lists(st.tuples(st.tuples(IMAGE_KINDS, DEPTH_KINDS), PLACES), min_size=3, max_size=3),
    NUMBERINGS,
    st.booleans(),
    st.sets(st.tuples(st.integers(0, 2), st.integers(1, 20), st.sampled_from([0, 1])), max_size=30),
    st.integers(1, 20),
    st.randoms(use_true_random=False),
)
def test_any_layout_pairs_by_truth_or_is_refused(
    scenes: list[str],
    styles: list[tuple[tuple[str, str], str]],
    numbering: str,
    is_mixed: bool,
    missing: set[tuple[int, int, int]],
    num_frames: int,
    random: Any,
) -> None:
    files: tuple[dict[str, tuple[str, int]], ...] = ({}, {})
    for index, scene in enumerate(scenes):
        kinds, place = styles[index if is_mixed else 0]
        for n in range(1, num_frames + 1):
            number = numbering.format(
                n=n, x=n / 20, s=1305031102.1 + n / 30, ns=1403636579763555584 + n * 50_000_000, h=f"{n * 7919:x}a1b2c3"
            )
            for side in (0, 1):
                if (index, n, side) not in missing:
                    path = place.format(kind=kinds[side], scene=scene, n=number)
                    files[side][path + (".jpg", ".png")[side]] = (scene, n)
    names = list(files[0]), list(files[1])
    for side in names:
        random.shuffle(side)
    if not all(names):
        return
    try:
        found = pair_by_frame(*([PurePosixPath(name) for name in side] for side in names), max_time_difference=0.02)
    except DatasetError:
        # Scenes of one layout whose kinds have no numbers are never refused where a frame has both its files.
        are_plain = not is_mixed and not any(sign.isdigit() for kind in styles[0][0] for sign in kind)
        assert not (are_plain and set(files[0].values()) & set(files[1].values()))
        return
    truth = {
        (image, depth) for image, of_image in files[0].items() for depth, of_depth in files[1].items()
        if of_image == of_depth
    }  # fmt: skip
    pairs = {(str(each.image), str(each.depth)) for each in found.pairs}
    assert pairs <= truth
    assert is_mixed or pairs == truth
    assert len({each.instance for each in found.pairs}) == len(pairs)


def test_sides_that_count_from_0_and_from_1_are_told() -> None:
    images = [f"rgb/{number}.png" for number in range(5)]
    (note,) = pair(images, [f"depth/{number + 1}.png" for number in range(5)]).notes
    assert "one numbered from 0 and the other from 1" in note
    assert not pair(images, [f"depth/{number}.png" for number in range(5)]).notes
    assert not pair(images, [f"depth/{number + 1}.png" for number in range(4)]).notes
    assert not pair(images, [f"depth/{number}.png" for number in (1, 2, 3, 4, 6)]).notes


def test_several_depth_maps_a_frame_that_are_no_kind_by_name_are_listed_to_choose_from() -> None:
    images = [f"rgb/{number}.png" for number in range(3)]
    depths = [f"depth_{kind}/{number}.png" for kind in ("filled", "holes") for number in range(3)]
    with pytest.raises(DatasetError) as refused:
        pair(images, depths)
    assert refused.value.fix == "Say which are meant: --depth 'depth_filled/*.png' or --depth 'depth_holes/*.png'."
