"""meta.json: the camera is checked, everything else is kept."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moge_core.errors import FormatError, InputError
from moge_core.io import limits, read_meta, write_meta

INTRINSICS = [[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]


def read_text(text: str | bytes) -> dict[str, Any]:
    return read_meta(io.BytesIO(text.encode() if isinstance(text, str) else text))


def test_meta_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    meta = {
        "source": "Küche",
        "intrinsics": np.array(INTRINSICS, np.float32),
        "scale": np.float32(0.1),
        "frame": np.int64(7),
        "is_metric": np.bool_(True),
        "pose": np.eye(4),
        "nested": {"a": [1, None, 2.5], "list": [np.float32(0.3)]},
    }
    write_meta(path, meta)
    read = read_meta(path)
    assert read["intrinsics"].dtype == np.float32
    np.testing.assert_array_equal(read.pop("intrinsics"), np.array(INTRINSICS, np.float32))
    assert read == {
        "source": "Küche",
        "scale": 0.1,
        "frame": 7,
        "is_metric": True,
        "pose": np.eye(4).tolist(),
        "nested": {"a": [1, None, 2.5], "list": [0.3]},
    }
    assert list(json.loads(path.read_text())) == list(meta)
    assert "[[0.9, 0.0, 0.5], [0.0, 1.2, 0.5], [0.0, 0.0, 1.0]]" in path.read_text()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_intrinsics_lose_no_bit(dtype: Any) -> None:
    intrinsics = np.random.default_rng(0).lognormal(0, 9, (3, 3)).astype(dtype)
    file = io.BytesIO()
    write_meta(file, {"intrinsics": intrinsics})
    np.testing.assert_array_equal(np.array(json.loads(file.getvalue())["intrinsics"], dtype), intrinsics)
    np.testing.assert_array_equal(read_text(file.getvalue())["intrinsics"], intrinsics.astype(np.float32))


def test_a_byte_order_mark_is_no_hindrance() -> None:
    text = json.dumps({"intrinsics": INTRINSICS})
    np.testing.assert_array_equal(read_text(text.encode("utf-8-sig"))["intrinsics"], np.float32(INTRINSICS))


@pytest.mark.parametrize(
    "intrinsics",
    [
        "null", "[]", "[[1,0,0],[0,1,0]]", "[[1,0],[0,1,0],[0,0,1]]", '[["1",0,0],[0,1,0],[0,0,1]]',
        "[[1e39,0,0],[0,1,0],[0,0,1]]", "[[NaN,0,0],[0,1,0],[0,0,1]]", "[[1e999,0,0],[0,1,0],[0,0,1]]",
        "[[null,0,0],[0,1,0],[0,0,1]]", '{"fx": 1}',
    ],
)  # fmt: skip
def test_intrinsics_that_are_no_camera_are_refused(intrinsics: str) -> None:
    with pytest.raises(FormatError, match=r"intrinsics|JSON"):
        read_text(f'{{"intrinsics": {intrinsics}}}')


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", b"\xff\xfe", "[" * 100_000, '{"x": ' + "9" * 5000 + "}", '{"x": Infinity}']
)
def test_what_is_no_meta_file_is_refused(text: str | bytes) -> None:
    with pytest.raises(FormatError, match="<BytesIO>"):
        read_text(text)


def test_the_size_of_a_meta_file_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_META_BYTES", 50)
    with pytest.raises(FormatError, match="50 bytes"):
        read_text(json.dumps({"intrinsics": INTRINSICS}) + " " * 50)


@pytest.mark.parametrize(
    "meta",
    [
        {}, {"intrinsics": None}, {"intrinsics": np.eye(4)}, {"intrinsics": np.full((3, 3), np.nan)},
        {"intrinsics": INTRINSICS, "x": float("nan")}, {"intrinsics": INTRINSICS, "x": np.float32("inf")},
        {"intrinsics": INTRINSICS, "x": np.array([np.nan])}, {"intrinsics": INTRINSICS, "x": object()},
        {"intrinsics": INTRINSICS, 3: 1},
    ],
)  # fmt: skip
def test_what_json_does_not_have_is_not_written(tmp_path: Path, meta: dict[Any, Any]) -> None:
    with pytest.raises(InputError):
        write_meta(tmp_path / "meta.json", meta)
    assert list(tmp_path.iterdir()) == []
