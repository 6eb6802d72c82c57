"""`accelerate launch` as an argument list: fitted to the machine that runs it, and ended without cutting it short."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from moge_core.accelerators import visible_accelerators
from moge_core.datasets.parallel import num_cores
from moge_core.training import RunFlags, Workspace
from moge_core.training.mlflow_tracking import GRACE_VARIABLE

ACCELERATE = "accelerate.commands.launch"
"""`accelerate launch` ends with its trainers; asked to end, it would give them 30 s only."""


def launch_command(flags: RunFlags, workspace: Workspace, checkpoint: str | None) -> list[str]:
    """`accelerate launch` of the training, every choice spelled out so that accelerate neither asks nor warns."""
    num_processes = flags.num_processes or 1
    num_threads = max(1, num_cores() // num_processes)
    accelerate = {
        "--num_processes": num_processes,
        "--num_machines": 1,
        "--mixed_precision": flags.mixed_precision or "no",
        "--dynamo_backend": "no",
        # Else that of `accelerate config`, which would take the place of the devices that this training was given.
        "--gpu_ids": "all",
        "--num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS") or num_threads,
    }
    argv = [sys.executable, "-m", ACCELERATE]
    argv += [str(word) for pair in accelerate.items() for word in pair]
    if num_processes > 1:
        # Also on a CPU this is the flag that makes accelerate start more than one process; port 0 takes a free one.
        argv += ["--multi_gpu", "--main_process_port", "0"]
    elif not has_gpu():
        argv += ["--cpu"]
    argv += ["-m", "moge_pipeline.training_process"]
    argv += ["--config", str(workspace.config_path), "--workspace", str(workspace.path)]
    argv += flags.model_copy(update={"checkpoint": None}).as_argv()
    return argv + (["--checkpoint", checkpoint] if checkpoint is not None else [])


@dataclass(frozen=True)
class Machine:
    """Place of one `accelerate launch` among those of a training.

    Attributes:
        rank: 0 is the one that all meet at.
        count: of all launches of the training.
        host: name or address at which rank 0 is reached.
        port: of the meeting on `host`.
    """

    rank: int = 0
    count: int = 1
    host: str = "127.0.0.1"
    port: int = 0


def fitted_to(argv: Sequence[str], machine: Machine) -> list[str]:
    """`argv`, that one machine would run alone, as `machine` runs its share of it.

    The command may have been made on a machine without a GPU or with another number of cores, so `--cpu` and the
    threads of a process are decided anew here. A command that is not `accelerate launch` stays as it is.
    """
    if ACCELERATE not in argv:
        return list(argv)
    split = argv.index(ACCELERATE) + 1
    end = argv.index("-m", split)
    flags = _as_flags(argv[split:end])
    num_processes = int(flags.get("--num_processes") or 1)
    flags.pop("--cpu", None)
    here = max(1, num_processes // machine.count)
    flags["--num_cpu_threads_per_process"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // here))
    if num_processes == 1 and not has_gpu():
        flags["--cpu"] = None
    if machine.count > 1:
        flags |= {
            "--num_machines": str(machine.count),
            "--machine_rank": str(machine.rank),
            "--main_process_ip": machine.host,
            "--main_process_port": str(machine.port),
            "--same_network": None,
        }
    words = [word for name, value in flags.items() for word in ((name,) if value is None else (name, value))]
    return [*argv[:split], *words, *argv[end:]]


def has_gpu() -> bool:
    """Whether a process that is started now would see an accelerator, told without torch."""
    return bool(visible_accelerators())


def patience(grace_s: float) -> dict[str, str]:
    """Environment in which a training knows the `grace_s` seconds that it has to end once it is asked to.

    torchrun waits so long for its workers: its own 30 s may end a large save.
    """
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(grace_s)), GRACE_VARIABLE: f"{grace_s:g}"}


def _as_flags(words: Sequence[str]) -> dict[str, str | None]:
    """Flags with their values, None for those that have none."""
    flags: dict[str, str | None] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            flags[word] = None if following.startswith("--") else following
    return flags
