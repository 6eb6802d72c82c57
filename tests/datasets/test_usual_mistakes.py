"""Errors say what people did: which file stands where another is wanted, and how a path or a number is written."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from boxes_in_front import boxes_in_front
from click.testing import CliRunner
from PIL import Image

from moge_core.cli import cli
from moge_core.datasets import index_dataset
from moge_core.datasets.importers.table import import_table
from moge_core.datasets.importers.writing import ImportReport
from moge_core.errors import DatasetError
from moge_core.loading.config import DatasetConfig

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
IN_PLACE_OF_DATA = {
    LFS: "git lfs pull",
    b"../../.git/annex/objects/Zk/4x/MD5E-s5--1.png/MD5E-s5--1.png\n": "git annex get",
    PAGE: "answered with a page",
    b"\n <HTML><body>not found": "answered with a page",
    b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>': "the server refused it",
    b"": "Copy or download it again",
    b"\0" * 4096: "Copy or download it again",
    b"PK\x03\x04" + b"\0" * 60: "Unpack it",
    b"\x1f\x8b\x08\0" + b"\0" * 60: "Unpack it",
}
PICTURES_TO_CONVERT = {
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "heif-convert",
    b"\0\0\0\x1cftypavif\0\0\0\0": "Convert it to JPEG or PNG",
    b"II*\0\x10\0\0\0CR\x02\0": "Develop it",
    b"GIF89a\x10\0\x10\0": "Convert it to JPEG or PNG",
    b"\0\0\0\x20ftypisom\0\0\0\0": "Extract its frames",
}

Run = Callable[..., ImportReport]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A picture and its depth, as it should be."""
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    image, depth = boxes_in_front(48, 32)
    Image.fromarray(image).save(folder / "photo.jpg")
    Image.fromarray(image).save(folder / "sub" / "photo.jpg")
    cv2.imwrite(str(folder / "depth.png"), (depth * 1000).astype(np.uint16))
    return folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Run:
    """Import one row that differs from a good one in this."""

    def run(**row: Any) -> ImportReport:
        good = {"name": "f", "image": "photo.jpg", "depth": "depth.png", "fx": 40, "fy": 40, "cx": 23.5, "cy": 15.5}
        (source / "t.jsonl").write_text(json.dumps(good | row), encoding="utf-8")
        return import_table(source / "t.jsonl", tmp_path / "out")

    return run


def refused(run: Run, **row: Any) -> str:
    """The error of a row, which must name each file once."""
    with pytest.raises(DatasetError) as error:
        run(**row)
    text = str(error.value)
    for value in row.values():
        assert not isinstance(value, str) or text.count(value) <= 1, text
    return text


@pytest.mark.parametrize("suffix", [".png", ".npy", ".npz", ".pfm", ".tif", ".pgm"])
@pytest.mark.parametrize("content", IN_PLACE_OF_DATA)
def test_what_stands_in_the_place_of_data_is_named_whatever_should_read_it(
    source: Path, run: Run, content: bytes, suffix: str
) -> None:
    if suffix == ".npz" and content.startswith(b"PK"):
        pytest.skip("an NPZ file is a ZIP archive")
    (source / f"wrong{suffix}").write_bytes(content)
    assert IN_PLACE_OF_DATA[content] in refused(run, depth=f"wrong{suffix}")


@pytest.mark.parametrize("content", IN_PLACE_OF_DATA | PICTURES_TO_CONVERT)
def test_a_picture_that_is_none_is_named(source: Path, run: Run, content: bytes) -> None:
    (source / "wrong.jpg").write_bytes(content)
    assert (IN_PLACE_OF_DATA | PICTURES_TO_CONVERT)[content] in refused(run, image="wrong.jpg")


def test_a_dataset_that_was_cloned_without_its_files_says_so(write_instance: Callable[..., Path], data: Path) -> None:
    (write_instance("a") / "depth.png").write_bytes(LFS)
    with pytest.raises(DatasetError, match="git lfs pull"):
        index_dataset(data)


