"""`python -m benchmarks.checkpoint`: how long saving a ViT-L with optimiser and average holds a training up.

`host copy` is copying the state once; `save` is what the training waits; `written after` when the checkpoint is
complete.
Needs about 12 GB of memory and 5 GB of disk.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import psutil
import torch

from moge_core.models import build_model
from moge_core.training import Workspace, load_train_config
from moge_core.training.checkpoint_writer import CheckpointWriter, host_copy
from moge_core.training.checkpoints import TrainingState

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "train" / "v1.json"


def main() -> None:
    """Print one line for each of three saves."""
    model = build_model("v1", **load_train_config(CONFIG).model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    state = TrainingState(
        0, model.model_config, model.state_dict(), optimizer.state_dict(), {"last_epoch": 1}, None, average, 1
    )
    size = sum(t.nbytes for t in [*average.values(), *average.values()]) + sum(
        t.nbytes for values in optimizer.state.values() for t in values.values()
    )
    print(f"state of {size / 1e9:.2f} GB")
    copy_s = 0.0
    for _ in range(2):  # the first one also gets the memory from the system
        start = time.perf_counter()
        copies = [host_copy(part) for part in (state.model, state.optimizer, state.ema)]
        copy_s = time.perf_counter() - start
        del copies
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Workspace(folder), keep_last=1)
        for step in range(3):
            before = process.memory_info().rss
            state.step = step
            start = time.perf_counter()
            writer.save(state, {})
            blocked_s = time.perf_counter() - start
            peak = before
            while not writer.take_written():
                peak = max(peak, process.memory_info().rss)
                time.sleep(0.02)
            written_s = time.perf_counter() - start
            print(
                f"host copy {copy_s:.2f} s, save {blocked_s:.2f} s = {blocked_s / copy_s:.2f} copies, "
                f"written after {written_s:.1f} s, extra memory {(peak - before) / 1e9:.2f} GB",
                flush=True,
            )
        writer.close()


if __name__ == "__main__":
    main()
