"""Which depth map belongs to which image, told by their names alone.

Two files belong together when the same frame token stands in both names: `frame-000116.color.png` and
`frame-000116.depth.png`, `rgb/rgb_00050.jpg` and `depth/sync_depth_00050.png`, `1.png` and `1_depth.png`. Words that
all images have and no depth map has (or the other way round) say what kind of file it is, so they are left out; so are
folders. What remains must be equal and must occur once on each side. Sorted order decides nothing: one missing
frame would shift all that follow.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from moge_core.errors import DatasetError

Key = tuple[tuple[str, ...], ...]
"""Words of each folder and of the stem."""

_TOKEN = re.compile(r"\d+|[^\W\d_]+")
_SEPARATORS = re.compile(r"([-_. ])[-_. ]+")


@dataclass(frozen=True)
class Pair:
    """An image, its depth map (relative to the source folder) and the path of the instance they become."""

    image: PurePosixPath
    depth: PurePosixPath
    instance: PurePosixPath


@dataclass(frozen=True)
class Pairing:
    """All pairs, and the files that have no partner."""

    pairs: list[Pair]
    lone_images: list[PurePosixPath]
    lone_depths: list[PurePosixPath]


def pair_by_frame(images: Sequence[PurePosixPath], depths: Sequence[PurePosixPath]) -> Pairing:
    """Pair images and depth maps by the frame tokens of their names.

    Raises:
        DatasetError: two files of one side have the same token and a partner wants one of them, or nothing pairs.
    """
    image_kind, depth_kind = _kind_words(images, depths), _kind_words(depths, images)
    images_by_key = _group(images, image_kind)
    depths_by_key = _group(depths, depth_kind)
    common = sorted(images_by_key.keys() & depths_by_key.keys())
    for key in common:
        for side, group in (("images", images_by_key[key]), ("depth maps", depths_by_key[key])):
            if len(group) > 1:
                raise DatasetError(
                    " and ".join(str(path) for path in group[:3]),
                    f"must be told apart by folder or frame number, because {side} are paired by them",
                    found=f"{len(group)} {side} with the token {_describe(key)}",
                    fix="Narrow --image and --depth, for example --image 'rgb/*.png' --depth 'depth/*.png'.",
                )
    if not common:
        raise DatasetError(
            "image and depth files",
            "must share a frame token in their names",
            found=f"{_examples(images_by_key, 'image')} and {_examples(depths_by_key, 'depth map')}",
            fix="Rename them so that both carry the same frame number; narrow --image and --depth where other files"
            " were caught. Timestamps that differ must be matched beforehand.",
        )
    pairs = [
        Pair(images_by_key[key][0], depths_by_key[key][0], image_kind.strip_path(images_by_key[key][0]))
        for key in common
    ]
    return Pairing(
        sorted(pairs, key=lambda pair: pair.instance),
        sorted(path for key, group in images_by_key.items() if key not in depths_by_key for path in group),
        sorted(path for key, group in depths_by_key.items() if key not in images_by_key for path in group),
    )


@dataclass(frozen=True)
class _KindWords:
    """What tells one side from the other and is therefore no part of a frame's token: whole folders, and words."""

    folders: frozenset[str]
    words: frozenset[str]

    def strip(self, name: str) -> str:
        """`name` without these words and the separators that they leave behind; empty when nothing else was there."""
        kept = _TOKEN.sub(lambda match: "" if match[0].lower() in self.words else match[0], name)
        return _SEPARATORS.sub(r"\1", kept).strip("-_. ")

    def strip_path(self, path: PurePosixPath) -> PurePosixPath:
        """Folders and stem without what only says which kind of file this is."""
        folders = [self.strip(part) for part in path.parent.parts if part not in self.folders]
        return PurePosixPath(*(part for part in folders if part), self.strip(path.stem) or path.stem)


def _kind_words(own: Sequence[PurePosixPath], others: Sequence[PurePosixPath]) -> _KindWords:
    folders = _in_all([set(path.parent.parts) for path in own])
    folders -= {part for path in others for part in path.parent.parts}
    words = _in_all([{word for part in _named_parts(path) for word in _words(part)} for path in own])
    words -= {word for path in others for part in _named_parts(path) for word in _words(part)}
    # Numbers are never left out: a number of one side only is a frame without a partner, not a kind.
    return _KindWords(frozenset(folders), frozenset(word for word in words if not word.isdecimal()))


def _in_all(sets: Sequence[set[str]]) -> set[str]:
    return set.intersection(*sets) if sets else set()


def _named_parts(path: PurePosixPath) -> tuple[str, ...]:
    return (*path.parent.parts, path.stem)


def _words(name: str) -> list[str]:
    return [token.lower() for token in _TOKEN.findall(name)]


def _group(paths: Iterable[PurePosixPath], kind: _KindWords) -> dict[Key, list[PurePosixPath]]:
    groups: dict[Key, list[PurePosixPath]] = defaultdict(list)
    for path in paths:
        parts = kind.strip_path(path).parts
        groups[tuple(tuple(map(_plain_number, _words(part))) or (part,) for part in parts)].append(path)
    return groups


def _plain_number(word: str) -> str:
    # 00050 and 50 are one frame.
    return (word.lstrip("0") or "0") if word.isdecimal() else word


def _describe(key: Key) -> str:
    return "/".join(" ".join(words) for words in key)


def _examples(groups: dict[Key, list[PurePosixPath]], what: str) -> str:
    key, group = min(groups.items())
    return f"{what} {group[0]} with the token {_describe(key)}"
