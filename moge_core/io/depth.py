"""Depth maps: 16-bit grey PNG on a logarithmic scale, as the MoGe dataset format has them.

Code 0 is NaN (unknown), 65535 is +Inf (infinitely far), and v in 1..65534 is near^(1 - t) * far^t metres with
t = (v - 1) / 65533. `near` and `far` are text fields of the PNG; a legacy field `unit` multiplies. One step of the code
is a factor of (far / near)^(1 / 65533): 0.018 % at the widest default range, 100,000 to 1.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import FormatError, InputError, PrecisionError
from moge_core.io import limits
from moge_core.io.files import PathOrFile, name_of, read_bytes, write_bytes
from moge_core.io.png import DEFAULT_COMPRESSION_LEVEL, GREY, decode_png, encode_png, parse_png

UNKNOWN_CODE, INFINITE_CODE = 0, 65535
NUM_STEPS = 65533
_LEAST_RANGE = 1.1
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class CodedDepth:
    """A depth map as its file has it, for those who need part of it only.

    Attributes:
        codes: (H, W) uint16; 0 is unknown, 65535 infinitely far.
        near: depth of code 1, before `unit`.
        far: depth of code 65534, before `unit`.
        unit: factor of all depths.
    """

    codes: npt.NDArray[np.uint16]
    near: float
    far: float
    unit: float

    @functools.cached_property
    def depth_of_code(self) -> npt.NDArray[np.float32]:
        """The depth of every code (65536,). Looking codes up is several times faster than two powers a pixel."""
        t = np.arange(NUM_STEPS + 1) / NUM_STEPS
        table = np.empty(INFINITE_CODE + 1, np.float32)
        table[1:INFINITE_CODE] = np.exp((1 - t) * math.log(self.near) + t * math.log(self.far)) * self.unit
        table[1], table[INFINITE_CODE - 1] = self.near * self.unit, self.far * self.unit
        table[UNKNOWN_CODE], table[INFINITE_CODE] = np.nan, np.inf
        return table


class DepthWarning(UserWarning):
    """Values that no depth can have were written as unknown."""


def read_depth(path_or_file: PathOrFile) -> npt.NDArray[np.float32]:
    """Read a depth map.

    Args:
        path_or_file: path or binary file object of a PNG in the MoGe depth format.

    Returns:
        depth (H, W) in metres when the dataset is metric; NaN = unknown, +Inf = infinitely far.

    Raises:
        FormatError: no 16-bit grey PNG, no valid `near` and `far`, truncated or undecodable. A plain 16-bit PNG of a
            sensor is one of these: it must be imported.
        ImageTooLargeError: more pixels than `moge_core.io.limits.MAX_IMAGE_PIXELS`.
        FileNotFoundError: there is no such file.
    """
    coded = read_depth_codes(path_or_file)
    return np.take(coded.depth_of_code, coded.codes)


def read_depth_codes(path_or_file: PathOrFile) -> CodedDepth:
    """Read a depth map without turning its codes into depths.

    Raises:
        FormatError, ImageTooLargeError, FileNotFoundError: as `read_depth`.
    """
    name = name_of(path_or_file)
    data = read_bytes(path_or_file, limit=limits.MAX_FILE_BYTES)
    header = parse_png(data, name, text_keys={"near", "far", "unit"})
    if (header.color_type, header.bit_depth) != (GREY, 16):
        raise FormatError(
            name,
            "a depth map must be a 16-bit grey PNG",
            found=f"a {header.pixel_format} PNG",
            fix="A picture of depth (a colour map, 8 bits) has lost the depth; use the file it was made from.",
        )
    near, far, unit = _parse_range(header.text, name)
    return CodedDepth(decode_png(data, name, header), near, far, unit)


def write_depth(
    path_or_file: PathOrFile,
    depth: npt.NDArray[Any],
    *,
    max_range: float = 1e5,
    compression_level: int = DEFAULT_COMPRESSION_LEVEL,
) -> None:
    """Write a depth map. A read value differs from the written one by at most half a step of the code.

    `near` is the least finite depth, however small, and `far` the greatest, at least 1.1 near. A map without any finite
    depth is written as what it is: unknown, infinitely far, or both. Values that no depth can have (zero, negative,
    -Inf) are written as unknown, and a warning counts them.

    Args:
        path_or_file: path or binary file object.
        depth: (H, W), floating point, metres when the dataset is metric; NaN = unknown, +Inf = infinitely far.
        max_range: largest far / near to accept. More widens the step: at 1e5 it is 0.018 %, at 1e10 0.035 %.
        compression_level: of the PNG, 0 (none) to 9 (smallest, slow).

    Raises:
        InputError: another shape or type, or a missing folder.
        PrecisionError: the finite depths span more than `max_range`, or float32 cannot hold one of them.

    Warns:
        DepthWarning: zero, negative or -Inf values became unknown.
    """
    depth = _to_float32(depth)
    is_finite = (depth > 0) & (depth < np.inf)
    num_impossible = int(np.count_nonzero(depth <= 0))
    if num_impossible:
        warnings.warn(
            f"{name_of(path_or_file)}: {num_impossible:,} of {depth.size:,} depth values are zero, negative or -Inf "
            "and are written as unknown (NaN).",
            DepthWarning,
            stacklevel=2,
        )
    near_text, far_text = _choose_range(depth[is_finite], max_range)
    # The texts are what a reader gets, so they and nothing more precise decide the codes.
    near, far = float(near_text), float(far_text)

    # Logarithms in float64: at a range of 1.1 a step is 1.5e-6, only 12 times float32's resolution.
    log_depth = np.log(np.where(is_finite, depth, near), dtype=np.float64)
    steps = (log_depth - math.log(near)) * (NUM_STEPS / (math.log(far) - math.log(near)))
    codes = np.clip(np.rint(steps), 0, NUM_STEPS).astype(np.uint16) + np.uint16(1)
    codes[~is_finite] = UNKNOWN_CODE
    codes[depth == np.inf] = INFINITE_CODE

    text = {"near": near_text, "far": far_text}
    write_bytes(path_or_file, encode_png(codes, text=text, compression_level=compression_level))


def _parse_range(text: Mapping[str, str], name: str) -> tuple[float, float, float]:
    """near, far and unit: positive numbers that float32 can hold, near < far."""
    if "near" not in text or "far" not in text:
        missing = " and ".join(key for key in ("near", "far") if key not in text)
        raise FormatError(
            name,
            "a depth map must have the PNG text fields near and far",
            found=f"a 16-bit PNG without {missing}",
            fix="Linear depth of a sensor (millimetres, 1/5000 m) must be imported first: `moge import rgbd-folder`.",
        )
    near, far, unit = (_parse_positive(key, text.get(key, "1"), name) for key in ("near", "far", "unit"))
    if not near < far:
        raise FormatError(name, "near must be less than far", found=f"near {near!r}, far {far!r}")
    with np.errstate(over="ignore", under="ignore"):
        least, greatest = np.float32(near * unit), np.float32(far * unit)
    if least == 0 or greatest == np.inf:
        raise FormatError(
            name, "near and far must be float32 numbers", found=f"near {near!r}, far {far!r}, unit {unit!r}"
        )
    return near, far, unit


def _parse_positive(key: str, text: str, name: str) -> float:
    try:
        value = float(text) if len(text) <= 64 else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise FormatError(name, f"the text field {key} must be a positive finite number", found=repr(text[:64]))
    return value


def _to_float32(depth: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if not isinstance(depth, np.ndarray) or depth.dtype.kind != "f":
        raise InputError(
            "depth",
            "must be a floating-point array in metres",
            found=getattr(depth, "dtype", type(depth).__name__),
            fix="Integer depth of a sensor is multiplied by its scale first, and its code for unknown set to NaN.",
        )
    if depth.ndim != 2 or depth.size == 0:
        raise InputError("depth", "must be of shape (H, W) and not empty", found=depth.shape)
    if depth.dtype.itemsize <= 4:
        return depth.astype(np.float32, copy=False)
    with np.errstate(over="ignore", under="ignore"):
        narrow = depth.astype(np.float32)
    num_lost = int(np.count_nonzero((np.isinf(narrow) & np.isfinite(depth)) | ((narrow == 0) & (depth > 0))))
    if num_lost:
        raise PrecisionError(
            "depth", "float32 must be able to hold every value", found=f"{num_lost:,} values that it cannot"
        )
    return narrow


def _choose_range(finite: npt.NDArray[np.float32], max_range: float) -> tuple[str, str]:
    """near and far as text, for the finite depths (N,) of a map."""
    if not _LEAST_RANGE <= max_range < math.inf:
        raise InputError("max_range", f"must be a number of at least {_LEAST_RANGE}", found=max_range)
    if finite.size == 0:
        return "1.0", str(_LEAST_RANGE)
    near, far = float(finite.min()), float(finite.max())
    # The published tools clip here. The slack is for a far that was computed as near * max_range in float32.
    if far > near * max_range * (1 + 1e-6):
        raise PrecisionError(
            "depth",
            f"the greatest finite depth may be at most {max_range:g} times the least",
            found=f"{near:g} to {far:g}",
            fix="Set outliers to NaN (unknown) or +Inf (sky), clip them, or pass a larger max_range for coarser steps.",
        )
    far = max(far, near * _LEAST_RANGE)
    if far > _FLOAT32_MAX:
        near, far = min(near, _FLOAT32_MAX / _LEAST_RANGE), _FLOAT32_MAX
    return str(np.float32(near)), str(np.float32(far))
