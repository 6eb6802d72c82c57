"""Where the network runs and in which precision, and how batches get there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, parse_flag_from_env
from torch import Tensor

from moge_core.accelerators import is_accelerator
from moge_core.errors import ConfigError, MoGeError
from moge_core.training.flags import TrainFlags
from moge_core.training.watcher import longest_stage_s

# A collective's limit ends a rank by an abort that Python never sees, so it lies above the longest of the watchdog's.
_PATIENCE_AFTER_WATCHDOG_S = 600.0


def build_accelerator(flags: TrainFlags) -> Accelerator:
    """The accelerator of this process: a GPU, or the CPU where there is none or `accelerate launch` was told so.

    Without a `--mixed_precision` it takes bf16 on GPUs that have it, and float32 elsewhere. Apple's GPUs are not used:
    sums of float64, which keep metrics exact, do not exist there.

    Raises:
        ConfigError: fp16 on a CPU.
    """
    # What `--cpu` and `use_cpu: true` of a configuration file leave for the processes that are launched.
    asked_for_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    cpu = asked_for_cpu or not torch.cuda.is_available()
    precision = flags.mixed_precision
    if precision is None:
        precision = "bf16" if not cpu and torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if cpu and precision == "fp16":
        why = "`accelerate launch` was told to use the CPU" if asked_for_cpu else "no GPU that this torch can use"
        raise ConfigError("--mixed_precision fp16", "needs a GPU", found=why, fix="Use `no` or `bf16` on a CPU.")
    patience_s = longest_stage_s(flags.hang_timeout_s) + _PATIENCE_AFTER_WATCHDOG_S
    if flags.hang_timeout_s > 0:
        # After 8 minutes NCCL's own monitor aborts a process whose NCCL thread got stuck, with its stack untold.
        os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", f"{patience_s:.0f}")
    handlers = [
        # Every output takes part in the objective, so no rank needs to search for unused parameters.
        DistributedDataParallelKwargs(find_unused_parameters=False, gradient_as_bucket_view=True),
        InitProcessGroupKwargs(timeout=timedelta(seconds=patience_s)),
    ]
    return Accelerator(mixed_precision=precision, cpu=cpu, kwargs_handlers=handlers)


def leave_process_group() -> None:
    """Undo the connection of the ranks, when all of them are done with it; torch warns of those that do not.

    Not after an error: what other ranks still wait for would be waited for here.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_device(batches: Iterator[Mapping[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """Batches on the device; on an accelerator the next one is copied while the last one is worked on.

    Where the next one cannot be had, that is told when it is asked for, and not to who has just got the last one.
    """
    if not is_accelerator(device):
        for batch in batches:
            yield dict(batch)
        return
    copies = _copies_to(device)
    ahead = copies.start(next(batches))
    while True:
        current = copies.finish(ahead)
        try:
            ahead = copies.start(next(batches))
        except (StopIteration, MoGeError) as end:
            yield current
            if isinstance(end, MoGeError):
                raise
            return
        yield current


class _OrderedCopies:
    """Copies in the order of the device's other work, which then waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value.pin_memory().to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


class _CopiesBeside(_OrderedCopies):
    """Copies on a stream of their own, beside the computation; CUDA and ROCm have such streams."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        with torch.cuda.stream(self._stream):
            return super().start(batch)

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Batches are worked on by the current stream, so their memory may be used again when that is done."""
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for value in batch.values():
            if isinstance(value, Tensor):
                value.record_stream(current)
        return batch


def _copies_to(device: torch.device) -> _OrderedCopies:
    return _CopiesBeside(device) if device.type == "cuda" else _OrderedCopies(device)


def finish_work(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def system_figures(device: torch.device) -> dict[str, float]:
    """Memory of this process and of its device in GB, and the load of the machine."""
    figures = {
        "system.memory_gb": psutil.Process().memory_info().rss / 1e9,
        "system.machine_memory_share": psutil.virtual_memory().percent / 100,
        "system.load_per_core": os.getloadavg()[0] / (os.cpu_count() or 1),
    }
    if device.type == "cuda":
        figures["system.gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        figures["system.gpu_reserved_gb"] = torch.cuda.memory_reserved(device) / 1e9
    return figures
