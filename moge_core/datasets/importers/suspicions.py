"""What stored values show of their own meaning: encodings, units, sentinels and infinity that are not what was said.

Each look is cheap (a few milliseconds for 640x480) and ends in a sentence with a remedy that can be typed. Nothing here
changes depth; only a unit that nobody can know is withdrawn, see `Told.is_relative`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.projection import marked, scale_of
from moge_core.datasets.importers.records import Record, StoredDepth
from moge_core.datasets.importers.sizes import resized
from moge_core.datasets.importers.told import Told
from moge_core.datasets.importers.value_shapes import (
    hangs_from_top,
    is_half_float,
    is_single_float,
    is_turned,
    surrounds,
    why_no_sky,
)

Map = npt.NDArray[Any]

# Maps are looked at in about so many rows and columns.
_GRID = 240
# Fewer values say nothing.
_LEAST_VALUES = 64
# Smaller regions than this share of the picture are not told.
_LEAST_REGION = 0.005
# Most of a sky hangs from the upper edge; leaves and wires cut off the rest.
_LEAST_HANGING = 0.5
# Depth that ends nearer than this, in metres, is that of a room.
_OUTDOORS_FROM = 20.0
_INDOORS_TO = 8.0
# No camera of this project sees farther, in metres.
_NO_DISTANCE = 1e5
# A sentinel is so many times farther than what is next to it, or so much more frequent than what is just below.
_GAP, _SPIKE = 1.5, 3.0
_GREATEST = frozenset({2.0**bits - 1 for bits in (11, 15, 16, 24, 31, 32)} | {65504.0})
"""The greatest values of integer types, of a Kinect's raw disparity and of float16."""


def look_at_values(stored: Map, meaning: StoredDepth, z: npt.NDArray[np.float32], record: Record, told: Told) -> None:
    """Tell what stored values make suspect.

    Args:
        stored: (h, w), decoded numbers.
        meaning: how they were read.
        z: (H, W), the depth that was made of them, in the record's unit.
        record: what was said of the frame.
        told: where suspicions and shares are put.
    """
    told.is_relative = _is_relative(stored, meaning, record, told)
    unit = record.depth_unit if record.is_metric and not told.is_relative else None
    told.infinite_is_found = not meaning.infinite or bool(marked(stored, meaning.infinite).any())
    grid, z = _thinned(stored), _thinned(z)
    sentinel = _sentinel(grid, meaning, unit)
    # What stands for something else is no part of how far depth goes.
    kept = z if sentinel is None else z[~resized(grid == sentinel, (z.shape[1], z.shape[0]))]
    known = kept[np.isfinite(kept)]
    if unit is not None and known.size:
        told.typical_depth = float(np.median(known)) * unit
        if meaning.kind in {"z", "ray"} and meaning.offset == 0:
            told.scale = scale_of(stored, meaning) / unit
    _look_at_signs(grid, meaning, told)
    if not _look_at_encoding(grid, meaning, sentinel, _ray_lengths(record.camera, grid.shape), told):
        reach = None if unit is None or not known.size else float(np.percentile(known, 99)) * unit
        _look_at_constants(grid, meaning, sentinel, reach, unit, told)
        _look_at_infinity(grid, z, meaning, reach, told)


def unlikely_depth(median: float | None, scale: float | None) -> str | None:
    """What to tell of a typical depth that no scene has, with the scales that would make it likely.

    Args:
        median: in metres; None where there is no unit.
        scale: stored units a metre that it was made with; None where frames differ, or have none.
    """
    if median is None or 0.05 < median < 500:
        return None
    text = f"A typical depth of {median:.3g} m is unlikely; check --depth-scale (`scale` in a table)"
    if scale is None:
        return f"{text}; where depth comes from disparities, check --baseline too, which is in metres."
    stored = median * scale
    if scale < 1 and _is_likely(stored * scale):
        return (
            f"{text}: {number(scale)} looks like metres a stored unit, and stored units a metre are meant. Import again"
            f" with --depth-scale {number(1 / scale)} ({stored * scale:.3g} m)."
        )
    usual = [other for other in (1, 100, 256, 512, 1000, 4000, 5000, 10000) if _is_likely(stored / other)]
    if not usual:
        return f"{text}."
    usual.sort(key=lambda other: abs(math.log(stored / other / 3)))
    likely = ", ".join(f"--depth-scale {other} ({stored / other:.3g} m)" for other in usual[:3])
    return f"{text}. Likely would be {likely}."


def number(value: Any) -> str:
    """A stored value as a user may type it: whole where it is, else no longer than its type needs."""
    text, value = str(value), float(value)
    if not value.is_integer():
        return text
    short = f"{value:g}"
    return short if abs(value) >= 1e9 and float(short) == value else str(int(value))


