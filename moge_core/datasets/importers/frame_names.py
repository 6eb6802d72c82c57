"""What the name of a file says: which kind of picture it is, of which scene, and of which frame.

A path becomes a shape, `("rgb", "/", "rgb", "#")` for `rgb/rgb_00050.jpg`, and the numbers that stood at its `#`. A
million names have a handful of shapes, so whatever is decided by words is decided once a shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal, TypeAlias

Shape: TypeAlias = tuple[str, ...]
"""Words in lower case, `/` between folders, and the three signs below where numbers and hashes stood."""

NUMBER, FORMAT, HASH, FOLDER = "#", "%", "@", "/"
"""A number of any meaning, a number that can be a size or a count of bits, a hexadecimal hash, the end of a folder."""

_ALL_SIGNS = frozenset({NUMBER, FORMAT, HASH})

Role: TypeAlias = Literal["image", "depth", "other"]
NamedKind: TypeAlias = Literal["z", "ray", "disparity", "inverse"]

_TOKEN = re.compile(
    # Six or more hexadecimal digits in which figures and letters take turns: 0f3ab2, but not face0001.
    r"(?P<hash>(?<![^\W_])(?=[0-9a-f]*(?:\d[a-f]+\d|[a-f]\d+[a-f]))[0-9a-f]{6,}(?![^\W_]))"
    # 640x480; the 8 of 8bit; the 16 of depth16 and mono16.
    r"|(?P<format>\d{2,5}x\d{2,5}(?![^\W_])|(?:8|10|12|16|24|32|48|64)(?=bits?(?![^\W\d_]))"
    r"|(?:(?<=rgb)|(?<=bgr)|(?<=rgba)|(?<=bgra)|(?<=mono)|(?<=gr[ae]y)|(?<=depth)|(?<=colou?r)|(?<=img)|(?<=int)"
    r"|(?<=float))(?:8|10|12|16|24|32|48|64)(?!\d|[.,]\d))"
    # 0.05 and 0,05 are one number, and so is Python's 5e-05.
    r"|(?P<number>\d+(?:[.,]\d+)?(?:e[-+]\d{2,3}(?!\w))?)"
    r"|(?P<word>[^\W\d_]+)".replace("(?<=colou?r)", "(?<=color)|(?<=colour)"),
    re.IGNORECASE,
)
_SIGNS = {"hash": HASH, "format": FORMAT, "number": NUMBER}

# Words that name pictures, and those that stand beside them and tell nothing.
_IMAGE = "rgb|rgba|rgbs|bgr|color|colors|colour|colours|image|images|img|imgs|im|picture|pictures|pic|pics|photo|photos"
_WEAK_IMAGE = "frame|frames|geometric|cam|cams|camera|cameras|video|view|views|map|maps|data|file|files|jpg|jpeg|png"
_DEPTH = (
    "depth|depths|dpt|zdepth|zbuffer|groundtruth|gt|lidar|zdistance|raydistance|distance|disp|disparity|disparities"
)
_REGISTERED = frozenset({"aligned", "registered", "transformed"})
_OF_REGISTRATION = _REGISTERED | {"to"}
_MODIFIERS = (
    "raw|sync|synced|aligned|registered|transformed|rectified|rect|undistorted|distorted|resized|cropped|lowres|highres|hires|wide"
    "|ultrawide|small|large|full|results|render|rendered|renders|proj|projected|sparse|dense|velodyne|kinect|realsense"
    "|left|right|bit|bits|uint|float|mm|metric|metres|meters|photometric|exr|npy|npz|tif|tiff|pfm|pgm|bmp"
    "|inverse|inv|ray|euclidean|linear|sensor|filt|visib|class|id|col|laser|tof|stereo|lit|final|clean|r|arkit|iphone|dslr|annotated|original|orig|i|d|mono|grey|gray|keyframes"
)
_OTHER = (
    "mask|masks|conf|confs|confidence|confidences|confmap|seg|segm|segs|segmentation|segmentations|semantic|semantics"
    "|sem|label|labels|instance|instances|instancegt|classgt|classsegmentation|instancesegmentation|panoptic|normal"
    "|normals|flow|flows|forwardflow|backwardflow|forwardsceneflow|backwardsceneflow|sceneflow|occlusion|occlusions"
    "|bounding|bbox|bboxes|uncertainty|variance|albedo|shading|thumb|thumbs|thumbnail|thumbnails|preview|previews|vis"
    "|viz|visualization|visualisation|colormap|colorized|colourized|heatmap|overlay|infrared|ir|amplitude|coordinates"
)
# Written together they mean the same: depthmap, ColorImage, DepthMask.
_PIECES: dict[Role | Literal["weak", "modifier"], frozenset[str]] = {
    "other": frozenset(_OTHER.split("|")),
    "depth": frozenset(_DEPTH.split("|")),
    "image": frozenset(_IMAGE.split("|")),
    "weak": frozenset(_WEAK_IMAGE.split("|")),
    "modifier": frozenset(_MODIFIERS.split("|")),
}
_COMPOUND = re.compile("|".join(sorted((p for s in _PIECES.values() for p in s if len(p) > 2), key=len, reverse=True)))
# Names of Omniverse Replicator, which has a word for each of the two lengths.
_PHRASES: dict[Shape, str] = {
    ("distance", "to", "image", "plane"): "zdistance",
    ("distance", "to", "camera"): "raydistance",
}


@dataclass(frozen=True, slots=True)
class Name:
    """A file, the shape of its name, and the texts of the numbers and hashes in it."""

    path: PurePosixPath
    shape: Shape
    numbers: tuple[str, ...]


def read_name(path: PurePosixPath, text: PurePosixPath | None = None) -> Name:
    """The name of `path`, without its suffix.

    Args:
        path: the file.
        text: what to read instead of its path, where a pattern says what counts. It has no suffix.
    """
    named = path.with_suffix("") if text is None else text
    folder, folder_numbers = _tokens_of_folder(str(named.parent))
    stem, numbers = _tokens(named.name)
    return Name(path, (*folder, *stem), (*folder_numbers, *numbers))


@lru_cache(maxsize=1 << 16)
def _tokens_of_folder(folder: str) -> tuple[Shape, tuple[str, ...]]:
    shape: list[str] = []
    numbers: list[str] = []
    for part in () if folder == "." else folder.split("/"):
        signs, found = _tokens(part)
        shape += (*signs, FOLDER)
        numbers += found
    return tuple(shape), tuple(numbers)


def _tokens(text: str) -> tuple[list[str], list[str]]:
    shape, numbers = [], []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind == "word":
            shape.append(match[0].lower())
        else:
            shape.append(_SIGNS[kind])
            numbers.append(match[0])
    return shape, numbers


@lru_cache(maxsize=1 << 16)
def joined_phrases(shape: Shape) -> Shape:
    """The shape with each of a few phrases as one word."""
    words = list(shape)
    for phrase, word in _PHRASES.items():
        for start in range(len(words) - len(phrase), -1, -1):
            if tuple(words[start : start + len(phrase)]) == phrase:
                words[start : start + len(phrase)] = [word]
    return tuple(words)


@lru_cache(maxsize=1 << 16)
def _piece(word: str) -> str | None:
    """Which list has the word: other, depth, image, weak, modifier, or None."""
    for kind, words in _PIECES.items():
        if word in words:
            return kind
    pieces = _COMPOUND.findall(word)
    if len(pieces) < 2 or "".join(pieces) != word:
        return None
    kinds = {_piece(piece) for piece in pieces}
    return next(kind for kind in _PIECES if kind in kinds)


def is_known(word: str) -> bool:
    """Whether the word names a kind of data or how it was made, and so no scene."""
    return _piece(word) is not None


@lru_cache(maxsize=1 << 16)
def count_of_folder_numbers(shape: Shape) -> int:
    """How many of a name's numbers stand in its folders."""
    *folders, _ = parts_of(shape)
    return sum(sign in _ALL_SIGNS for part in folders for sign in part)


