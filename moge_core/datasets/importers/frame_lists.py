"""Lists of frames that lie beside them, as TUM publishes them: which file was taken when, or which belong together.

rgb.txt             1305031102.175304 rgb/1305031102.175304.png
depth.txt           1305031102.160407 depth/1305031102.160407.png
associations.txt    1305031102.175304 rgb/1305031102.175304.png 1305031102.160407 depth/1305031102.160407.png
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from moge_core.datasets.importers.stamps import TimePairs, pair_by_time, to_nanoseconds

_IMAGE_LISTS = ("rgb.txt", "color.txt", "image.txt")
_DEPTH_LISTS = ("depth.txt",)
_ASSOCIATIONS = (
    "associations.txt",
    "association.txt",
    "associated.txt",
    "associate.txt",
    "rgbd_assoc.txt",
    "assoc.txt",
)
_MOST_BYTES = 1 << 28


@dataclass
class ListedPairs:
    """What lists say.

    Attributes:
        pairs: images and depth maps that belong together.
        lone: files that the lists name and that have no partner by them; their names do not give them one.
        times: of each pair of lists of stamps, how far they are apart.
        notes: which lists were used.
    """

    pairs: list[tuple[PurePosixPath, PurePosixPath]] = field(default_factory=list)
    lone: set[PurePosixPath] = field(default_factory=set)
    times: list[TimePairs] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_frame_lists(
    source: Path, images: Sequence[PurePosixPath], depths: Sequence[PurePosixPath], max_time_difference: float
) -> ListedPairs:
    """Pairs of the files that lists beside them name.

    Args:
        source: the folder that all paths are relative to.
        images, depths: the files that may be paired.
        max_time_difference: seconds by which stamps of a pair may differ.
    """
    found = ListedPairs()
    sides = set(images), set(depths)
    for folder in sorted({above for path in {path.parent for path in images} for above in (path, *path.parents)}):
        pairs = [pair for name in _ASSOCIATIONS for pair in _associated(source, folder / name, *sides)]
        if _is_one_to_one(pairs):
            found.pairs += pairs
            found.notes.append(f"{len(pairs)} pairs are those of a list of associations in {folder}/.")
            sides = sides[0] - {image for image, _ in pairs}, sides[1] - {depth for _, depth in pairs}
            continue
        stamps = [
            next(filter(None, (_stamps(source, folder / name, side) for name in names)), {})
            for names, side in zip((_IMAGE_LISTS, _DEPTH_LISTS), sides, strict=True)
        ]
        if not all(stamps):
            continue
        listed = [sorted(each) for each in stamps]
        image_times, depth_times = (
            [times_of[path] for path in paths] for times_of, paths in zip(stamps, listed, strict=True)
        )
        times = pair_by_time(image_times, depth_times, max_time_difference)
        pairs = [(listed[0][i], listed[1][j]) for i, j in times.pairs]
        found.pairs += pairs
        found.times.append(times)
        found.lone |= {path for paths in listed for path in paths} - {path for pair in pairs for path in pair}
        found.notes.append(
            f"{len(pairs)} pairs are by the stamps of rgb.txt and depth.txt in {folder}/, which differ by"
            f" {1000 * times.largest_s:.3g} ms at most (--max-time-difference {max_time_difference:g})."
        )
        sides = sides[0] - stamps[0].keys(), sides[1] - stamps[1].keys()
    return found


def _is_one_to_one(pairs: Sequence[tuple[PurePosixPath, PurePosixPath]]) -> bool:
    return bool(pairs) and all(len({pair[side] for pair in pairs}) == len(pairs) for side in (0, 1))


def _stamps(source: Path, path: PurePosixPath, files: set[PurePosixPath]) -> dict[PurePosixPath, int]:
    """Nanoseconds of each of `files` that the list names, or nothing where two lines have one stamp."""
    stamps: dict[PurePosixPath, int] = {}
    for words in _lines(source / path):
        if len(words) >= 2 and path.parent / words[1] in files:
            time = to_nanoseconds(words[0])
            if time is not None:
                stamps[path.parent / words[1]] = time
    return stamps if len(set(stamps.values())) == len(stamps) else {}


def _associated(
    source: Path, path: PurePosixPath, images: set[PurePosixPath], depths: set[PurePosixPath]
) -> list[tuple[PurePosixPath, PurePosixPath]]:
    pairs = []
    for words in _lines(source / path):
        named = [path.parent / word for word in words]
        of_images, of_depths = ([each for each in named if each in side] for side in (images, depths))
        if len(of_images) == len(of_depths) == 1:
            pairs.append((of_images[0], of_depths[0]))
    return pairs


def _lines(path: Path) -> Iterable[list[str]]:
    """Words of each line that is no comment; nothing where there is no such file of text."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.replace(",", " ").split()
