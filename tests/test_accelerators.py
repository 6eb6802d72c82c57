"""Which accelerators a process may use is found without torch, as CUDA and ROCm would count them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moge_core.accelerators import (
    Platform,
    allocator_environment,
    find_accelerators,
    is_accelerator,
    visible_accelerators,
)

UUIDS = ("GPU-5f1c0e3a-0000", "GPU-5f1c0e3a-1111", "GPU-a0b1c2d3-2222", "GPU-ffff0000-3333")


def nvidia_machine(root: Path, minors: tuple[int, ...] = (0, 1, 2, 3), *, uuids: tuple[str, ...] = UUIDS) -> Path:
    """A made /dev and /proc with NVIDIA's devices; device files of the numbers `minors` are there."""
    (root / "dev").mkdir(parents=True)
    for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{minor}" for minor in minors)):
        (root / "dev" / name).touch()
    for minor, uuid in enumerate(uuids):
        folder = root / f"proc/driver/nvidia/gpus/0000:{minor + 1:02x}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t\t Some GPU\nIRQ:   \t\t 11\nGPU UUID: \t {uuid}\nBus Location: \t 0000:01:00.0\n"
            f"Device Minor: \t {minor}\nGPU Excluded:\t No\n"
        )
    return root


def amd_machine(root: Path, num_devices: int = 2) -> Path:
    """A made /dev and /sys with a processor and AMD's devices behind it."""
    (root / "dev/dri").mkdir(parents=True)
    (root / "dev/kfd").touch()
    for node in range(num_devices + 1):
        folder = root / f"sys/class/kfd/kfd/topology/nodes/{node}"
        folder.mkdir(parents=True)
        minor = 127 + node if node else 0
        (folder / "properties").write_text(
            f"cpu_cores_count {0 if node else 64}\nsimd_count {node and 416}\nunique_id {node * 4096}\n"
            f"drm_render_minor {minor}\n"
        )
        if node:
            (root / f"dev/dri/renderD{minor}").touch()
    return root


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, ["0", "1", "2", "3"]),
        ("1,3", ["1", "3"]),
        (" 3, 0 ", ["3", "0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,-1,2", ["1"]),
        ("2,9,0", ["2"]),
        ("1,1", []),
        ("GPU-a0b1c2d3-2222,1", ["GPU-a0b1c2d3-2222", "1"]),
        ("GPU-ffff", ["GPU-ffff"]),
        ("GPU-ffff,3", []),
        ("GPU-00000000,3", []),
        ("MIG-1e0f,MIG-2e0f", ["MIG-1e0f", "MIG-2e0f"]),
    ],
)
def test_what_cuda_would_see_is_seen(tmp_path: Path, value: str | None, names: list[str]) -> None:
    environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert visible_accelerators(environment, nvidia_machine(tmp_path)) == names


def test_a_device_is_the_same_under_its_index_and_its_uuid(tmp_path: Path) -> None:
    root = nvidia_machine(tmp_path)
    by_index = find_accelerators({"CUDA_VISIBLE_DEVICES": "2,0"}, root)
    by_uuid = find_accelerators({"CUDA_VISIBLE_DEVICES": f"{UUIDS[2]},{UUIDS[0]}"}, root)
    assert by_index.identities == by_uuid.identities == ("nvidia2", "nvidia0")
    assert by_uuid.variable == "CUDA_VISIBLE_DEVICES"


def test_a_container_counts_the_devices_that_it_was_given_from_zero(tmp_path: Path) -> None:
    found = find_accelerators({"NVIDIA_VISIBLE_DEVICES": "1,3"}, nvidia_machine(tmp_path, (1, 3)))
    assert (found.names, found.identities) == (("0", "1"), ("nvidia1", "nvidia3"))
    assert visible_accelerators({"NVIDIA_VISIBLE_DEVICES": "void"}, nvidia_machine(tmp_path / "none", ())) == []


def test_devices_that_the_driver_does_not_describe_are_seen_too(tmp_path: Path) -> None:
    root = nvidia_machine(tmp_path, uuids=())
    assert visible_accelerators({}, root) == ["0", "1", "2", "3"]
    assert visible_accelerators({"CUDA_VISIBLE_DEVICES": "GPU-1234"}, root) == ["GPU-1234"], "taken at its word"
    unused = nvidia_machine(tmp_path / "unused", (0,), uuids=("GPU-????????-????",))
    assert find_accelerators({"CUDA_VISIBLE_DEVICES": "0"}, unused).identities == ("nvidia0",)


