"""Which device a model runs on: the one that is named, or else the first GPU that is visible."""

from __future__ import annotations

import torch

from moge_core.errors import InputError


def choose_device(name: torch.device | str | None = None) -> torch.device:
    """The device that a model is to run on, after a look whether it answers.

    Args:
        name: as torch calls it: `cpu`, `cuda`, `cuda:1`, ...; a GPU of ROCm is `cuda`, too. None takes torch's current
            GPU, which is the first one that is visible unless somebody chose another, and the CPU where there is none.
            Apple's GPU is taken by its name, `mps`, only: it has no float64, which trainings add up in.

    Raises:
        InputError: this machine has no such device, or it does not work.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device == torch.device("cuda"):
            device = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=device)
    # Torch's own words for a device that is not known, not there, or not supported by this build.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(
            "--device",
            "must be a device of this machine",
            found=f"{name}: {reason}" if name else reason,
            fix=f"Devices here: {', '.join(_devices_here())}.",
        ) from error
    return device


def describe_device(device: torch.device) -> str:
    """Its name, and for a GPU what it is: `cuda:0 (NVIDIA H200)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return "cpu" if device.type == "cpu" else str(device)  # accelerate counts CPUs, too


def _devices_here() -> list[str]:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
