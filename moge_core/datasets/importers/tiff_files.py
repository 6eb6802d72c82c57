"""TIFF files of depth: integers and floats of 8 to 64 bits, compressed or tiled, with GDAL's value for no data.

Pillow reads the directories, which say what a file holds; OpenCV decodes the pixels, as Pillow knows no float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.array_checks import check_bytes
from moge_core.errors import FormatError
from moge_core.io import limits
from moge_core.io.opencv import cv2

# Tags of TIFF 6.0, section 8, and GDAL's tag (gdal.org/drivers/raster/gtiff.html).
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _SAMPLES, _FORMAT, _NO_DATA = 254, 256, 257, 258, 277, 339, 42113
# Bits of the subfile's type: a smaller copy of another page, and a mask of one.
_REDUCED, _IS_MASK = 1, 4
_UINT, _INT, _FLOAT = 1, 2, 3
_READABLE = {(kind, bits) for kind in (_UINT, _INT) for bits in (8, 16, 32, 64)} | {(_FLOAT, 32), (_FLOAT, 64)}
_KINDS = {_UINT: "unsigned integers", _INT: "integers", _FLOAT: "floats"}
_MOST_PAGES = 1000


@dataclass(frozen=True)
class _Page:
    """One directory of a file: its number among all of them, and what it says of its pixels."""

    number: int
    width: int
    height: int
    num_bands: int
    bits: int
    kind: int
    no_data: float | None


def read_tiff(path: Path, name: str | None = None) -> npt.NDArray[Any]:
    """Values (H, W) of a TIFF file, or of one of its pages or bands.

    Args:
        path: the file.
        name: number of the page, or of the band where there is one page; from 1. Not needed where there is one.

    Raises:
        FormatError: no TIFF, damaged, several pages or bands and none named, or numbers that are not known.
        ImageTooLargeError: more pixels than an image may have.
    """
    page, band = _chosen(path, name)
    limits.check_pixel_count(str(path), page.width, page.height)
    check_bytes((page.height, page.width, page.num_bands), np.dtype(f"u{page.bits // 8}"), str(path))
    with _quiet():
        if page.number == 0:
            values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        else:
            done, several = cv2.imreadmulti(str(path), page.number, 1, flags=cv2.IMREAD_UNCHANGED)
            values = several[0] if done and len(several) == 1 else None
    if values is None or values.shape[:2] != (page.height, page.width):
        raise FormatError(path, "must be a decodable grey TIFF", found="other pixels")
    if band is None and values.ndim == 2:
        return np.asarray(values)
    if band is None or values.ndim != 3 or values.shape[2] != page.num_bands:
        raise FormatError(path, "must be a decodable grey TIFF", found="other pixels")
    # OpenCV turns the first three bands around.
    return np.ascontiguousarray(values[..., 2 - band if band < 3 else band])


def read_tiff_channels(path: Path) -> npt.NDArray[Any]:
    """Values (H, W, 3 or 4) of a TIFF file of one page, channels in the order of the file.

    Raises:
        FormatError: no such TIFF.
    """
    page = _pages(path)[0]
    if page.num_bands not in {3, 4}:
        raise FormatError(path, "must have three or four channels", found=page.num_bands)
    bands = [read_tiff(path, str(number + 1)) for number in range(page.num_bands)]
    return np.stack(bands, -1)


def tiff_no_data(path: Path, name: str | None = None) -> float | None:
    """The value that means no data, as GDAL notes it; None where the file notes none.

    Raises:
        FormatError: as `read_tiff`.
    """
    return _chosen(path, name)[0].no_data


def _chosen(path: Path, name: str | None) -> tuple[_Page, int | None]:
    """The page that is meant, and the band where it has several."""
    pages = _pages(path)
    page = pages[0]
    what, count = ("pages", len(pages)) if len(pages) > 1 else ("bands", page.num_bands)
    chosen = None
    if name is not None:
        if not (name.isdecimal() and 1 <= int(name) <= count):
            raise FormatError(path, f"must have the page or band {name}", found=f"{count} {what}, numbered from 1")
        chosen = int(name) - 1
    if count > 1 and chosen is None:
        fix = "Say which with --depth-array, a number from 1; in a table with the column depth_array."
        raise FormatError(path, "must hold one map, or be told which to take", found=f"{count} {what}", fix=fix)
    if len(pages) > 1 and chosen is not None:
        page, chosen = pages[chosen], None
    if page.num_bands not in ({1} if chosen is None or what == "pages" else {1, 3, 4}):
        fix = "Export the band of the depth, for example with gdal_translate -b."
        raise FormatError(path, "must be a grey TIFF", found=f"{page.num_bands} bands", fix=fix)
    if (page.kind, page.bits) not in _READABLE:
        found = f"{page.bits}-bit {_KINDS.get(page.kind, 'numbers of another kind')}"
        raise FormatError(path, "must hold integers of 8 to 64 bits, or floats of 32 or 64", found=found)
    return page, chosen if page.num_bands > 1 else None


def _pages(path: Path) -> list[_Page]:
    """What the directories of a file say, without smaller copies and masks."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    pages: list[_Page] = []
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if head[:4] not in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
                raise FormatError(path, "must be a TIFF file", found=f"a file that begins with {head[:4]!r}")
            if b"+" in head[:4]:
                head += file.read(8)
            directory = ImageFileDirectory_v2(head)
            places: set[int] = set()
            while directory.next and directory.next not in places and len(places) < _MOST_PAGES:
                places.add(directory.next)
                file.seek(directory.next)
                directory.load(file)
                if not directory.get(_SUBFILE, 0) & (_REDUCED | _IS_MASK):
                    pages.append(_page(len(places) - 1, directory))
    except FormatError:
        raise
    except Exception as error:  # whatever damage makes of Pillow
        raise FormatError(path, "must be a TIFF file", found=error) from error
    if not pages:
        raise FormatError(path, "must be a TIFF file with a picture", found="none")
    return pages


def _page(number: int, tags: Any) -> _Page:
    """What a directory says."""
    bits, kinds = tags.get(_BITS, (1,)), tags.get(_FORMAT, (_UINT,))
    text = str(tags.get(_NO_DATA, "")).strip("\0 ")
    try:
        no_data = float(text)
    except ValueError:
        no_data = None
    first_bits = bits[0] if isinstance(bits, tuple) else bits
    first_kind = kinds[0] if isinstance(kinds, tuple) else kinds
    return _Page(
        number, int(tags[_WIDTH]), int(tags[_HEIGHT]), int(tags.get(_SAMPLES, 1)), first_bits, first_kind, no_data
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without libtiff's warnings of tags that it does not know, one for each file that GDAL wrote."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        logging.setLogLevel(level)
