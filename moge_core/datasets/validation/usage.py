"""Whether data fits the use that a training configuration makes of it: its label type, and the unit of its depth.

Only numbers that the manifest keeps are needed, so that several configurations judge the same instances, each by its
own entry, without reading them again.
"""

from __future__ import annotations

from dataclasses import dataclass

from moge_core.datasets.validation.settings import ValidationSettings

RULES_OF_USE = frozenset({"density-fits-label", "unit-plausible"})
"""Rules whose verdict depends on the configuration's entry."""


@dataclass(frozen=True, slots=True)
class DepthNumbers:
    """What is judged of one depth map: its statistics, in its own unit, None where nobody knows them.

    Attributes:
        depth_median, depth_max: of the finite depth.
        camera_height: of the camera above the floor or road.
        telling: whether enough pixels are known, at different depths, for the greatest depth to say something.
        room_height: from the floor to the ceiling, where both are seen.
    """

    depth_median: float | None
    depth_max: float | None
    camera_height: float | None
    telling: bool
    room_height: float | None = None


def judge_density(
    label_type: str | None, known_share: float, infinite_share: float, settings: ValidationSettings
) -> str | None:
    """What is wrong with the share of known or infinitely far pixels for a label type; None where it fits."""
    dense = known_share + infinite_share
    if label_type not in settings.dense_labels or dense >= settings.min_dense_share:
        return None
    kind = "sparse" if dense < 0.1 else "semi-dense"
    return f"{dense:.1%} of the pixels are known ({kind}), and the label type is {label_type}"


def judge_unit(numbers: DepthNumbers, depth_unit: float | None, settings: ValidationSettings) -> str | None:
    """What is wrong with depth as a length; None where it is plausible.

    Args:
        numbers: of the depth map.
        depth_unit: metres a unit of depth; None presumes 1, and says so.
        settings: thresholds.
    """
    median, height = numbers.depth_median, numbers.camera_height
    if median is None:
        return None
    unit = depth_unit or 1.0
    presumed = "" if depth_unit is not None else ", if depth is in metres (no depth_unit says otherwise)"
    if not settings.min_depth_m <= median * unit <= settings.max_depth_m:
        return f"the median depth is {median * unit:.4g} m{presumed}"
    if numbers.telling and numbers.depth_max is not None and abs(numbers.depth_max - 1) < 1e-4:
        return f"the greatest depth is exactly 1, as of depth that was divided by its maximum{presumed}"
    if height is not None and not settings.min_camera_height_m <= height * unit <= settings.max_camera_height_m:
        return f"the camera is {height * unit:.3g} m above what looks like the floor{presumed}"
    room = numbers.room_height
    if room is not None and room * unit < settings.min_room_height_m:
        return f"what looks like floor and ceiling are {room * unit:.3g} m apart{presumed}"
    return None
