"""Trainings of several real processes on a machine without a GPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

NO_THREADS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch"),
    "--multi_gpu",  # what makes accelerate start several processes; without GPUs they talk through gloo
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
]
"""To be followed by `--num_processes N` and what is launched."""
SPREAD = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
"""Environment in which their weights are spread over them (FSDP)."""


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Return as soon as the condition holds; fail when it does not come to that."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not get there"
        time.sleep(0.02)


def run_two(*arguments: str, seconds: float = 240, **environment: str) -> list[tuple[int, str, str]]:
    """Run Python in two processes that train together, as a launcher starts them; but none is ended with the other.

    Returns:
        exit code, output and errors of each.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, **NO_THREADS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common |= {"LOCAL_WORLD_SIZE": "2", **environment}
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**common, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, told, strict=True)]
