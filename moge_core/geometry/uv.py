"""Coordinates of pixel centres: on the image (0 to 1) and on a view plane of half-diagonal 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError
from moge_core.geometry._backend import check_between


def image_uv(width: int, height: int, *, dtype: Any = None, device: Any = None) -> Any:
    """Image coordinates of the pixel centres, uv(i, j) = ((j + 0.5) / W, (i + 0.5) / H).

    Args:
        width, height: of the image, pixels.
        dtype: numpy or torch type, float32 by default.
        device: torch device.

    Returns:
        (H, W, 2); a tensor if `dtype` or `device` is torch's, otherwise an array.

    Raises:
        InputError: a size below one pixel.
    """
    _check_size(width, height)
    return _grid(np.arange(0.5, width) / width, np.arange(0.5, height) / height, dtype, device)


def normalized_view_plane_uv(
    width: int, height: int, aspect_ratio: float | None = None, dtype: Any = None, device: Any = None
) -> Any:
    """View-plane coordinates of the pixel centres: origin in the image's centre, half the diagonal as unit.

    The left and right borders of the image lie at -+ a / sqrt(1 + a^2), top and bottom at -+ 1 / sqrt(1 + a^2), with
    a the aspect ratio.

    Args:
        width, height: of the image, pixels.
        aspect_ratio: width / height of the view where it differs from that of the pixel grid.
        dtype: numpy or torch type, float32 by default.
        device: torch device.

    Returns:
        (H, W, 2); a tensor if `dtype` or `device` is torch's, otherwise an array.

    Raises:
        InputError: a size below one pixel, or an aspect ratio that is not positive and finite.
    """
    _check_size(width, height)
    check_between("aspect_ratio", aspect_ratio, math.inf)
    aspect = width / height if aspect_ratio is None else float(aspect_ratio)
    diagonal = math.hypot(1, aspect)
    last_u = aspect / diagonal * (1 - 1 / width)
    last_v = 1 / diagonal * (1 - 1 / height)
    return _grid(np.linspace(-last_u, last_u, width), np.linspace(-last_v, last_v, height), dtype, device)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InputError("width, height", "must be at least one pixel", found=(width, height))


def _grid(u: npt.NDArray[np.float64], v: npt.NDArray[np.float64], dtype: Any, device: Any) -> Any:
    wants_tensor = device is not None or type(dtype).__module__.partition(".")[0] == "torch"
    uv = np.empty((len(v), len(u), 2), np.float64 if wants_tensor else dtype or np.float32)
    uv[..., 0], uv[..., 1] = u, v[:, None]
    if not wants_tensor:
        return uv
    import torch

    # Cast before the transfer: some accelerators have no float64.
    return torch.from_numpy(uv).to(dtype or torch.float32).to(device, non_blocking=True)
