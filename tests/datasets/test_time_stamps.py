"""Stamps pair one to one within a tolerance, the smallest difference first, and never with a neighbour in silence."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.datasets.importers.pairing import Pairing, pair_by_frame
from moge_core.datasets.importers.stamps import pair_by_time, stamp_of
from moge_core.errors import DatasetError

MS = 1_000_000


def associate(first: list[int], second: list[int], most: int) -> set[tuple[int, int]]:
    """The rule of TUM's associate.py, over all pairs."""
    candidates = sorted((abs(a - b), a, b) for a in first for b in second if abs(a - b) <= most)
    pairs = set()
    for _, a, b in candidates:
        if all(a != other and b != another for other, another in pairs):
            pairs.add((a, b))
    return pairs


# Stamps too few and too scattered for a common delay.
@settings(max_examples=200, deadline=None)
@given(
    st.sets(st.integers(0, 400), min_size=1, max_size=7),
    st.sets(st.integers(0, 400), min_size=1, max_size=7),
    st.integers(0, 60),
)
def test_pairs_are_those_of_tums_tool(first: set[int], second: set[int], most: int) -> None:
    one, other = [10 * MS * time for time in first], [10 * MS * time + 3 * MS for time in second]
    found = pair_by_time(one, other, most / 1000)
    pairs = {(one[i], other[j]) for i, j in found.pairs}
    expected = associate(one, other, most * MS)
    # In step, pairs farther apart than half the time between frames are left out.
    assert pairs <= expected
    limit = (found.spacing_s or 1e9) * 1e9 / 2
    assert {pair for pair in expected if abs(pair[0] - pair[1]) < limit - 3 * MS} <= pairs


def tum(images: list[float], depths: list[float], tolerance: float = 0.02) -> Pairing:
    return pair_by_frame(
        [PurePosixPath(f"rgb/{time:.6f}.png") for time in images],
        [PurePosixPath(f"depth/{time:.6f}.png") for time in depths],
        max_time_difference=tolerance,
    )


def test_stamps_of_tum_pair_as_published() -> None:
    images = [1305031102.175304, 1305031102.211214, 1305031102.243211]
    depths = [1305031102.160407, 1305031102.226738, 1305031102.262886]
    found = tum(images, depths)
    assert [(each.image.stem, each.depth.stem) for each in found.pairs] == [
        (f"{image:.6f}", f"{depth:.6f}") for image, depth in zip(images, depths, strict=True)
    ]
    assert any("3 of 3 pairs" in note and "--max-time-difference 0.02" in note for note in found.notes)
    with pytest.raises(DatasetError, match="--max-time-difference"):
        tum(images, depths, tolerance=0.005)


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.integers(0, 39), max_size=15),
    st.sets(st.integers(0, 39), max_size=15),
    st.sampled_from([0.0, 0.0004, 0.001, 0.003, -0.004]),
    st.sampled_from([60, 100]),
)
def test_a_frame_whose_partner_is_missing_is_left_alone(
    no_image: set[int], no_depth: set[int], delay: float, rate: int
) -> None:
    # A neighbour is 10 or 17 ms away, which the tolerance alone would allow.
    start = 1305031102.0
    images = {f"{start + n / rate:.6f}": n for n in range(40) if n not in no_image}
    depths = {f"{start + n / rate + delay:.6f}": n for n in range(40) if n not in no_depth}
    found = tum([float(time) for time in images], [float(time) for time in depths])
    assert {(images[each.image.stem], depths[each.depth.stem]) for each in found.pairs} == {
        (n, n) for n in range(40) if n not in no_image | no_depth
    }


def test_stamps_half_a_frame_apart_are_refused_with_both_figures() -> None:
    times = [10 + n / 50 for n in range(20)]
    with pytest.raises(DatasetError, match=r"differ by 10 ms.*20 ms apart.*delay"):
        tum(times, [time + 0.01 for time in times])


def test_every_stamp_is_used_once() -> None:
    found = tum([10.0, 10.004], [10.001])
    assert [(each.image.stem, each.depth.stem) for each in found.pairs] == [("10.000000", "10.001000")]
    assert len(found.lone_images) == 1


@pytest.mark.parametrize(
    ("name", "nanoseconds"),
    [
        (["1305031102.175304"], 1305031102175304000),
        (["1305031102"], 1305031102000000000),
        (["1305031102175"], 1305031102175000000),
        (["1305031102175304"], 1305031102175304000),
        (["1305031102175304123"], 1305031102175304123),
        (["1305031102175.304"], 1305031102175304000),
        (["1305031102", "175304123"], 1305031102175304123),
        (["41048190", "3418.567"], 3418567000000),
        (["0.05"], 50000000),
    ],
)
def test_the_unit_of_a_stamp_is_told_by_its_magnitude(name: list[str], nanoseconds: int) -> None:
    found = stamp_of(name)
    assert found is not None
    assert found[1] == nanoseconds


@pytest.mark.parametrize("numbers", [["000123"], ["0.5", "0.7"], [], ["20140526142337"], ["12", "7"]])
def test_counters_and_dates_are_no_stamps(numbers: list[str]) -> None:
    assert stamp_of(numbers) is None


def test_stamps_in_different_units_pair_within_their_scene() -> None:
    images = ["a/rgb/1305031102.175304.png", "b/rgb/1305031102.175304.png"]
    depths = ["a/depth/1305031102176304000.png", "c/depth/1305031102175304000.png"]
    found = pair_by_frame(
        [PurePosixPath(name) for name in images], [PurePosixPath(name) for name in depths], max_time_difference=0.02
    )
    assert [(str(each.image), str(each.depth)) for each in found.pairs] == [(images[0], depths[0])]
