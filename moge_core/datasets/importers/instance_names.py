"""The path of an instance in its dataset: the image's, without what only says that it is the image.

These paths are how a second import knows the instances of the first again, so what they are must not change.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from moge_core.datasets.importers.frame_names import Name, Shape, is_droppable

if TYPE_CHECKING:
    from moge_core.datasets.importers.pairing import Pair

_TOKEN = re.compile(r"\d+|[^\W\d_]+")
_WORD = re.compile(r"[^\W\d_]+")
_SEPARATORS = re.compile(r"([-_. ])[-_. ]+")


class InstanceNames:
    """Folders and words that all images have and no depth map has, and the paths without them."""

    def __init__(self, images: Sequence[Name], depths: Sequence[Name]) -> None:
        parents = [{name.path.parent for name in side} for side in (images, depths)]
        folders, _ = _in_all_and_any(parent.parts for parent in parents[0])
        self.folders = frozenset(folders - {part for parent in parents[1] for part in parent.parts})
        own, _ = _in_all_and_any(_words(name.path) for name in images)
        _, others = _in_all_and_any(_words(name.path) for name in depths)
        # Numbers are never left out: a number of one side only is a frame without a partner, not a kind.
        self.words = frozenset(own - others)
        self._extra: dict[tuple[Shape, Shape], frozenset[str]] = {}

    def of(self, image: Name, depth: Name) -> PurePosixPath:
        """The path of the instance of a pair."""
        words = self.words | self._kinds_of_pair(image.shape, depth.shape)
        folders = [_stripped(part, words) for part in image.path.parent.parts if part not in self.folders]
        parts = [part for part in (*folders, _stripped(image.path.stem, words)) if part]
        return PurePosixPath(*parts) if parts else PurePosixPath(image.path.stem)

    def _kinds_of_pair(self, image: Shape, depth: Shape) -> frozenset[str]:
        """Words for images that this image has and its depth map has not, where others of the source differ."""
        if (image, depth) not in self._extra:
            self._extra[image, depth] = frozenset(filter(is_droppable, set(image) - set(depth)))
        return self._extra[image, depth]


def made_unique(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs of which none has the instance of another: those that would are called like their whole image path."""
    counts = Counter(pair.instance for pair in pairs)
    return [replace(pair, instance=pair.image.with_suffix("")) if counts[pair.instance] > 1 else pair for pair in pairs]


def _stripped(name: str, words: frozenset[str]) -> str:
    """`name` without these words and the separators that they leave behind; empty when nothing else was there."""
    kept = _TOKEN.sub(lambda match: "" if match[0].lower() in words else match[0], name)
    return _SEPARATORS.sub(r"\1", kept).strip("-_. ")


def _in_all_and_any(sets: Iterable[Iterable[str]]) -> tuple[set[str], set[str]]:
    in_all: set[str] | None = None
    in_any: set[str] = set()
    for each in sets:
        in_all = set(each) if in_all is None else in_all.intersection(each)
        in_any.update(each)
    return in_all or set(), in_any


def _words(path: PurePosixPath) -> list[str]:
    return [*_words_of_folder(str(path.parent)), *map(str.lower, _WORD.findall(path.stem))]


@lru_cache(maxsize=1 << 16)
def _words_of_folder(folder: str) -> tuple[str, ...]:
    return tuple(map(str.lower, _WORD.findall(folder)))
