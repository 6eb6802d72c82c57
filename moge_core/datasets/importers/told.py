"""What is to be told of frames, and how that of many frames becomes a few lines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

_SHARES: Mapping[str, str] = {
    "infinite": "{share:.1%} of the pixels are infinitely far in {frames}. If they are pixels without a return and no"
    " sky, import again with --invalid inf.",
    "infinite as said": "{share:.1%} of the pixels are infinitely far in {frames}, as was said of their values.",
    "negative": "{share:.1%} of the stored values are negative or -inf in {frames}; no depth is, and they became"
    " unknown.",
    "undistorted": "Undistorted pictures keep {share:.0%} of their pixels in {frames}.",
    "undistorted_fov": "Undistorted pictures have a horizontal field of view of {share:.1f} degrees in {frames}.",
}
"""Sentences for measured shares, by their names."""
_NOT_FOUND = "No frame holds a value that was said to mean infinitely far (--infinite, `infinite` in a table)."


@dataclass
class Told:
    """What is to be told of one frame.

    Attributes:
        notes: facts about how it was read, told once however many frames share them.
        suspicions: what may be wrong with it, told with the number of frames that it holds for.
        shares: measured shares by the names of `_SHARES`, told as the median of the frames that have one.
        typical_depth: median of depth with a unit in metres, but for what stands for something else.
        scale: stored units a metre of z or ray values with a unit and no offset.
        is_relative: whether values show that they have no unit, and nobody said one.
        infinite_is_found: whether a value that was said to mean infinitely far is there.
    """

    notes: set[str] = field(default_factory=set)
    suspicions: set[str] = field(default_factory=set)
    shares: dict[str, float] = field(default_factory=dict)
    typical_depth: float | None = None
    scale: float | None = None
    is_relative: bool = False
    infinite_is_found: bool = True


@dataclass
class ToldOfAll:
    """What is to be told of all frames that were read."""

    num_frames: int = 0
    notes: set[str] = field(default_factory=set)
    suspicions: Counter[str] = field(default_factory=Counter)
    shares: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    typical_depths: list[float] = field(default_factory=list)
    scales: set[float | None] = field(default_factory=set)
    infinite_is_found: bool = False

    def add(self, told: Told) -> None:
        """Count one more frame."""
        self.num_frames += 1
        self.notes |= told.notes
        self.suspicions.update(told.suspicions)
        for name, share in told.shares.items():
            self.shares[name].append(share)
        if told.typical_depth is not None:
            self.typical_depths.append(told.typical_depth)
        self.scales.add(told.scale)
        self.infinite_is_found |= told.infinite_is_found

    @property
    def typical_depth(self) -> float | None:
        """In metres, over the frames that have a unit and a depth map."""
        return float(np.median(self.typical_depths)) if self.typical_depths else None

    @property
    def scale(self) -> float | None:
        """Stored units a metre, where all frames have the same."""
        return next(iter(self.scales)) if len(self.scales) == 1 else None

    def lines(self) -> list[str]:
        """The sentences, suspicions first."""
        return [
            *(f"{text} ({self._frames(count)})" for text, count in self.suspicions.most_common()),
            *(
                _SHARES[name].format(share=float(np.median(shares)), frames=self._frames(len(shares)))
                for name, shares in sorted(self.shares.items())
            ),
            *([] if self.infinite_is_found or not self.num_frames else [_NOT_FOUND]),
            *sorted(self.notes),
        ]

    def _frames(self, count: int) -> str:
        return f"{count} of {self.num_frames} frames"
