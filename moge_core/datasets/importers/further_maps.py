"""Whether the further maps of a frame, normals, mask and segmentation, fit its depth, and in which axes normals are.

What the user said is obeyed: axes of normals, a mask the other way round. What is certainly wrong is refused with the
option that mends it: normals in other axes than were said, a mask that is true where depth is unknown. What may be
wrong, as a map of another frame, is told with the number of frames that it holds for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.records import ImportSettings, Record
from moge_core.datasets.normal_axes import NO_NORMALS, OPENCV, NormalAxes
from moge_core.errors import InputError, InstanceError

if TYPE_CHECKING:
    from moge_core.datasets.importers.frames import Frame, Parts
    from moge_core.datasets.validation.edge_fits import FrameGrid

# Share of the known depth that a mask leaves, below which it is told.
_LEAST_LEFT = 0.02

_DOUBTS = {
    "normal": "Normal maps seem to be {fault}: they change where depth does not. Pair each with its own frame, or leave"
    f" them out with --normal-axes {NO_NORMALS}.",
    "mask": "Masks seem to be {fault}: their borders lie on no edges of image and depth. Pair each with its own frame.",
    "segmentation": "Segmentations seem to be {fault}: borders of their ids lie on no edges of image and depth. Pair"
    " each with its own frame.",
}
_WORDS = {"shifted": "shifted against their frame", "foreign": "of another frame"}


def turn_maps(parts: Parts, record: Record, settings: ImportSettings) -> None:
    """Turn normals into OpenCV axes and the mask the right way round, as the user said.

    Raises:
        InstanceError: normals in axes of the world, of a frame whose pose nobody knows.
    """
    if parts.mask is not None and settings.invert_mask:
        parts.mask = ~parts.mask
    if parts.normal is None:
        return
    axes = NormalAxes.of(settings.normal_axes)
    if axes == OPENCV:
        return
    try:
        matrix = axes.to_camera(record.pose)
    except InputError as error:
        raise InstanceError(
            record.normal.path if record.normal is not None else record.name,
            f"normals {error.rule}",
            found=error.found,
            fix=f"Give poses beside the frames, turn normals into camera axes, or leave them out with --normal-axes"
            f" {NO_NORMALS}.",
        ) from error
    parts.normal = parts.normal @ matrix.T.astype(parts.normal.dtype)


def compare_maps(frame: Frame, record: Record, settings: ImportSettings) -> None:
    """Compare the further maps of a frame with its depth and its image, before the mask is applied.

    Raises:
        InstanceError: normals in other axes than were said, or a mask the wrong way round.
    """
    if frame.normal is None and frame.mask is None and frame.segmentation is None:
        return
    from moge_core.datasets.validation.edge_fits import FrameGrid
    from moge_core.datasets.validation.map_faults import find_segmentation_fault
    from moge_core.io.opencv import cv2

    depth = _grid(frame.depth, frame)
    grey: npt.NDArray[np.uint8] = np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY))
    grid = FrameGrid(np.where(np.isfinite(depth), depth, np.float32(np.nan)), grey)
    # Depths of extreme ranges overflow here and there; what is not finite says nothing.
    with np.errstate(all="ignore"):
        if frame.normal is not None:
            _compare_normal(frame, frame.normal, grid, record, settings)
        if frame.mask is not None:
            _compare_mask(frame, frame.mask, grid, record)
        if frame.segmentation is not None:
            fault = find_segmentation_fault(grid, _grid(frame.segmentation, frame))
            if fault is not None:
                frame.told.suspicions.add(_DOUBTS["segmentation"].format(fault=_WORDS[fault.kind]))


def _compare_normal(
    frame: Frame, normal: npt.NDArray[Any], grid: FrameGrid, record: Record, settings: ImportSettings
) -> None:
    from moge_core.datasets.validation.map_faults import find_normal_fault

    said = NormalAxes.of(settings.normal_axes)
    # As they were stored, so that what fits can be said by the option.
    stored = _grid(normal, frame).astype(np.float32) @ said.to_camera(record.pose).astype(np.float32)
    stored /= np.linalg.norm(stored, axis=-1, keepdims=True)
    fault = find_normal_fault(
        grid, np.ascontiguousarray(stored.transpose(2, 0, 1)), frame.intrinsics, said, record.pose
    )
    if fault is None:
        return
    if fault.kind in _WORDS:
        frame.told.suspicions.add(_DOUBTS["normal"].format(fault=_WORDS[fault.kind]))
        return
    mend = f"Import again with {fault.option}" if fault.option else "Export unit vectors"
    raise InstanceError(
        record.normal.path if record.normal is not None else record.name,
        f"normals must look towards the camera, in {said.name} axes",
        found=fault.evidence,
        fix=f"{mend}; --normal-axes {NO_NORMALS} leaves normal maps out.",
    )


def _compare_mask(frame: Frame, mask: npt.NDArray[np.bool_], grid: FrameGrid, record: Record) -> None:
    from moge_core.datasets.validation.map_faults import find_mask_fault

    fault = find_mask_fault(grid, _grid(mask, frame))
    if fault is not None and fault.kind == "inverted":
        raise InstanceError(
            record.mask.path if record.mask is not None else record.name,
            "a mask must be true where depth can be trusted",
            found=fault.evidence,
            fix=f"Import again with {fault.option}.",
        )
    if fault is not None:
        frame.told.suspicions.add(_DOUBTS["mask"].format(fault=_WORDS[fault.kind]))
    known = np.isfinite(frame.depth)
    num_known = int(np.count_nonzero(known))
    if num_known and np.count_nonzero(known & mask) < _LEAST_LEFT * num_known:
        frame.told.suspicions.add(
            f"Masks leave less than {_LEAST_LEFT:.0%} of the known depth. If they mark what is to be left out, import"
            " again with --invert-mask."
        )


def _grid(values: npt.NDArray[Any], frame: Frame) -> npt.NDArray[Any]:
    from moge_core.datasets.validation.edge_fits import grid_step

    step = grid_step(frame.depth.shape)
    return values[step // 2 :: step, step // 2 :: step]
