"""Depth maps: golden files of the published tools, exactness, and files that must be refused."""

from __future__ import annotations

import io
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from png_files import RGB, chunk, grey16_file, huge_header, png_file, read_depth_by_rule, text_chunk

from moge_core.errors import FormatError, ImageTooLargeError, InputError, PrecisionError
from moge_core.io import DepthWarning, limits, read_depth, write_depth

READABLE = [
    "smooth", "nan_inf", "extreme_range", "constant", "constant_with_holes", "nonpositive", "neg_inf", "single_finite",
    "one_pixel", "float64", "two_levels", "tiny_all_below_1e-5", "maxrange10", "legacy_unit",
]  # fmt: skip
WRITABLE = [
    "smooth", "nan_inf", "constant", "constant_with_holes", "single_finite", "one_pixel", "float64", "two_levels",
]  # fmt: skip
NEAR_FAR = text_chunk("near", "0.5") + text_chunk("far", "80.0")


def written(depth: npt.NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    write_depth(file, depth, **options)
    return file.getvalue()


def assert_within_half_a_step(data: bytes, depth: npt.NDArray[Any]) -> None:
    """Both by the rule of the format and by our reader, `data` holds `depth` to half a step; NaN and Inf exactly."""
    _, by_rule, step = read_depth_by_rule(data)
    ours = read_depth(io.BytesIO(data))
    finite = np.isfinite(depth)
    np.testing.assert_array_equal(np.isnan(by_rule), np.isnan(depth))
    np.testing.assert_array_equal(np.isinf(by_rule), np.isinf(depth))
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(depth))
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(depth))
    log_depth = np.log(depth[finite].astype(np.float64))
    assert np.all(np.abs(np.log(by_rule[finite]) - log_depth) <= 0.5 * step * (1 + 1e-3))
    # What float32 adds: half a unit in the last place, of numbers that have all their bits.
    assert np.all(np.abs(np.log(ours[finite].astype(np.float64)) - log_depth) <= 0.5 * step * (1 + 1e-3) + 2.0**-24)


