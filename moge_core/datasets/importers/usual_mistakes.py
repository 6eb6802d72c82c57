"""The usual cause of an error that names a file: another kind of file than was wanted, or a path as others write it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import Record, Stored
from moge_core.errors import InstanceError, MoGeError
from moge_core.io.foreign import HEAD_BYTES, recognised

_DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_PNG, _PNG_DEPTH_AT, _PNG_COLOUR_AT = b"\x89PNG\r\n\x1a\n", 24, 25
_PNM = re.compile(rb"(P[56])(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)\s")
# A picture of 16 bits whose brightest of 256 levels is below this holds 12 bits or fewer.
_NEARLY_BLACK = 16
_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
_LONG_NAMES = {"normal": "normal map", "mask": "mask", "segmentation": "segmentation"}
_NO_PICTURE = "A picture of depth has lost the measured values; use the files that have them."
# As a share of a side; lenses are off by up to a twentieth.
_CENTRED = 0.05
# No lens is off by so much in both directions, each towards what a quarter turn makes of it.
_CLEARLY_OFF = 0.1
# So many files without use are looked into for what they are.
_MOST_LOOKED_INTO = 50


def with_usual_cause(error: MoGeError, record: Record) -> MoGeError:
    """The error of a part that could not be read, saying what its file is where that is the cause.

    Args:
        error: it names the file of a part.
        record: whose parts were read.
    """
    for name, part in record.parts():
        # Of a part of a file, errors name both.
        is_named = error.where == str(part.path) or error.where.startswith(f"{part.path}: ")
        cause = _cause(name, part, record, error) if is_named else None
        if cause is not None:
            return type(error)(error.where, error.rule, found=cause[0], fix=cause[1])
    return error


def is_of_picture_on_its_side(camera: PixelIntrinsics, image: tuple[int, int]) -> bool:
    """Whether a principal point is the centre of the picture on its side, and far from that of the picture as it is.

    Args:
        camera: the intrinsics, which name no size.
        image: (width, height) of the picture.
    """
    return _is_centre(camera, image[::-1]) and not _is_centre(camera, image, _CLEARLY_OFF)


def for_turned_image(camera: PixelIntrinsics, image: tuple[int, int], said_by: str = "") -> InstanceError:
    """The error of intrinsics for a picture on its side, or whose size was said the other way round.

    Args:
        camera: names its size.
        image: (width, height) of the picture.
        said_by: by what a user says that they are right as they are, see `Record.size_is_said_by`.
    """
    assert camera.size is not None
    found = f"intrinsics for {camera.size[0]}x{camera.size[1]}"
    if _is_centre(camera, image) and not _is_centre(camera, camera.size):
        fix = f"Their principal point is the centre of {image[0]}x{image[1]}: say the width before the height."
    else:
        fix = _turned(camera, camera.size)
        if said_by:
            fix += f" If they are right as they are, say that they refer to {image[0]}x{image[1]} ({said_by})."
    rule = f"must refer to images that lie like these, {image[0]}x{image[1]}"
    return InstanceError("intrinsics", rule, found=found, fix=fix)


def off_centre(camera: PixelIntrinsics, size: tuple[int, int], said_by: str) -> str:
    """What to tell of a principal point that is far from the centre of images of this size (width, height).

    Args:
        camera: the intrinsics.
        size: what they refer to, or of the images.
        said_by: see `Record.size_is_said_by`.
    """
    width, height = size
    if _is_centre(camera, (height, width)):
        return (
            f"The principal point ({camera.cx:g}, {camera.cy:g}) is the centre of {height}x{width}, and the intrinsics"
            f" were taken as of {width}x{height}: they seem to be those of the picture on its side."
            f" {_turned(camera, (height, width))}"
        )
    centre = f"({(camera.cx + 0.5) / width:.2f}, {(camera.cy + 0.5) / height:.2f})"
    told = f"The principal point is at {centre} of the image, far from its centre."
    return told + (f" If the intrinsics refer to another resolution, say so ({said_by})." if said_by else "")


def suspicions_of_picture(head: bytes, image: npt.NDArray[np.uint8]) -> set[str]:
    """What may be wrong with a picture of 16 bits, which was read with its upper 8.

    Args:
        head: the first bytes of the picture's file.
        image: (H, W, 3), as read.
    """
    if not _has_16_bits(head):
        return set()
    if _is_grey(head):
        return {"Images are 16-bit grey, as depth maps are. If they are depth, name the pictures in their place."}
    if image.max() < _NEARLY_BLACK:
        return {
            "Images of 16 bits are nearly black, as those are that hold 10 or 12 bits; make them 8-bit pictures before"
            " the import."
        }
    return set()


def why_none(source: Path, files: Sequence[Path], what: str, pattern: str | None) -> tuple[str, str] | None:
    """Why a folder seems to hold no images or no depth maps: what was found instead (or nothing), and what to do.

    Args:
        source: the folder.
        files: what lies in it.
        what: "image", or something with "depth" in it.
        pattern: which files they should have been.
    """
    if pattern is not None and "\\" in pattern:
        return "", "Folders are separated by / in patterns, also on Windows."
    for path in files[:_MOST_LOOKED_INTO]:
        foreign = recognised(_head(path))
        name = path.relative_to(source).as_posix()
        if foreign is not None and foreign.kind in {"absent", "packed", "other"}:
            return f"{name}, which is {foreign.found}", foreign.fix
    if "depth" in what and pattern is None:
        for path in files[:_MOST_LOOKED_INTO]:
            head = _head(path)
            if "depth" in path.relative_to(source).as_posix().lower() and head.startswith((_PNG, b"\xff\xd8\xff")):
                name = path.relative_to(source).as_posix()
                packed = _packed_depth(path)
                if packed is not None:
                    return f"{name}, whose three channels look like depth in 24 bits ({packed})", how_to_say_24_bits(
                        packed
                    )
                fix = f"{_NO_PICTURE} Others are named with --depth 'PATTERN'."
                if "grey" in _picture(head):
                    fix += " Where 256 steps are all that there is, say --encoding linear and --depth-scale."
                return f"{name}, which is {_picture(head)}", fix
    return None


def how_to_say_24_bits(encoding: str) -> str:
    """What to do with pictures whose channels look like depth in this encoding."""
    return f"Say --encoding {encoding} and --depth-scale, stored units a metre: 16777.215 where 24 bits are 1000 m."


def found_file(folder: Path, text: str) -> Path | None:
    """The file that a table names, also where it is written with other separators or other Unicode normalisation.

    Args:
        folder: of the table.
        text: the path as it stands there.
    """
    forms = (text, text.replace("\\", "/"))
    written = [unicodedata.normalize(form, one) for one in forms for form in ("NFC", "NFD")]
    return next((folder / one for one in dict.fromkeys((*forms, *written)) if (folder / one).is_file()), None)


def why_missing(folder: Path, text: str) -> str:
    """What to do about a file that a table names and that is not there."""
    path = folder / text.replace("\\", "/")
    if _WINDOWS_DRIVE.match(text):
        return "It is a path of a Windows machine; paths are relative to the table's folder."
    if path.is_dir():
        return "It is a folder; name the file."
    if not path.parent.is_dir():
        return "Paths are relative to the table's folder."
    names = sorted(other.name for other in path.parent.iterdir() if other.is_file())
    by_case = [name for name in names if _folded(name) == _folded(path.name)]
    by_stem = [name for name in names if Path(name).stem == path.name or Path(name).stem == path.stem]
    if by_case:
        return f"There is {by_case[0]}; upper and lower case differ here."
    return f"There is {by_stem[0]} in its place." if by_stem else "Paths are relative to the table's folder."


def decimal_comma(text: object) -> str | None:
    """What to do about a text that is a number but for its comma; None about others."""
    if isinstance(text, str) and _DECIMAL_COMMA.fullmatch(text):
        return f"Write decimals with a point: {text.strip().replace(',', '.')}."
    return None


def _cause(name: str, part: Stored, record: Record, error: MoGeError) -> tuple[str, str] | None:
    """What was found and what to do, where the file of a part says it; None where the error has said it best."""
    head = _head(part.path)
    foreign = recognised(head)
    if "truncated" in error.rule:
        return str(error.found), error.fix or "Copy or download it again."
    if foreign is None:
        return None
    is_npz = head.startswith(b"PK") and part.path.suffix.lower() == ".npz"
    if foreign.kind == "absent" or (foreign.kind == "packed" and not is_npz):
        return foreign.found, foreign.fix
    if name == "image":
        fix = "Name the picture. If image and depth were named the wrong way round, swap them."
        return (foreign.found, fix) if foreign.kind == "array" else None
    is_png = head.startswith(_PNG)
    if foreign.kind in {"picture", "other"} and not is_png and part.path.suffix.lower() not in _TIFF_SUFFIXES:
        if name != "depth":
            return foreign.found, f"A {_LONG_NAMES[name]} is stored without loss: save it as PNG or as an array."
        return foreign.found, _swapped(record) or _NO_PICTURE
    if name == "depth" and is_png and not _is_grey(head):
        if (swapped := _swapped(record)) is not None:
            return _picture(head), swapped
        # Other errors know more of what its colours may code.
        if str(error.found).startswith("16-bit"):
            return _picture(head), "Depth is one channel of 16 bits; three that differ are colours."
    return None


def _turned(camera: PixelIntrinsics, size: tuple[int, int]) -> str:
    """What intrinsics for pictures of this size (width, height) become when the pictures are turned."""
    width, height = size
    clockwise = (camera.fy, camera.fx, height - 1 - camera.cy, camera.cx)
    counter = (camera.fy, camera.fx, camera.cy, width - 1 - camera.cx)
    return (
        f"Turned with the picture by 90 degrees fx,fy,cx,cy are {_listed(clockwise)} if that is clockwise, and"
        f" {_listed(counter)} if it is counter-clockwise."
    )


def _is_centre(camera: PixelIntrinsics, size: tuple[int, int], near: float = _CENTRED) -> bool:
    at = ((camera.cx + 0.5) / size[0], (camera.cy + 0.5) / size[1])
    return all(abs(part - 0.5) < near for part in at)


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _swapped(record: Record) -> str | None:
    head = _head(record.image.path)
    other = recognised(head)
    is_depth = (_has_16_bits(head) and _is_grey(head)) or (other is not None and other.kind == "array")
    return "Image and depth were named the wrong way round: swap them." if is_depth else None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b"unreadable"


def _has_16_bits(head: bytes) -> bool:
    match = _PNM.match(head)
    return int(match[2]) > 255 if match else head.startswith(_PNG) and head[_PNG_DEPTH_AT] == 16


def _is_grey(head: bytes) -> bool:
    match = _PNM.match(head)
    return match[1] == b"P5" if match else head.startswith(_PNG) and head[_PNG_COLOUR_AT] in {0, 4}


def _picture(head: bytes) -> str:
    """A PNG or a JPEG, in words."""
    if not head.startswith(_PNG):
        return "a JPEG picture"
    channels = {0: "grey", 2: "colour", 3: "palette", 4: "grey with alpha", 6: "colour with alpha"}
    bits = head[_PNG_DEPTH_AT]
    return f"{'an' if bits == 8 else 'a'} {bits}-bit PNG, {channels.get(head[_PNG_COLOUR_AT], 'damaged')}"


def _packed_depth(path: Path) -> str | None:
    """The encoding of three bytes that a picture looks like, if any."""
    from moge_core.datasets.importers.encodings import looks_like_24_bits
    from moge_core.io.image import read_stored_image

    try:
        return looks_like_24_bits(read_stored_image(path)[0])
    except (MoGeError, OSError):
        return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