def is_scene_word(sign: str) -> bool:
    """Whether this is a word that may name a scene."""
    return bool(sign) and sign not in _ALL_SIGNS and not is_known(sign)


def is_droppable(word: str) -> bool:
    """Whether the word says no more than that this is the picture, or the depth, of a frame."""
    return _piece(word) in {"image", "depth", "weak"}


@lru_cache(maxsize=1 << 16)
def role(shape: Shape) -> Role | None:
    """What a file is by its name: its last telling word, in the stem or else in the nearest folder that has one.

    A folder with words of its own, like `mask_store` or `nyu_depth_v2`, is a scene or a source and tells nothing; nor
    does one with a number, like `instance_3`, where another part of the path does.
    """
    *folders, stem = parts_of(joined_phrases(shape))
    of_stem, of_folders = _role_of_part(stem), [_role_of_part(part) for part in folders]
    if of_stem is not None:
        return of_stem
    for part, found in zip(reversed(folders), reversed(of_folders), strict=True):
        if found in {"other", "depth"} and not all(map(is_known, part)):
            named = any(word not in _ALL_SIGNS and not is_known(word) for word in part)
            if named or of_folders.count("image") + of_folders.count("depth") > (found == "depth"):
                continue
        if found is not None:
            return found
    return None


def parts_of(shape: Shape) -> list[Shape]:
    """The shapes of each folder and of the stem."""
    parts: list[list[str]] = [[]]
    for word in shape:
        if word == FOLDER:
            parts.append([])
        else:
            parts[-1].append(word)
    return [tuple(part) for part in parts]


