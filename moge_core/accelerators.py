"""What accelerators there are: which devices count as one, and which ones of this machine a process may use.

Found without torch and without asking a driver, so that commands may look before they start anything.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

MADE_LIST = "MOGE_ACCELERATORS"
"""Environment variable with the accelerators to take instead of looking, `0,1,2`; empty for none. For tests, and for
machines whose devices are not found."""

ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")

_SECONDS_FOR_NVIDIA_SMI = 30


def is_accelerator(device: Any) -> bool:
    """Whether work on a torch device goes on beside the host's, so that reading a value back makes the host wait.

    Everything that is done otherwise on a GPU than on a CPU asks this: copies ahead of need, pinned memory, and
    branches that a host takes by values it would have to wait for. So do meta tensors in tests that count.
    """
    return bool(device.type != "cpu")


class Platform(Enum):
    """By what a process reaches the accelerators of a machine."""

    CUDA = "CUDA"
    ROCM = "ROCm"
    WSL = "CUDA under WSL2"


@dataclass(frozen=True)
class Accelerators:
    """The accelerators that a process may use, in the order in which torch counts them.

    Attributes:
        platform: by what they are reached.
        names: of each, as the platform's variable takes it to give it to another process: an index or a UUID.
        identities: of each, the same under whichever name it goes.
    """

    platform: Platform
    names: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The environment variable that gives some of them to a process. It wins over all others that do."""
        return "HIP_VISIBLE_DEVICES" if self.platform is Platform.ROCM else "CUDA_VISIBLE_DEVICES"


