"""Files that belong together by the time at which they were taken.

Cameras of one device are rarely triggered together, so colour and depth of TUM's recordings have no stamp in common;
and tools that print a stamp twice round it twice. Stamps pair within a tolerance, the smallest difference first and
each once, as TUM's `associate.py` does it (https://cvg.cit.tum.de/data/datasets/rgbd-dataset/tools).
"""

from __future__ import annotations

import heapq
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

MAX_TIME_DIFFERENCE_S = 0.02
"""Seconds between stamps that are one moment: the default of TUM's `associate.py`."""

_NS = 1_000_000_000
_DECIMAL = re.compile(r"\d+(?:[.,]\d+)?(?:[eE][-+]\d+)|\d+[.,]\d+")
# Whole numbers are stamps only where they are a time since 1970 that lies between 1998 and 2100, in one of these units.
_FIRST_S, _LAST_S = 900_000_000, 4_100_000_000
_NS_OF_UNIT = (_NS, 1_000_000, 1_000, 1)
# Streams whose stamps differ by a smaller share of the time between frames were meant to have equal stamps.
_SHARE_OF_EQUAL = 0.1
# Of a larger share, a frame's neighbour is as near as the frame.
_SHARE_OF_NEIGHBOURS = 0.485
# A constant delay between the streams is known from so many pairs whose differences scatter by a smaller share.
_LEAST_PAIRS_OF_DELAY, _SHARE_OF_SCATTER = 8, 0.15


@dataclass(frozen=True)
class TimePairs:
    """What pairs by time.

    Attributes:
        pairs: indices into the two sequences, by the first's time.
        median_s, largest_s: seconds between the stamps of a pair.
        spacing_s: seconds from one frame to the next in the denser stream; None where neither has two.
        is_ambiguous: whether the stamps never agree and a pair is typically as far apart as neighbouring frames are.
    """

    pairs: list[tuple[int, int]]
    median_s: float
    largest_s: float
    spacing_s: float | None
    is_ambiguous: bool


def stamp_of(numbers: Sequence[str]) -> tuple[tuple[int, ...], int] | None:
    """Where the one time stamp stands among the numbers of a name, and the nanoseconds that it says.

    A number with a decimal point is in seconds, unless it is as large as today's milli- or microseconds. Whole numbers
    are told apart by their magnitude, and ROS's pair of seconds and nanoseconds is put together.

    Returns:
        None where there is no stamp or more than one.
    """
    decimals = [index for index, text in enumerate(numbers) if _DECIMAL.fullmatch(text)]
    if decimals:
        return ((decimals[0],), _nanoseconds(numbers[decimals[0]])) if len(decimals) == 1 else None
    whole = [index for index, text in enumerate(numbers) if text.isdecimal() and _unit(int(text)) is not None]
    if len(whole) != 1:
        return None
    (index,) = whole
    value = int(numbers[index])
    following = numbers[index + 1] if index + 1 < len(numbers) else ""
    if following.isdecimal() and len(following) == 9 and _unit(value) == _NS:
        return (index, index + 1), value * _NS + int(following)
    return (index,), _nanoseconds(numbers[index])


def to_nanoseconds(text: str) -> int | None:
    """A stamp as a list has it, or None where the text is no number."""
    try:
        return _nanoseconds(text)
    except (ArithmeticError, ValueError):
        return None


def _nanoseconds(text: str) -> int:
    value = Decimal(text.replace(",", "."))
    return int((value * (_unit(value) or _NS)).to_integral_value())


def _unit(value: Decimal | int) -> int | None:
    """Nanoseconds in the unit that makes the value a time of these years."""
    return next((unit for unit in _NS_OF_UNIT if _FIRST_S <= value * unit / _NS <= _LAST_S), None)


def pair_by_time(first: Sequence[int], second: Sequence[int], max_difference_s: float) -> TimePairs:
    """Pair stamps one to one, the smallest difference first.

    Where the streams are in step (equal stamps, or a constant delay), a difference beyond half the time between frames
    is that of a neighbour whose own partner is missing; it is left alone even within the tolerance.

    Args:
        first, second: nanoseconds, in any order.
        max_difference_s: seconds between stamps that may pair.
    """
    matches = _nearest_first(first, second, round(max_difference_s * _NS))
    spacing = min((gap for gap in (_spacing(first), _spacing(second)) if gap), default=None)
    differences = [second[j] - first[i] for i, j in matches]
    if spacing is not None and matches:
        delay = _delay(differences, spacing)
        if delay is not None:
            kept = [abs(difference - delay) <= spacing / 2 for difference in differences]
            matches = [match for match, keep in zip(matches, kept, strict=True) if keep]
            differences = [difference for difference, keep in zip(differences, kept, strict=True) if keep]
    distances = [abs(difference) for difference in differences]
    median = statistics.median(distances) if distances else 0
    return TimePairs(
        sorted(matches, key=lambda match: first[match[0]]),
        median / _NS,
        max(distances, default=0) / _NS,
        None if spacing is None else spacing / _NS,
        spacing is not None and bool(distances) and min(distances) > 0 and median >= _SHARE_OF_NEIGHBOURS * spacing,
    )


def _delay(differences: Sequence[int], spacing: float) -> float | None:
    """By how much the second stream is later in general; None where that is not one number."""
    if statistics.median(map(abs, differences)) <= _SHARE_OF_EQUAL * spacing:
        return 0.0
    delay = statistics.median(differences)
    scatter = statistics.median(abs(difference - delay) for difference in differences)
    return delay if len(differences) >= _LEAST_PAIRS_OF_DELAY and scatter <= _SHARE_OF_SCATTER * spacing else None


def _spacing(stamps: Sequence[int]) -> float | None:
    ordered = sorted(set(stamps))
    gaps = [later - earlier for earlier, later in pairwise(ordered)]
    return statistics.median(gaps) if gaps else None


def _nearest_first(first: Sequence[int], second: Sequence[int], most: int) -> list[tuple[int, int]]:
    """The pairs that come from taking the nearest two stamps of either side again and again.

    The nearest two are always neighbours on the line of all stamps that are left, so that a heap of neighbours
    suffices.
    """
    # Time, side and index, in the order of time.
    line = sorted([(stamp, 0, i) for i, stamp in enumerate(first)] + [(stamp, 1, i) for i, stamp in enumerate(second)])
    before, after = list(range(-1, len(line) - 1)), list(range(1, len(line) + 1))
    taken = [False] * len(line)
    heap: list[tuple[int, int, int, int, int]] = []

    def push(left: int, right: int) -> None:
        if left < 0 or right >= len(line) or line[left][1] == line[right][1]:
            return
        difference = line[right][0] - line[left][0]
        if difference <= most:
            own, other = (left, right) if line[left][1] == 0 else (right, left)
            heapq.heappush(heap, (difference, line[own][0], line[other][0], left, right))

    for left in range(len(line) - 1):
        push(left, left + 1)
    matches = []
    while heap:
        *_, left, right = heapq.heappop(heap)
        if taken[left] or taken[right]:
            continue
        taken[left] = taken[right] = True
        own, other = (left, right) if line[left][1] == 0 else (right, left)
        matches.append((line[own][2], line[other][2]))
        previous, following = before[left], after[right]
        if previous >= 0:
            after[previous] = following
        if following < len(line):
            before[following] = previous
        push(previous, following)
    return matches