def test_what_was_cut_off_is_to_be_copied_again(source: Path, run: Run) -> None:
    (source / "cut.jpg").write_bytes((source / "photo.jpg").read_bytes()[:700])
    assert "Copy or download it again." in refused(run, image="cut.jpg")


def test_a_picture_where_depth_is_wanted_is_named(source: Path, run: Run) -> None:
    image, _ = boxes_in_front(48, 32)
    Image.fromarray(image).save(source / "colour.png")
    Image.fromarray(image[..., 0]).save(source / "grey.png")
    cv2.imwrite(str(source / "colour16.png"), image.astype(np.uint16) * 200)
    np.save(source / "points.npy", np.ones((32, 48, 3), np.float32))
    assert "a JPEG picture. A picture of depth" in refused(run, depth="photo.jpg", image="sub/photo.jpg")
    assert "found 8-bit RGB. An 8-bit picture of depth" in refused(run, depth="colour.png")
    assert "An 8-bit picture of depth" in refused(run, depth="grey.png")
    assert "Depth is one channel of 16 bits" in refused(run, depth="colour16.png")
    assert "Of points (X, Y, Z), save Z" in refused(run, depth="points.npy")


def test_depth_that_is_coded_in_colours_keeps_its_own_remedy(source: Path, run: Run) -> None:
    codes = (np.linspace(1, 6, 32 * 48).reshape(32, 48) * 16777.215).astype(np.uint32)
    cv2.imwrite(str(source / "coded.png"), np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1).astype(np.uint8))
    assert "--encoding rgb24" in refused(run, depth="coded.png")


def test_image_and_depth_the_wrong_way_round_are_told(source: Path, run: Run) -> None:
    np.save(source / "depth.npy", np.ones((32, 48), np.float32))
    assert "swap them" in refused(run, image="depth.png", depth="photo.jpg")
    assert "swap them" in refused(run, image="depth.npy", depth="photo.jpg")
    (told,) = (note for note in run(image="depth.png").notes if "16-bit grey" in note)
    assert "(1 of 1 frames)" in told


def test_pictures_of_12_bits_are_told_because_they_come_out_black(source: Path, run: Run) -> None:
    image, _ = boxes_in_front(48, 32)
    cv2.imwrite(str(source / "dark.png"), image.astype(np.uint16) * 15)
    cv2.imwrite(str(source / "bright.png"), image.astype(np.uint16) * 257)
    assert any("nearly black" in note for note in run(image="dark.png").notes)
    assert not any("nearly black" in note for note in run(image="bright.png").notes)


@pytest.mark.parametrize("part", ["normal", "mask"])
def test_a_jpeg_where_a_map_is_wanted_is_named(run: Run, part: str) -> None:
    assert "is stored without loss" in refused(run, **{part: "sub/photo.jpg"})


def test_a_transposed_array_is_named(source: Path, run: Run) -> None:
    image, depth = boxes_in_front(128, 96)
    Image.fromarray(image).save(source / "large.jpg")
    np.save(source / "transposed.npy", depth.T)
    camera = {"fx": 100, "fy": 100, "cx": 63.5, "cy": 47.5}
    assert "Save the depth maps as (H, W)" in refused(run, image="large.jpg", depth="transposed.npy", **camera)


def test_paths_of_windows_and_of_other_normalisations_are_found(source: Path, run: Run) -> None:
    named = unicodedata.normalize("NFD", "kühn.jpg")
    (source / named).write_bytes((source / "photo.jpg").read_bytes())
    assert run(image="sub\\photo.jpg").num_written == 1
    assert run(image=unicodedata.normalize("NFC", named)).num_written == 1


def test_a_file_that_is_not_there_is_looked_for(run: Run) -> None:
    assert "There is photo.jpg; upper and lower case differ" in refused(run, image="Photo.JPG")
    assert "There is depth.png" in refused(run, depth="depth.npy")
    assert "It is a folder" in refused(run, image="sub")
    assert "path of a Windows machine" in refused(run, image="D:\\data\\other.jpg")
    assert "Separate folders by /" in refused(run, name="a\\b")


