"""`meta.json` of an instance: its camera, and whatever else its dataset keeps there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from moge_core.errors import FormatError, InputError, MoGeError
from moge_core.io import limits
from moge_core.io.files import PathOrFile, name_of, read_bytes, write_bytes


def read_meta(path_or_file: PathOrFile) -> dict[str, Any]:
    """Read a `meta.json`.

    Args:
        path_or_file: path or binary file object.

    Returns:
        its keys and values; `intrinsics` as a float32 array (3, 3), normalised by the image's width and height.

    Raises:
        FormatError: no JSON object, larger than `moge_core.io.limits.MAX_META_BYTES`, or no finite 3x3 `intrinsics`.
        FileNotFoundError: there is no such file.
    """
    name = name_of(path_or_file)
    data = read_bytes(path_or_file, limit=limits.MAX_META_BYTES)
    try:
        meta = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(name, "must be JSON in UTF-8", found=error) from error
    if not isinstance(meta, dict):
        raise FormatError(name, "must be a JSON object", found=f"a {type(meta).__name__}")
    if "intrinsics" not in meta:
        found = "the keys " + ", ".join(sorted(meta)[:10]) if meta else "no keys"
        raise FormatError(name, "must have the key intrinsics, the normalised 3x3 camera matrix", found=found)
    meta["intrinsics"] = _check_intrinsics(meta["intrinsics"], name, FormatError).astype(np.float32)
    return meta


def says_no_unit(meta: Mapping[str, Any]) -> bool:
    """Whether a `meta.json` says that nobody knows the unit of its depth: an import wrote it, and left the unit out."""
    unit = meta.get("depth_unit")
    has_unit = isinstance(unit, int | float) and not isinstance(unit, bool) and unit > 0
    return not has_unit and isinstance(meta.get("source"), dict)


def write_meta(path_or_file: PathOrFile, meta: Mapping[str, Any]) -> None:
    """Write a `meta.json`.

    Args:
        path_or_file: path or binary file object.
        meta: `intrinsics` (3, 3), normalised, and any other keys; values that JSON has, or NumPy arrays and numbers.

    Raises:
        InputError: no finite 3x3 `intrinsics`, a value that JSON does not have (NaN and Inf among them), or a missing
            folder.
    """
    if "intrinsics" not in meta:
        raise InputError("meta", "must have the key intrinsics", found=sorted(map(str, meta)))
    _check_intrinsics(meta["intrinsics"], "meta['intrinsics']", InputError)
    lines = []
    for key, value in meta.items():
        if not isinstance(key, str):
            raise InputError("meta", "keys must be text", found=repr(key))
        try:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False, default=_plain)}")
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"meta[{key!r}]", "must be a value that JSON has", found=error) from error
    write_bytes(path_or_file, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _check_intrinsics(value: object, where: str, error_type: type[MoGeError]) -> npt.NDArray[Any]:
    """`value` as a real array (3, 3) that is finite in float32."""
    rule = "intrinsics must be a 3x3 matrix of finite numbers"
    try:
        matrix = np.asarray(value)
    except ValueError as error:
        raise error_type(where, rule, found=error) from error
    if matrix.shape != (3, 3) or matrix.dtype.kind not in "fiu":
        raise error_type(where, rule, found=f"shape {matrix.shape} of {matrix.dtype}")
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(matrix.astype(np.float32)).all()
    if not is_finite:
        raise error_type(where, rule, found=matrix.tolist())
    return matrix


def _plain(value: object) -> object:
    """NumPy values as JSON has them; float32 by its shortest text, 0.1 and not 0.10000000149."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.floating):
        return float(str(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | str | int | float | bool | dict | None):
        return value
    raise TypeError(f"a {type(value).__name__}")


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no JSON number")
