"""The frames of one scene in their order, and what is far enough from others of them to be unseen."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moge_core.datasets.scene_names import FrameName

# Of the frames of a video, so many lie between what is held out and what is trained on.
GAP_SHARE = 0.05
# At least so many seconds do where names are stamps.
GAP_SECONDS = 2.0
# Cameras that share this part of their frame numbers count them together.
_SHARED = 0.5


@dataclass(frozen=True)
class Video:
    """Frames in order. Those that several cameras took at once have the same place.

    Attributes:
        place_of: of each instance, 0 to `length` - 1.
        length: number of places.
        seconds: when each place was taken, where names are stamps.
    """

    place_of: Mapping[str, int]
    length: int
    seconds: Sequence[float] | None = None

    @property
    def gap(self) -> int:
        """Places between what is held out and what is trained on, where stamps do not ask for more."""
        return math.ceil(GAP_SHARE * self.length)

    def before(self, place: int) -> int:
        """The last place that is a gap before `place`; negative where there is none."""
        last = place - self.gap - 1
        if self.seconds is not None:
            last = min(last, int(np.searchsorted(self.seconds, self.seconds[place] - GAP_SECONDS)) - 1)
        return last

    def after(self, place: int) -> int:
        """The first place that is a gap after `place`; `length` or more where there is none."""
        first = place + self.gap + 1
        if self.seconds is not None:
            first = max(first, int(np.searchsorted(self.seconds, self.seconds[place] + GAP_SECONDS, side="right")))
        return first


def block_of(video: Video, fraction: float, kept: Collection[str] = ()) -> tuple[int, int] | None:
    """First and last place of the frames to hold out; None where nothing would be left to train on.

    They are the first ones: a video that grows by its end keeps them.

    Args:
        video: the frames.
        fraction: share of the places to hold out.
        kept: instances that are held out already: the block is from the first to the last of them.
    """
    places = [video.place_of[name] for name in kept if name in video.place_of]
    # Without the error of a product such as 0.29 * 100.
    count = max(1, round(fraction * video.length))
    block = (min(places), max(places)) if places else (0, count - 1)
    return block if video.before(block[0]) >= 0 or video.after(block[1]) < video.length else None


def order_by_names(names: Mapping[str, FrameName]) -> Video:
    """The order that frame numbers give; of frames without one, that of their names.

    Cameras of a rig that number their frames alike, or by stamps, share their places. Others, and several recordings
    of one scene, run side by side: what is held out of one is so of all.
    """
    tracks: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for name in sorted(names):
        parsed = names[name]
        track = tracks[parsed.place, parsed.camera, parsed.family if parsed.number is not None else ""]
        track[name] = parsed.number if parsed.number is not None else float(len(track))
    has_stamps = all(parsed.stamp_s is not None for parsed in names.values())
    seconds_of = {name: parsed.stamp_s or 0.0 for name, parsed in names.items()} if has_stamps else None
    if _count_together([set(track.values()) for track in tracks.values()], has_stamps=has_stamps):
        values = {name: number for track in tracks.values() for name, number in track.items()}
        if seconds_of is not None:
            values = seconds_of
        places = {value: place for place, value in enumerate(sorted(set(values.values())))}
        seconds = sorted(places) if seconds_of is not None else None
        return Video({name: places[value] for name, value in values.items()}, len(places), seconds)
    length = max(len(set(track.values())) for track in tracks.values())
    place_of: dict[str, int] = {}
    for track in tracks.values():
        numbers = sorted(set(track.values()))
        rank = {number: place * length // len(numbers) for place, number in enumerate(numbers)}
        place_of |= {name: rank[number] for name, number in track.items()}
    return Video(place_of, length)


def _count_together(numbers: Sequence[set[float]], *, has_stamps: bool) -> bool:
    largest = max(numbers, key=len, default=set())
    if has_stamps:
        return all(min(each) <= max(largest) and min(largest) <= max(each) for each in numbers)
    return all(len(each & largest) >= _SHARED * len(each) for each in numbers)


def order_by_distance(features: Mapping[str, npt.NDArray[np.floating]]) -> Video:
    """An order for frames whose names have none: by the distance from the one that is farthest from their mean.

    Args:
        features: of each instance, the camera's centre (3,) or a thumbnail (N,).
    """
    names = sorted(features)
    values = np.stack([np.asarray(features[name], np.float64) for name in names])
    # Rounded, so that the last bits of another machine's sums change nothing.
    seed = int(np.argmax(np.round(np.linalg.norm(values - values.mean(0), axis=1), 6)))
    distance = np.round(np.linalg.norm(values - values[seed], axis=1), 6)
    order = sorted(range(len(names)), key=lambda number: (distance[number], names[number]))
    return Video({names[number]: place for place, number in enumerate(order)}, len(names))
