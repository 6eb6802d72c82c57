"""Folders of frames as people have them pair without a pattern, and say what they took for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from moge_core.cli.importing import import_group
from moge_core.datasets.importers.frame_layouts import Frames, pair_frames
from moge_core.datasets.importers.passed_by import kind_by_names
from moge_core.datasets.importers.source_files import find_sources
from moge_core.datasets.importers.stamps import MAX_TIME_DIFFERENCE_S
from moge_core.errors import DatasetError
from moge_core.io import read_depth, read_meta

# What a file holds, by the first letters of what a layout below says of it.
PICTURE = np.zeros((4, 6, 3), np.uint8)
CONTENTS = {
    "rgb": PICTURE,
    "grey8": PICTURE[..., 0],
    "grey16": PICTURE[..., 0].astype(np.uint16),
    "rgb16": PICTURE.astype(np.uint16),
    "map": np.ones((4, 6), np.float32),
    "vectors": np.ones((4, 6, 3), np.float32),
    "boxes": np.zeros(2, dtype=[("id", "<u4"), ("x_min", "<i4")]),
    "matrix": np.eye(4),
}


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = CONTENTS.get(content)
    if values is None:
        path.write_text(content)
    elif path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".exr":
        path.write_bytes(b"\x76\x2f\x31\x01")
    else:
        suffix = {".jpeg": ".jpg", ".jpg": ".jpg", ".tiff": ".tiff"}.get(path.suffix.lower(), ".png")
        path.write_bytes(cv2.imencode(suffix, values)[1].tobytes())


def frames_of(source: Path, images: str | None = None, depths: str | None = None) -> Frames:
    sources = find_sources(source, images, depths, exclude=source / "out")
    return pair_frames(source, sources, patterns=(images, depths), max_time_difference=MAX_TIME_DIFFERENCE_S)


def found_in(frames: Frames) -> dict[str, tuple[str, str]]:
    return {str(pair.instance): (str(pair.image), str(pair.depth)) for pair in frames.pairing.pairs}


NUMBERS = ("0", "7", "12")
# Of each layout: its image, its depth map, the instance of the two, and what else lies there. {n} is a number, {i} the
# number without zeros; {t} and {u} are stamps of colour and of depth.
LAYOUTS: Mapping[str, tuple[str, str, str, Sequence[tuple[str, str]]]] = {
    "a folder per kind": ("rgb/{n}.jpg", "depth/{n}.png", "{n}", ()),
    "a folder per kind in each scene": ("kitchen/rgb/{n}.jpg", "kitchen/depth/{n}.png", "kitchen/{n}", ()),
    "a folder per scene in each kind": ("rgb/kitchen_2/{n}.jpg", "depth/kitchen_2/{n}.png", "kitchen_2/{n}", ()),
    "a folder per frame": ("{n}/color.png", "{n}/depth.png", "{n}", ()),
    "a folder per frame in each scene": ("lab/{n}/rgb.png", "lab/{n}/depth.png", "lab/{n}", ()),
    "this project's own": (
        "house/{n}/image.jpg",
        "house/{n}/depth.png",
        "house/{n}",
        (
            ("house/{n}/normal.png", "rgb16"),
            ("house/{n}/mask.png", "grey8"),
            ("house/{n}/segmentation.png", "grey16"),
            ("house/{n}/meta.json", "{{}}"),
        ),
    ),
    "suffixes": ("{n}_rgb.png", "{n}_depth.png", "{n}", (("{n}_mask.png", "grey8"),)),
    "prefixes": ("rgb_{n}.png", "depth_{i}.png", "{n}", (("normal_{n}.png", "rgb"),)),
    "numbers inside constant words": (
        "leftImg8bit/aachen/aachen_{n}_leftImg8bit.png",
        "depth16/aachen/aachen_{n}_depth16.png",
        "aachen/aachen_{n}_8",
        (),
    ),
    "formats in folders": ("rgb8/{n}.png", "depth16/{n}.png", "{n}", ()),
    "sizes in folders": ("color_640x480/{n}.png", "depth_320x240/{n}.png", "{n}", ()),
    "hashes": ("0f3ab{n}2dd_rgb.png", "0f3ab{n}2dd_depth.png", "0f3ab{n}2dd", ()),
    "upper case": ("Color/{n}.JPEG", "Depth/{n}.PNG", "{n}", ()),
    "double suffixes": ("images/frame{n}.jpg", "maps/frame{n}.jpg.geometric.png", "frame{n}", ()),
    "left and right": ("left/{n}.png", "depth/{n}.png", "left/{n}", (("right/{n}.png", "rgb"),)),
    "Stray Scanner": ("rgb/{n}.jpg", "depth/{n}.png", "{n}", (("confidence/{n}.png", "grey8"),)),
    "3D Scanner App": (
        "frame_{n}.jpg",
        "depth_{n}.png",
        "{n}",
        (("conf_{n}.png", "grey8"), ("frame_{n}.json", "{{}}"), ("thumb_00.jpg", "rgb")),
    ),
    "ScanNet": (
        "scene0000_00/color/{i}.jpg",
        "scene0000_00/depth/{i}.png",
        "scene0000_00/{i}",
        (
            ("scene0000_00/label-filt/{i}.png", "grey16"),
            ("scene0000_00/instance-filt/{i}.png", "grey8"),
            ("scene0000_00/pose/{i}.txt", "1 0 0 0"),
        ),
    ),
    "ScanNet++ iPhone": (
        "iphone/rgb/frame_{n}.jpg",
        "iphone/depth/frame_{n}.png",
        "iphone/frame_{n}",
        (("iphone/rgb_masks/frame_{n}.png", "grey8"),),
    ),
    "ScanNet++ DSLR": (
        "dslr/resized_images/DSC{n}.JPG",
        "dslr/render_depth/DSC{n}.png",
        "dslr/DSC{n}",
        (("dslr/resized_anon_masks/DSC{n}.png", "grey8"),),
    ),
    "nerfstudio": (
        "images/frame_{n}.png",
        "depths/frame_{n}.png",
        "frame_{n}",
        (("masks/frame_{n}.png", "grey8"), ("transforms.json", "{{}}")),
    ),
    "7-Scenes": (
        "chess/seq-01/frame-{n}.color.png",
        "chess/seq-01/frame-{n}.depth.png",
        "chess/seq-01/frame-{n}",
        (("chess/seq-01/frame-{n}.pose.txt", "1"),),
    ),
    "BlenderProc's BOP": (
        "train_pbr/000000/rgb/{n}.jpg",
        "train_pbr/000000/depth/{n}.png",
        "train_pbr/000000/{n}",
        (
            ("train_pbr/000000/mask/{n}_000000.png", "grey8"),
            ("train_pbr/000000/mask_visib/{n}_000000.png", "grey8"),
            ("train_pbr/000000/scene_camera.json", "{{}}"),
        ),
    ),
    "Kubric": (
        "rgba_{n}.png",
        "depth_{n}.tiff",
        "{n}",
        (
            ("segmentation_{n}.png", "grey8"),
            ("normal_{n}.png", "rgb16"),
            ("object_coordinates_{n}.png", "rgb16"),
            ("forward_flow_{n}.png", "rgb16"),
            ("backward_flow_{n}.png", "rgb16"),
        ),
    ),
    "VKITTI 2": (
        "Scene01/clone/frames/rgb/Camera_0/rgb_{n}.jpg",
        "Scene01/clone/frames/depth/Camera_0/depth_{n}.png",
        "Scene01/clone/frames/Camera_0/{n}",
        (
            ("Scene01/clone/frames/classSegmentation/Camera_0/classgt_{n}.png", "rgb"),
            ("Scene01/clone/frames/instanceSegmentation/Camera_0/instancegt_{n}.png", "grey8"),
            ("Scene01/clone/frames/forwardFlow/Camera_0/flow_{n}.png", "rgb16"),
        ),
    ),
    "Mid-Air": (
        "Kite/sunny/color_left/trajectory_0000/{n}.JPEG",
        "Kite/sunny/depth/trajectory_0000/{n}.PNG",
        "Kite/sunny/left/trajectory_0000/{n}",
        (
            ("Kite/sunny/color_right/trajectory_0000/{n}.JPEG", "rgb"),
            ("Kite/sunny/color_down/trajectory_0000/{n}.JPEG", "rgb"),
            ("Kite/sunny/normals/trajectory_0000/{n}.PNG", "rgb"),
            ("Kite/sunny/segmentation/trajectory_0000/{n}.PNG", "grey8"),
            ("Kite/sunny/stereo_disparity/trajectory_0000/{n}.PNG", "grey16"),
            ("Kite/sunny/stereo_occlusion/trajectory_0000/{n}.PNG", "grey8"),
        ),
    ),
    "TartanAir": (
        "P001/image_left/{n}_left.png",
        "P001/depth_left/{n}_left_depth.npy",
        "P001/{n}_left",
        (("P001/seg_left/{n}_left_seg.npy", "map"), ("P001/flow/{n}_000001_flow.npy", "vectors")),
    ),
    "SUN RGB-D": (
        "kv1/NYUdata/NYU{n}/image/NYU{n}.jpg",
        "kv1/NYUdata/NYU{n}/depth/NYU{n}.png",
        "kv1/NYUdata/NYU{n}/NYU{n}",
        (("kv1/NYUdata/NYU{n}/depth_bfx/NYU{n}.png", "grey16"), ("kv1/NYUdata/NYU{n}/intrinsics.txt", "1")),
    ),
    "DIODE": (
        "indoors/scene_00019/scan_00183/00019_00183_indoors_{n}_010.png",
        "indoors/scene_00019/scan_00183/00019_00183_indoors_{n}_010_depth.npy",
        "indoors/scene_00019/scan_00183/00019_00183_indoors_{n}_010",
        (("indoors/scene_00019/scan_00183/00019_00183_indoors_{n}_010_depth_mask.npy", "map"),),
    ),
    "Replica of NICE-SLAM": (
        "office0/results/frame{n}.jpg",
        "office0/results/depth{n}.png",
        "office0/results/{n}",
        (("office0/traj.txt", "1"),),
    ),
    "Replica of Semantic-NeRF": (
        "room_0/Sequence_1/rgb/rgb_{i}.png",
        "room_0/Sequence_1/depth/depth_{i}.png",
        "room_0/Sequence_1/{i}",
        (
            ("room_0/Sequence_1/semantic_class/semantic_class_{i}.png", "grey8"),
            ("room_0/Sequence_1/semantic_class/vis_sem_class_{i}.png", "rgb"),
            ("room_0/Sequence_1/semantic_instance/semantic_instance_{i}.png", "grey16"),
        ),
    ),
    "HM3D rendered": (
        "00800-TEEsavR23oF/rgb/{n}.png",
        "00800-TEEsavR23oF/depth/{n}.png",
        "00800-TEEsavR23oF/{n}",
        (("00800-TEEsavR23oF/semantic/{n}.png", "grey16"),),
    ),
    "Matterport3D": (
        "undistorted_color_images/0d1ed{n}4ab_i0_0.jpg",
        "undistorted_depth_images/0d1ed{n}4ab_d0_0.png",
        "0d1ed{n}4ab_0_0",
        (),
    ),
    "Bonn": ("rgb/{t}.png", "depth/{u}.png", "{t}", (("groundtruth.txt", "# ground truth"),)),
    "ETH3D SLAM": ("rgb/{t}.png", "depth/{t}.png", "{t}", (("calibration.txt", "726 726 354 186"),)),
    "Omniverse Replicator": (
        "rep/rgb_{n}.png",
        "rep/distance_to_image_plane_{n}.npy",
        "rep/{n}",
        (
            ("rep/distance_to_camera_{n}.npy", "map"),
            ("rep/semantic_segmentation_{n}.png", "rgb"),
            ("rep/normals_{n}.png", "rgb"),
            ("rep/bounding_box_2d_tight_{n}.npy", "boxes"),
            ("rep/camera_params_{n}.json", "{{}}"),
        ),
    ),
    "depth aligned to the images beside raw depth": (
        "color/{n}.png",
        "aligned_depth_to_color/{n}.png",
        "{n}",
        (("depth/{n}.png", "grey16"), ("infra1/infrared_{n}.png", "grey8")),
    ),
    "images aligned to the depth beside raw images": (
        "color_aligned/{n}.png",
        "depth/{n}.png",
        "{n}",
        (("color/{n}.png", "rgb"),),
    ),
    "Blender's passes": ("Image{n}.png", "Depth{n}.exr", "{n}", (("Image{n}.exr", "x"), ("Normal{n}.exr", "x"))),
    "nerfstudio's smaller copies": (
        "images/frame_{n}.png",
        "depth/frame_{n}.png",
        "frame_{n}",
        (("images_2/frame_{n}.png", "rgb"), ("images_4/frame_{n}.png", "rgb")),
    ),
    "stray arrays": (
        "rgb/{n}.png",
        "depth/{n}.npy",
        "{n}",
        (("pose/{n}.npy", "matrix"), ("points/{n}.npy", "vectors"), ("boxes/{n}.npy", "boxes")),
    ),
    "files of macOS": ("rgb/{n}.jpg", "depth/{n}.png", "{n}", (("rgb/._{n}.jpg", "x"), ("depth/._{n}.png", "x"))),
}


def of_frame(pattern: str, number: str) -> str:
    time = 1305031102.175304 + int(number) / 30
    return pattern.format(n=f"{int(number):06d}", i=number, t=f"{time:.6f}", u=f"{time + 0.0081:.6f}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_pairs_without_a_pattern_and_without_a_word_of_alarm(tmp_path: Path, layout: str) -> None:
    image, depth, instance, others = LAYOUTS[layout]
    expected = {}
    for number in NUMBERS:
        write(tmp_path / of_frame(image, number), "rgb")
        write(tmp_path / of_frame(depth, number), "map" if depth.endswith("npy") else "grey16")
        for path, content in others:
            write(tmp_path / of_frame(path, number), content)
        expected[of_frame(instance, number)] = (of_frame(image, number), of_frame(depth, number))
    frames = frames_of(tmp_path)
    assert found_in(frames) == expected
    assert any(line.startswith("3 pairs") for line in frames.taken_for)


def make(source: Path, images: Sequence[str], depths: Sequence[str]) -> None:
    for path in images:
        write(source / path, "rgb")
    for path in depths:
        write(source / path, "map" if path.endswith(".npy") else "grey16")


def test_each_scene_may_have_a_layout_of_its_own(tmp_path: Path) -> None:
    make(
        tmp_path,
        ["a/rgb/0.jpg", "a/rgb/1.jpg", "b/0001/color.png", "c/images/frame_3.png", "lab_7_color.jpg"],
        ["a/depth/0.png", "b/0001/depth.png", "c/depth_maps/frame_3.png", "lab_7_depth.png", "d/depth/1.png"],
    )
    frames = frames_of(tmp_path)
    assert found_in(frames) == {
        "a/0": ("a/rgb/0.jpg", "a/depth/0.png"),
        "b/0001": ("b/0001/color.png", "b/0001/depth.png"),
        "c/frame_3": ("c/images/frame_3.png", "c/depth_maps/frame_3.png"),
        "lab_7": ("lab_7_color.jpg", "lab_7_depth.png"),
    }
    assert frames.taken_for[1] == "4 pairs; without a partner: 1 image and 1 depth map."


def test_what_was_passed_by_is_named_with_the_reason(tmp_path: Path) -> None:
    make(tmp_path, ["rgb_1.png", "normals_1.png"], ["distance_to_image_plane_1.npy", "distance_to_camera_1.npy"])
    write(tmp_path / "boxes_1.npy", "boxes")
    write(tmp_path / "._rgb_1.png", "x")
    notes = " ".join(frames_of(tmp_path).notes)
    for name in ("normals_1.png", "distance_to_camera_1.npy", "boxes_1.npy", "._rgb_1.png"):
        assert name in notes


def test_distances_from_the_camera_are_taken_where_they_are_asked_for_or_alone(tmp_path: Path) -> None:
    make(tmp_path, ["rgb_1.png"], ["distance_to_image_plane_1.npy", "distance_to_camera_1.npy"])
    asked = find_sources(tmp_path, None, None, exclude=tmp_path / "out", kind="ray")
    assert [str(path) for path in asked.depths] == ["distance_to_camera_1.npy"]
    assert kind_by_names(asked.depths) == "ray"
    (tmp_path / "distance_to_image_plane_1.npy").unlink()
    assert found_in(frames_of(tmp_path)) == {"1": ("rgb_1.png", "distance_to_camera_1.npy")}


def test_pictures_that_are_named_depth_are_neither_images_nor_presumed_to_be_depth(tmp_path: Path) -> None:
    make(tmp_path, ["rgb/1.png", "depth/1.png"], [])
    with pytest.raises(DatasetError, match=r"16-bit depth map.*depth/1\.png, which is an 8-bit PNG, colour.*--depth"):
        frames_of(tmp_path)
    assert found_in(frames_of(tmp_path, depths="depth/*.png")) == {"1": ("rgb/1.png", "depth/1.png")}


def test_two_pictures_of_a_frame_are_refused_with_patterns_that_choose(tmp_path: Path) -> None:
    make(tmp_path, ["rgb/1.png", "color/1.png"], ["depth/1.png"])
    with pytest.raises(DatasetError, match=r"--image 'color/\*\.png' or --image 'rgb/\*\.png'"):
        frames_of(tmp_path)
    assert found_in(frames_of(tmp_path, images="color/*.png")) == {"1": ("color/1.png", "depth/1.png")}


@pytest.mark.parametrize(
    ("images", "depths", "pairs"),
    [
        ("photos/*.png", "scans/*.png", {"12": ("photos/12.png", "scans/12.png")}),
        ("*/left.png", "*/z.png", {"3": ("3/left.png", "3/z.png"), "4": ("4/left.png", "4/z.png")}),
        ("**/*.png", "scans/*2.png", {"12": ("photos/12.png", "scans/12.png")}),
        ("photos/[0-9]2.png", "scans/1?.png", {"12": ("photos/12.png", "scans/12.png")}),
        ("house/*.png", "barn/*.png", {"1": ("house/1.png", "barn/1.png")}),
        ("kitchen.png", "bath.png", {"kitchen": ("kitchen.png", "bath.png")}),
    ],
)
def test_with_both_patterns_what_their_wildcards_matched_is_the_token(
    tmp_path: Path, images: str, depths: str, pairs: dict[str, tuple[str, str]]
) -> None:
    make(
        tmp_path,
        ["photos/12.png", "photos/2.png", "3/left.png", "4/left.png", "house/1.png", "kitchen.png"],
        ["scans/12.png", "3/z.png", "4/z.png", "barn/1.png", "bath.png"],
    )
    assert found_in(frames_of(tmp_path, images, depths)) == pairs


def test_whole_names_are_compared_and_that_is_said_where_wildcards_do_not_pair(tmp_path: Path) -> None:
    make(tmp_path, ["run_3/rgb.png"], ["run_3/depth.png"])
    frames = frames_of(tmp_path, "run_3/rgb.*", "*/depth.png")
    assert len(frames.pairing.pairs) == 1
    assert any("whole names" in note and "--image" in note for note in frames.notes)


def test_the_lists_of_tum_go_before_names(tmp_path: Path) -> None:
    # The two counters of frames do not run together, as their stamps say.
    make(tmp_path, [f"rgb/{i}.png" for i in range(4)], [f"depth/{i}.png" for i in range(4)])
    (tmp_path / "rgb.txt").write_text("# color\n" + "".join(f"{10 + i / 30:.6f} rgb/{i}.png\n" for i in range(4)))
    shifted = "".join(f"{10 + (i + 1) / 30 + 0.004:.6f} depth/{i}.png\n" for i in range(4))
    (tmp_path / "depth.txt").write_text("# depth\n" + shifted)
    frames = frames_of(tmp_path)
    assert found_in(frames) == {str(i): (f"rgb/{i}.png", f"depth/{i - 1}.png") for i in range(1, 4)}
    assert [str(path) for path in frames.pairing.lone_images] == ["rgb/0.png"]
    assert [str(path) for path in frames.pairing.lone_depths] == ["depth/3.png"]
    assert any("rgb.txt" in note and "4 ms" in note for note in frames.notes)


def test_a_list_of_associations_is_obeyed_whichever_column_comes_first(tmp_path: Path) -> None:
    make(tmp_path, ["rgb/0.png", "rgb/1.png"], ["depth/0.png", "depth/1.png"])
    (tmp_path / "associations.txt").write_text("1 depth/1.png 0 rgb/0.png\n")
    frames = frames_of(tmp_path)
    assert found_in(frames) == {"0": ("rgb/0.png", "depth/1.png")}
    assert any("associations" in note for note in frames.notes)


def test_empty_lists_say_nothing(tmp_path: Path) -> None:
    make(tmp_path, ["rgb/0.png"], ["depth/0.png"])
    for name in ("rgb.txt", "depth.txt", "associations.txt"):
        (tmp_path / name).write_text("# nothing\n")
    assert found_in(frames_of(tmp_path)) == {"0": ("rgb/0.png", "depth/0.png")}


def imported(*arguments: object) -> Result:
    return CliRunner().invoke(import_group, ["rgbd-folder", *map(str, arguments)])


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three frames of TUM's layout, 5 ms between colour and depth, and depth of a fourth."""
    source = tmp_path / "desk"
    for n in range(4):
        if n < 3:
            write(source / f"rgb/{1305031102.1 + n / 30:.6f}.png", "rgb")
        write(source / f"depth/{1305031102.105 + n / 30:.6f}.png", "grey16")
    return source


