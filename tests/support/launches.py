"""Trainings of several real processes on a machine without a GPU."""

from __future__ import annotations

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


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Return as soon as the condition holds; fail when it does not come to that."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not get there"
        time.sleep(0.02)
