"""What of a name is a frame's token, and what only says which kind of file it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from moge_core.datasets.importers.frame_names import (
    FOLDER,
    FORMAT,
    HASH,
    NUMBER,
    Shape,
    is_droppable,
    is_known,
    is_scene_word,
    joined_phrases,
    numbers_of_kinds,
    parts_of,
)

_SIGNS = frozenset({NUMBER, FORMAT, HASH})
# Stands for the words of a folder that was a kind of data and has a number.
_KIND = "*"
NO_WORDS = _SIGNS | {FOLDER}
# Words as short as these may stand for images and depth where nothing else does: a/1.jpg and b/1.png.
_LONGEST_CODE = 3


@dataclass(frozen=True)
class Dropped:
    """Which words and numbers of a name are no part of its token.

    Attributes:
        words: how many of each, counted from the end.
        kinds: also every word for images and depth.
        formats: also numbers that are sizes or counts of bits.
        numbered: also the numbers of folders that are kinds of data.
    """

    words: Mapping[str, int]
    kinds: bool = False
    formats: bool = False
    numbered: bool = False
    cache: dict[Shape, tuple[Shape, tuple[int, ...]]] = field(default_factory=dict, repr=False)

    def kept(self, shape: Shape) -> tuple[Shape, tuple[int, ...]]:
        """What is left of a shape, and the indices of the numbers that are."""
        if shape not in self.cache:
            self.cache[shape] = self._kept(shape)
        return self.cache[shape]

    def _kept(self, shape: Shape) -> tuple[Shape, tuple[int, ...]]:
        to_drop = Counter(self.words)
        signs: list[str] = []
        kept_numbers: list[int] = []
        number = sum(sign in _SIGNS for sign in shape)
        of_kinds = numbers_of_kinds(shape) if self.numbered else ()
        for depth, part in enumerate(reversed(parts_of(joined_phrases(shape)))):
            kept: list[str] = []
            num_dropped = 0
            following = ""
            for sign in reversed(part):
                if sign in _SIGNS:
                    number -= 1
                    if number not in of_kinds and not (self.formats and sign == FORMAT):
                        kept.append(NUMBER)
                        kept_numbers.append(number)
                # The scene color_lab is another than lab.
                elif to_drop[sign] > 0 or (self.kinds and is_droppable(sign) and not is_scene_word(following)):
                    to_drop[sign] -= 1
                    num_dropped += 1
                else:
                    kept.append(sign)
                following = sign
            # The number of a folder depth2/ is that of image2/, and not that of a scene 2/.
            if depth and num_dropped and set(kept) == {NUMBER}:
                kept.append(_KIND)
            signs += kept
        return tuple(reversed(signs)), tuple(reversed(kept_numbers))


def constant_words(
    image_shapes: set[Shape], depth_shapes: set[Shape]
) -> tuple[list[dict[str, int]], tuple[str, str] | None]:
    """How often each word stands in every name of one side and in none of the other's.

    Words that nobody uses for kinds are no kinds where both sides have some: they are two scenes, which are the second
    that is returned.
    """
    counts = [[Counter(w for w in joined_phrases(shape) if w not in NO_WORDS) for shape in shapes]
              for shapes in (image_shapes, depth_shapes)]  # fmt: skip
    constant: list[dict[str, int]] = []
    for own, others in (counts, counts[::-1]):
        least = own[0].copy() if own else Counter()
        for each in own:
            least &= each
        most: Counter[str] = Counter()
        for each in others:
            most |= each
        everywhere = sum(max((each.total() for each in own), default=0) for own in counts)
        constant.append({w: n - most[w] if most[w] else everywhere for w, n in least.items() if n > most[w]})
    unknown = [sorted(word for word in words if not is_known(word)) for words in constant]
    strange = [_words_of(counts[side]) - set(constant[side]) - _words_of(counts[1 - side]) for side in (0, 1)]
    strange = [{word for word in words if not is_known(word)} for words in strange]
    codes = all(len(word) <= _LONGEST_CODE for words in constant for word in words)
    if all(unknown) and not (codes and not any(is_droppable(word) for words in constant for word in words)):
        constant = [{w: n for w, n in words.items() if is_known(w)} for words in constant]
        return constant, (" ".join(unknown[0]), " ".join(unknown[1]))
    for side in (0, 1):
        # Depth of bath/ and of another place is not all of the one scene that the images are of.
        if strange[1 - side]:
            constant[side] = {w: n for w, n in constant[side].items() if is_known(w)}
    return constant, None


def _words_of(counts: Iterable[Counter[str]]) -> set[str]:
    return {word for each in counts for word in each}