def test_the_command_tells_what_it_took_for_what_and_takes_a_tolerance(recording: Path, tmp_path: Path) -> None:
    options = (recording, "-o", tmp_path / "out", "--intrinsics", "5,5,2.5,1.5", "--depth-scale", 5000)
    result = imported(*options)
    assert result.exit_code == 0, result.output
    assert "3 instances written" in result.output
    assert "Images: 3 files like rgb/*.png. Depth maps: 4 files like depth/*.png." in result.output
    assert "3 pairs; without a partner: 1 depth map." in result.output
    assert "3 of 3 pairs were found by time stamps that differ, by 5 ms" in result.output
    refused = imported(*options, "--max-time-difference", 0.004)
    assert refused.exit_code != 0
    assert "--max-time-difference" in refused.output
    assert imported(*options, "--max-time-difference", -1).exit_code != 0


def test_files_of_intrinsics_pair_by_time_and_are_told(recording: Path, tmp_path: Path) -> None:
    for n in range(3):
        write(recording / f"cameras/{1305031102.1 + n / 30 + 0.001:.6f}.txt", f"{5 + n} 5 2.5 1.5")
    result = imported(
        recording, "-o", tmp_path / "out", "--intrinsics", "cameras/*.txt", "--depth-scale", 5000, "--strict"
    )
    assert result.exit_code == 0, result.output
    assert "Intrinsics: 3 of 3 pairs were found by time stamps" in result.output
    widths = [read_meta(path)["intrinsics"][0][0] for path in sorted((tmp_path / "out").rglob("meta.json"))]
    np.testing.assert_allclose(widths, [5 / 6, 6 / 6, 7 / 6], rtol=1e-6)