def _thinned(values: Map) -> Map:
    """Every so manieth row and column, so that no look takes long."""
    step = max(1, min(values.shape) // _GRID)
    return values[::step, ::step]


def _is_likely(metres: float) -> bool:
    return 0.3 < metres < 80


def _look_at_encoding(grid: Map, meaning: StoredDepth, sentinel: Any, rays: Map | None, told: Told) -> bool:
    """Whether plain integers look like bits that mean something else."""
    is_plain = meaning.encoding in {None, "linear"} and meaning.kind in {"z", "ray"}
    if not is_plain or grid.dtype.kind not in "iu" or grid.dtype.itemsize not in {2, 4}:
        return False
    marks = () if sentinel is None else (float(sentinel),)
    values = grid[~marked(grid, (0.0, *marks, *meaning.invalid, *meaning.infinite))]
    if values.size < _LEAST_VALUES:
        return False
    scale = scale_of(grid, meaning)
    if grid.dtype.itemsize == 4:
        if not is_single_float(values, scale):
            return False
        told.suspicions.add(
            "Stored values are spread as the bits of float32 numbers are, which are metres by themselves: import again"
            " with --encoding float32 --depth-scale 1."
        )
        return True
    if is_turned(values) and not 7900 < scale < 8100:
        told.suspicions.add(
            "Nearly all stored values are multiples of 8, as those are whose bits were turned by three (SUN RGB-D,"
            " SUN3D): import again with --encoding rotated3 --depth-scale 1000 if they were."
        )
    elif is_half_float(grid, values, scale, rays):
        told.suspicions.add(
            "Stored values are spread as the bits of float16 numbers are, which are metres by themselves: import again"
            " with --encoding float16 --depth-scale 1 (--kind ray too where they are distances, as Mid-Air has them)."
        )
    else:
        return False
    return True


def _ray_lengths(camera: PixelIntrinsics, shape: tuple[int, ...]) -> Map | None:
    """Lengths (h, w) of the rays of a grid over the picture, about: a size that the camera does not say is twice the
    way to its principal point. None for a camera that nobody knows.
    """
    from moge_core.geometry.rays import ray_lengths

    if not math.isfinite(camera.fx):
        return None
    width, height = camera.size or (2 * camera.cx + 1, 2 * camera.cy + 1)
    K = np.array([[camera.fx / width, 0, 0.5], [0, abs(camera.fy) / height, 0.5], [0, 0, 1]])
    return ray_lengths(shape[0], shape[1], K) if np.isfinite(K).all() and min(width, height) > 0 else None


def _is_relative(stored: Map, meaning: StoredDepth, record: Record, told: Told) -> bool:
    """Whether values run over a whole range in this very picture, as depth that was normalised does, and has no unit.

    Where a user said scale or unit it is told, and what was said counts.
    """
    if meaning.encoding == "moge-png" or stored.size < _LEAST_VALUES:
        return False
    finite = stored[np.isfinite(stored)] if stored.dtype.kind == "f" else stored
    if not finite.size:
        return False
    least, greatest = float(finite.min()), float(finite.max())
    ends = {1.0, 255.0} if stored.dtype.kind == "f" else {255.0, 65535.0}
    if greatest not in ends or least >= greatest:
        return False
    at_top, at_bottom = float(np.mean(stored == greatest)), float(np.mean(stored == least))
    whole = least == 0
    if stored.dtype.kind != "f":
        # Sensors fill regions with 0 and 65535; a normalised picture has few pixels at its ends.
        second = float(finite[finite < greatest].max())
        whole = whole and max(at_top, at_bottom) < 0.002 and second > 0.98 * greatest
    # Divided by its far plane or by its greatest value, depth ends at one and need not begin at zero. Depth of a table
    # top may end there too, but is measured in whole millimetres then.
    if not whole and not (greatest == 1.0 and (at_top > _LEAST_REGION or not _are_millimetres(finite))):
        return False
    if record.depth_unit is None or not record.is_metric:
        return False
    said = record.unit_is_said or record.values_are_said or meaning.scale is not None or meaning.offset != 0
    extent = f"{number(least)} to {number(greatest)}" if least == 0 else f"up to {number(greatest)}"
    remedy = (
        "what was said of their scale cannot hold for all. Import again with --depth-unit none"
        if said
        else "they were given no unit. Say --scale if all were divided by one number, --depth-unit metres if they are"
        " metres"
    )
    told.suspicions.add(
        f"Stored values run over exactly {extent}, as depth does that was stretched picture by picture: {remedy};"
        " --kind inverse if near is large."
    )
    return not said


def _are_millimetres(metres: Map) -> bool:
    thousands = 1000 * metres.astype(np.float64)
    return bool((np.abs(thousands - np.rint(thousands)) < 1e-3).mean() > 0.99)


def _look_at_signs(grid: Map, meaning: StoredDepth, told: Told) -> None:
    """Negative values, which no depth is."""
    if grid.dtype.kind == "u" or meaning.offset != 0 or meaning.doffs != 0:
        return
    with np.errstate(invalid="ignore"):
        negative = (grid < 0) & ~marked(grid, (*meaning.invalid, *meaning.infinite))
    share = float(negative.mean())
    if not share:
        return
    told.shares["negative"] = share
    known = grid[np.isfinite(grid) & (grid != 0)]
    if meaning.kind == "z" and known.size and float(np.mean(known < 0)) > 0.5:
        told.suspicions.add(
            "Most values are negative, as depth along an axis that points backwards (OpenGL, Blender): negate them"
            " before importing."
        )


def _sentinel(grid: Map, meaning: StoredDepth, unit: float | None) -> Any:
    """The greatest value of z or ray, where it is a constant that stands for something; else None."""
    if meaning.kind not in {"z", "ray"}:
        return None
    rest = ~marked(grid, (*meaning.invalid, *meaning.infinite, 0.0))
    if grid.dtype.kind == "f":
        rest &= np.isfinite(grid)
    if meaning.far_from is not None:
        rest &= grid < meaning.far_from
    per_metre = scale_of(grid, meaning) / (unit or 1.0)
    if meaning.infinite_from is not None:
        rest &= grid < meaning.infinite_from * per_metre + meaning.offset
    values = grid[rest]
    if values.size < _LEAST_VALUES:
        return None
    value = values.max()
    others = values[values < value]
    count = values.size - others.size
    if not others.size or value <= meaning.offset or count < _LEAST_REGION * grid.size:
        return None
    own, next_to = float(value) - meaning.offset, float(others.max()) - meaning.offset
    num_below = int(np.count_nonzero(others >= value * 0.95))
    is_spike = own >= _OUTDOORS_FROM * per_metre and count > max(2 * _LEAST_REGION * grid.size, _SPIKE * num_below)
    return value if own > _GAP * next_to or is_spike or float(value) in _GREATEST else None


def _look_at_constants(
    grid: Map, meaning: StoredDepth, sentinel: Any, reach: float | None, unit: float | None, told: Told
) -> None:
    """One value that fills a region and is no distance."""
    is_far = reach is None or reach >= _OUTDOORS_FROM
    for marker in set(meaning.invalid) - {0.0}:
        # The user may mean it: what he loses is told all the same.
        region = marked(grid, (marker,))
        if is_far and float(region.mean()) >= _LEAST_REGION and hangs_from_top(region) >= _LEAST_HANGING:
            told.suspicions.add(
                f"{number(marker)}, which means unknown as it was said, fills a region at the top of the picture as sky"
                f" does; --infinite {number(marker)} in its place keeps the sky."
            )
    if sentinel is None:
        _look_for_sky_of_zeros(grid, meaning, is_far, told)
        return
    text = number(sentinel)
    metres = (float(sentinel) - meaning.offset) / scale_of(grid, meaning) * (unit or 1.0)
    if hangs_from_top(grid == sentinel) >= _LEAST_HANGING and (is_far or metres > _NO_DISTANCE):
        told.suspicions.add(
            f"{text} fills a region at the top of the picture and is no distance, as sky is: import again with"
            f" --infinite {text} (--invalid {text} if it means that nothing was measured)."
        )
    else:
        told.suspicions.add(
            f"{text} fills a region and is no distance: import again with --invalid {text} (--infinite {text} if it"
            " is sky or an endless background)."
        )


def _look_for_sky_of_zeros(grid: Map, meaning: StoredDepth, is_far: bool, told: Told) -> None:
    """Zeros at the top of a picture that is dense elsewhere: sky, which was taken for unknown."""
    if meaning.offset != 0 or 0 in meaning.infinite or not is_far or meaning.encoding == "moge-png":
        return
    zeros = grid == 0
    if not 2 * _LEAST_REGION < float(zeros.mean()) < 0.9 or hangs_from_top(zeros) < 0.75:
        return
    told.suspicions.add(
        "0 fills a region at the top of the picture, as sky does, and hardly anything else: it became unknown;"
        " --infinite 0 keeps the sky."
    )


def _look_at_infinity(grid: Map, z: Map, meaning: StoredDepth, reach: float | None, told: Told) -> None:
    """The share that is infinitely far, and whether it can be sky."""
    infinite = np.isposinf(z)
    share = float(infinite.mean())
    if not share:
        return
    is_stored = grid.dtype.kind == "f" and bool(np.isposinf(grid).any())
    told.shares["infinite" if is_stored else "infinite as said"] = share
    if share < _LEAST_REGION or surrounds(infinite):
        return
    remedy = "--invalid inf" if is_stored else None
    if remedy is None:
        used = [value for value in meaning.infinite if bool(marked(grid, (value,)).any())]
        remedy = f"--invalid {number(used[0])}" if used else "a greater --infinite-from"
    reason = why_no_sky(infinite, z)
    if reason is not None:
        told.suspicions.add(
            f"What is infinitely far {reason}, as sky is not, but through a window. If these pixels had no return,"
            f" import again with {remedy}."
        )
    elif reach is not None and reach < _INDOORS_TO and hangs_from_top(infinite) >= _LEAST_HANGING:
        told.suspicions.add(
            f"What is infinitely far is at the top of the picture, and all else is nearer than {_INDOORS_TO:g} m, as in"
            f" a room without sky. If these pixels had no return, import again with {remedy}."
        )
