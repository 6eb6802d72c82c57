"""Walking through a source, finding images and depth maps by their headers, and reading grey PNG and PGM files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.frame_names import NamedKind, read_name, role
from moge_core.datasets.importers.passed_by import (
    PassedBy,
    described,
    no_depth_map,
    no_image,
    no_preferred_kind,
    not_registered,
)
from moge_core.datasets.importers.usual_mistakes import why_none
from moge_core.errors import DatasetError, FormatError, InputError
from moge_core.io import limits
from moge_core.io.files import read_bytes
from moge_core.io.png import GREY, decode_png, parse_png

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp"})
INTEGER_SUFFIXES = frozenset({".png", ".pgm"})
"""Suffixes of depth files that hold integers, whose unit must be said."""
_FLOAT_SUFFIXES = frozenset({".exr", ".npy", ".pfm", ".tif", ".tiff"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Magic number, width, height and greatest value, with comments between, and one blank before the pixels.
_PGM_HEADER = re.compile(rb"P5(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")

# A folder is looked at under so many names. Links to folders of links could make more names than anybody can read.
_MOST_NAMES = 16


@dataclass(frozen=True, order=True)
class Folder:
    """A folder of a source.

    Attributes:
        path: as the source has it, maybe through links.
        real: where it lies.
        files: names of what it holds besides folders, sorted, without hidden ones.
        resource_forks: names of files that macOS puts beside others when it packs them, `._NAME`, sorted.
    """

    path: Path
    real: str
    files: tuple[str, ...]
    resource_forks: tuple[str, ...] = ()

    def files_below(self, source: Path) -> list[PurePosixPath]:
        """Its files relative to a folder above."""
        return self._below(source, self.files)

    def forks_below(self, source: Path) -> list[PurePosixPath]:
        """Its resource forks relative to a folder above."""
        return self._below(source, self.resource_forks)

    def _below(self, source: Path, names: tuple[str, ...]) -> list[PurePosixPath]:
        folder = PurePosixPath(self.path.relative_to(source).as_posix())
        return [folder / name for name in names]


def walk(source: Path, *, exclude: Path | None = None, closed: str | None = None) -> Iterator[Folder]:
    """The source and every folder below it, in an order that the names alone make.

    Links to folders are followed, so that a folder may have several names, see `each_once`; but not links to a folder
    that they are in themselves, which would have no end. Hidden folders are passed by.

    Args:
        source: where to begin.
        exclude: a folder that is not entered, such as the dataset that is being made.
        closed: suffix of folders that are one thing, which are not entered.
    """
    shut = None if exclude is None else os.path.realpath(exclude)
    # Where the folders lie through which one came to a folder, itself last.
    way: dict[Path, tuple[str, ...]] = {source: (os.path.realpath(source),)}
    num_links: Counter[str] = Counter()
    for place, folders, files in os.walk(source, followlinks=True):
        folder = Path(place)
        here = way.pop(folder)
        entered = []
        for name in sorted(folders):
            path, real = folder / name, f"{here[-1].rstrip(os.sep)}{os.sep}{name}"
            passed_by = name.startswith(".")
            if path.is_symlink():
                real = os.path.realpath(path)
                num_links[real] += 1
                passed_by |= num_links[real] > _MOST_NAMES or any(_is_in(passed, real) for passed in here)
            if passed_by or (shut is not None and _is_in(real, shut)):
                continue
            if closed is not None and name.lower().endswith(closed):
                yield Folder(path, real, ())
                continue
            way[path] = (*here, real)
            entered.append(name)
        folders[:] = entered
        seen = tuple(sorted(name for name in files if not name.startswith(".")))
        yield Folder(folder, here[-1], seen, tuple(sorted(name for name in files if name.startswith("._"))))


def each_once(folders: Iterable[Folder], source: Path) -> list[Folder]:
    """Folders by one name each, sorted: their own inside the source, or the first of those that links give them."""
    top = Path(os.path.realpath(source))
    own = {folder.real: folder for folder in sorted(folders, reverse=True)}
    for folder in folders:
        if str(top / folder.path.relative_to(source)) == folder.real:
            own[folder.real] = folder
    return sorted(own.values())


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


@dataclass(frozen=True)
class Sources:
    """Images and depth maps of a folder, relative to it and sorted.

    Attributes:
        notes: what was passed by, and why.
    """

    images: list[PurePosixPath]
    depths: list[PurePosixPath]
    notes: list[str]


def find_sources(
    source: Path,
    image_glob: str | None,
    depth_glob: str | None,
    *,
    exclude: Path,
    kind: NamedKind | None = None,
    is_packed: bool = False,
    options: tuple[str, str] = ("--image", "--depth"),
) -> Sources:
    """Images and depth maps below `source`.

    Where a file answers to both descriptions its header decides, 16-bit grey is depth; but with a pattern for depth
    alone, what it matches is depth. Without a pattern, what is named a mask, normals, a confidence and so on is passed
    by, and so are arrays that are no maps, colour pictures that are named depth, depth of another kind than the others,
    and what is there aligned to the other camera too; each only where something else is left. Hidden files and folders
    and what lies in `exclude` are passed by. Without a pattern, folders that are links are looked into; a pattern finds
    what `Path.glob` finds.

    Args:
        source: the folder.
        image_glob, depth_glob: patterns relative to it.
        exclude: a folder that is not looked into.
        kind: what the depth is, where a user says so: of several kinds those named so are taken.
        is_packed: depth may be in pictures of 8 bits, as a user says: where no other depth is there, those that are
            named depth are taken.
        options: by which a user gives the patterns, for errors.

    Raises:
        DatasetError: no image or no depth map.
        InputError: a pattern that leaves the folder.
    """
    folders = each_once(list(walk(source, exclude=exclude)), source)
    there = [path for folder in folders for path in folder.files_below(source)]
    passed_by = PassedBy()
    passed_by.add("of macOS, which are no data", *(path for folder in folders for path in folder.forks_below(source)))
    images = _matching(source, there, image_glob, _IMAGE_SUFFIXES, "image", exclude)
    depths = _matching(source, there, depth_glob, INTEGER_SUFFIXES | _FLOAT_SUFFIXES, "depth", exclude)
    if depth_glob is None:
        pictures = {path for path in depths if role(read_name(path).shape) == "depth"}
        depths = {path for path in depths if path.suffix.lower() in _FLOAT_SUFFIXES or is_depth_file(source / path)}
        if is_packed and not depths:
            depths = pictures
            images -= pictures if image_glob is None else set()
    both = images & depths
    depth_alone_named = depth_glob is not None and image_glob is None
    stored_as_depth = {path for path in both if depth_alone_named or is_depth_file(source / path)}
    depths -= both - stored_as_depth
    images -= stored_as_depth
    if image_glob is None:
        images = passed_by.without(images, no_image)
    if depth_glob is None:
        depths = passed_by.without(depths, no_depth_map(source, lambda path: path.suffix.lower() in INTEGER_SUFFIXES))
        depths = passed_by.without(depths, no_preferred_kind(depths, kind))
        registered = passed_by.without(depths, not_registered(depths))
        # Depth that is turned to the images goes with the images as they were taken.
        if image_glob is None and registered == depths:
            images = passed_by.without(images, not_registered(images))
        depths = registered
    for found, what, option, pattern in (
        (images, "image", options[0], image_glob),
        (depths, "16-bit depth map", options[1], depth_glob),
    ):
        if not found:
            raise _nothing_found(source, there, what, option, pattern)
    return Sources(sorted(images), sorted(depths), passed_by.notes())


def _nothing_found(
    source: Path, there: list[PurePosixPath], what: str, option: str, pattern: str | None
) -> DatasetError:
    suffixes = Counter(path.suffix.lower() or "no suffix" for path in there)
    seen = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5)) or "no files"
    fix = f"Say which files they are with {option} 'PATTERN', relative to the folder."
    cause = why_none(source, [source / path for path in there], what, pattern)
    named_depth = [path for path in there if path.suffix.lower() == ".png" and role(read_name(path).shape) == "depth"]
    if cause is not None:
        seen, fix = (f"{seen}; {cause[0]}" if cause[0] else seen), cause[1]
    elif pattern is None and what != "image" and named_depth:
        seen += f"; pictures of 8 bits that are named depth: {described(named_depth)}"
        fix += " Pictures of depth are for looking at, unless depth is packed into their channels."
    return DatasetError(
        source, f"must hold at least one {what}" + (f" matching {pattern!r}" if pattern else ""), found=seen, fix=fix
    )


def is_depth_file(path: Path) -> bool:
    """True for a PNG or PGM whose header says one channel of 16 bits."""
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(_PNG_SIGNATURE):
        return head[24:26] == b"\x10\x00"
    match = _PGM_HEADER.match(head)
    return match is not None and int(match[3]) > 255


def read_grey_values(path: Path) -> npt.NDArray[Any]:
    """Stored values (H, W) of a grey PNG or binary PGM (most significant byte first): uint8 or uint16.

    Raises:
        FormatError: another format, damaged, or too many pixels.
    """
    data = read_bytes(path, limit=limits.MAX_FILE_BYTES)
    values = _decode_pgm(data, path) if data.startswith(b"P5") else _decode_png(data, path)
    if values.ndim != 2:
        raise FormatError(path, "must be decodable", found="damaged pixels behind a valid header")
    return values


def not_16_bit(path: Path, found: str) -> FormatError:
    """The error of a depth map that is no measurement."""
    fix = "An 8-bit picture of depth is for looking at; use the files with the measured values."
    return FormatError(path, "must be a 16-bit grey PNG or PGM", found=found, fix=fix)


def _decode_png(data: bytes, path: Path) -> npt.NDArray[Any]:
    header = parse_png(data, str(path))
    if header.color_type != GREY or header.bit_depth not in {8, 16}:
        raise not_16_bit(path, header.pixel_format)
    return decode_png(data, str(path), header)


def _decode_pgm(data: bytes, path: Path) -> npt.NDArray[Any]:
    match = _PGM_HEADER.match(data)
    if match is None:
        raise FormatError(path, "must be a binary PGM", found=f"a header that reads {data[:20]!r}")
    width, height, greatest = (int(group) for group in match.groups())
    if not 0 < greatest <= 65535:
        raise not_16_bit(path, f"a PGM with values up to {greatest}")
    limits.check_pixel_count(str(path), width, height)
    dtype = np.dtype(np.uint8 if greatest < 256 else ">u2")
    if len(data) - match.end() < dtype.itemsize * width * height:
        raise FormatError(path, "must not be truncated", found=f"{len(data):,} bytes for {width}x{height} pixels")
    values = np.frombuffer(data, dtype=dtype, count=width * height, offset=match.end())
    return values.reshape(height, width).astype(dtype.newbyteorder("="))


def _matching(
    source: Path, there: list[PurePosixPath], pattern: str | None, suffixes: frozenset[str], option: str, exclude: Path
) -> set[PurePosixPath]:
    if pattern is None:
        return {path for path in there if path.suffix.lower() in suffixes and (source / path).is_file()}
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts or not pattern:
        raise InputError(option, "must be a pattern relative to the source folder", found=repr(pattern))
    found = set()
    for path in source.glob(pattern):
        relative = PurePosixPath(path.relative_to(source).as_posix())
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and not path.is_relative_to(exclude) and path.is_file():
            found.add(relative)
    return found