def _role_of_part(part: Shape) -> Role | None:
    for word in reversed(part):
        piece = _piece(word)
        if piece in {"image", "depth", "other"}:
            return piece  # type: ignore[return-value]
    return None


@lru_cache(maxsize=1 << 16)
def has_depth_word(shape: Shape) -> bool:
    """Whether a word of the name means depth."""
    return any(_piece(word) == "depth" for word in joined_phrases(shape))


def token_beside_registration(name: Name) -> tuple[Shape, tuple[str, ...]]:
    """What is left of a name without its kind and without words like `aligned_to`."""
    words = (word for word in name.shape if word != FOLDER and word not in _OF_REGISTRATION and not is_droppable(word))
    return tuple(words), tuple(normal_number(number, exact_fraction=True) for number in name.numbers)


def is_named_registered(shape: Shape) -> bool:
    """Whether the name says that a picture was turned into the view of the other camera."""
    return not _REGISTERED.isdisjoint(shape)


@lru_cache(maxsize=1 << 16)
def numbers_of_kinds(shape: Shape) -> tuple[int, ...]:
    """Which numbers of a name stand in folders that say nothing but a kind of data: the 2 of `image_2`."""
    found: list[int] = []
    number = 0
    for part in parts_of(shape)[:-1]:
        words = [word for word in part if word not in _ALL_SIGNS]
        num_numbers = len(part) - len(words)
        if words and all(map(is_droppable, words)):
            found += range(number, number + num_numbers)
        number += num_numbers
    return tuple(found)


@lru_cache(maxsize=1 << 16)
def named_kind(shape: Shape) -> NamedKind:
    """What the values of a depth map are by its name: z unless it says otherwise."""
    words = set(joined_phrases(shape))
    if (
        words & {"raydistance", "raydepth"}
        or ("ray" in words and words & {"depth", "distance"})
        or "euclidean" in words
    ):
        return "ray"
    if words & {"disp", "disparity", "disparities"}:
        return "disparity"
    if words & {"invdepth", "inversedepth"} or (words & {"inverse", "inv"} and words & {"depth", "depths"}):
        return "inverse"
    return "z"


def has_fractions_like_decimals(names: Iterable[Name]) -> bool:
    """Whether what stands behind points are decimals, and not counts that are set apart by points.

    Decimals have one length, or end without zeros as Python prints them; 1.1, 1.2 ... 1.10 are counts.
    """
    lengths: set[int] = set()
    has_trailing_zero = False
    for name in names:
        for number in name.numbers:
            fraction = _fraction(number)
            if fraction:
                lengths.add(len(fraction))
                has_trailing_zero |= len(fraction) > 1 and fraction.endswith("0")
    return len(lengths) < 2 or not has_trailing_zero


def normal_number(text: str, *, exact_fraction: bool) -> str:
    """One text for equal numbers: 00050 and 50, 0.50 and 0.5; hashes in lower case.

    Args:
        text: a number or a hash as a name has it.
        exact_fraction: compare what stands behind a point as text.
    """
    if text.isdecimal():
        return text.lstrip("0") or "0"
    if "e-" in text.lower() or "e+" in text.lower():
        text = format(Decimal(text.replace(",", ".")), "f")
    fraction = _fraction(text)
    if not fraction:
        return text.lower()
    whole = text[: len(text) - len(fraction) - 1].lstrip("0") or "0"
    if not exact_fraction:
        fraction = fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def _fraction(text: str) -> str:
    return text.replace(",", ".").partition(".")[2].lower().partition("e")[0]


def family(path: PurePosixPath) -> str:
    """A pattern for people: the path with `*` for its numbers and hashes."""
    stem = "/".join(
        _TOKEN.sub(lambda match: match[0] if match.lastgroup in {"word", "format"} else "*", part)
        for part in path.with_suffix("").parts
    )
    return re.sub(r"\*(?:[-_., ]\*)+", "*", stem) + path.suffix
