"""Colour images: golden file, pixel formats, orientation, sizes from headers, damaged files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from png_files import RGB, huge_header

from moge_core.errors import FormatError, ImageTooLargeError, InputError
from moge_core.io import read_image, read_image_size, write_depth, write_image

FORMATS = [".jpg", ".png", ".webp", ".bmp", ".ppm"]


def smooth_image(height: int = 24, width: int = 40) -> npt.NDArray[np.uint8]:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 / height, columns * 255 / width, 255 - rows * 255 / height], axis=-1).astype(np.uint8)


def encoded(suffix: str, image: npt.NDArray[Any]) -> bytes:
    return cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]))[1].tobytes()


def test_the_golden_image_reads_back_equal(golden_dir: Path) -> None:
    expected = np.load(golden_dir / "codec" / "image.npz")["read"]
    np.testing.assert_array_equal(read_image(golden_dir / "codec" / "image.jpg"), expected)


def test_the_golden_image_is_written_as_the_published_tools_do(golden_dir: Path) -> None:
    golden = np.load(golden_dir / "codec" / "image.npz")
    file = io.BytesIO()
    write_image(file, golden["input"], quality=92)
    assert np.abs(read_image(io.BytesIO(file.getvalue())).astype(int) - golden["read"].astype(int)).max() <= 2


@pytest.mark.parametrize(("name", "magic"), [("a.jpg", b"\xff\xd8"), ("a.JPEG", b"\xff\xd8"), ("a.png", b"\x89PNG")])
def test_the_suffix_decides_the_format(tmp_path: Path, name: str, magic: bytes) -> None:
    image = smooth_image()
    write_image(tmp_path / name, image)
    assert (tmp_path / name).read_bytes().startswith(magic)
    assert np.abs(read_image(tmp_path / name).astype(int) - image).max() <= (0 if magic == b"\x89PNG" else 12)


def test_a_file_object_gets_the_format_that_is_asked_for() -> None:
    file = io.BytesIO()
    write_image(file, smooth_image(), format="png")
    np.testing.assert_array_equal(read_image(io.BytesIO(file.getvalue())), smooth_image())


def test_quality_trades_size() -> None:
    sizes = []
    for quality in (10, 95):
        file = io.BytesIO()
        write_image(file, smooth_image(), quality)
        sizes.append(file.tell())
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("size", [(24, 40), (1, 1), (3, 1)])
def test_every_format_is_read_and_measured(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    image = smooth_image(*size)
    data = encoded(suffix, image)
    path = tmp_path / f"image{suffix}"
    path.write_bytes(data)
    assert read_image(path).shape == image.shape
    tolerance = 0 if suffix in {".png", ".bmp", ".ppm"} else 5 if size == (24, 40) else 25
    assert np.abs(read_image(path).astype(int) - image).mean() <= tolerance
    assert read_image_size(path) == read_image_size(io.BytesIO(data)) == (size[1], size[0])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "P"])
def test_grey_transparent_and_palette_images_become_rgb(mode: str) -> None:
    image = Image.fromarray(smooth_image()).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    expected = np.array(image.convert("RGBA").convert("RGB"))
    np.testing.assert_array_equal(read_image(io.BytesIO(file.getvalue())), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_images_keep_their_upper_8_bits(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    expected = np.broadcast_to((pixels >> 8)[..., ::-1], (5, 7, 3))
    np.testing.assert_array_equal(read_image(io.BytesIO(data)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_as_the_published_tools_apply_it(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010F] = "camera"
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(smooth_image()).save(file, kind, exif=exif)
    expected = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    upright = read_image(io.BytesIO(file.getvalue()))
    np.testing.assert_array_equal(upright, expected)
    assert read_image_size(io.BytesIO(file.getvalue())) == (upright.shape[1], upright.shape[0])
    assert (upright.shape[:2] == (40, 24)) == (orientation >= 5)


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\xff", b"what is this?"])
def test_a_senseless_exif_block_changes_nothing(exif: bytes) -> None:
    file = io.BytesIO()
    Image.fromarray(smooth_image()).save(file, "JPEG", exif=b"Exif\0\0" + exif)
    assert read_image(io.BytesIO(file.getvalue())).shape == (24, 40, 3)


def test_the_size_behind_a_long_header_is_found(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(smooth_image()).save(path, comment=b"c" * 65000, icc_profile=bytes(200_000), progressive=True)
    assert read_image_size(path) == (40, 24)
    assert read_image(path).shape == (24, 40, 3)


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_every_flavour_of_webp_is_measured(mode: str, lossless: bool) -> None:
    file = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 41, 4)).astype(np.uint8)).convert(mode)
    image.save(file, "WEBP", lossless=lossless)
    assert read_image_size(io.BytesIO(file.getvalue())) == (41, 23)
    assert read_image(io.BytesIO(file.getvalue())).shape == (23, 41, 3)


def test_the_size_of_a_depth_map_is_measured(tmp_path: Path) -> None:
    write_depth(tmp_path / "depth.png", np.ones((3, 7), np.float32))
    assert read_image_size(tmp_path / "depth.png") == (7, 3)
    assert read_image_size(io.BytesIO(huge_header())) == (50_000, 50_000)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    data = encoded(suffix, np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8))
    path = tmp_path / f"cut{suffix}"
    for share in (0.0, 0.01, 0.1, 0.5, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        reason = "must not be truncated" if suffix == ".jpg" and share > 0 else ""
        with pytest.raises(FormatError, match=f"cut{suffix}.*{reason}"):
            read_image(path)


@pytest.mark.parametrize(
    "data", [b"not an image at all", b"GIF89a" + bytes(40), b"BM" + bytes(60), b"P6\n-1 5\n255\n", b"\xff\xd8"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    for read in (read_image, read_image_size):
        with pytest.raises(FormatError):
            read(io.BytesIO(data))


def test_a_header_of_gigapixels_is_refused_before_decoding() -> None:
    jpeg = bytearray(encoded(".jpg", smooth_image()))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    bitmap = bytearray(encoded(".bmp", smooth_image()))
    bitmap[18:26] = (50_000).to_bytes(4, "little") * 2
    webp = bytearray(encoded(".webp", smooth_image()))
    webp[12:16], webp[24:30] = b"VP8X", b"\xff" * 6
    pixmap = b"P6 # a comment\n50000\n# another\n50000 255\n" + bytes(100)
    for data in (huge_header(color_type=RGB), bytes(jpeg), bytes(bitmap), bytes(webp), pixmap):
        with pytest.raises(ImageTooLargeError):
            read_image(io.BytesIO(data))


def test_a_missing_image_is_a_missing_file(tmp_path: Path) -> None:
    for read in (read_image, read_image_size):
        with pytest.raises(FileNotFoundError, match=r"absent\.jpg"):
            read(tmp_path / "absent.jpg")


@pytest.mark.parametrize(
    "image",
    [np.zeros((2, 2)), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2, 3), np.uint8)],
)
def test_what_is_no_rgb_image_is_not_written(image: Any) -> None:
    with pytest.raises(InputError, match="image"):
        write_image(io.BytesIO(), image)


@pytest.mark.parametrize(
    ("name", "options"), [("a.gif", {}), ("a", {}), ("a.jpg", {"quality": 0}), ("a.jpg", {"format": "gif"})]
)
def test_options_out_of_range_are_refused(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        write_image(tmp_path / name, smooth_image(), **options)
    assert list(tmp_path.iterdir()) == []