def test_distances_from_the_camera_are_read_as_such_and_told(tmp_path: Path) -> None:
    source = tmp_path / "rep"
    make(source, ["rgb_1.png"], ["distance_to_camera_1.npy"])
    result = imported(source, "-o", tmp_path / "out", "--intrinsics", "5,5,2.5,1.5")
    assert result.exit_code == 0, result.output
    assert "distances from the camera" in result.output
    depth = read_depth(tmp_path / "out" / "1" / "depth.png")
    x, y = np.meshgrid((np.arange(6) - 2.5) / 5, (np.arange(4) - 1.5) / 5)
    np.testing.assert_allclose(depth, 1 / np.sqrt(x**2 + y**2 + 1), rtol=1e-3)


def test_of_two_kinds_the_one_that_was_said_is_read_and_never_the_other_in_its_place(tmp_path: Path) -> None:
    source = tmp_path / "rep"
    make(source, ["rgb_1.png"], ["distance_to_camera_1.npy", "distance_to_image_plane_1.npy"])
    result = imported(source, "-o", tmp_path / "out", "--intrinsics", "5,5,2.5,1.5", "--kind", "ray")
    assert result.exit_code == 0, result.output
    assert "distance_to_camera" in read_meta(tmp_path / "out" / "1" / "meta.json")["source"]["depth"]