@pytest.mark.parametrize("case", READABLE)
def test_a_golden_depth_file_reads_back_equal(golden_dir: Path, case: str) -> None:
    expected = np.load(golden_dir / "codec" / "depth.npz")[f"{case}.read"]
    depth = read_depth(golden_dir / "codec" / f"depth_{case}.png")
    assert depth.dtype == np.float32
    # The published reader takes powers in float32, so its last bits are its own.
    np.testing.assert_allclose(depth, expected, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("case", WRITABLE)
def test_golden_depth_is_written_with_the_published_codes(golden_dir: Path, case: str) -> None:
    golden = np.load(golden_dir / "codec" / "depth.npz")
    data = written(golden[f"{case}.input"])
    codes, _, _ = read_depth_by_rule(data)
    difference = np.abs(codes.astype(int) - golden[f"{case}.codes"].astype(int))
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < 0.01 * difference.size
    assert_within_half_a_step(data, golden[f"{case}.input"].astype(np.float32))


def test_byte_order_and_text_fields_are_those_of_the_file() -> None:
    codes = np.array([[0, 1, 2, 256], [0x0102, 0x0201, 65534, 65535]])
    depth = read_depth(io.BytesIO(grey16_file(codes, NEAR_FAR)))
    t = (codes - 1) / 65533
    expected = 0.5 ** (1 - t) * 80**t
    expected[0, 0], expected[1, 3] = np.nan, np.inf
    np.testing.assert_allclose(depth, expected, rtol=1e-6)
    big_endian = written(np.array([[1.0, 2.0]], ">f4"))
    np.testing.assert_allclose(read_depth(io.BytesIO(big_endian)), [[1, 2]], rtol=1e-6)


@st.composite
def depth_maps(draw: st.DrawFn) -> npt.NDArray[np.float32]:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    log_far = draw(st.floats(-37.5, 38.5))
    log_near = max(log_far - draw(st.one_of(st.floats(0, 5), st.floats(0, 1e-5))), -37.9)
    depth = (10.0 ** rng.uniform(log_near, log_far, (height, width))).astype(np.float32)
    kinds = rng.choice(3, depth.shape, p=draw(st.sampled_from([(1, 0, 0), (0.4, 0.3, 0.3), (0, 0.5, 0.5), (0, 1, 0)])))
    depth[kinds == 1], depth[kinds == 2] = np.nan, np.inf
    return depth


@given(depth_maps())
@settings(deadline=None, max_examples=200)
def test_depth_of_any_range_comes_back_within_half_a_step(depth: npt.NDArray[np.float32]) -> None:
    assert_within_half_a_step(written(depth, max_range=1.001e5), depth)


@pytest.mark.parametrize("fill", [np.nan, np.inf])
def test_a_map_without_finite_depth_is_written_and_read_back(fill: float) -> None:
    depth = np.full((3, 5), fill, np.float32)
    data = written(depth)
    np.testing.assert_array_equal(read_depth(io.BytesIO(data)), depth)
    np.testing.assert_array_equal(read_depth_by_rule(data)[1], depth)


@pytest.mark.parametrize(
    ("near", "far"), [(1e-30, 1e-26), (5e-9, 8e-7), (3e38, 3.4e38), (1e34, 3.4e38), (1e-42, 1e-38)]
)
def test_depth_far_from_one_metre_is_kept(near: float, far: float) -> None:
    depth = np.geomspace(near, far, 35).astype(np.float32).reshape(5, 7)
    read = read_depth(io.BytesIO(written(depth)))
    np.testing.assert_allclose(read, depth, rtol=1e-4, atol=1.5e-45)
    assert read[0, 0] == depth[0, 0]
    assert read[-1, -1] == depth[-1, -1]


@pytest.mark.parametrize("value", [3.25, 1e-38, float(np.finfo(np.float32).max)])
def test_a_constant_map_comes_back_exactly(value: float) -> None:
    depth = np.full((2, 3), value, np.float32)
    np.testing.assert_array_equal(read_depth(io.BytesIO(written(depth))), depth)


def test_nonpositive_values_become_unknown_and_are_counted(tmp_path: Path) -> None:
    depth = np.linspace(0.5, 80, 12, dtype=np.float32).reshape(3, 4)
    depth[0] = [0, -1.5, -np.inf, -0.0]
    with pytest.warns(DepthWarning, match=r"depth.png: 4 of 12 depth values") as record:
        write_depth(tmp_path / "depth.png", depth)
    assert record[0].filename == __file__
    read = read_depth(tmp_path / "depth.png")
    assert np.isnan(read[0]).all()
    np.testing.assert_allclose(read[1:], depth[1:], rtol=1e-4)
    with pytest.warns(DepthWarning):
        assert np.isnan(read_depth(io.BytesIO(written(np.zeros((2, 2), np.float32))))).all()


def test_a_range_beyond_the_code_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    depth = np.array([[1e-4, 100.0]], np.float32)
    with pytest.raises(PrecisionError, match="100000 times"):
        write_depth(tmp_path / "depth.png", depth)
    assert list(tmp_path.iterdir()) == []
    assert_within_half_a_step(written(depth, max_range=1e7), depth)


def test_a_far_that_float32_rounded_past_the_range_is_accepted() -> None:
    for near in np.float32([1e-3, 3e-3, 0.7, 1.3]):
        assert_within_half_a_step(
            written(np.array([[near, near * np.float32(1e5)]])), np.array([[near, near * np.float32(1e5)]])
        )


@pytest.mark.parametrize("value", [1e300, 1e-300])
def test_float64_that_float32_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(PrecisionError, match="1 values"):
        written(np.array([[1.0, value]]))


@pytest.mark.parametrize(
    "depth",
    [
        np.ones((2, 2), np.uint16),
        np.ones((2, 2, 1), np.float32),
        np.ones((0, 3), np.float32),
        [[1.0]],
        np.ones((2, 2), complex),
    ],
)
def test_what_is_no_depth_map_is_refused(depth: Any) -> None:
    with pytest.raises(InputError, match="depth"):
        written(depth)


@pytest.mark.parametrize("options", [{"max_range": 1.0}, {"max_range": np.nan}, {"compression_level": 10}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        written(np.ones((2, 2), np.float32), **options)


def test_a_plain_16_bit_png_is_refused_with_the_reason_and_the_remedy(golden_dir: Path) -> None:
    with pytest.raises(FormatError, match=r"depth_no_metadata\.png.*near and far.*moge import rgbd-folder"):
        read_depth(golden_dir / "codec" / "depth_no_metadata.png")


@pytest.mark.parametrize(
    ("near", "far"),
    [
        ("nan", "80"), ("0.5", "inf"), ("-1", "80"), ("0", "80"), ("80", "0.5"), ("1", "1"), ("one", "80"), ("", "80"),
        ("1e-400", "1"), ("1e-60", "1"), ("1", "1e39"), ("0.5", "8" * 5000),
        ("0.5" + "0" * 100, "80"),
    ],
)  # fmt: skip
def test_a_range_that_makes_no_sense_is_refused(near: str, far: str) -> None:
    data = grey16_file(np.ones((2, 2)), text_chunk("near", near) + text_chunk("far", far))
    with pytest.raises(FormatError, match=r"near|far"):
        read_depth(io.BytesIO(data))


@pytest.mark.parametrize("unit", ["0", "-1", "nan", "x", "1e38"])
def test_a_unit_that_makes_no_sense_is_refused(unit: str) -> None:
    with pytest.raises(FormatError, match="unit"):
        read_depth(io.BytesIO(grey16_file(np.ones((2, 2)), NEAR_FAR + text_chunk("unit", unit))))


@pytest.mark.parametrize(("options", "found"), [({"bit_depth": 8}, "8-bit grey"), ({"color_type": RGB}, "16-bit RGB")])
def test_another_pixel_format_is_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(FormatError, match=found):
        read_depth(io.BytesIO(png_file(3, 2, extra=NEAR_FAR, **options)))


def test_a_file_of_another_kind_is_refused(golden_dir: Path) -> None:
    with pytest.raises(FormatError, match=r"image\.jpg"):
        read_depth(golden_dir / "codec" / "image.jpg")


def test_every_truncation_is_refused_by_name(golden_dir: Path, tmp_path: Path) -> None:
    data = (golden_dir / "codec" / "depth_single_finite.png").read_bytes()
    path = tmp_path / "cut.png"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"cut\.png"):
            read_depth(path)


def test_every_flipped_bit_in_what_counts_is_found(golden_dir: Path) -> None:
    data = (golden_dir / "codec" / "depth_single_finite.png").read_bytes()
    for position in range(len(data) - 12):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(FormatError):
            read_depth(io.BytesIO(bytes(damaged)))


def test_pixels_that_end_early_behind_right_checksums_are_refused() -> None:
    with pytest.raises(FormatError, match="decodable"):
        read_depth(io.BytesIO(png_file(64, 64, pixels=bytes(100), extra=NEAR_FAR)))


def test_a_header_of_gigapixels_is_refused_before_decoding() -> None:
    with pytest.raises(ImageTooLargeError, match="50000 x 50000"):
        read_depth(io.BytesIO(huge_header(extra=NEAR_FAR)))


def test_the_limit_of_pixels_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(np.ones((4, 5), np.float32))
    monkeypatch.setattr(limits, "MAX_IMAGE_PIXELS", 19)
    with pytest.raises(ImageTooLargeError):
        read_depth(io.BytesIO(data))
    monkeypatch.setattr(limits, "MAX_IMAGE_PIXELS", 20)
    assert read_depth(io.BytesIO(data)).shape == (4, 5)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_compressed_text_is_read_and_bounded(kind: bytes) -> None:
    def field(value: bytes) -> bytes:
        middle = b"\0" if kind == b"zTXt" else b"\1\0\0\0"
        return chunk(kind, b"near\0" + middle + zlib.compress(value))

    far = text_chunk("far", "80")
    read_depth(io.BytesIO(grey16_file(np.ones((2, 2)), field(b"0.5") + far)))
    with pytest.raises(FormatError, match="near"):
        read_depth(io.BytesIO(grey16_file(np.ones((2, 2)), field(b"1" * (limits.MAX_TEXT_BYTES + 1)) + far)))
    field_of_50_mb = field(b"1" * 50_000_000)
    tracemalloc.start()
    with pytest.raises(FormatError, match="near"):
        read_depth(io.BytesIO(grey16_file(np.ones((2, 2)), field_of_50_mb + far)))
    assert tracemalloc.get_traced_memory()[1] < 4 * limits.MAX_TEXT_BYTES
    tracemalloc.stop()
    # Fields that nobody asks for are not even unpacked.
    bomb = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(50_000_000)))
    assert read_depth(io.BytesIO(grey16_file(np.ones((2, 2)), NEAR_FAR + bomb))).shape == (2, 2)


def test_chunks_that_change_how_a_picture_looks_do_not_change_depth() -> None:
    codes = np.arange(12).reshape(3, 4) * 5000 + 1
    plain = read_depth(io.BytesIO(grey16_file(codes, NEAR_FAR)))
    for extra in (
        chunk(b"gAMA", b"\0\3\x5b\x60"),
        chunk(b"tRNS", b"\0\1"),
        chunk(b"sBIT", b"\x0c"),
        chunk(b"sRGB", b"\0"),
    ):
        np.testing.assert_array_equal(read_depth(io.BytesIO(grey16_file(codes, NEAR_FAR + extra))), plain)


def test_writing_valid_depth_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written(np.array([[np.nan, np.inf, 1e-38, 1e-36]], np.float32))
