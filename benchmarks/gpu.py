"""What one GPU does: `python -m benchmarks.gpu [--out FOLDER] [--seconds N]`; benchmarks/gpu.sh runs the tests before.

Writes one table, row by row, to gpu.md in the folder. A row that fails says why, and the others are still measured;
what there is no time for says so. Exits with 1 when a row failed. `--dry` runs the same code on the CPU with tiny
shapes, within a minute, and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import losses
from benchmarks.losses import extra_memory, finish
from benchmarks.train_step import scaled_config
from benchmarks.units import median_seconds
from moge_core.datasets import index_dataset, render_sample_scenes
from moge_core.inference import predict
from moge_core.inference.prediction import Precision
from moge_core.models import build_model
from moge_core.training.config import TrainConfig, parse_train_config
from moge_core.training.devices import on_device
from moge_core.training.flags import TrainFlags
from moge_core.training.trainer import Trainer

VERSIONS = ("v1", "v2")
HEADER = "| what | ms | images/s | GPU memory, GB | |\n|---|---|---|---|---|"
NUM_SCENES = 24
LOADER_STEPS = 20
REPEATS = 5
DEFAULT_SECONDS = 400
"""After which no further row is begun; benchmarks/gpu.sh gives what is left of its own time."""

# How libraries start work on a GPU, and where the host waits for one, as CUDA's functions are called.
LAUNCHES = frozenset({"cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"})
WAITS = frozenset({"cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy"})


@dataclass(frozen=True)
class Setting:
    """On what is measured.

    Attributes:
        device: that works.
        folder: for scenes and workspaces.
        is_dry: tiny shapes, and each thing done once.
        batch_size: images of a training step.
    """

    device: torch.device
    folder: Path
    is_dry: bool
    batch_size: int

    @property
    def encoder(self) -> str:
        return "dinov2_vitt14" if self.is_dry else "dinov2_vitl14"

    @property
    def size(self) -> tuple[int, int]:
        return (64, 48) if self.is_dry else (640, 480)

    @property
    def num_warm_ups(self) -> int:
        return 0 if self.is_dry else 1

    @property
    def scenes(self) -> Path:
        """An indexed dataset, rendered when it is first asked for."""
        path = self.folder / "scenes"
        if not path.is_dir():
            render_sample_scenes(path, NUM_SCENES, 2, size=self.size)
            index_dataset(path)
        return path

    def num_tokens(self, wanted: int) -> int:
        return 12 if self.is_dry else wanted


@dataclass(frozen=True)
class Figures:
    """What a row tells; None stays empty."""

    milliseconds: float | None = None
    images_per_second: float | None = None
    memory_gb: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        numbers = (self.milliseconds, self.images_per_second, self.memory_gb)
        return [*("" if value is None else f"{value:.3g}" for value in numbers), self.note]


Row = tuple[str, Callable[[Setting], Figures]]


def main() -> int:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of gpu.md")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="no row is begun after these")
    parser.add_argument("--batch-size", type=int, default=8, help="images of a training step")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device here; --dry tries the rows out on the CPU")
    device = torch.device("cpu" if arguments.dry else "cuda")
    if arguments.dry:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        # Compiling takes longer than all the rest of a dry run.
        torch.compiler.set_stance("force_eager")
    arguments.out.mkdir(parents=True, exist_ok=True)
    start, num_failed = time.monotonic(), 0
    with (
        tempfile.TemporaryDirectory() as folder,
        (arguments.out / "gpu.md").open("w", encoding="utf-8", buffering=1) as file,
    ):
        setting = Setting(device, Path(folder), arguments.dry, 1 if arguments.dry else arguments.batch_size)
        tell(f"{_describe(setting)}\n\n{HEADER}", file)
        for what, measure in rows():
            if time.monotonic() - start > arguments.seconds:
                figures = Figures(note=f"skipped: {arguments.seconds:.0f} s were over")
            else:
                figures = _measured(measure, setting)
            num_failed += figures.note.startswith("failed")
            tell(f"| {' | '.join([what, *figures.cells()])} |", file)
    return 1 if num_failed else 0


def tell(text: str, file: Any) -> None:
    """Print, and keep."""
    print(text, flush=True)
    file.write(f"{text}\n")


def _describe(setting: Setting) -> str:
    what = f"batch {setting.batch_size}, {setting.size[0]}x{setting.size[1]}, {setting.encoder}"
    if setting.is_dry:
        return f"Dry run, torch {torch.__version__}, CPU, {what}: these figures measure nothing."
    properties = torch.cuda.get_device_properties(setting.device)
    name = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}; trainings: {what}, bf16."


def _measured(measure: Callable[[Setting], Figures], setting: Setting) -> Figures:
    """Its figures, or why there are none."""
    try:
        figures = measure(setting)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")
        figures = Figures(note=f"failed: {text[:200]}")
    # After the error is forgotten, which holds what was on the device.
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    return figures


def rows() -> Iterator[Row]:
    """All that is measured: what is wanted most comes first, what may take its time last."""
    for version in VERSIONS:
        yield f"training step, {version}", partial(_training_step, version=version)
        how = {"enable_gradient_checkpointing": True}
        yield f"training step, {version}, checkpointing", partial(_training_step, version=version, **how)
    for version, num_tokens, precision in itertools.product(VERSIONS, (1800, 3600), ("fp32", "bf16")):
        what = partial(_inference, version=version, num_tokens=num_tokens, precision=precision)
        yield f"infer, {version}, {num_tokens} tokens, {precision}", what
    for version in VERSIONS:
        yield f"kernels of a training step, {version}", partial(_kernels, version=version)
    yield "waiting for the loader, v1", _loader
    here = Path()  # names do not depend on where the scenes are
    for number, (what, _, _) in enumerate(losses.measurements(here, torch.device("cpu"), with_oracle=True)):
        yield what, partial(_loss, number=number)
    yield "training step, v1, compiled", partial(_training_step, version="v1", compile=True)


# --- training ---


@contextlib.contextmanager
def _trainer(setting: Setting, version: str, **flags: Any) -> Iterator[Trainer]:
    """The real one, in bf16, at the middle of the published numbers of tokens."""
    given = {"enable_gradient_checkpointing": False, "num_workers": 0, **flags}
    with tempfile.TemporaryDirectory(dir=setting.folder) as workspace:
        path = Path(workspace, "config.json")
        training = TrainFlags(
            config=path,
            workspace=Path(workspace, "run"),
            batch_size_forward=setting.batch_size,
            mixed_precision="bf16",
            init="random",
            enable_mlflow=False,
            hang_timeout_s=0,
            **given,
        )
        trainer = Trainer(_config(setting, version, path), training, [])
        try:
            yield trainer
        finally:
            trainer.loader.close()
            trainer.writer.close()


def _config(setting: Setting, version: str, path: Path) -> TrainConfig:
    tokens = 12 if setting.is_dry else None
    values = scaled_config(version, setting.scenes, encoder=setting.encoder, size=setting.size, num_tokens=tokens)
    return parse_train_config(values, path, version)


def _steps_on_one_batch(trainer: Trainer) -> Callable[[], object]:
    """Makes the next step each time; the batch is on the device already."""
    batch = next(on_device(trainer.loader, trainer.device))
    numbers = itertools.count()
    return lambda: trainer.train_step(next(numbers), itertools.repeat(batch))


def _training_step(setting: Setting, *, version: str, **flags: Any) -> Figures:
    with _trainer(setting, version, **flags) as trainer:
        step = _steps_on_one_batch(trainer)
        start = time.perf_counter()
        if trainer.flags.compile:
            step()
        first = time.perf_counter() - start
        seconds, memory = _cost(step, setting)
        note = f"{first:.1f} s to compile" if trainer.flags.compile else f"{trainer.network.token_range[0]} tokens"
    return Figures(seconds * 1e3, setting.batch_size / seconds, memory, note)


def _kernels(setting: Setting, *, version: str) -> Figures:
    kinds = torch.profiler.ProfilerActivity
    activity = kinds.CUDA if setting.device.type == "cuda" else kinds.CPU
    with _trainer(setting, version) as trainer:
        step = _steps_on_one_batch(trainer)
        for _ in range(setting.num_warm_ups):
            step()
        with torch.profiler.profile(activities=[activity]) as profile:
            step()
        counts = {event.key: event.count for event in profile.key_averages()}
    started, waits = (sum(counts.get(name, 0) for name in names) for names in (LAUNCHES, WAITS))
    if setting.device.type == "cuda" and not started:
        raise RuntimeError("the profiler saw no kernel; it may need permission to look (CUPTI)")
    return Figures(note=f"{started} started, the host waits {waits} times")


def _loader(setting: Setting) -> Figures:
    """A training that loads its batches, as `step.wait_share` and the loader's figures of system.jsonl tell of it."""
    num_steps = 1 if setting.is_dry else LOADER_STEPS
    with _trainer(setting, "v1", num_workers=1 if setting.is_dry else None) as trainer:
        batches = on_device(trainer.loader, trainer.device)
        trainer.train_step(0, batches)  # workers start, and libraries are loaded
        before = trainer.clock.wall.get("wait", 0.0)
        trainer.loader.statistics().reset()
        start = time.perf_counter()
        for step in range(1, 1 + num_steps):
            trainer.train_step(step, batches)
        seconds = time.perf_counter() - start
        wait = trainer.clock.wall["wait"] - before
        cpu_ms = trainer.loader.statistics().metrics()["loader.cpu_ms_per_image"]
        num_workers = trainer.loader.num_workers
    note = f"{wait / seconds:.1%} of a step, {num_workers} workers, {cpu_ms:.0f} ms of CPU an image"
    return Figures(seconds * 1e3 / num_steps, num_steps * setting.batch_size / seconds, note=note)