def test_decimal_commas_are_named(source: Path, tmp_path: Path, run: Run) -> None:
    assert "Write decimals with a point: 40.5." in refused(run, fx="40,5")
    assert "Write decimals with a point: 1000.0." in refused(run, scale="1000,0")
    (source / "t.csv").write_text("name,image,depth,fx,fy,cx,cy\nf,photo.jpg,depth.png,40,5,40,23.5,15.5\n")
    with pytest.raises(DatasetError, match="one with a comma in it must be in quotes"):
        import_table(source / "t.csv", tmp_path / "out")


@pytest.mark.parametrize(("option", "fixed"), [("--depth-scale", "0.5"), ("--max-depth", "0.5"), ("--infinite", "0.5")])
def test_decimal_commas_of_options_are_named(source: Path, tmp_path: Path, option: str, fixed: str) -> None:
    result = CliRunner().invoke(cli, ["import", "rgbd-folder", str(source), "-o", str(tmp_path / "o"), option, "0,5"])
    assert result.exit_code == 2
    assert f"Write decimals with a point: {fixed}." in result.output


def test_decimal_commas_of_intrinsics_are_named(source: Path, tmp_path: Path) -> None:
    text = shown("import", "rgbd-folder", source, "-o", tmp_path / "out", "--intrinsics", "40,5;40,5;23,5;15,5",
                 "--depth-scale", "1000")  # fmt: skip
    assert "Write decimals with a point" in text


def shown(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def folder_import(source: Path, out: Path, *more: str) -> str:
    camera = ("--intrinsics", "40,40,23.5,15.5", "--depth-scale", "1000")
    return shown("import", "rgbd-folder", source, "-o", out, *camera, *more)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"rgb/1.jpg": LFS, "depth/1.png": LFS}, "git lfs pull"),
        ({"rgb.zip": b"PK\x03\x04" + b"\0" * 60}, "rgb.zip, which is a ZIP archive. Unpack it"),
        ({"rgb/1.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "depth/1.png": None}, "heif-convert"),
        ({"rgb/1.jpg": None, "depth/1.jpg": None}, "depth/1.jpg, which is a JPEG picture. A picture of depth"),
    ],
)
def test_a_folder_without_what_is_wanted_says_what_is_there(
    source: Path, tmp_path: Path, files: dict[str, bytes | None], told: str
) -> None:
    for name, content in files.items():
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        good = source / ("depth.png" if path.suffix == ".png" else "photo.jpg")
        path.write_bytes(good.read_bytes() if content is None else content)
    assert told in folder_import(tmp_path / "raw", tmp_path / "out")


def test_patterns_of_windows_are_named_once(source: Path, tmp_path: Path) -> None:
    text = folder_import(source, tmp_path / "out", "--image", "sub\\*.jpg")
    assert "Folders are separated by / in patterns" in text
    assert text.count("sub\\\\*.jpg") == 1


def test_a_remedy_names_the_options_of_its_own_command(source: Path, tmp_path: Path) -> None:
    text = shown("import", "stereo", source, "-o", tmp_path / "out", "--layout", "plain", "--left", "*.bmp",
                 "--disparity", "*.png", "--intrinsics", "40,40,23.5,15.5")  # fmt: skip
    assert "--left 'PATTERN'" in text
    assert "--image" not in text


def test_a_file_where_a_folder_is_wanted_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "raw.zip").write_bytes(b"PK\x03\x04")
    assert "unpack it and give the folder" in folder_import(tmp_path / "raw.zip", tmp_path / "out")
    assert "give the folder that the data are in" in folder_import(source / "photo.jpg", tmp_path / "out")
    assert "give the file" in shown("import", "table", source, "-o", tmp_path / "out")


def test_an_array_as_the_depth_of_a_training_is_refused(data: Path) -> None:
    entry = {"name": "a", "path": str(data), "label_type": "sfm"}
    with pytest.raises(ValueError, match=r"such as depth\.png; `moge import` makes them of arrays"):
        DatasetConfig.model_validate(entry | {"depth": "depth.npy"})
    assert DatasetConfig.model_validate(entry | {"depth": "filled.png"}).depth == "filled.png"
    assert "is no name of depth maps" in shown("index", data, "--depth", "depth.npy")
