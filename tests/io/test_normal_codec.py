"""Normal maps: golden file of the published tools, exactness, and unknown normals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from png_files import RGB, huge_header, png_file

from moge_core.errors import FormatError, ImageTooLargeError, InputError
from moge_core.io import NormalWarning, read_normal, write_normal


def written(normal: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    write_normal(file, normal)
    return file.getvalue()


def codes_of(data: bytes) -> npt.NDArray[np.uint16]:
    """RGB codes as any PNG reader has them."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]


def degrees_between(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    a, b = (n / np.linalg.norm(n, axis=-1, keepdims=True) for n in (a, b))
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1)))


def test_the_golden_normal_file_reads_back_as_intended(golden_dir: Path) -> None:
    expected = np.load(golden_dir / "codec" / "normal.npz")["read_intended"]
    normal = read_normal(golden_dir / "codec" / "normal.png")
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal, expected, atol=1e-6)


def test_golden_normals_are_written_with_the_published_codes_rounded(golden_dir: Path) -> None:
    golden = np.load(golden_dir / "codec" / "normal.npz")
    has_length = ~(golden["input"] == 0).all(axis=-1)
    with pytest.warns(NormalWarning, match=r"1 of 1,015 normals"):
        data = written(golden["input"])
    difference = codes_of(data).astype(int) - golden["codes_rgb"].astype(int)
    assert set(np.unique(difference[has_length])) <= {0, 1}  # the published tools round towards zero
    assert np.isnan(read_normal(io.BytesIO(data))[~has_length]).all()


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9), st.floats(1e-12, 1e12))
@settings(deadline=None, max_examples=100)
def test_directions_come_back_whatever_their_length(seed: int, height: int, width: int, length: float) -> None:
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((height, width, 3))
    normal = (length * normal / np.linalg.norm(normal, axis=-1, keepdims=True)).astype(np.float32)
    is_unknown = rng.random((height, width)) < 0.3
    normal[is_unknown, rng.integers(3)] = np.nan
    read = read_normal(io.BytesIO(written(normal)))
    np.testing.assert_array_equal(np.isnan(read).all(axis=-1), is_unknown)
    np.testing.assert_allclose(np.linalg.norm(read[~is_unknown], axis=-1), 1, rtol=1e-6)
    assert (degrees_between(read[~is_unknown], normal[~is_unknown]) < 0.002).all()


def test_the_code_of_unknown_is_never_that_of_a_direction() -> None:
    corners = np.array(np.meshgrid([-1, 0, 1], [-1, 0, 1], [-1, 0, 1])).reshape(3, 1, -1).T.astype(np.float32)
    corners = corners[(corners != 0).any(axis=-1)][None]
    read = read_normal(io.BytesIO(written(corners)))
    assert (degrees_between(read, corners) < 0.002).all()


def test_normals_without_direction_become_unknown_and_are_counted() -> None:
    normal = np.zeros((2, 2, 3), np.float32)
    normal[0, 0] = [0, 0, -1]
    normal[0, 1] = [np.inf, 0, 0]
    normal[1, 0] = np.nan
    with pytest.warns(NormalWarning, match="2 of 4 normals") as record:
        data = written(normal)
    assert len(record) == 1
    np.testing.assert_array_equal(np.isnan(read_normal(io.BytesIO(data)))[..., 0], [[False, True], [True, True]])


@pytest.mark.parametrize("normal", [np.zeros((2, 2, 3), int), np.ones((2, 2)), np.ones((2, 2, 4)), np.ones((0, 2, 3))])
def test_what_is_no_normal_map_is_refused(normal: Any) -> None:
    with pytest.raises(InputError, match="normal"):
        written(normal)


@pytest.mark.parametrize("options", [{"bit_depth": 8, "color_type": RGB}, {"bit_depth": 16}])
def test_another_pixel_format_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="16-bit RGB PNG; found"):
        read_normal(io.BytesIO(png_file(3, 2, **options)))


def test_a_header_of_gigapixels_is_refused_before_decoding() -> None:
    with pytest.raises(ImageTooLargeError):
        read_normal(io.BytesIO(huge_header(color_type=RGB)))
