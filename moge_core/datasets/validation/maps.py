"""The further maps of an instance against its depth: decoded, looked at on a grid of evenly spaced pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import MASK_NAME, NORMAL_NAME, SEGMENTATION_NAME
from moge_core.datasets.validation.catalogue import RULES
from moge_core.datasets.validation.edge_fits import FrameGrid, grid_step
from moge_core.datasets.validation.geometry import Map
from moge_core.datasets.validation.map_faults import (
    MapFault,
    find_mask_fault,
    find_normal_fault,
    find_segmentation_fault,
)
from moge_core.io import limits, read_segmentation
from moge_core.io.depth import CodedDepth
from moge_core.io.files import NamedBytes, read_bytes
from moge_core.io.png import PALETTE, decode_png, parse_png

_RULES = {NORMAL_NAME: "normals-fit-depth", MASK_NAME: "mask-fits-depth", SEGMENTATION_NAME: "segmentation-fits"}


class FurtherMaps:
    """What the further maps of one instance are judged by."""

    def __init__(
        self,
        coded: CodedDepth,
        grey: npt.NDArray[np.uint8] | None,
        intrinsics: npt.NDArray[np.float64] | None,
        pose: Callable[[], Sequence[float] | None],
    ) -> None:
        """From the instance's own parts.

        Args:
            coded: the depth.
            grey: the image, of any size and the same field; None where it cannot be compared.
            intrinsics: (3, 3), normalised; None where they are not known.
            pose: gives camera-to-world, 16 numbers, or None; asked only where normals are in other axes.
        """
        step = grid_step(coded.codes.shape)
        self._picked = slice(step // 2, None, step), slice(step // 2, None, step)
        depth = coded.depth_of_code[coded.codes[self._picked]]
        depth[np.isinf(depth)] = np.nan
        self._frame = FrameGrid(depth, grey)
        self._intrinsics, self._pose = intrinsics, pose

    def judge(self, path: Path) -> Iterator[tuple[str, str, str]]:
        """(rule, evidence, mend) where a map of the size of the depth does not fit.

        Raises:
            MoGeError, OSError: the map cannot be decoded.
        """
        values = _pixels(path)[self._picked]
        # Depths of extreme ranges overflow here and there; what is not finite says nothing.
        with np.errstate(all="ignore"):
            fault = self._fault(path.name, values)
        if fault is not None:
            rule = _RULES[path.name]
            yield rule, fault.evidence, _mend(rule, fault)

    def _fault(self, name: str, values: npt.NDArray[Any]) -> MapFault | None:
        if name == SEGMENTATION_NAME:
            return find_segmentation_fault(self._frame, values)
        if name == MASK_NAME:
            mask = values > 0 if values.ndim == 2 else values[..., :3].any(axis=2)
            return find_mask_fault(self._frame, np.asarray(mask))
        if self._intrinsics is None:
            return None
        normal = _normals(values)
        fault = find_normal_fault(self._frame, normal, self._intrinsics)
        if fault is None or fault.kind not in {"axes", "turned"}:
            return fault
        pose = self._pose()
        return fault if pose is None else find_normal_fault(self._frame, normal, self._intrinsics, pose=pose)


def _mend(rule: str, fault: MapFault) -> str:
    if fault.kind == "coded":
        return "Import again: vectors stored from 0 to 1 are turned into those of unit length."
    return f"Import again with {fault.option}." if fault.option else RULES[rule].fix


def _pixels(path: Path) -> npt.NDArray[Any]:
    data = read_bytes(path, limit=limits.MAX_FILE_BYTES)
    header = parse_png(data, str(path))
    if header.color_type == PALETTE and path.name == SEGMENTATION_NAME:
        return read_segmentation(NamedBytes(path, data))[0]
    return decode_png(data, str(path), header)


def _normals(codes: npt.NDArray[np.uint16]) -> Map:
    """Unit vectors (3, h, w) of the codes (h, w, 3) of `write_normal`."""
    normal = np.asarray(codes.transpose(2, 0, 1), np.float32, order="C") * np.float32(2 / 65535) - 1
    normal[1:] *= -1
    # No code stands for exactly zero, so every length is positive; 0 0 0 is unknown.
    normal /= np.sqrt(normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2])
    normal[:, (codes[..., 0] | codes[..., 1] | codes[..., 2]) == 0] = np.nan
    return np.asarray(normal)
