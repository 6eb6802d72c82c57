"""What stored values of depth mean, in the words that every importer and every table has.

    depth in metres = (decoded value - offset) / scale

An importer of a layout knows most of it. What a user says goes before that, and is applied in one place for all
importers, `GivenValues.applied_to`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

from moge_core.errors import InputError

if TYPE_CHECKING:
    from moge_core.datasets.importers.records import Record

DepthKind: TypeAlias = Literal["z", "ray", "disparity", "inverse"]
DEPTH_KINDS: tuple[str, ...] = get_args(DepthKind)

Encoding: TypeAlias = Literal["linear", "float16", "float32", "float32-bgra", "moge-png", "rgb24", "bgr24", "rotated3"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)
NEED_SCALE: frozenset[str] = frozenset({"rgb24", "bgr24"})
"""Encodings of which nobody knows what their whole range stands for."""

Orientation: TypeAlias = Literal["auto", "stored", "upright"]
Distortion: TypeAlias = Literal["undistort", "ignore"]

Unit: TypeAlias = float | Literal["layout"] | None
"""Metres a unit of depth, None where nobody knows, or what the layout says."""


@dataclass(frozen=True)
class Word:
    """One word of the vocabulary: an option of the commands, and a column of a table.

    Attributes:
        name: as columns and Python have it; an option is spelled with hyphens.
        also: other spellings of the option.
        type: of its value: a number, a text, one of `choices`, or a unit (a number of metres, `metres` or `none`).
        help: one sentence or two, for commands and tables alike.
        several: whether several values may be given: an option again, in a table separated by blanks.
        choices: where it is one of a few.
        metavar: what stands for the value in the help of a command.
    """

    name: str
    type: Literal["number", "text", "unit"]
    help: str
    several: bool = False
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    also: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """As commands spell it."""
        return "--" + self.name.replace("_", "-")


WORDS: tuple[Word, ...] = (
    Word(
        "kind",
        "text",
        "What values are: z along the optical axis, ray (distance from the camera), disparity in pixels, or inverse,"
        " 1 / z.",
        choices=DEPTH_KINDS,
    ),
    Word(
        "scale",
        "number",
        "Stored units a metre (a pixel for disparities): (value - OFFSET) / SCALE is meant.",
        metavar="UNITS",
        also=("--depth-scale", "--disparity-scale"),
    ),
    Word("offset", "number", "Subtracted from stored values before they are divided by the scale.", metavar="VALUE"),
    Word(
        "encoding",
        "text",
        "How numbers are stored, if not as such (linear): float16, its bits as 16-bit integers; float32, its bytes in"
        " red, green, blue, alpha, the least first, or float32-bgra, the least in blue; rgb24 or bgr24, integers of 24"
        " bits with the least byte in red or in blue; rotated3, 16 bits turned by three (SUN RGB-D); moge-png, this"
        " format's own depth, which is known by its text fields near and far.",
        choices=ENCODINGS,
    ),
    Word(
        "invalid",
        "number",
        "Stored value that means unknown, also inf or nan; 0 always does, but where an offset is given.",
        several=True,
        metavar="VALUE",
    ),
    Word(
        "infinite",
        "number",
        "Stored value that means infinitely far, as sky is; also 0.",
        several=True,
        metavar="VALUE",
    ),
    Word(
        "infinite_from",
        "number",
        "Depth from here on is infinitely far (of kind ray, distance).",
        metavar="METRES",
    ),
    Word(
        "depth_unit",
        "unit",
        "metres, or none where nobody knows the scale of depth (such data never trains it); or metres a unit.",
        metavar="metres|none",
    ),
    Word(
        "depth_array",
        "text",
        "Which array, channel, page or band of a file with several: depth of an NPZ, group/depth of an HDF5,"
        " ViewLayer.Depth.Z of an EXR file, 2 of a TIFF.",
        metavar="NAME",
    ),
    Word("baseline", "number", "Between the cameras of a disparity. Without it depth has no unit.", metavar="METRES"),
    Word("doffs", "number", "Added to each disparity.", metavar="PIXELS"),
)
"""The vocabulary, in the order in which it is told."""


class ValueOptions(TypedDict, total=False):
    """What a user says of values; what is left out is as the layout has it. See `WORDS`."""

    kind: DepthKind | None
    scale: float | None
    offset: float | None
    encoding: Encoding | None
    invalid: Sequence[float]
    infinite: Sequence[float]
    infinite_from: float | None
    depth_unit: Unit
    depth_array: str | None
    baseline: float | None
    doffs: float | None


@dataclass(frozen=True)
class GivenValues:
    """What a user said of values; None and empty are unsaid. See `WORDS`."""

    kind: DepthKind | None = None
    scale: float | None = None
    offset: float | None = None
    encoding: Encoding | None = None
    invalid: tuple[float, ...] = ()
    infinite: tuple[float, ...] = ()
    infinite_from: float | None = None
    depth_unit: Unit = "layout"
    depth_array: str | None = None
    baseline: float | None = None
    doffs: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no depth map can be.

        Raises:
            InputError: naming the word.
        """
        for name, known in (("kind", DEPTH_KINDS), ("encoding", ENCODINGS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise InputError(name, f"must be one of {', '.join(known)}", found=repr(value))
        for name in ("scale", "infinite_from", "baseline", "depth_unit"):
            value = getattr(self, name)
            if isinstance(value, str) and name == "depth_unit" and value == "layout":
                continue
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise InputError(name, "must be a positive number", found=value)
        for name in ("offset", "doffs"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(name, "must be a finite number", found=value)
        both = sorted(set(self.invalid) & set(self.infinite))
        if both:
            raise InputError("infinite", "must name other values than invalid", found=f"{both[0]:g} in both")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GivenValues:
        """From keyword arguments, those of other meaning left aside."""
        given = {one.name: options[one.name] for one in fields(cls) if one.name in options}
        for name in ("invalid", "infinite"):
            if name in given:
                given[name] = tuple(float(value) for value in given[name] or ())
        return cls(**given)

    def over(self, others: GivenValues) -> GivenValues:
        """These, and of `others` what these leave unsaid.

        A value that these call infinitely far is so even where the others call it unknown, and the other way round.
        """
        rest = {
            "invalid": tuple(value for value in others.invalid if value not in self.infinite),
            "infinite": tuple(value for value in others.infinite if value not in self.invalid),
        }
        return replace(others, **(rest | self.said()))

    def said(self) -> dict[str, Any]:
        """What was said, by its names."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}

    def applied_to(self, record: Record) -> Record:
        """The record with what the user said in place of what its layout says.

        Values that mean unknown add up. Points have no stored values: of what was said, only the unit counts for them,
        and that is told.

        Raises:
            InputError: words that do not go together.
        """
        from moge_core.datasets.importers.records import StoredDepth

        said = self.said()
        unit = said.pop("depth_unit", "layout")
        if unit != "layout":
            record = replace(record, depth_unit=unit, unit_is_said=unit is not None)
        depth = record.depth
        if not said:
            return record
        if not isinstance(depth, StoredDepth):
            options = ", ".join(f"--{name.replace('_', '-')}" for name in said)
            note = f"Depth is made of points here, which have no stored values: {options} did not count for them."
            return replace(record, notes=(*record.notes, note))
        if self.depth_array is not None and depth.read is not None:
            found = f"{self.depth_array!r} for {depth.path}"
            raise InputError("depth_array", "is for layouts whose files may hold several arrays", found=found)
        infinite = tuple(value for value in (*depth.infinite, *self.infinite) if value not in self.invalid)
        changes = said | {
            "invalid": tuple(
                dict.fromkeys(value for value in (*depth.invalid, *self.invalid) if value not in self.infinite)
            ),
            "infinite": tuple(dict.fromkeys(infinite)),
        }
        if self.infinite_from is not None:
            changes["far_from"] = None
        is_said = self.offset is not None or self.encoding is not None
        return replace(record, depth=replace(depth, **changes), values_are_said=is_said)


def no_scale(encoding: str) -> InputError:
    """The error of an encoding in `NEED_SCALE` without a scale."""
    return InputError(
        "scale",
        f"must be said with the encoding {encoding}: stored units a metre",
        fix="For depth that fills 24 bits up to FAR metres it is 16777215 / FAR: --depth-scale 16777.215 for CARLA.",
    )


def scaled(options: Mapping[str, Any], name: str, scale: float | None) -> dict[str, Any]:
    """Keyword arguments with `scale`, where it was given by the other name that an importer has for it.

    Raises:
        InputError: by that name, where it is no scale.
    """
    if scale is None:
        return dict(options)
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(name, "must be positive: depth in metres is value / scale", found=scale)
    return {"scale": scale, **options}


def parse_unit(text: str) -> float | None:
    """Metres a unit from `metres`, `none` or a number.

    Raises:
        InputError: something else.
    """
    word = text.strip().lower()
    if word in {"none", "metres", "metre", "meters", "m"}:
        return None if word == "none" else 1.0
    try:
        return float(word)
    except ValueError:
        raise InputError("depth_unit", "must be metres, none or a number of metres", found=repr(text)) from None
