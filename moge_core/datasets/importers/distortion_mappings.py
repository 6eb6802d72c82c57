"""What mappings of JSON and YAML files say of lenses, by all the names that people give to their coefficients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from moge_core.datasets.importers.distortion import COEFFICIENTS, Distortion, distortion_of
from moge_core.datasets.importers.mapping_values import as_floats, as_number, plain_keys, plain_name
from moge_core.errors import FormatError

# Names are compared without case and punctuation.
MODEL_NAMES = (
    "cameramodel",
    "distortionmodel",
    "distortiontype",
    "projection",
    "projectiontype",
    "projectionmodel",
    "lensmodel",
)
# Names that say as often what product a camera is, or what it is for.
_VAGUE_MODEL = ("model", "type", "lenstype", "cameratype", "modeltype", "lens")
_COEFFICIENT = re.compile(
    r"(?:[a-z]*(?:distortion|dist|radial|tangential|lens|coeff|coef))?(k[1-9]|p[1-4]|s[1-4]|tau[xy]|b[12]|cod[xy]|xi|omega)"
)
COEFFICIENT_LISTS = ("d", "dc", "kc", "coeffs", "coefs", "coefficients")
# Of a mapping that is all about distortion.
_NESTED_LISTS = frozenset({"coefficients", "values", "params", "parameters"})
_RADIAL = ("radialdistortion", "radialdistortioncoefficients", "radialdist", "radial", "kappa", "k")
_TANGENTIAL = ("tangentialdistortion", "tangentialdistortioncoefficients", "tangentialdist", "tangential", "p")
# ROS names matrices so; five numbers are none.
_OF_MATRICES_TOO = frozenset({"k", "p"})
# So many radial numbers are k1, k2 and k3; more are a whole set of coefficients.
_MOST_RADIAL = 3
_LENS_WORDS = (
    "pinhole",
    "fisheye",
    "brown",
    "conrady",
    "kannala",
    "radial",
    "equi",
    "opencv",
    "omni",
    "theta",
    "plumb",
    "spher",
    "panor",
    "division",
    "cubemap",
    "mei",
    "ortho",
    "rational",
    "perspective",
)
# A longer text is data.
_MOST_LETTERS = 40


def distortion_in(node: Mapping[str, Any], where: object) -> tuple[Distortion | None, tuple[str, ...]]:
    """The distortion that a mapping with plain names speaks of, and what is to be told; see `distortion_of`.

    Raises:
        FormatError: coefficients that no model has, or whose model cannot be known.
    """
    names: list[str] = []
    named: dict[str, float] = {}
    listed: list[float] = []
    _gather(node, names, named, listed, where)
    if any(named.values()) and any(listed):
        # Many files say the same numbers twice.
        sets = ([named.get(name, 0.0) for name in order][: len(listed)] for order in COEFFICIENTS.values())
        if listed not in sets:
            raise FormatError(where, "must have one set of distortion coefficients", found=f"{named} and {listed}")
    if any(named.values()) or not any(listed):
        return distortion_of(names, named, (), where)
    return distortion_of(names, {}, listed, where)


def _gather(
    node: Mapping[str, Any], names: list[str], named: dict[str, float], listed: list[float], where: object
) -> None:
    """Everything here that is said of distortion: names of models, coefficients by name and in lists."""
    for key, value in node.items():
        if key in MODEL_NAMES and isinstance(value, str):
            names.append(value)
        elif key == "isfisheye" and value:
            names.append("fisheye")
        elif key in _VAGUE_MODEL and isinstance(value, str) and _names_a_model(value):
            names.append(value)
        elif (match := _COEFFICIENT.fullmatch(key)) and (number := as_number(value)) is not None:
            _name(match[1].replace("tau", "t"), number, named, where)
        elif key in (*_RADIAL, *_TANGENTIAL):
            numbers = as_floats(value) or []
            if len(numbers) <= _MOST_RADIAL:
                letter = "k" if key in _RADIAL else "p"
                for index, number in enumerate(numbers, 1):
                    _name(f"{letter}{index}", number, named, where)
            elif key not in _OF_MATRICES_TOO or len(numbers) == 5:
                _add_list(numbers, listed, where)
        elif isinstance(value, Mapping) and (key.startswith("lens") or _is_all_of_lens(value)):
            _gather(_of_distortion(value), names, named, listed, where)
        elif _speaks_of_distortion(key) and value not in (None, "", [], {}) and not isinstance(value, bool):
            _gather_distortion(key, value, names, named, listed, where)


def _gather_distortion(
    key: str, value: Any, names: list[str], named: dict[str, float], listed: list[float], where: object
) -> None:
    """What stands under a name that speaks of distortion: coefficients, all about it, or the name of a model."""
    numbers = as_floats(value)
    if isinstance(value, Mapping) and numbers is None:
        inner = plain_keys(value)
        names += [inner[one] for one in ("name", *_VAGUE_MODEL) if isinstance(inner.get(one), str)]
        _gather(_of_distortion(value), names, named, listed, where)
    elif numbers is None:
        names.append(value if isinstance(value, str) and len(value) < _MOST_LETTERS else f"{key} of a file")
    elif any(word in key for word in ("undist", "inverse")) and any(numbers):
        names.append(f"{key} of a file")
    # A single number by so short a name is a distance as often.
    elif not (isinstance(value, int | float) and (key in COEFFICIENT_LISTS or "distort" not in key)):
        _add_list(numbers, listed, where)


def _of_distortion(value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping that is all about distortion, its list of numbers by a name that says so."""
    inner = plain_keys(value)
    return {"coeffs" if key in _NESTED_LISTS else key: item for key, item in inner.items() if key not in _VAGUE_MODEL}


def _name(name: str, number: float, named: dict[str, float], where: object) -> None:
    # Two lenses beside one camera: nobody knows whose is meant.
    if named.get(name) and number and named[name] != number:
        raise FormatError(
            where, "must have one set of distortion coefficients", found=f"{name} {named[name]} and {number}"
        )
    named[name] = number or named.get(name, 0.0)


def _add_list(numbers: list[float], listed: list[float], where: object) -> None:
    if any(listed) and any(numbers) and listed != numbers:
        raise FormatError(where, "must have one set of distortion coefficients", found=f"{listed} and {numbers}")
    listed[:] = listed if any(listed) else numbers


def _names_a_model(value: str) -> bool:
    """Whether a name that may be a product's speaks of a lens."""
    return any(word in plain_name(value) for word in _LENS_WORDS)


def says_of_lens(key: str, value: Any) -> bool:
    """Whether a plain name is of a coefficient, of distortion, or of a camera's model, or all that stands under it."""
    if key in MODEL_NAMES or key == "isfisheye" or _speaks_of_distortion(key) or _COEFFICIENT.fullmatch(key):
        return True
    if isinstance(value, Mapping):
        return _is_all_of_lens(value)
    return key in (*_RADIAL, *_TANGENTIAL) and key not in _OF_MATRICES_TOO


def _is_all_of_lens(value: Mapping[str, Any]) -> bool:
    """Whether a mapping by any name has coefficients, and is no camera by itself."""
    plain = plain_keys(value)
    return as_number(plain.get("k1")) is not None and not any(key.startswith("f") or key == "k" for key in plain)


def _speaks_of_distortion(key: str) -> bool:
    if "center" in key or "centre" in key:
        return False
    return key in COEFFICIENT_LISTS or "distor" in key or (key.startswith("dist") and not key.startswith("distance"))
