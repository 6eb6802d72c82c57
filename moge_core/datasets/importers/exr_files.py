"""OpenEXR files: of many channels, the one that is depth, by its name and never by its place.

Renderers write depth beside colour, alpha and normals: `ViewLayer.Depth.Z` (Blender), `Z` (Nuke, Arnold), `V`
(Blender's file output), `Y` (OpenCV), `R` (phones), or three equal channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.array_checks import HOW_TO_CHOOSE, check_bytes, require
from moge_core.errors import FormatError
from moge_core.io import limits

_Channels: TypeAlias = Mapping[str, npt.NDArray[Any]]

# Words of a name that say depth.
_SAYS_DEPTH = re.compile("depth|distance", re.IGNORECASE)
_ALPHA = frozenset({"a", "alpha", "ar", "ag", "ab"})
_MOST_TOLD = 12


def read_exr(path: Path, name: str | None = None, notes: set[str] | None = None) -> npt.NDArray[Any]:
    """One channel (H, W) of an OpenEXR file, or its channels (H, W, 3) where it has R, G and B and no depth.

    Without a name it is the only channel that is called depth (a group of equal channels is one), or else the only one
    that is not alpha.

    Args:
        path: the file.
        name: full name of a channel, or the end of one behind a dot; in files of several parts also PART.CHANNEL.
        notes: where it is told which of several channels was taken.

    Raises:
        FormatError: damaged, no such channel, or several that may be meant.
        ImageTooLargeError: more pixels or bytes than an image may have.
        MissingDependencyError: OpenEXR is not installed.
    """
    channels = _read_channels(path)
    if name is not None:
        return channels[_named(channels, name, path)]
    said = _one_each(channels, {key for key in channels if _is_depth(key, channels)})
    if not said and {"R", "G", "B"} <= channels.keys():
        rgb = [channels[key] for key in "RGB"]
        # A depth map is often written as three equal channels.
        return rgb[0] if all(np.array_equal(rgb[0], other, equal_nan=True) for other in rgb[1:]) else np.stack(rgb, -1)
    plausible = said or _one_each(channels, {key for key in channels if not _is_alpha(key)})
    if len(plausible) != 1:
        raise FormatError(
            path,
            "must have one channel that is depth, or be told which",
            found=f"the channels {_listed(channels)}",
            fix=HOW_TO_CHOOSE,
        )
    if len(channels) > 1 and notes is not None:
        notes.add(f"Depth was taken from the channel {plausible[0]} (of {_listed(channels)}).")
    return channels[plausible[0]]


def _read_channels(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All channels of all parts by their names; those that several parts have are named with their part."""
    OpenEXR = require("OpenEXR", "OpenEXR")
    try:
        with OpenEXR.File(str(path), header_only=True) as header:
            num_values = 0
            for part in header.parts:
                width, height = (int(high) - int(low) + 1 for low, high in zip(*part.header["dataWindow"], strict=True))
                limits.check_pixel_count(str(path), width, height)
                num_values += len(part.header["channels"]) * width * height
        check_bytes((num_values,), np.dtype(np.float32), str(path))
        with OpenEXR.File(str(path), separate_channels=True) as file:
            parts = [
                (part.name() or str(number), {name: np.array(one.pixels) for name, one in part.channels.items()})
                for number, part in enumerate(file.parts)
            ]
    except (RuntimeError, OSError, KeyError, TypeError, ValueError) as error:
        raise FormatError(path, "must be a readable OpenEXR file", found=error) from error
    if not any(channels for _, channels in parts):
        raise FormatError(path, "must have a channel", found="none")
    if len(parts) == 1:
        return parts[0][1]
    # Blender names a part as its channels begin, Nuke gives channels the last word only.
    return {
        name if name.startswith(f"{part}.") else f"{part}.{name}": pixels
        for part, channels in parts
        for name, pixels in channels.items()
    }


def _named(channels: _Channels, name: str, path: Path) -> str:
    """The channel of that name, or whose name ends so."""
    if name in channels:
        return name
    ends = [key for key in channels if key.lower() == name.lower() or key.lower().endswith(f".{name.lower()}")]
    if len(ends) != 1:
        rule = f"must have the channel {name}" if not ends else f"must have one channel {name}"
        raise FormatError(path, rule, found=f"the channels {_listed(channels)}", fix=HOW_TO_CHOOSE)
    return ends[0]


def _is_depth(key: str, channels: _Channels) -> bool:
    """Whether a name says depth: by a word, or as Z of a layer that has no X and Y."""
    layer, _, last = key.rpartition(".")
    if _is_alpha(key):
        return False
    if last in {"Z", "z"}:
        of_vector = {f"{layer}.{axis}".lstrip(".") for axis in ("X", "Y", "x", "y")}
        # Y alone is a grey picture, and Z beside it the depth.
        return len(of_vector & channels.keys()) < 2
    return bool(_SAYS_DEPTH.search(key))


def _is_alpha(key: str) -> bool:
    return key.rpartition(".")[2].lower() in _ALPHA


def _one_each(channels: _Channels, keys: set[str]) -> list[str]:
    """The channels, of which R, G and B of one layer that are equal count as one."""
    kept = sorted(keys)
    for key in sorted(keys):
        layer, _, last = key.rpartition(".")
        red = f"{layer}.R".lstrip(".")
        if last in {"G", "B"} and red in keys and np.array_equal(channels[key], channels[red], equal_nan=True):
            kept.remove(key)
    return kept


def _listed(channels: _Channels) -> str:
    names = sorted(channels)
    more = f" and {len(names) - _MOST_TOLD} more" if len(names) > _MOST_TOLD else ""
    return ", ".join(names[:_MOST_TOLD]) + more