# --- inference, losses ---


def _inference(setting: Setting, *, version: str, num_tokens: int, precision: Precision) -> Figures:
    """One photo of 720x480, from its bytes to geometry on the host."""
    values = scaled_config(version, setting.folder, encoder=setting.encoder, size=setting.size)
    with setting.device:
        model = build_model(version, **values["model"]).eval()
    model.use_channels_last()
    width, height = (72, 48) if setting.is_dry else (720, 480)
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    work = partial(predict, model, [image], num_tokens=setting.num_tokens(num_tokens), precision=precision)
    seconds, memory = _cost(work, setting)
    return Figures(seconds * 1e3, 1 / seconds, memory)


def _loss(setting: Setting, *, number: int) -> Figures:
    measured = losses.measurements(setting.folder, setting.device, with_oracle=True, tiny=setting.is_dry)
    _, _, prepare = next(itertools.islice(measured, number, None))
    seconds, memory = _cost(prepare(), setting)
    return Figures(seconds * 1e3, None, memory)


def _cost(work: Callable[[], object], setting: Setting) -> tuple[float, float]:
    """Seconds, and GB as of `_peak_gb`; a dry run does the work once."""
    if setting.is_dry:
        start = time.perf_counter()
        memory = _peak_gb(work, setting.device)
        return time.perf_counter() - start, memory
    work()
    memory = _peak_gb(work, setting.device)
    return median_seconds(partial(finish, work, setting.device), REPEATS), memory


def _peak_gb(work: Callable[[], object], device: torch.device) -> float:
    """Most memory that tensors had on the device, weights and all; on a CPU only what came on top of it."""
    if device.type != "cuda":
        return extra_memory(work, device) / 1e3
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9


if __name__ == "__main__":
    sys.exit(main())
