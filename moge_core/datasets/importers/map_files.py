"""Normal maps, masks and segmentations as files and arrays hold them.

Unit vectors are stored as they are, or from 0 to 1, to 255 or to 65535 with their zero in the middle, or from -127 to
127 and -32767 to 32767. Which of these it is shows in their lengths: only one of them gives vectors of length 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.records import Stored
from moge_core.errors import InstanceError
from moge_core.io import limits
from moge_core.io.files import read_bytes
from moge_core.io.png import GREY_ALPHA, PALETTE, RGB, RGBA, PngHeader, decode_png, parse_png

Array: TypeAlias = npt.NDArray[Any]

# What is subtracted and what then divided by; vectors as they are come first.
_CODINGS: Mapping[str, tuple[float, float]] = {
    "-1 to 1": (0.0, 1.0),
    "0 to 1": (0.5, 0.5),
    "0 to 255": (127.5, 127.5),
    "0 to 65535": (32767.5, 32767.5),
    "-127 to 127": (0.0, 127.0),
    "-32767 to 32767": (0.0, 32767.0),
}
# Lengths this near to 1 are those of unit vectors in 8 bits or in a JPEG; such a share of them proves a coding.
_UNIT_TOLERANCE, _PROVEN = 0.1, 0.8
# Where a coding was undone, vectors of lengths as far off as this are unknown, as a picture's background is.
_MOST_OFF = 0.35
# So many pixels tell codings apart.
_LOOKED_AT = 50_000
# Lengths of vectors that are taken for directions though they are not of unit length.
_LEAST_LENGTH, _MOST_LENGTH = 0.5, 2.0
# Share of a mask's pixels between its least and greatest value from which on it has more than two values.
_MOST_BETWEEN = 0.05

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"})


def read_normal_map(stored: Stored, notes: set[str]) -> npt.NDArray[np.floating[Any]]:
    """A normal map (H, W, 3) as vectors in the axes of the file, NaN where unknown. What was undone goes to `notes`.

    Raises:
        MoGeError: a file that cannot be read, another shape, or no vectors of unit length in any known coding.
    """
    values = _values(stored)
    if values.ndim == 3 and values.shape[2] != 3 and values.shape[0] == 3:
        values = np.moveaxis(values, 0, 2)
    if values.ndim != 3 or values.shape[2] != 3 or not values.size or values.dtype.kind not in "iuf":
        raise InstanceError(stored.path, "must hold a normal map (H, W, 3)", found=_described(values))
    return _vectors(values, stored.path, notes)


def read_mask_map(stored: Stored, notes: set[str]) -> npt.NDArray[np.bool_]:
    """A mask (H, W), true where its file has more than 0.

    Raises:
        MoGeError: a file that cannot be read, or another shape.
    """
    values = _flat(_values(stored))
    if values.ndim != 2 or not values.size or values.dtype.kind not in "biuf":
        raise InstanceError(stored.path, "must hold a mask (H, W)", found=_described(values))
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if values.dtype.kind != "b" and known.size:
        between = (known > known.min()) & (known < known.max())
        if float(np.mean(between)) > _MOST_BETWEEN:
            notes.add("Some masks have more than two values; all above 0 was taken as inside.")
    with np.errstate(invalid="ignore"):
        return np.asarray(values > 0)


def read_segmentation_map(stored: Stored) -> Array:
    """A segmentation (H, W) of integer ids; whole numbers in floating point become integers.

    Raises:
        MoGeError: a file that cannot be read, another shape, colours instead of ids, or fractions.
    """
    values = _flat(_values(stored))
    if values.ndim == 3 and {values.shape[0], values.shape[2]} & {2, 3, 4}:
        raise _colours(stored.path, f"channels: {_described(values)}")
    if values.ndim != 2 or not values.size or values.dtype.kind not in "biuf":
        raise InstanceError(stored.path, "must hold a segmentation (H, W)", found=_described(values))
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind != "f":
        return values
    if not np.array_equal(values, np.rint(values)) or not np.isfinite(values).all():
        raise InstanceError(stored.path, "must hold whole numbers, the ids of a segmentation", found="fractions or NaN")
    return values.astype(np.int64)


def read_normal_file(path: Path) -> Array:
    """The values of a normal map in a file of its own: a dataset's PNG of 16 bits, a picture of 8 bits, or an array.

    Raises:
        MoGeError: a file that cannot be read.
    """
    from moge_core.datasets.importers.arrays import read_array
    from moge_core.io import read_image, read_normal

    suffix = path.suffix.lower()
    if suffix not in _PICTURES:
        return read_array(path)
    if suffix == ".png":
        header = _png(path)[1]
        if header.color_type not in {RGB, RGBA} or header.bit_depth == 16:
            return read_normal(path)
    return read_image(path)


def read_mask_file(path: Path) -> Array:
    """The values of a mask in a file of its own: a PNG of any kind, inside where it is not black, or an array.

    Raises:
        MoGeError: a file that cannot be read, or a PNG whose colours say nothing while its transparency or palette do.
    """
    from moge_core.datasets.importers.arrays import read_array
    from moge_core.io import read_segmentation

    if path.suffix.lower() != ".png":
        return read_array(path)
    data, header = _png(path)
    pixels = decode_png(data, str(path), header)
    mask: Array = pixels if pixels.ndim == 2 else np.asarray(pixels[..., :3].any(axis=-1))
    if (mask > 0).all() or not (mask > 0).any():
        fix = "Save the mask as a grey picture: 0 outside, 255 inside."
        if header.color_type in {RGBA, GREY_ALPHA} and np.ptp(pixels[..., -1]):
            raise InstanceError(path, "must be black outside of the mask", found="a mask in its transparency", fix=fix)
        if header.color_type == PALETTE and np.ptp(read_segmentation(path)[0]):
            raise InstanceError(path, "must be black outside of the mask", found="a palette without black", fix=fix)
    return mask


def read_segmentation_file(path: Path) -> Array:
    """The ids of a segmentation in a file of its own: a grey PNG, a PNG with a palette (its indices), or an array.

    Raises:
        MoGeError: a file that cannot be read, or colours.
    """
    from moge_core.datasets.importers.arrays import read_array
    from moge_core.io import read_segmentation

    if path.suffix.lower() != ".png":
        return read_array(path)
    header = _png(path)[1]
    if header.color_type not in {RGB, RGBA, GREY_ALPHA}:
        return read_segmentation(path)[0]
    raise _colours(path, f"a {header.pixel_format} PNG")


def _vectors(values: Array, path: Path, notes: set[str]) -> npt.NDArray[np.floating[Any]]:
    """Vectors of the values of a normal map (H, W, 3)."""
    step = max(1, round((values.size / 3 / _LOOKED_AT) ** 0.5))
    sample = values[::step, ::step].reshape(-1, 3).astype(np.float64)
    sample = sample[np.isfinite(sample).all(axis=1) & (sample != 0).any(axis=1)]
    coding, length = _coding(sample)
    if coding == "-1 to 1" or not sample.size:
        vectors = values if values.dtype.kind == "f" else values.astype(np.float32)
        unknown = (vectors == 0).all(axis=2)
        return np.where(unknown[..., None], vectors.dtype.type(np.nan), vectors) if unknown.any() else vectors
    if coding is None:
        has_both_signs = sample.min() < 0 < sample.max() and values.dtype.kind == "f"
        if has_both_signs and _LEAST_LENGTH <= length <= _MOST_LENGTH:
            notes.add("Some normals are not of unit length; their directions were taken.")
            return values
        raise InstanceError(
            path,
            "must hold normals of unit length, as they are or stored from 0 to 1, to 255 or to 65535",
            found=f"{values.dtype} from {sample.min():g} to {sample.max():g}, of a median length of {length:.3g}",
            fix="Export unit vectors; --normal-axes none leaves normal maps out.",
        )
    notes.add(f"Normals stored from {coding} were turned into vectors of unit length.")
    subtracted, divided = _CODINGS[coding]
    decoded = (values.astype(np.float32) - np.float32(subtracted)) / np.float32(divided)
    lengths = np.linalg.norm(decoded, axis=2)
    with np.errstate(invalid="ignore"):
        known = (np.abs(lengths - 1) <= _MOST_OFF) & (values != 0).any(axis=2)
        return np.where(known[..., None], decoded / lengths[..., None], np.float32(np.nan))


def _coding(sample: npt.NDArray[np.float64]) -> tuple[str | None, float]:
    """The coding in which nearly all vectors (N, 3) are of unit length, and the median length as they are."""
    if not sample.size:
        return None, 0.0
    lengths = {
        name: np.linalg.norm((sample - subtracted) / divided, axis=1)
        for name, (subtracted, divided) in _CODINGS.items()
    }
    shares = {name: float(np.mean(np.abs(one - 1) <= _UNIT_TOLERANCE)) for name, one in lengths.items()}
    best = max(shares, key=lambda name: shares[name])
    return (best if shares[best] >= _PROVEN else None), float(np.median(lengths["-1 to 1"]))


def _values(stored: Stored) -> Array:
    from moge_core.datasets.importers.arrays import read_array

    return np.asarray((stored.read or read_array)(stored.path))


def _flat(values: Array) -> Array:
    """(H, W) of (1, H, W) and (H, W, 1)."""
    if values.ndim == 3 and 1 in {values.shape[0], values.shape[2]}:
        return values[0] if values.shape[0] == 1 else values[..., 0]
    return values


def _png(path: Path) -> tuple[bytes, PngHeader]:
    data = read_bytes(path, limit=limits.MAX_FILE_BYTES)
    return data, parse_png(data, str(path))


def _colours(path: Path, found: str) -> InstanceError:
    return InstanceError(
        path,
        "must hold one id a pixel, not a colour for each class",
        found=found,
        fix="Export the ids, or turn each colour into a number, as np.unique(colours.reshape(-1, 3), axis=0,"
        " return_inverse=True) does.",
    )


def _described(values: Array) -> str:
    return f"{values.dtype} of shape {values.shape}"
