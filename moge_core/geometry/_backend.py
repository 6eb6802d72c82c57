"""One function for numpy arrays and torch tensors, without importing torch for those who pass numpy."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from moge_core.accelerators import is_accelerator
from moge_core.errors import InputError

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", "npt.NDArray[Any]", "torch.Tensor")


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor. Whoever holds one has imported torch already, so this never does."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_on_host(value: Any) -> bool:
    """Whether reading a value costs nothing; reading one from an accelerator makes the host wait for it."""
    return not (is_tensor(value) and is_accelerator(value.device))


def array_namespace(**arguments: object) -> Any:
    """The module, numpy or torch, that the arguments (by name; None is skipped) belong to.

    Raises:
        InputError: an argument is neither an array nor a tensor, or the two are mixed.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    tensors = [name for name, value in given.items() if is_tensor(value)]
    arrays = [name for name, value in given.items() if isinstance(value, (np.ndarray, np.generic))]
    for name, value in given.items():
        if name not in tensors and name not in arrays:
            raise InputError(name, "must be a numpy array or a torch tensor", found=type(value).__name__)
    if tensors and arrays:
        raise InputError(
            arrays[0], f"must be a torch tensor like {tensors[0]}", found="a numpy array", fix="Use torch.as_tensor."
        )
    return sys.modules["torch"] if tensors else np


def as_floating(name: str, value: Any) -> Any:
    """`value` as float32 or float64; half precision is widened because squares of it overflow.

    Raises:
        InputError: `value` holds integers or booleans.
    """
    if is_tensor(value):
        if not value.dtype.is_floating_point:
            raise InputError(name, "must hold floating-point numbers", found=value.dtype, fix="Convert to float32.")
        return value if value.dtype.itemsize >= 4 else value.float()
    if value.dtype.kind != "f":
        raise InputError(name, "must hold floating-point numbers", found=value.dtype, fix="Convert to float32.")
    return value if value.dtype in (np.float32, np.float64) else value.astype(np.float32)


def cast_like(xp: Any, value: Any, like: Any) -> Any:
    """`value` with the type, and for tensors the device, of `like`."""
    return value.astype(like.dtype, copy=False) if xp is np else value.to(like, non_blocking=is_on_host(value))


def check_map(name: str, value: Any, channels: int | None = None) -> None:
    """Require `value: (..., H, W)`, or `(..., H, W, channels)`, with at least one pixel.

    Raises:
        InputError: another shape, or an image without pixels.
    """
    num_trailing = 2 if channels is None else 3
    wanted = "(..., H, W)" if channels is None else f"(..., H, W, {channels})"
    shape = tuple(value.shape)
    if len(shape) < num_trailing or (channels is not None and shape[-1] != channels):
        raise InputError(name, f"must have the shape {wanted}", found=shape)
    if 0 in shape[len(shape) - num_trailing :]:
        raise InputError(name, "must have at least one pixel", found=shape)


def check_mask(mask: Any, shape: tuple[int, ...], of: str) -> None:
    """Require a boolean `mask` with the pixels of the map named `of`.

    Raises:
        InputError: another shape or another type.
    """
    if tuple(mask.shape) != tuple(shape):
        raise InputError("mask", f"must have the shape {tuple(shape)} of {of}", found=tuple(mask.shape))
    check_boolean(mask)


def check_boolean(mask: Any) -> None:
    """Require a boolean `mask`.

    Raises:
        InputError: another type.
    """
    if str(mask.dtype).removeprefix("torch.") != "bool":
        raise InputError("mask", "must be boolean", found=mask.dtype, fix="Say what counts, for example mask > 0.5.")


def check_intrinsics(intrinsics: Any) -> None:
    """Require `intrinsics: (..., 3, 3)`, upper triangular, with focal lengths and a last row of 0 0 1.

    Values on an accelerator are not looked at.

    Raises:
        InputError: another shape, or values that are no pinhole camera's.
    """
    shape = tuple(intrinsics.shape)
    if shape[-2:] != (3, 3):
        raise InputError("intrinsics", "must have the shape (..., 3, 3)", found=shape)
    if not is_on_host(intrinsics):
        return
    if is_tensor(intrinsics):
        intrinsics = intrinsics.detach().double().numpy()
    if not np.isfinite(intrinsics).all():
        raise InputError("intrinsics", "must be finite", found=intrinsics.tolist())
    if (intrinsics[..., 2, :] != (0.0, 0.0, 1.0)).any() or (intrinsics[..., 1, 0] != 0.0).any():
        raise InputError("intrinsics", "must be [[fx, s, cx], [0, fy, cy], [0, 0, 1]]", found=intrinsics.tolist())
    if (intrinsics[..., 0, 0] == 0.0).any() or (intrinsics[..., 1, 1] == 0.0).any():
        raise InputError("intrinsics", "must have focal lengths other than 0", found=intrinsics.tolist())


def check_between(name: str, value: Any, upper: float) -> None:
    """Require 0 < value < upper of a number, array or tensor; None and values on an accelerator are not looked at.

    Raises:
        InputError: a value outside that range.
    """
    if value is None or not is_on_host(value):
        return
    numbers = value.detach().double().numpy() if is_tensor(value) else np.asarray(value, dtype=np.float64)
    if not ((numbers > 0) & (numbers < upper)).all():
        bound = "finite" if upper == math.inf else f"less than {upper:.4f} (radians)"
        raise InputError(name, f"must be greater than 0 and {bound}", found=numbers.tolist())
