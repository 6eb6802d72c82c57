"""Many small pictures on one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from moge_core.errors import InputError

_BACKGROUND = (250, 250, 250)
_LETTERBOX = (232, 232, 234)
_INK = (40, 40, 44)
_GAP = 6  # pixels between tiles
_FONT_SIZE = 13
_MAX_TILE_ASPECT = 2.0


def contact_sheet(
    rows: Sequence[Sequence[npt.NDArray[Any]]],
    *,
    captions: Sequence[str | Sequence[str]] | None = None,
    tile_height: int = 160,
) -> npt.NDArray[np.uint8]:
    """Rows of pictures on one, each shrunk or enlarged into a tile without changing its shape.

    Args:
        rows: pictures, uint8 (H, W, 3) of any size; rows may differ in length.
        captions: one entry a row, either a text for the whole row or a text for each picture; texts too long for their
            place are cut. None leaves no room for text.
        tile_height: pixels; tiles are as wide as the widest picture needs, but at most twice their height.

    Returns:
        uint8 (H', W', 3); one empty tile where there are no pictures.

    Raises:
        InputError: a picture is no uint8 RGB array, or captions do not fit the rows.
    """
    if tile_height < 1:
        raise InputError("tile_height", "must be at least 1", found=tile_height)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            _check_image(image, f"rows[{i}][{j}]")
    texts = _check_captions(captions, rows)
    num_columns = max((len(row) for row in rows), default=0)
    aspects = [image.shape[1] / image.shape[0] for row in rows for image in row]
    tile_width = max(1, round(tile_height * min(max(aspects, default=1.0), _MAX_TILE_ASPECT)))
    text_height = 0 if captions is None else _FONT_SIZE + 6
    row_height = tile_height + text_height + _GAP
    sheet_size = (_GAP + max(num_columns, 1) * (tile_width + _GAP), _GAP + max(len(rows), 1) * row_height)
    sheet = Image.new("RGB", sheet_size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    if not aspects:
        draw.rectangle((_GAP, _GAP, _GAP + tile_width - 1, _GAP + tile_height - 1), fill=_LETTERBOX)
    for i, row in enumerate(rows):
        top = _GAP + i * row_height
        for j, image in enumerate(row):
            left = _GAP + j * (tile_width + _GAP)
            draw.rectangle((left, top, left + tile_width - 1, top + tile_height - 1), fill=_LETTERBOX)
            tile = _fit(image, tile_width, tile_height)
            sheet.paste(tile, (left + (tile_width - tile.width) // 2, top + (tile_height - tile.height) // 2))
        for text, left, width in _places(texts[i] if texts else [], num_columns, tile_width):
            draw.text((left, top + tile_height + 2), _cut(text, width, font), fill=_INK, font=font)
    return np.asarray(sheet)


def _check_image(image: npt.NDArray[Any], name: str) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = (image.dtype, image.shape) if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(name, "must be a uint8 array of shape (H, W, 3)", found=found)
    if image.size == 0:
        raise InputError(name, "must have at least one pixel", found=image.shape)


def _check_captions(
    captions: Sequence[str | Sequence[str]] | None, rows: Sequence[Sequence[npt.NDArray[Any]]]
) -> list[str | Sequence[str]]:
    if captions is None:
        return []
    if len(captions) != len(rows):
        raise InputError("captions", f"must have one entry for each of {len(rows)} rows", found=len(captions))
    for i, (entry, row) in enumerate(zip(captions, rows, strict=True)):
        if not isinstance(entry, str) and len(entry) != len(row):
            raise InputError(f"captions[{i}]", f"must have one text for each of {len(row)} pictures", found=len(entry))
    return list(captions)


def _fit(image: npt.NDArray[Any], width: int, height: int) -> Image.Image:
    """The picture in the largest size of its shape that fits."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = (
        min(width, max(1, round(image.shape[1] * scale))),
        min(height, max(1, round(image.shape[0] * scale))),
    )
    picture = Image.fromarray(np.ascontiguousarray(image))
    # Enlarged pixels stay pixels; shrunk ones are averaged.
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _places(texts: str | Sequence[str], num_columns: int, tile_width: int) -> list[tuple[str, int, int]]:
    """Each text with its left edge and the width it may take."""
    if isinstance(texts, str):
        return [(texts, _GAP, max(num_columns, 1) * (tile_width + _GAP) - _GAP)]
    return [(text, _GAP + j * (tile_width + _GAP), tile_width) for j, text in enumerate(texts)]


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""
