"""What every reader of arrays asks before it reads: sizes, packages, and which of several arrays is meant."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from moge_core.errors import FormatError, ImageTooLargeError, MissingDependencyError
from moge_core.io import limits

HOW_TO_CHOOSE = "Say which with --depth-array NAME; in a table with the column depth_array, or as FILE:NAME."
# Names of the one array of several that everybody means.
_USUAL_NAMES = frozenset({"depth", "depths", "depth_map", "depthmap"})


def check_array(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    """Refuse a map, an image or another array that a header announces, before anything is allocated for it.

    Args:
        shape: of what is read at once: (H, W), (H, W, C), (C, H, W); of a stack, one entry's.
        dtype: of its numbers.
        name: what errors name.

    Raises:
        ImageTooLargeError: more pixels than `limits.MAX_IMAGE_PIXELS`, or more bytes than `check_bytes` allows.
    """
    check_bytes(shape, dtype, name)
    height, width = sorted(shape)[-2:] if len(shape) > 1 else (1, 1)
    # Sweeps without returns are arrays too.
    limits.check_pixel_count(name, max(width, 1), max(height, 1))


def check_bytes(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    """Refuse what would take more memory than the largest image that may be read, before anything is allocated for it.

    Raises:
        ImageTooLargeError: more bytes than `limits.MAX_IMAGE_PIXELS` pixels of RGB, or than `limits.MAX_FILE_BYTES`.
    """
    most = min(3 * limits.MAX_IMAGE_PIXELS, limits.MAX_FILE_BYTES)
    if math.prod(shape) * dtype.itemsize > most:
        raise ImageTooLargeError(
            name,
            f"an array may have at most {most:,} bytes",
            found=f"the shape {shape} of {dtype}",
            fix="If the size is true, raise moge_core.io.limits.MAX_IMAGE_PIXELS.",
        )


def require(module: str, package: str | None = None) -> ModuleType:
    """A module of an optional package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            package or module,
            "is needed to read these files",
            found=error,
            fix="Install it with `pip install 'moge-pipeline[importers]'`.",
        ) from error


def one_of(names: Collection[str], key: str | None, path: Path, notes: set[str] | None = None) -> str:
    """The array that is meant: the only one, the one named, or the only one that is called depth.

    Args:
        names: of all arrays of the file.
        key: the one that is meant, or None.
        path: what errors name.
        notes: where it is told that one of several was taken for its name.

    Raises:
        FormatError: no such array, or several without a key.
    """
    listed = ", ".join(sorted(names)[:10]) or "none"
    if key is None and len(names) == 1:
        return next(iter(names))
    if key is None:
        usual = [name for name in names if name.rpartition("/")[2].lower() in _USUAL_NAMES]
        if len(usual) == 1 and notes is not None:
            notes.add(f"Files hold several arrays ({listed}); {usual[0]} was taken for the depth.")
            return usual[0]
        raise FormatError(
            path,
            "must hold one array, or be told which to take",
            found=f"the arrays {listed}",
            fix=HOW_TO_CHOOSE if names else None,
        )
    key = key.strip("/") if key not in names else key
    if key not in names:
        raise FormatError(path, f"must hold the array {key}", found=f"the arrays {listed}", fix=HOW_TO_CHOOSE)
    return key
