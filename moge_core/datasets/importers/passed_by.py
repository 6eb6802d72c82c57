"""Files that lie beside images and depth maps and are neither: masks, normals, boxes, depth of a second kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from moge_core.datasets.importers.frame_names import (
    NamedKind,
    family,
    has_depth_word,
    is_named_registered,
    named_kind,
    read_name,
    role,
    token_beside_registration,
)

# The first of these kinds that is there is taken.
_KINDS: tuple[NamedKind, ...] = ("z", "ray", "disparity", "inverse")
_KIND_WORDS = {
    "z": "depth along the axis",
    "ray": "distances from the camera",
    "disparity": "disparities",
    "inverse": "inverse depth",
}
_MOST_FAMILIES = 3


class PassedBy:
    """What was passed by and why, to be told."""

    def __init__(self) -> None:
        self._files: dict[str, list[PurePosixPath]] = defaultdict(list)

    def add(self, why: str, *paths: PurePosixPath) -> None:
        """Remember files."""
        if paths:
            self._files[why] += paths

    def without(self, paths: set[PurePosixPath], reason: Callable[[PurePosixPath], str | None]) -> set[PurePosixPath]:
        """The paths for which there is no reason to pass them by; all of them where nothing else would be left."""
        reasons = {path: reason(path) for path in paths}
        kept = {path for path, why in reasons.items() if why is None}
        if not kept:
            return paths
        for path, why in reasons.items():
            if why is not None:
                self.add(why, path)
        return kept

    def notes(self) -> list[str]:
        """One line a reason."""
        return [f"Passed by, {why}: {described(self._files[why])}." for why in sorted(self._files)]


def described(paths: Iterable[PurePosixPath]) -> str:
    """How many files of which names, for people: `3 files (2 like rgb/*.png, 1 like ...)`."""
    listed = list(paths)
    families = Counter(map(family, listed)).most_common()
    num_files = len(listed)
    if num_files == 1:
        return f"1 file, {listed[0]}"
    files = f"{num_files:,} file{'s' * (num_files != 1)}"
    if len(families) == 1:
        return f"{files} like {families[0][0]}"
    shown = [f"{count:,} like {pattern}" for pattern, count in sorted(families, key=lambda each: (-each[1], each[0]))]
    more = [f"{len(shown) - _MOST_FAMILIES} more kinds of names"] if len(shown) > _MOST_FAMILIES else []
    return f"{files} ({', '.join([*shown[:_MOST_FAMILIES], *more])})"


def no_image(path: PurePosixPath) -> str | None:
    """Why a picture is no image of a frame, by its name."""
    found = role(read_name(path).shape)
    if found == "other":
        return "named masks, labels, normals or the like"
    return "pictures that are named depth" if found == "depth" else None


def no_depth_map(source: Path, is_integer: Callable[[PurePosixPath], bool]) -> Callable[[PurePosixPath], str | None]:
    """Why a file of numbers is no depth map, by its name and the header of its array."""

    def reason(path: PurePosixPath) -> str | None:
        shape = read_name(path).shape
        if role(shape) == "other":
            return "named masks, labels, normals or the like"
        if not is_integer(path) and role(shape) == "image" and not has_depth_word(shape):
            return "named pictures, though they hold floats"
        if path.suffix.lower() == ".npy" and not _is_map(source / path):
            return "arrays of another shape than a depth map's"
        return None

    return reason


def no_preferred_kind(paths: set[PurePosixPath], preferred: NamedKind | None) -> Callable[[PurePosixPath], str | None]:
    """Why a depth map is not taken, where depth of the preferred kind, or else of a better one, is there."""
    kinds = {path: named_kind(read_name(path).shape) for path in paths}
    order = _KINDS if preferred is None else (preferred, *_KINDS)
    best = next((kind for kind in order if kind in kinds.values()), "z")

    def reason(path: PurePosixPath) -> str | None:
        kind = kinds[path]
        return None if kind == best else f"{_KIND_WORDS[kind]} (--depth takes them), beside {_KIND_WORDS[best]}"

    return reason


def not_registered(paths: set[PurePosixPath]) -> Callable[[PurePosixPath], str | None]:
    """Why a picture is not taken where the same frame is there turned into the view of the other camera."""
    names = {path: read_name(path) for path in paths}
    registered = {token_beside_registration(name) for name in names.values() if is_named_registered(name.shape)}

    def reason(path: PurePosixPath) -> str | None:
        name = names[path]
        if is_named_registered(name.shape) or token_beside_registration(name) not in registered:
            return None
        return "as the sensor saw them, because they are there aligned or registered too"

    return reason


def kind_by_names(paths: Iterable[PurePosixPath]) -> NamedKind:
    """What the names of depth maps say of their values, where all say the same; else z."""
    kinds = {named_kind(read_name(path).shape) for path in paths}
    return kinds.pop() if len(kinds) == 1 else "z"


def _is_map(path: Path) -> bool:
    from moge_core.datasets.importers.arrays import read_npy_header
    from moge_core.errors import MoGeError

    try:
        with path.open("rb") as file:
            header = read_npy_header(file, str(path))
    except (MoGeError, OSError):
        # The frame's own error says what is wrong with the file.
        return True
    sizes = [size for size in header.shape if size != 1]
    is_matrix = header.shape in {(3, 3), (3, 4), (4, 4)}
    return header.dtype.kind in "iuf" and len(header.shape) >= 2 and len(sizes) <= 2 and not is_matrix
