"""Segmentation maps: 8- or 16-bit grey PNG of ids, with the text field `labels`, JSON of {name: id}."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import FormatError, InputError, PrecisionError
from moge_core.io import limits
from moge_core.io.files import PathOrFile, name_of, read_bytes, write_bytes
from moge_core.io.png import DEFAULT_COMPRESSION_LEVEL, GREY, PALETTE, decode_png, encode_png, parse_png


def read_segmentation(
    path_or_file: PathOrFile,
) -> tuple[npt.NDArray[np.uint8] | npt.NDArray[np.uint16], dict[str, int] | None]:
    """Read a segmentation map and the names of its ids.

    Args:
        path_or_file: path or binary file object of a PNG: grey with 8 or 16 bits, or a palette, whose indices are ids.

    Returns:
        ids (H, W), uint8 or uint16 as stored, and {name: id}, None where the file names nothing.

    Raises:
        FormatError: another pixel format, labels that are not {name: integer}, truncated or undecodable.
        ImageTooLargeError: more pixels than `moge_core.io.limits.MAX_IMAGE_PIXELS`.
        FileNotFoundError: there is no such file.
    """
    name = name_of(path_or_file)
    data = read_bytes(path_or_file, limit=limits.MAX_FILE_BYTES)
    header = parse_png(data, name, text_keys={"labels"})
    labels = _parse_labels(header.text["labels"], name) if "labels" in header.text else None
    if header.color_type == PALETTE:
        limits.check_pixel_count(name, header.width, header.height)
        return _decode_indices(data, name), labels
    if header.color_type != GREY or header.bit_depth not in {8, 16}:
        rule = "a segmentation map must be a grey PNG of 8 or 16 bits, or one with a palette"
        raise FormatError(name, rule, found=f"a {header.pixel_format} PNG")
    return decode_png(data, name, header), labels


def read_segmentation_labels(path: str | os.PathLike[str]) -> dict[str, int] | None:
    """Names of the ids of a segmentation map, {name: id}, from what precedes its pixels; None where it names nothing.

    Raises:
        FormatError: no PNG, or labels that are not {name: integer}.
        FileNotFoundError: there is no such file.
    """
    name = name_of(path)
    with Path(path).open("rb") as file:
        head = file.read(limits.MAX_TEXT_BYTES + (1 << 16))
    header = parse_png(head, name, text_keys={"labels"}, header_only=True)
    return _parse_labels(header.text["labels"], name) if "labels" in header.text else None


def write_segmentation(
    path_or_file: PathOrFile,
    segmentation: npt.NDArray[Any],
    labels: Mapping[str, int] | None = None,
    *,
    compression_level: int = DEFAULT_COMPRESSION_LEVEL,
) -> None:
    """Write a segmentation map and the names of its ids.

    Args:
        path_or_file: path or binary file object.
        segmentation: ids (H, W), any integer type; uint8 is written with 8 bits, uint16 with 16, others with what fits.
        labels: {name: id}.
        compression_level: of the PNG, 0 (none) to 9 (smallest, slow).

    Raises:
        InputError: another shape or type, labels that are not {name: integer} or too many, or a missing folder.
        PrecisionError: ids outside 0..65535.
    """
    if not isinstance(segmentation, np.ndarray) or segmentation.dtype.kind not in "ui":
        found = getattr(segmentation, "dtype", type(segmentation).__name__)
        raise InputError("segmentation", "must be an integer array", found=found)
    if segmentation.ndim != 2 or segmentation.size == 0:
        raise InputError("segmentation", "must be of shape (H, W) and not empty", found=segmentation.shape)
    text = {} if labels is None else {"labels": _labels_text(labels)}
    ids = segmentation.astype(_storage_type(segmentation))
    write_bytes(path_or_file, encode_png(ids, text=text, compression_level=compression_level))


def _storage_type(segmentation: npt.NDArray[Any]) -> type[np.uint8] | type[np.uint16]:
    if segmentation.dtype == np.uint8:
        return np.uint8
    least, greatest = int(segmentation.min()), int(segmentation.max())
    if least < 0 or greatest > 65535:
        raise PrecisionError(
            "segmentation",
            "ids must be within 0..65535, which a 16-bit PNG can hold",
            found=f"{least} to {greatest}",
            fix="Renumber them, for instance by np.unique(ids, return_inverse=True).",
        )
    is_16_bit = segmentation.dtype.kind == "u" and segmentation.dtype.itemsize == 2
    return np.uint16 if is_16_bit or greatest > 255 else np.uint8


def _labels_text(labels: Mapping[str, int]) -> str:
    plain: dict[str, int] = {}
    for label, number in labels.items():
        if not isinstance(label, str) or isinstance(number, bool) or not isinstance(number, (int, np.integer)):
            raise InputError("labels", "must map names to integer ids", found=f"{label!r}: {number!r}")
        plain[label] = int(number)
    # Escaped to ASCII: the text field of the published format (tEXt) knows Latin-1 only.
    text = json.dumps(plain, ensure_ascii=True, separators=(",", ":"))
    if len(text) > limits.MAX_TEXT_BYTES:
        rule = f"may take at most {limits.MAX_TEXT_BYTES:,} bytes of JSON, more is refused on reading"
        raise InputError("labels", rule, found=f"{len(text):,} bytes")
    return text


def _parse_labels(text: str, name: str) -> dict[str, int]:
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(name, "the text field labels must be JSON", found=error) from error
    if not isinstance(labels, dict) or any(isinstance(i, bool) or not isinstance(i, int) for i in labels.values()):
        raise FormatError(name, "the text field labels must be {name: integer}", found=text[:80])
    return labels


def _decode_indices(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Palette indices, which OpenCV would turn into colours."""
    from PIL import PngImagePlugin

    try:
        return np.array(PngImagePlugin.PngImageFile(io.BytesIO(data)))
    except (OSError, SyntaxError, ValueError) as error:
        raise FormatError(name, "must hold decodable pixels", found=error) from error
