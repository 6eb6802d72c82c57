"""The files of an instance, as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moge_core.datasets.importers.frames import Frame
from moge_core.datasets.importers.records import Record
from moge_core.datasets.layout import (
    DEPTH_NAME,
    IMAGE_NAME,
    MASK_NAME,
    META_NAME,
    NORMAL_NAME,
    SEGMENTATION_NAME,
)
from moge_core.io.files import NamedBytes

# By the names that `Record.parts` has.
FILE_OF_PART: Mapping[str, str] = {
    "image": IMAGE_NAME,
    "depth": DEPTH_NAME,
    "normal": NORMAL_NAME,
    "mask": MASK_NAME,
    "segmentation": SEGMENTATION_NAME,
}
FILE_NAMES = (*FILE_OF_PART.values(), META_NAME)
"""Every file that an import writes into an instance."""

WRITTEN_KEYS = frozenset({"intrinsics", "depth_unit", "label_type", "source", "pose"})
"""Every key that an import writes into meta.json."""


def encoded(
    frame: Frame,
    record: Record,
    unit: float | None,
    label_type: str,
    origin: Mapping[str, str],
    own_keys: Mapping[str, Any],
) -> dict[str, bytes]:
    """The files of an instance by name, meta.json last. Of `own_keys` those stay that no import writes.

    Raises:
        PrecisionError, InputError: values that the formats cannot hold.
    """
    from moge_core.io import write_depth, write_image, write_mask, write_meta, write_normal, write_segmentation

    files: dict[str, NamedBytes] = {}

    def file(name: str) -> NamedBytes:
        files[name] = NamedBytes(f"{record.name}/{name}")
        return files[name]

    if frame.jpeg is None:
        write_image(file(IMAGE_NAME), frame.image, quality=95, format="jpeg")
    else:
        file(IMAGE_NAME).write(frame.jpeg)
    write_depth(file(DEPTH_NAME), frame.depth)
    if frame.normal is not None:
        write_normal(file(NORMAL_NAME), frame.normal)
    if frame.mask is not None:
        write_mask(file(MASK_NAME), frame.mask)
    if frame.segmentation is not None:
        write_segmentation(file(SEGMENTATION_NAME), frame.segmentation, dict(record.labels))
    meta: dict[str, Any] = {"intrinsics": frame.intrinsics}
    if unit is not None:
        meta["depth_unit"] = unit
    if record.pose is not None:
        meta["pose"] = np.reshape(record.pose, (4, 4)).tolist()
    write_meta(file(META_NAME), {**own_keys, **meta, "label_type": label_type, "source": dict(origin)})
    return {name: content.getvalue() for name, content in files.items()}