def visible_accelerators(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> list[str]:
    """Names of the accelerators that a process with this environment may use, see `find_accelerators`."""
    return list(find_accelerators(environment, root).names)


def find_accelerators(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Accelerators:
    """The accelerators that a process with this environment may use: none, NVIDIA's, or else AMD's.

    Args:
        environment: of the process. CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES leave what
            CUDA and ROCm would leave: what stands after an entry that names no device is not seen.
        root: of the file system.
    """
    made = environment.get(MADE_LIST)
    if made is not None:
        devices = [_Device(word, (word,)) for word in map(str.strip, made.split(",")) if word]
        return _cuda(Platform.CUDA, devices, environment)
    if devices := list(_nvidia_devices(root)):
        return _cuda(Platform.CUDA, devices, environment)
    if devices := list(_wsl_devices(root)):
        return _cuda(Platform.WSL, devices, environment)
    if devices := list(_amd_devices(root)):
        return _rocm(devices, environment)
    return Accelerators(Platform.CUDA)


def allocator_environment(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> dict[str, str]:
    """Variables that keep the memory of a GPU from falling into pieces while the sizes of views change.

    Empty where a person has set one of torch's own, and where growing segments do harm: ROCm warns or hangs (pytorch
    issue 192259), and WSL2 fails at the first allocation (pytorch issue 192330).

    They have to be there before torch is imported. Some versions read them when its libraries are loaded, others at
    the first allocation. PYTORCH_CUDA_ALLOC_CONF is what all of them obey, but torch 2.9 to 2.11 warn of it, unless
    PYTORCH_ALLOC_CONF, which 2.9 alone does not obey (pytorch issue 183387), stands beside it.
    """
    if any(name in environment for name in ALLOCATOR_VARIABLES):
        return {}
    if find_accelerators(environment, root).platform is not Platform.CUDA:
        return {}
    return dict.fromkeys(("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"), "expandable_segments:True")


def configure_allocator(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give `allocator_environment` to this process, and to those that it starts. To be called before torch is there."""
    environment.update(allocator_environment(environment))


# --- which devices a machine has ---


@dataclass(frozen=True)
class _Device:
    """One device: what tells it from others, and all names that it goes by, its index first."""

    identity: str
    names: tuple[str, ...]


def _nvidia_devices(root: Path) -> Iterator[_Device]:
    """Those whose device files are there, in the order of the bus, by which they are numbered.

    A container has the files of its own devices only (NVIDIA_VISIBLE_DEVICES has done its work before anything runs
    there), and counts them from 0.
    """
    files = {int(match[1]) for path in root.glob("dev/nvidia*") if (match := re.fullmatch(r"nvidia(\d+)", path.name))}
    described = dict(_described_by_nvidia(root))
    minors = [minor for minor in described if minor in files]
    for index, minor in enumerate(minors + sorted(files.difference(minors))):
        uuid = described.get(minor)
        yield _Device(f"nvidia{minor}", (str(index), uuid) if uuid else (str(index),))


def _described_by_nvidia(root: Path) -> Iterator[tuple[int, str | None]]:
    """(number of the device file, UUID if it is known) of what the driver describes, in the order of the bus."""
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        try:
            values = dict(re.findall(r"^(.+?):\s*(.+?)\s*$", path.read_text(), re.MULTILINE))
        except OSError:
            continue
        uuid = values.get("GPU UUID", "?")  # question marks until the device is first used
        if values.get("Device Minor", "").isdigit():
            yield int(values["Device Minor"]), None if "?" in uuid else uuid


def _wsl_devices(root: Path) -> Iterator[_Device]:
    """Those of the Windows around: one file stands for all, so NVIDIA's tool is asked how many there are."""
    libraries = root / "usr/lib/wsl/lib"
    if (root / "dev/dxg").exists() and (libraries / "libcuda.so.1").exists():
        for index, uuid in enumerate(_uuids_of_wsl(libraries / "nvidia-smi")):
            yield _Device(f"wsl{index}", (str(index), uuid) if uuid else (str(index),))


@cache
def _uuids_of_wsl(nvidia_smi: Path) -> tuple[str | None, ...]:
    """UUIDs of all devices; one unknown one where the tool is not there or does not answer."""
    try:
        listed = subprocess.run(
            [nvidia_smi, "-L"], capture_output=True, text=True, timeout=_SECONDS_FOR_NVIDIA_SMI, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return (None,)
    return tuple(re.findall(r"^GPU \d+:.*\(UUID: (\S+)\)", listed, re.MULTILINE)) or (None,)


def _amd_devices(root: Path) -> Iterator[_Device]:
    """The nodes of the compute driver that calculate, as far as this container may open them."""
    if not (root / "dev/kfd").exists():
        return
    index = 0
    nodes = (path for path in root.glob("sys/class/kfd/kfd/topology/nodes/*/properties") if path.parent.name.isdigit())
    for path in sorted(nodes, key=lambda path: int(path.parent.name)):
        try:
            values = dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if " " in line)
        except OSError:  # a device of another container
            continue
        minor = values.get("drm_render_minor", "0")
        is_mine = minor == "0" or (root / "dev/dri" / f"renderD{minor}").exists()
        if values.get("simd_count", "0") != "0" and is_mine:  # processors are nodes without such units
            number = int(values.get("unique_id", "0"))
            yield _Device(f"amd{path.parent.name}", (str(index), f"GPU-{number:016x}") if number else (str(index),))
            index += 1


# --- which of them a process may use ---


def _cuda(platform: Platform, devices: Sequence[_Device], environment: Mapping[str, str]) -> Accelerators:
    return _accelerators(platform, _selected(environment.get("CUDA_VISIBLE_DEVICES"), devices))


def _rocm(devices: Sequence[_Device], environment: Mapping[str, str]) -> Accelerators:
    """ROCr hides some, and HIP counts what is left anew; it reads CUDA's variable where its own is not set."""
    left = [device for _, device in _selected(environment.get("ROCR_VISIBLE_DEVICES"), devices)]
    counted = [_Device(each.identity, (str(index), *each.names[1:])) for index, each in enumerate(left)]
    value = environment.get("HIP_VISIBLE_DEVICES", environment.get("CUDA_VISIBLE_DEVICES"))
    return _accelerators(Platform.ROCM, _selected(value, counted))


def _accelerators(platform: Platform, selected: Sequence[tuple[str, _Device]]) -> Accelerators:
    names = tuple(name for name, _ in selected)
    return Accelerators(platform, names, tuple(device.identity for _, device in selected))


def _selected(value: str | None, devices: Sequence[_Device]) -> list[tuple[str, _Device]]:
    """The devices that a variable names, each under that name; None names all."""
    if value is None:
        return [(device.names[0], device) for device in devices]
    selected: list[tuple[str, _Device]] = []
    for word in map(str.strip, value.split(",")):
        name = str(int(word)) if word.isdecimal() else word
        device = _named(name, devices)
        if device is None:
            break
        if any(device == other for _, other in selected):
            return []  # a device that is named twice makes the whole variable invalid
        selected.append((name, device))
    return selected


def _named(name: str, devices: Sequence[_Device]) -> _Device | None:
    """The device with that name; the beginning of a UUID is enough, and a part of a device (MIG) is one of its own."""
    if name.startswith("MIG-") and devices:
        return _Device(name, (name,))
    for device in devices:
        if name in device.names or (name.startswith("GPU-") and any(each.startswith(name) for each in device.names)):
            return device
    # UUIDs that cannot be looked up are taken at their word.
    unknown = devices and all(len(device.names) == 1 for device in devices)
    return _Device(name, (name,)) if unknown and name.startswith("GPU-") else None