@pytest.mark.parametrize("leaves", ["absolute", "above"])
def test_a_pattern_of_intrinsics_that_leaves_the_folder_is_refused_by_name(tmp_path: Path, leaves: str) -> None:
    source = tmp_path / "rep"
    make(source, ["rgb/1.png"], ["depth/1.npy"])
    write(source / "cameras/1.txt", "5 5 2.5 1.5")
    pattern = f"{source}/cameras/*.txt" if leaves == "absolute" else "../rep/cameras/*.txt"
    result = imported(source, "-o", tmp_path / "out", "--intrinsics", pattern)
    assert result.exit_code == 2, result.output
    assert "must be a pattern relative to the source folder" in result.output


@pytest.mark.parametrize(("named", "said"), [("disparity", "disparity"), ("inverse_depth", "inverse")])
def test_a_kind_that_names_tell_and_nobody_said_is_told_with_what_to_type(
    tmp_path: Path, named: str, said: str
) -> None:
    source = tmp_path / "rep"
    make(source, ["rgb/1.png"], [f"{named}/1.npy"])
    options = (source, "-o", tmp_path / "out", "--intrinsics", "5,5,2.5,1.5")
    assert f"import again with --kind {said}" in imported(*options).output
    for kind in (said, "z"):
        assert "import again with --kind" not in imported(*options, "--kind", kind).output
