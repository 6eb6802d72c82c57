"""Lens distortion: what files call it, and which models are obeyed.

Most files speak of one of two models, both OpenCV's own (https://docs.opencv.org/4.x/d9/d0c/group__calib3d.html):
`radial-tangential`, k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4 tx ty, of a pinhole camera; and `fisheye`, k1 k2 k3 k4, of an
equidistant one, also known as Kannala-Brandt. Any other is kept by its name, so that it can be refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moge_core.errors import FormatError

RADIAL_TANGENTIAL = "radial-tangential"
FISHEYE = "fisheye"

COEFFICIENTS: Mapping[str, tuple[str, ...]] = {
    RADIAL_TANGENTIAL: ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6", "s1", "s2", "s3", "s4", "tx", "ty"),
    FISHEYE: ("k1", "k2", "k3", "k4"),
}
"""Coefficients of the models that are obeyed, in OpenCV's order."""

_PINHOLE = "pinhole"
# Names without case and punctuation: "RadTan", "radial-tangential" and "RADIAL_TANGENTIAL" are found alike.
_NAMES: Mapping[str, str] = {
    _PINHOLE: "pinhole simplepinhole perspective none nodistortion undistorted",
    RADIAL_TANGENTIAL: "opencv fullopencv simpleradial radial plumbbob rationalpolynomial rational radtan brown"
    " brownconrady radialtangential pinholeradtan opencvpinhole",
    FISHEYE: "opencvfisheye fisheye equidistant equi kannalabrandt kannalabrandt4 kannalabrandt8 kb4 kb8"
    " simpleradialfisheye radialfisheye simplefisheye pinholeequi",
}
_MODEL_OF_NAME = {name: model for model, names in _NAMES.items() for name in names.split()} | {"": _PINHOLE}
# Models that bend a pinhole's picture, and are pinholes where all their numbers are zero.
_BENDS_A_PINHOLE = frozenset({"inversebrownconrady", "modifiedbrownconrady", "division", "simpledivision"})
_LENGTHS = (4, 5, 8, 12, 14)


@dataclass(frozen=True, slots=True)
class Distortion:
    """How a camera differs from a pinhole.

    Attributes:
        model: `radial-tangential`, `fisheye`, or what the file calls a model that is not obeyed.
        coefficients: in the order of `COEFFICIENTS`, without trailing zeros; any number for other models.
    """

    model: str
    coefficients: tuple[float, ...] = ()

    @property
    def is_obeyed(self) -> bool:
        """Whether pictures can be undistorted."""
        return self.model in COEFFICIENTS

    @property
    def is_of_a_pinhole(self) -> bool:
        """Whether an undistorted picture of this camera is what a file with these numbers may come with."""
        return self.is_obeyed or _plain(self.model) in _BENDS_A_PINHOLE

    def __str__(self) -> str:
        names = COEFFICIENTS.get(self.model, tuple(f"c{number}" for number in range(1, len(self.coefficients) + 1)))
        numbers = ", ".join(
            f"{name} {value:.4g}" for name, value in zip(names, self.coefficients, strict=False) if value
        )
        return f"{self.model} ({numbers})" if numbers else self.model


def distortion_of(
    names: Sequence[str], named: Mapping[str, float], listed: Sequence[float], where: object
) -> tuple[Distortion | None, tuple[str, ...]]:
    """The distortion that a file speaks of; None for a plain pinhole, and what is to be told.

    Args:
        names: what the file calls the camera and its distortion.
        named: coefficients by their names, as k1.
        listed: coefficients in OpenCV's order.
        where: what errors name.

    Raises:
        FormatError: coefficients that no model of this name has, or whose model cannot be known.
    """
    numbers = [*named.values(), *listed]
    if not all(map(math.isfinite, numbers)):
        raise FormatError(where, "must have distortion coefficients that are finite numbers", found=numbers)
    bends = any(numbers)
    models = {_MODEL_OF_NAME.get(_plain(name)): name for name in names}
    if None in models:
        name = models[None]
        is_plain = _plain(name) in _BENDS_A_PINHOLE and not bends
        return (None if is_plain else Distortion(name, tuple(numbers))), ()
    if RADIAL_TANGENTIAL in models and FISHEYE in models:
        raise FormatError(where, "must be of one camera model", found=f"{' and '.join(models.values())}")
    if FISHEYE in models:
        return Distortion(FISHEYE, _fisheye(named, listed, where)), ()
    if not bends:
        return None, ()
    coefficients, notes = _radial_tangential(named, listed, where, is_named=RADIAL_TANGENTIAL in models)
    return Distortion(RADIAL_TANGENTIAL, coefficients), notes


def _fisheye(named: Mapping[str, float], listed: Sequence[float], where: object) -> tuple[float, ...]:
    others = sorted(name for name, value in named.items() if value and name not in COEFFICIENTS[FISHEYE])
    values = [named.get(name, 0.0) for name in COEFFICIENTS[FISHEYE]] if named else list(listed)
    if others or any(values[4:]):
        found = ", ".join(others) or f"{len(values)} numbers"
        raise FormatError(where, "a fisheye camera must have the coefficients k1 to k4", found=found)
    return _without_zeros(values)


def _radial_tangential(
    named: Mapping[str, float], listed: Sequence[float], where: object, *, is_named: bool
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    order = COEFFICIENTS[RADIAL_TANGENTIAL]
    fix = 'Name the camera\'s model in the file: "camera_model": "OPENCV" or "OPENCV_FISHEYE".'
    if named:
        unknown = sorted(name for name, value in named.items() if value and name not in order)
        if unknown:
            raise FormatError(where, "must have distortion coefficients of a known model", found=", ".join(unknown))
        is_rational = "k5" in named or "k6" in named
        # OpenCV divides by 1 + k4 r^2 + ..., others add k4 r^8, and a fisheye camera has a k4 of its own.
        if named.get("k4") and not is_rational:
            raise FormatError(where, "k4 must come with k5 and k6, or with a fisheye camera", found="k1 to k4", fix=fix)
        return _without_zeros([named.get(name, 0.0) for name in order]), ()
    values = _without_zeros(listed)
    if len(listed) not in _LENGTHS and len(values) > 2:
        rule = f"must have {', '.join(map(str, _LENGTHS))} distortion coefficients, as OpenCV has them"
        raise FormatError(where, rule, found=f"{len(listed)} numbers")
    note = "Four distortion coefficients without a model were taken as k1, k2, p1, p2 of OpenCV, not as a fisheye's."
    return values, (note,) if len(listed) == 4 and not is_named else ()


def _without_zeros(values: Sequence[float]) -> tuple[float, ...]:
    """Without those at the end, so that equal cameras are equal."""
    last = max((index for index, value in enumerate(values, 1) if value), default=0)
    return tuple(float(value) for value in values[:last])


def _plain(name: str) -> str:
    # librealsense writes distortion.brown_conrady and RS2_DISTORTION_BROWN_CONRADY.
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("rs2").removeprefix("distortion")