@pytest.mark.parametrize(
    ("environment", "names", "identities"),
    [
        ({}, ("0", "1", "2"), ("amd1", "amd2", "amd3")),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, ("2", "0"), ("amd3", "amd1")),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ("1",), ("amd2",)),
        ({"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "2"}, ("2",), ("amd3",)),
        ({"ROCR_VISIBLE_DEVICES": "1,2"}, ("0", "1"), ("amd2", "amd3")),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}, ("1",), ("amd3",)),
        ({"ROCR_VISIBLE_DEVICES": "GPU-0000000000002000"}, ("0",), ("amd2",)),
        ({"HIP_VISIBLE_DEVICES": "-1"}, (), ()),
    ],
)
def test_what_rocm_would_see_is_seen(
    tmp_path: Path, environment: dict[str, str], names: tuple[str, ...], identities: tuple[str, ...]
) -> None:
    found = find_accelerators(environment, amd_machine(tmp_path, 3))
    assert (found.platform, found.names, found.identities) == (Platform.ROCM, names, identities)
    assert found.variable == "HIP_VISIBLE_DEVICES"


def test_a_container_sees_the_amd_devices_that_it_may_open(tmp_path: Path) -> None:
    root = amd_machine(tmp_path, 2)
    (root / "dev/dri/renderD128").unlink()
    assert find_accelerators({}, root).identities == ("amd2",)


def test_the_devices_of_windows_are_counted_by_nvidias_tool(tmp_path: Path) -> None:
    libraries = tmp_path / "usr/lib/wsl/lib"
    libraries.mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/dxg").touch()
    assert visible_accelerators({}, tmp_path) == [], "a display, but no CUDA"
    (libraries / "libcuda.so.1").touch()
    tool = libraries / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-aa11)'\necho 'GPU 1: B (UUID: GPU-bb22)'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    assert find_accelerators({}, tmp_path).platform is Platform.WSL
    assert visible_accelerators({}, tmp_path) == ["0", "1"]
    assert find_accelerators({"CUDA_VISIBLE_DEVICES": "GPU-bb22"}, tmp_path).identities == ("wsl1",)


def test_windows_without_nvidias_tool_has_one_device(tmp_path: Path) -> None:
    for name in ("dev/dxg", "usr/lib/wsl/lib/libcuda.so.1"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert visible_accelerators({}, tmp_path) == ["0"]


def test_a_machine_without_devices_has_none(tmp_path: Path) -> None:
    assert visible_accelerators({}, tmp_path) == []
    assert visible_accelerators({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path) == []


def test_a_made_list_takes_the_place_of_the_machine(tmp_path: Path) -> None:
    made = {"MOGE_ACCELERATORS": "0, 1,5"}
    assert visible_accelerators(made, tmp_path) == ["0", "1", "5"]
    assert visible_accelerators({**made, "CUDA_VISIBLE_DEVICES": "5,0"}, tmp_path) == ["5", "0"]
    assert visible_accelerators({"MOGE_ACCELERATORS": ""}, nvidia_machine(tmp_path)) == []


def test_every_device_but_the_hosts_is_an_accelerator() -> None:
    assert [is_accelerator(torch.device(name)) for name in ("cpu", "cuda", "meta")] == [False, True, True]


# --- the allocator ---

GROWING = "expandable_segments:True"


def test_segments_grow_under_both_names_that_torch_has_for_it(tmp_path: Path) -> None:
    growing = {"PYTORCH_CUDA_ALLOC_CONF": GROWING, "PYTORCH_ALLOC_CONF": GROWING}
    assert allocator_environment({}, nvidia_machine(tmp_path)) == growing
    # A device may come to a process that starts without one, on a cluster for instance.
    assert allocator_environment({}, tmp_path / "nothing") == growing


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
def test_a_persons_settings_of_the_allocator_stay_as_they_are(tmp_path: Path, name: str) -> None:
    assert allocator_environment({name: "max_split_size_mb:64"}, nvidia_machine(tmp_path)) == {}


def test_segments_do_not_grow_where_torch_cannot(tmp_path: Path) -> None:
    assert allocator_environment({}, amd_machine(tmp_path / "amd")) == {}
    for name in ("wsl/dev/dxg", "wsl/usr/lib/wsl/lib/libcuda.so.1"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert allocator_environment({}, tmp_path / "wsl") == {}


TELL = """
import os, runpy, sys
import moge_core.cli, moge_core.training, moge_core.training.command as command
def tell(*_, **__):
    print(os.environ.get("PYTORCH_ALLOC_CONF"), "torch" in sys.modules)
moge_core.cli.cli.main = moge_core.training.main = command.main = tell
module, sys.argv = sys.argv[1], ["moge"]
runpy.run_module(module, run_name="__main__")
"""


@pytest.mark.parametrize("module", ["moge_core.training", "moge_core.cli", "moge_pipeline.training_process"])
def test_the_allocator_is_set_before_torch_is_there(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", TELL, module],
        env={**os.environ, "MOGE_ACCELERATORS": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [GROWING, "False"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch._C, "_accelerator_getAllocatorSettings"), reason="this torch does not tell")
def test_torch_takes_both_names_without_a_warning() -> None:
    code = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
    environment = {**os.environ, "MOGE_ACCELERATORS": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | allocator_environment(environment),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (result.stdout.strip(), result.stderr) == (GROWING, "")
