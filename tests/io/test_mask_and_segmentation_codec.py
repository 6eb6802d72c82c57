"""Masks and segmentation maps: golden files, pixel formats, labels."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from png_files import RGB, chunk, huge_header, png_file, text_chunk

from moge_core.errors import FormatError, ImageTooLargeError, InputError, PrecisionError
from moge_core.io import limits, read_mask, read_segmentation, write_mask, write_segmentation


def png_by_pillow(image: Image.Image, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("case", ["mask", "mask_rgb"])
def test_a_golden_mask_file_reads_back_equal(golden_dir: Path, case: str) -> None:
    expected = np.load(golden_dir / "codec" / f"{case}.npz")["read"]
    np.testing.assert_array_equal(read_mask(golden_dir / "codec" / f"{case}.png"), expected)


def test_a_mask_is_written_as_0_and_255_and_read_back(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((7, 5)) < 0.5
    write_mask(tmp_path / "mask.png", mask)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED), mask * 255)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), mask)
    write_mask(tmp_path / "mask.png", np.zeros((1, 1), bool))
    assert not read_mask(tmp_path / "mask.png").any()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_masks_of_every_pixel_format_are_read(mode: str) -> None:
    mask = np.random.default_rng(1).random((6, 9)) < 0.5
    if mode == "I;16":
        image = Image.fromarray(mask.astype(np.uint16) * 300)
    else:
        image = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    np.testing.assert_array_equal(read_mask(png_by_pillow(image)), mask)


def test_a_mask_of_any_one_colour_is_read() -> None:
    pixels = np.zeros((1, 4, 3), np.uint8)
    pixels[0, 1, 0] = pixels[0, 2, 1] = pixels[0, 3, 2] = 1
    np.testing.assert_array_equal(read_mask(png_by_pillow(Image.fromarray(pixels))), [[False, True, True, True]])


@pytest.mark.parametrize("mask", [np.ones((2, 2), np.uint8), np.ones((2, 2, 1), bool), np.ones((0, 2), bool)])
def test_what_is_no_mask_is_refused(mask: Any) -> None:
    with pytest.raises(InputError, match="mask"):
        write_mask(io.BytesIO(), mask)


@pytest.mark.parametrize("case", ["u8", "u16", "nolabels", "empty_labels"])
def test_a_golden_segmentation_file_reads_back_equal(golden_dir: Path, case: str) -> None:
    manifest = json.loads((golden_dir / "codec" / "manifest.json").read_text())["segmentation"][case]
    ids, labels = read_segmentation(golden_dir / "codec" / f"seg_{case}.png")
    np.testing.assert_array_equal(ids, np.load(golden_dir / "codec" / "seg.npz")[f"{case}.read"])
    assert ids.dtype == manifest["dtype"]
    assert labels == manifest["labels_read"]


def by_rule(data: bytes) -> tuple[npt.NDArray[Any], dict[str, int] | None]:
    """As the published tools read a segmentation file."""
    image = Image.open(io.BytesIO(data))
    return np.array(image), json.loads(image.info["labels"]) if "labels" in image.info else None


@pytest.mark.parametrize(
    ("dtype", "greatest", "stored"),
    [
        ("u1", 255, "uint8"), ("<u2", 3, "uint16"), (">u2", 60000, "uint16"), ("i4", 255, "uint8"),
        ("i8", 256, "uint16"), (">i4", 65535, "uint16"), ("u8", 7, "uint8"),
    ],
)  # fmt: skip
def test_ids_of_any_integer_type_are_kept(dtype: str, greatest: int, stored: str) -> None:
    ids = (np.arange(greatest, greatest - 4, -1) % (greatest + 1)).reshape(2, 2).astype(dtype)
    labels = {"Stuhl «ä»": 1, 'a "b"': np.int64(2), "空": greatest}
    file = io.BytesIO()
    write_segmentation(file, ids, labels)
    for read, read_labels in (read_segmentation(io.BytesIO(file.getvalue())), by_rule(file.getvalue())):
        np.testing.assert_array_equal(read, ids)
        assert read.dtype == stored
        assert read_labels == labels


@pytest.mark.parametrize("wrong", [-1, 65536])
def test_ids_that_do_not_fit_are_refused(wrong: int) -> None:
    with pytest.raises(PrecisionError, match="65535"):
        write_segmentation(io.BytesIO(), np.array([[0, wrong]]))


@pytest.mark.parametrize("ids", [np.ones((2, 2)), np.ones((2, 2), bool), np.ones((2, 2, 3), np.uint8)])
def test_what_is_no_segmentation_is_refused(ids: Any) -> None:
    with pytest.raises(InputError, match="segmentation"):
        write_segmentation(io.BytesIO(), ids)


@pytest.mark.parametrize("labels", [{1: 1}, {"a": 1.5}, {"a": "1"}, {"a": True}])
def test_labels_that_are_no_names_of_ids_are_refused(labels: Any) -> None:
    with pytest.raises(InputError, match="labels"):
        write_segmentation(io.BytesIO(), np.ones((2, 2), np.uint8), labels)


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "b"}', '{"a": 1.5}', "{", "[" * 100_000])
def test_a_labels_field_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="labels"):
        read_segmentation(io.BytesIO(png_file(2, 2, bit_depth=8, extra=text_chunk("labels", text))))


def test_labels_are_bounded_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.zeros((2, 2), np.uint8)
    file = io.BytesIO()
    write_segmentation(file, ids, {"a" * 100: 1})
    monkeypatch.setattr(limits, "MAX_TEXT_BYTES", 100)
    with pytest.raises(FormatError, match="100 bytes"):
        read_segmentation(io.BytesIO(file.getvalue()))
    with pytest.raises(InputError, match="100 bytes"):
        write_segmentation(io.BytesIO(), ids, {"a" * 100: 1})


def test_non_ascii_labels_in_an_international_text_field_are_read() -> None:
    field = chunk(b"iTXt", b"labels\0\0\0\0\0" + '{"Küche": 3}'.encode())
    assert read_segmentation(io.BytesIO(png_file(2, 2, bit_depth=8, extra=field)))[1] == {"Küche": 3}


@pytest.mark.parametrize("num_colors", [2, 11, 200])
def test_palette_indices_are_ids(num_colors: int) -> None:
    ids = (np.arange(40).reshape(5, 8) % num_colors).astype(np.uint8)
    image = Image.new("P", (8, 5))
    image.putdata(ids.ravel().tolist())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * num_colors).tolist())
    read, _ = read_segmentation(png_by_pillow(image))
    np.testing.assert_array_equal(read, ids)
    with pytest.raises(FormatError, match="truncated"):
        read_segmentation(io.BytesIO(png_by_pillow(image).getvalue()[:-20]))


@pytest.mark.parametrize("options", [{"bit_depth": 8, "color_type": RGB}, {"bit_depth": 1}, {"bit_depth": 4}])
def test_pixels_that_hold_no_ids_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="segmentation map"):
        read_segmentation(io.BytesIO(png_file(3, 2, **options)))


@pytest.mark.parametrize(("read", "color_type"), [(read_mask, 0), (read_segmentation, 0), (read_segmentation, 3)])
def test_a_header_of_gigapixels_is_refused_before_decoding(read: Any, color_type: int) -> None:
    with pytest.raises(ImageTooLargeError):
        read(io.BytesIO(huge_header(color_type=color_type)))
