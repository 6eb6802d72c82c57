"""Contact sheets and histograms: every picture is there, unbent, and nothing to show is said in a picture too."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moge_core.errors import InputError
from moge_core.visualization import contact_sheet, plot_histogram, plot_lines


def filled(height: int, width: int, color: tuple[int, int, int]) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def area(sheet: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of what has that colour."""
    rows, columns = np.nonzero((sheet == color).all(-1))
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def test_pictures_of_any_shape_keep_it_in_their_tiles() -> None:
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    rows = [[filled(120, 160, red), filled(400, 300, green)], [filled(1, 1, blue)]]
    sheet = contact_sheet(rows, tile_height=60)
    assert sheet.dtype == np.uint8
    assert area(sheet, red) == (60, 80)
    assert area(sheet, green) == (60, 45)
    assert area(sheet, blue) == (60, 60)


def test_a_picture_of_extreme_shape_stays_visible() -> None:
    red = (255, 0, 0)
    assert area(contact_sheet([[filled(1, 5000, red)]], tile_height=50), red) == (1, 100)
    assert area(contact_sheet([[filled(5000, 1, red)]], tile_height=50), red) == (50, 1)


def test_captions_take_room_below_their_row() -> None:
    rows = [[filled(30, 40, (9, 9, 9))] * 2] * 2
    bare = contact_sheet(rows, tile_height=30)
    for captions in (["first", "a text much too long for the two tiles above it " * 9], [["a", "b"], ["c " * 99, ""]]):
        sheet = contact_sheet(rows, captions=captions, tile_height=30)
        assert sheet.shape[0] > bare.shape[0]
        assert sheet.shape[1] == bare.shape[1]
        assert (sheet[:, :4] == sheet[0, 0]).all()
        assert (sheet[:, -4:] == sheet[0, 0]).all()
    assert not np.array_equal(sheet, contact_sheet(rows, captions=[["", ""], ["", ""]], tile_height=30))


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_nothing_to_show_is_an_empty_sheet(rows: list[list[np.ndarray]]) -> None:
    assert contact_sheet(rows).size > 0
    assert contact_sheet(rows, captions=[""] * len(rows)).size > 0


def test_wrong_pictures_and_captions_are_named() -> None:
    good = filled(2, 2, (0, 0, 0))
    with pytest.raises(InputError, match=r"rows\[0\]\[1\]"):
        contact_sheet([[good, good.astype(np.float32)]])
    with pytest.raises(InputError, match=r"rows\[0\]\[0\]"):
        contact_sheet([[good[:0]]])
    with pytest.raises(InputError, match="captions"):
        contact_sheet([[good]], captions=[])
    with pytest.raises(InputError, match=r"captions\[0\]"):
        contact_sheet([[good]], captions=[["a", "b"]])
    with pytest.raises(InputError, match="tile_height"):
        contact_sheet([[good]], tile_height=0)


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def bars(png: bytes) -> np.ndarray:
    """Where the bars are, (H, W)."""
    image = picture(png).astype(int)
    return np.asarray(image[..., 2] - image[..., 0] > 60)


@pytest.mark.parametrize("log", [False, True])
def test_a_histogram_shows_where_the_values_are(log: bool, tmp_path: Path) -> None:
    values = np.concatenate([np.full(900, 1.0), np.full(100, 100.0), [np.nan, np.inf, -np.inf]])
    path = tmp_path / "histogram.png"
    png = plot_histogram(values, path, title="depth of $set_1", x_label="depth (m)", log=log)
    assert path.read_bytes() == png
    heights = bars(png).sum(axis=0)
    columns = np.flatnonzero(heights)
    left, right = heights[columns[0] + 2], heights[columns[-1] - 2]
    assert 7 < left / right < 11
    assert plot_histogram(values, title="depth of $set_1", x_label="depth (m)", log=log) == png


def test_a_ready_histogram_is_drawn_as_it_is() -> None:
    heights = bars(plot_histogram((np.array([1, 0, 2]), np.array([0.0, 1.0, 2.0, 3.0])))).sum(axis=0)
    first, last = np.flatnonzero(heights)[[0, -1]]
    assert heights[(first + last) // 2] == 0
    assert heights[last - 5] == pytest.approx(2 * heights[first + 5], abs=3)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [np.array([]), np.full((2, 2), np.nan, np.float32), np.zeros(3), np.array(7), np.full(5, 3e38), -np.ones(2)],
)
def test_no_values_equal_values_and_extremes_give_a_picture(values: np.ndarray, log: bool) -> None:
    png = plot_histogram(values, log=log)
    countable = values[np.isfinite(values) & ((values > 0) | (not log))].size
    assert bars(png).any() == bool(countable)


def test_counts_and_edges_that_do_not_fit_are_refused() -> None:
    for counts, edges in (([1, 2], [0, 1]), ([1], [1, 1]), ([-1], [0, 1]), ([np.nan], [0, 1])):
        with pytest.raises(InputError, match="values"):
            plot_histogram((np.array(counts), np.array(edges)))


def test_pictures_are_made_without_torch_and_without_pyplot() -> None:
    code = (
        "import sys, numpy as np; from moge_core.visualization import *\n"
        "colorize_depth(np.ones((2, 2))); plot_histogram(np.ones(3)); contact_sheet([])\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("log", [False, True])
def test_lines_are_drawn_where_they_are_finite_and_their_absence_is_told(log: bool, tmp_path: Path) -> None:
    curve = ([1, 2, 3], [1.0, math.nan, 0.5])
    drawn = plot_lines({"$rel$": curve, "empty": ([], [])}, tmp_path / "lines.png", x_label="run", log=log)
    assert drawn == (tmp_path / "lines.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert drawn != plot_lines({"$rel$": ([1], [1.0])}, x_label="run", log=log), "one point is a dot, not these lines"
    nothing = plot_lines({"rel": ([1, 2], [math.nan, math.inf])}, log=log)
    assert nothing == plot_lines({}, log=log)
