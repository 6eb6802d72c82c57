"""Frames that share one camera have one size, or their camera says of which size it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import Record
from moge_core.datasets.layout import Finding
from moge_core.errors import DatasetError, FormatError

_FIX = (
    "Say the size that they refer to with --intrinsics-size WxH (width and height in a table) if all are of that shape;"
    " else give each kind of picture its own intrinsics, in an import of its own or with a camera for each frame."
)


def check_one_size(records: Sequence[Record]) -> None:
    """Refuse pictures of several sizes under one camera of no stated size.

    Raises:
        DatasetError: with the sizes and how many frames have each.
    """
    sizes: dict[PixelIntrinsics, Counter[tuple[int, int]]] = {}
    for record in records:
        size = _size_of(record)
        if size is not None:
            sizes.setdefault(record.camera, Counter())[size] += 1
    for camera, counts in sizes.items():
        check_sizes(counts, camera, records[0].image.path)


def check_sizes(counts: Mapping[tuple[int, int], int], camera: PixelIntrinsics, where: object) -> None:
    """Refuse several sizes of pictures of a camera that has none.

    Args:
        counts: how many pictures have each (width, height).
        camera: of all of them.
        where: what the error names.

    Raises:
        DatasetError: with the sizes and how many frames have each.
    """
    if camera.size is None and len(counts) > 1:
        raise DatasetError(where, "pictures of one camera must have one size", found=described_sizes(counts), fix=_FIX)


def each_of_one_size(records: Iterable[Record], skipped: list[Finding]) -> Iterator[Record]:
    """Records that come one by one: those of another size than the first of their camera go to `skipped`."""
    first: dict[PixelIntrinsics, tuple[int, int]] = {}
    for record in records:
        size = _size_of(record)
        expected = size and first.setdefault(record.camera, size)
        if size is None or size == expected:
            yield record
            continue
        evidence = f"the picture is {_described(size)}; another one of the very same camera is {_described(expected)}"
        skipped.append(Finding(record.name, "importable", "error", evidence, _FIX))


def described_sizes(counts: Mapping[tuple[int, int], int]) -> str:
    """`12 of 640x480 (landscape), 3 of 480x640 (portrait)`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} of {_described(size)}" for size, count in ordered)


def _described(size: tuple[int, int] | None) -> str:
    width, height = size or (0, 0)
    shape = "square" if width == height else "landscape" if width > height else "portrait"
    return f"{width}x{height} ({shape})"


def _size_of(record: Record) -> tuple[int, int] | None:
    """Size of the stored pixels of a picture whose camera does not say its own; None where it cannot be told."""
    return None if record.camera.size is not None or record.image.read is not None else _stored_size(record.image.path)


def _stored_size(path: Path) -> tuple[int, int] | None:
    from moge_core.io.headers import read_image_header

    try:
        header = read_image_header(path)
    except (FormatError, OSError):
        # The frame's own error is told where it is read.
        return None
    return header.width, header.height
