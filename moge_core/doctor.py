"""What a machine needs, checked: Python, packages, system libraries, torch and its devices, disk, limits, MLflow."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moge_core.accelerators import Platform, find_accelerators
from moge_core.device_leases import holders, leases_folder

DISTRIBUTION = "moge-pipeline"
_GIB = 1 << 30
_LEAST_FREE_GIB = 10
_LEAST_OPEN_FILES, _LEAST_PROCESSES = 4096, 2048

# What opencv-python's wheel links to and minimal systems leave out: library, Debian package.
_SYSTEM_LIBRARIES = (
    ("libGL.so.1", "libgl1"),
    ("libglib-2.0.so.0", "libglib2.0-0"),
    ("libxcb.so.1", "libxcb1"),
    ("libX11.so.6", "libx11-6"),
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        ok: whether it is as it should be.
        detail: what was found.
        fix: the command that mends it.
        needed: False for what only makes things faster or roomier.
    """

    name: str
    ok: bool
    detail: str
    fix: str | None = None
    needed: bool = True


def check_machine(folder: str | Path = ".") -> list[Check]:
    """All checks, in the order in which a person would mend them.

    Args:
        folder: the disk to look at is the one that this folder is on.
    """
    return [
        *_python(),
        *_packages(),
        *_system_libraries(),
        *_torch(),
        *_leases(),
        *_disk(Path(folder)),
        *_limits(),
        *_mlflow(),
    ]


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check(
        "Python", sys.version_info >= (3, 11), f"{version} at {sys.executable}", "Install Python 3.11 or newer."
    )


def _packages() -> Iterator[Check]:
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Check(DISTRIBUTION, False, "not installed in this Python", "pip install -e .")
        return
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Check("packages", False, "`packaging` is missing, so versions cannot be compared", "pip install -e .")
        return
    good = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(requirement.name, False, "not installed", fix)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good.append(f"{requirement.name} {version}")
        else:
            yield Check(requirement.name, False, f"{version}, but {requirement.specifier} is needed", fix)
    yield Check("packages", True, ", ".join(good))


def _system_libraries() -> Iterator[Check]:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        missing = [package for library, package in _SYSTEM_LIBRARIES if not _loads(library)]
        fix = f"apt-get install -y {' '.join(missing)}" if missing else "pip install --force-reinstall opencv-python"
        yield Check("OpenCV", False, f"cannot be imported: {error}", fix)
        return
    yield Check("OpenCV", True, f"{cv2.__version__} and the system libraries it needs")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _torch() -> Iterator[Check]:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Check("torch", False, f"cannot be imported: {error}", "pip install torch")
        return
    yield Check("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = f"built for {built}, but no device is seen (driver?)" if built else "this torch is built for the CPU only"
        here = find_accelerators()
        if here.names:
            why = f"{', '.join(here.names)} ({here.platform.value}) cannot be used: {why}"
        build = "ROCm" if here.platform is Platform.ROCM else "CUDA"
        fix = f"For training at full size install a {build} build of torch: https://pytorch.org/get-started/locally"
        yield Check("GPU", False, why, fix, needed=False)
        return
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        yield Check(f"GPU {i}", True, f"{device.name}, {device.total_memory / _GIB:.0f} GiB")


def _leases() -> Iterator[Check]:
    """Who works on the devices; nothing is said on a machine without any."""
    here = find_accelerators()
    if here.names:
        taken = holders(here)
        told = [f"{name}: {taken.get(name, 'free')}" for name in here.names]
        yield Check("GPU leases", True, f"{'; '.join(told)} (kept in {leases_folder()})", needed=False)


def _limits() -> Iterator[Check]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Check(
        "open files",
        files >= _LEAST_OPEN_FILES,
        f"{files} at once",
        f"ulimit -n {_LEAST_OPEN_FILES}: loader workers, ranks and MLflow each hold some.",
        needed=False,
    )
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    unlimited = processes == resource.RLIM_INFINITY
    yield Check(
        "processes",
        unlimited or processes >= _LEAST_PROCESSES,
        "unlimited" if unlimited else f"{processes}",
        f"ulimit -u {_LEAST_PROCESSES}: every rank starts loader workers.",
        needed=False,
    )


def _mlflow() -> Iterator[Check]:
    from moge_core.training.mlflow_tracking import tracking_uri

    uri = tracking_uri()
    if not uri.startswith(("http://", "https://")):
        yield Check("MLflow", True, f"logs go to {uri}", needed=False)
        return
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):  # noqa: S310  # the scheme was looked at
            yield Check("MLflow", True, f"{uri} answers", needed=False)
    except (urllib.error.URLError, OSError, ValueError) as error:
        fix = "Start it, or unset MLFLOW_TRACKING_URI; trainings go on without it and `moge replay-metrics` catches up."
        yield Check("MLflow", False, f"{uri} does not answer: {error}", fix, needed=False)


def _disk(folder: Path) -> Iterator[Check]:
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free / _GIB
    yield Check(
        "disk",
        free >= _LEAST_FREE_GIB,
        f"{free:.0f} GiB free at {existing}",
        f"Checkpoints of a ViT-L with its optimiser take about 5 GiB each; free at least {_LEAST_FREE_GIB} GiB.",
        needed=False,
    )
