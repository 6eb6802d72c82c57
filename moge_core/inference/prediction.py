"""One call from images to geometry in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moge_core.errors import InputError
from moge_core.geometry import intrinsics_to_fov
from moge_core.models import MoGeModel
from moge_core.models.precision import Precision, network_precision


@dataclass(frozen=True)
class Prediction:
    """Geometry of one image, in OpenCV camera axes.

    Attributes:
        image: uint8 (H, W, 3), RGB, what was looked at.
        points: float32 (H, W, 3), +Inf where the mask is false.
        depth: float32 (H, W), likewise; of a panorama the distance from its centre.
        mask: bool (H, W).
        intrinsics: float32 (3, 3), normalised; None for a panorama.
        normal: float32 (H, W, 3) of unit length, 0 where the mask is false; None where the model has none.
        metric: whether points and depth are in metres.
    """

    image: npt.NDArray[np.uint8]
    points: npt.NDArray[np.float32]
    depth: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    intrinsics: npt.NDArray[np.float32] | None
    normal: npt.NDArray[np.float32] | None
    metric: bool

    @property
    def fov_deg(self) -> tuple[float, float]:
        """Horizontal and vertical field of view in degrees."""
        if self.intrinsics is None:
            return 360.0, 180.0
        fov_x, fov_y = intrinsics_to_fov(self.intrinsics)
        return math.degrees(float(fov_x)), math.degrees(float(fov_y))


def predict(
    model: MoGeModel,
    images: Sequence[npt.NDArray[np.uint8]],
    *,
    fov_x: float | None = None,
    resolution_level: int = 9,
    num_tokens: int | None = None,
    precision: Precision = "fp32",
) -> list[Prediction]:
    """Geometry of images of one size, as one batch on the model's device.

    Args:
        model: either version; `load_model` gives one.
        images: uint8 (H, W, 3) each, RGB.
        fov_x: horizontal field of view in degrees, where it is known.
        resolution_level: 0 (fast) to 9 (detailed).
        num_tokens: replaces the resolution level.
        precision: of the network's encoder; what follows, geometry included, is always computed in float32.

    Raises:
        InputError: images of several sizes or of another kind, or an argument outside its domain.
    """
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape != images[0].shape:
            found = f"{image.dtype} {image.shape}"
            raise InputError("images", "must be uint8 (H, W, 3), all of one size", found=found)
    if not images:
        return []
    batch = torch.from_numpy(np.stack(images)).to(model.device).permute(0, 3, 1, 2).float() / 255
    with network_precision(model.device.type, precision):
        result = model.infer(batch, fov_x=fov_x, resolution_level=resolution_level, num_tokens=num_tokens)
    arrays: dict[str, npt.NDArray[Any]] = {
        name: value.cpu().numpy() for name, value in result.items() if name != "metric_scale"
    }
    return [
        Prediction(
            image=image,
            points=arrays["points"][row],
            depth=arrays["depth"][row],
            mask=arrays["mask"][row],
            intrinsics=arrays["intrinsics"][row],
            normal=arrays["normal"][row] if "normal" in arrays else None,
            metric="metric_scale" in result,
        )
        for row, image in enumerate(images)
    ]
