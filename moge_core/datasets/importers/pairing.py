"""Which depth map belongs to which image, told by their names and by the time at which they were taken.

Two files belong together when the same frame token stands in both names: `frame-000116.color.png` and
`frame-000116.depth.png`, `rgb/rgb_00050.jpg` and `depth/sync_depth_00050.png`, `0001/color.png` and `0001/depth.png`.
Words that all images have and no depth map has (or the other way round) say what kind of file it is, so they are left
out; what remains must be equal and must occur once on each side. Sorted order decides nothing: one missing frame would
shift all that follow.

What is never left out: a number, and a word that could be a scene, where the other side has such a word too. What does
not pair so pairs without the words that everybody calls images and depth by (some scenes have `rgb`, others `color`);
then `left` goes, because depth is of the left camera; and what remains pairs by time stamps, see `stamps`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypeAlias

from moge_core.datasets.importers.frame_lists import ListedPairs
from moge_core.datasets.importers.frame_names import (
    FORMAT,
    NUMBER,
    Name,
    Shape,
    count_of_folder_numbers,
    family,
    has_fractions_like_decimals,
    is_known,
    normal_number,
    numbers_of_kinds,
    read_name,
)
from moge_core.datasets.importers.frame_tokens import NO_WORDS, Dropped, constant_words
from moge_core.datasets.importers.glob_tokens import matched_by_wildcards
from moge_core.datasets.importers.instance_names import InstanceNames, made_unique
from moge_core.datasets.importers.stamps import TimePairs, pair_by_time, stamp_of
from moge_core.errors import DatasetError

# So many patterns are offered at most.
_MOST_CHOICES = 4

Key: TypeAlias = tuple[Shape, tuple[str, ...]]
"""The words and signs that are left of a shape, and the numbers at its signs."""


@dataclass(frozen=True)
class Pair:
    """An image, its depth map (relative to the source folder) and the path of the instance they become."""

    image: PurePosixPath
    depth: PurePosixPath
    instance: PurePosixPath


@dataclass(frozen=True)
class Pairing:
    """All pairs, and the files that have no partner.

    Attributes:
        notes: what a person should know of how they were found.
    """

    pairs: list[Pair]
    lone_images: list[PurePosixPath]
    lone_depths: list[PurePosixPath]
    notes: list[str] = field(default_factory=list)


def pair_by_frame(
    images: Sequence[PurePosixPath],
    depths: Sequence[PurePosixPath],
    *,
    patterns: tuple[str, str] | None = None,
    listed: ListedPairs | None = None,
    max_time_difference: float | None = None,
    options: tuple[str, str] = ("--image", "--depth"),
) -> Pairing:
    """Pair images and depth maps by the frame tokens of their names.

    Args:
        images, depths: paths relative to one folder.
        patterns: the patterns that found the images and the depth maps, where both were given: what their wildcards
            matched is the token then.
        listed: pairs that lists beside the files name, which need no names.
        max_time_difference: seconds by which stamps of a pair may differ; None compares no stamps.
        options: by which a user says which files are images and depth maps, for errors.

    Raises:
        DatasetError: two files of one side have the same token and a partner wants one of them, stamps could as well be
            those of neighbouring frames, or nothing pairs.
    """
    known = listed or ListedPairs()
    whole = [read_name(path) for path in images], [read_name(path) for path in depths]
    if patterns is not None:
        matched = _matched(patterns[0], images), _matched(patterns[1], depths)
        found = _Matching(*matched, known, max_time_difference, options)
        if found.run():
            return found.pairing(*whole)
    found = _Matching(*whole, known, max_time_difference, options)
    if not found.run():
        raise DatasetError(
            "image and depth files",
            "must share a frame token in their names",
            found=f"{_example(found.lone_images, 'image')} and {_example(found.lone_depths, 'depth map')}",
            fix=found.remedy(),
        )
    if patterns is not None:
        found.notes.append(
            f"What * matched in {options[0]} and {options[1]} does not pair, so the whole names were compared."
        )
    return found.pairing(*whole)


def _matched(pattern: str, paths: Iterable[PurePosixPath]) -> list[Name]:
    texts = ((path, matched_by_wildcards(pattern, path)) for path in paths)
    # A pattern without wildcards names one file, which needs no token.
    return [Name(path, (), ()) if text is None else read_name(path, text) for path, text in texts]


class _Matching:
    """Pairs of two sides, found in turns from what is sure to what needs more presumed."""

    def __init__(
        self,
        images: Sequence[Name],
        depths: Sequence[Name],
        listed: ListedPairs,
        max_time_difference: float | None,
        options: tuple[str, str],
    ) -> None:
        self.images, self.depths = images, depths
        by_path = {name.path: name for side in (images, depths) for name in side} if listed.pairs else {}
        self.pairs = [(by_path[image], by_path[depth]) for image, depth in listed.pairs]
        self.listed = listed
        settled = listed.lone | {path for pair in listed.pairs for path in pair}
        self.lone_images = [name for name in images if name.path not in settled]
        self.lone_depths = [name for name in depths if name.path not in settled]
        self.notes = list(listed.notes)
        self.max_time_difference = max_time_difference
        self.options = options
        self.exact_fraction = not (has_fractions_like_decimals(images) and has_fractions_like_decimals(depths))
        self.exact_folders = any(map(_has_two_texts_for_a_folder, (images, depths)))
        shapes = [{name.shape for name in side} for side in (images, depths)]
        self.constant, self.scenes = constant_words(*shapes)

    def run(self) -> bool:
        """Find all pairs; whether there is one.

        Raises:
            DatasetError: files that cannot be told apart.
        """
        for times in self.listed.times:
            if times.is_ambiguous:
                raise _neighbours(self.pairs[0], times)
        for kinds in (False, True):
            for formats in (False, True):
                # A size or a number of bits is dropped only where nothing pairs with it.
                if not (formats and self.pairs):
                    self._match(*(Dropped(words, kinds, formats) for words in self.constant))
        self._match_left()
        if not self.pairs:
            self._match_numbered_kinds()
        if self.max_time_difference is not None and self.lone_images and self.lone_depths:
            self._match_times(self.max_time_difference)
        return bool(self.pairs)

    def pairing(self, images: Sequence[Name], depths: Sequence[Name]) -> Pairing:
        """What was found, sorted.

        Args:
            images, depths: the whole names of all files, of which instances get theirs.
        """
        names = InstanceNames(images, depths)
        whole = {name.path: name for side in (images, depths) for name in side}
        pairs = made_unique(
            [
                Pair(image.path, depth.path, names.of(whole[image.path], whole[depth.path]))
                for image, depth in self.pairs
            ]
        )
        paired = {path for pair in pairs for path in (pair.image, pair.depth)}
        if not self.listed.pairs and _count_from_other_numbers(images, depths):
            self.notes.append(
                "Both sides are as many, one numbered from 0 and the other from 1: if their first files are one frame,"
                " all pairs are of neighbouring frames. Rename one side then, or name the pairs in a table for"
                " `moge import table`."
            )
        return Pairing(
            sorted(pairs, key=lambda pair: pair.instance),
            sorted(name.path for name in images if name.path not in paired),
            sorted(name.path for name in depths if name.path not in paired),
            self.notes,
        )

    def remedy(self) -> str:
        """What to do where nothing pairs."""
        image, depth = self.options
        if self.scenes:
            hint = (
                f"All images are of {self.scenes[0]!r} and all depth maps of {self.scenes[1]!r}; if these are no two"
                f" scenes, say so with both {image} and {depth}: what * matches is compared then."
            )
            return hint
        sides = (image, self.lone_images, self.lone_depths), (depth, self.lone_depths, self.lone_images)
        for option, names, others in sides:
            families = sorted({family(name.path) for name in names})
            if 1 < len(families) <= _MOST_CHOICES and len(names) == len(families) * len(others):
                return f"Say which are meant: {_choices(option, families)}."
        return (
            "Rename them so that both carry the same frame number; narrow"
            f" {image} and {depth} where other files were caught, or give both: what * matches in them is compared."
            + ("" if self.max_time_difference is None else " Time stamps may differ by --max-time-difference seconds.")
        )

    def _match_left(self) -> None:
        """Pair the left image of a rig with depth that names no camera, or the other way round."""
        lone = [{name.shape for name in side} for side in (self.lone_images, self.lone_depths)]
        named = [any("left" in shape for shape in side) for side in lone]
        if not any(named) or not all(lone):
            return
        before = len(self.pairs)
        self._match(*(Dropped({**words, "left": len("left")}, kinds=True) for words in self.constant))
        if len(self.pairs) > before:
            side = " and ".join(
                what for what, is_named in zip(("images", "depth maps"), named, strict=True) if is_named
            )
            self.notes.append(
                f"Depth was taken to be of the left camera: {len(self.pairs) - before} pairs are of {side} named left."
            )

    def _match_numbered_kinds(self) -> None:
        """Pair image_2/ with depth/: the folders of one side alone have a number, the same in all."""
        values = [
            {tuple(name.numbers[i] for i in numbers_of_kinds(name.shape)) for name in side}
            for side in (self.images, self.depths)
        ]
        if sorted(map(len, values)) != [1, 1] or {()} not in values or values[0] == values[1]:
            return
        self._match(*(Dropped(words, kinds=True, numbered=True) for words in self.constant))
        if self.pairs:
            side, number = ("images", values[0]) if {()} != values[0] else ("depth maps", values[1])
            self.notes.append(
                f"The number {' '.join(*number)} in the folders of all {side} was taken for a part of their kind."
            )

    def _match(self, image_dropped: Dropped, depth_dropped: Dropped) -> None:
        """Pair what has equal tokens among the files that are left."""
        if not (self.lone_images and self.lone_depths):
            return
        images, depths = self._grouped(self.lone_images, image_dropped), self._grouped(self.lone_depths, depth_dropped)
        paired: set[PurePosixPath] = set()
        for key, group in images.items():
            others = depths.get(key)
            if others is None or not self._is_token(key, (group[0], image_dropped), (others[0], depth_dropped)):
                continue
            found = [(group[0], others[0])] if len(group) == len(others) == 1 else self._settled(key, group, others)
            self.pairs += found
            paired.update(name.path for pair in found for name in pair)
        if paired:
            self.lone_images = [name for name in self.lone_images if name.path not in paired]
            self.lone_depths = [name for name in self.lone_depths if name.path not in paired]

    def _grouped(self, names: Iterable[Name], dropped: Dropped) -> dict[Key, list[Name]]:
        groups: dict[Key, list[Name]] = defaultdict(list)
        for name in names:
            groups[self._key(name, dropped)].append(name)
        return groups

    def _key(self, name: Name, dropped: Dropped, without: tuple[int, ...] = ()) -> Key:
        signs, indices = dropped.kept(name.shape)
        # The folders 1/ and 01/ are two where both are there.
        num_exact = count_of_folder_numbers(name.shape) if self.exact_folders else 0
        numbers = (
            ""
            if i in without
            else name.numbers[i]
            if i < num_exact
            else normal_number(name.numbers[i], exact_fraction=self.exact_fraction)
            for i in indices
        )
        return signs, tuple(numbers)

    def _is_token(self, key: Key, *sides: tuple[Name, Dropped]) -> bool:
        if key[0]:
            return True
        # A picture and a depth map are a pair without any number when their names say nothing else.
        words = [word for name, _ in sides for word in name.shape if word not in NO_WORDS]
        return all(map(is_known, words)) and not any(FORMAT in name.shape for name, _ in sides)

    def _settled(self, key: Key, images: list[Name], depths: list[Name]) -> list[tuple[Name, Name]]:
        """Pairs of several files with one token: by their very texts, or else by the better name.

        Raises:
            DatasetError: they cannot be told apart.
        """
        by_text = [{name.numbers: name for name in side} for side in (images, depths)]
        if len(images) == len(depths) == len(by_text[0]) and by_text[0].keys() == by_text[1].keys():
            return [(image, by_text[1][numbers]) for numbers, image in by_text[0].items()]
        for side, group, option in zip(("images", "depth maps"), (images, depths), self.options, strict=True):
            if len(group) > 1:
                families = sorted({family(name.path) for name in group})
                choices = _choices(option, families[:_MOST_CHOICES])
                raise DatasetError(
                    " and ".join(str(name.path) for name in group[:3]),
                    f"must be told apart by folder or frame number, because {side} are paired by them",
                    found=f"{len(group)} {side} with the token {_describe(key)}",
                    fix=f"Say which are meant: {choices}."
                    if len(families) > 1
                    else f"Narrow {self.options[0]} and {self.options[1]}, for example {self.options[0]} 'rgb/*.png'"
                    f" {self.options[1]} 'depth/*.png'.",
                )
        return [(images[0], depths[0])]

    def _match_times(self, max_difference: float) -> None:
        """Pair what is left by time stamps, scene by scene."""
        dropped = [Dropped(words, kinds=True) for words in self.constant]
        sides = []
        for names, how in zip((self.images, self.depths), dropped, strict=True):
            groups: dict[Key, list[tuple[int, Name]]] = defaultdict(list)
            for name in names:
                stamp = stamp_of(name.numbers)
                if stamp is not None:
                    groups[self._key(name, how, without=stamp[0])].append((stamp[1], name))
            sides.append(groups)
        lone = [{name.path for name in names} for names in (self.lone_images, self.lone_depths)]
        partner = {image.path: depth.path for image, depth in self.pairs}
        largest, median, num_found = 0.0, 0.0, 0
        for key in sides[0].keys() & sides[1].keys():
            images, depths = sides[0][key], sides[1][key]
            if not (any(n.path in lone[0] for _, n in images) and any(n.path in lone[1] for _, n in depths)):
                continue
            # Those that are paired already take part: they say whether the streams are in step.
            times = pair_by_time([time for time, _ in images], [time for time, _ in depths], max_difference)
            new = [(images[i][1], depths[j][1]) for i, j in times.pairs]
            new = [(image, depth) for image, depth in new if partner.get(image.path) != depth.path]
            new = [(image, depth) for image, depth in new if image.path in lone[0] and depth.path in lone[1]]
            if not new:
                continue
            if times.is_ambiguous:
                raise _neighbours(new[0], times)
            self.pairs += new
            num_found += len(new)
            largest, median = max(largest, times.largest_s), max(median, times.median_s)
            for side, names in enumerate(zip(*new, strict=True)):
                lone[side] -= {name.path for name in names}
        self.lone_images = [name for name in self.lone_images if name.path in lone[0]]
        self.lone_depths = [name for name in self.lone_depths if name.path in lone[1]]
        if num_found:
            self.notes.append(
                f"{num_found} of {len(self.pairs)} pairs were found by time stamps that differ, by {_ms(median)}"
                f" in general and {_ms(largest)} at most (--max-time-difference {max_difference:g})."
            )


def _has_two_texts_for_a_folder(names: Iterable[Name]) -> bool:
    texts = {text for name in names for text in name.numbers[: count_of_folder_numbers(name.shape)]}
    return len({normal_number(text, exact_fraction=False) for text in texts}) < len(texts)


def _count_from_other_numbers(images: Sequence[Name], depths: Sequence[Name]) -> bool:
    """Whether one side is numbered 0, 1, 2 to the end and the other 1, 2, 3."""
    sides = [sorted({int(name.numbers[-1]) for name in side if _is_plain(name)}) for side in (images, depths)]
    first, second = sides
    if not (len(first) == len(images) == len(second) == len(depths) > 1):
        return False
    is_whole = all(side[-1] - side[0] == len(side) - 1 for side in sides)
    return is_whole and {first[0], second[0]} == {0, 1}


def _is_plain(name: Name) -> bool:
    return bool(name.numbers) and name.numbers[-1].isdecimal()


def _choices(option: str, families: Sequence[str]) -> str:
    return " or ".join(f"{option} '{each}'" for each in families)


def _neighbours(pair: tuple[Name, Name], times: TimePairs) -> DatasetError:
    return DatasetError(
        f"{pair[0].path} and {pair[1].path}",
        "must have stamps that tell a frame from its neighbours",
        found=f"stamps that never agree and differ by {_ms(times.median_s)} in general, where frames are"
        f" {_ms(times.spacing_s or 0)} apart",
        fix="Subtract the delay between the two cameras from the stamps of one, and import again.",
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _describe(key: Key) -> str:
    numbers = iter(key[1])
    return " ".join(next(numbers) if sign == NUMBER else sign for sign in key[0]) or "nothing"


def _example(names: Sequence[Name], what: str) -> str:
    first = min(names, key=lambda name: name.path)
    token = " ".join([*(w for w in first.shape if w not in NO_WORDS), *first.numbers])
    return f"{what} {first.path} with the token {token}"
