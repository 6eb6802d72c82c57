"""`python -m benchmarks.train_step`: the small training step, split into what it waits for and works on, in U.

vits14, batch 2, 252 x 252, 324 tokens, activation checkpointing, the published loss sets, AdamW; the network is the
published one around the smaller encoder. `network` is the forward and backward pass of the model alone.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.units import unit_u
from moge_core.configuration import load_json
from moge_core.datasets import index_dataset, render_sample_scenes
from moge_core.models.config import ENCODERS
from moge_core.training.config import parse_train_config
from moge_core.training.flags import TrainFlags

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "train"
LABELS = {"v1": "synthetic", "v2": "A"}
PUBLISHED = {"v1": 78, "v2": 226}
NUM_STEPS = 7


def main() -> None:
    """Print a table for each version."""
    with tempfile.TemporaryDirectory() as folder:
        render_sample_scenes(Path(folder, "scenes"), 8, 2, size=(640, 480))
        index_dataset(Path(folder, "scenes"))
        for version in sys.argv[1:] or LABELS:
            _measure(version, Path(folder))


def _measure(version: str, folder: Path) -> None:
    from moge_core.training.trainer import Trainer

    values = scaled_config(version, folder / "scenes", encoder="dinov2_vits14", size=(252, 252), num_tokens=324)
    config = parse_train_config(values, folder / "config.json", version)
    flags = TrainFlags(
        config=folder / "config.json",
        workspace=folder / version,
        batch_size_forward=2,
        num_iterations=NUM_STEPS + 1,
        save_every=10**9,
        log_every=10**9,
        enable_mlflow=False,
        init="random",
        num_workers=0,
    )
    trainer = Trainer(config, flags, [])
    u = unit_u()
    steps: list[dict[str, float]] = []
    batches = iter(trainer.loader)
    for step in range(NUM_STEPS + 1):
        trainer.clock.wall.clear()
        trainer.train_step(step, batches)
        if step:  # the first one warms up
            steps.append(dict(trainer.clock.wall))
    u = (u + unit_u()) / 2
    phases = {phase: statistics.median(step[phase] for step in steps) / u for phase in steps[0]}
    total = statistics.median(sum(step.values()) for step in steps) / u
    network = phases["forward"] + phases["backward"]
    print(f"\n{version}, U = {u * 1e3:.0f} ms")
    for phase, cost in phases.items():
        print(f"  {phase:12}{cost:8.2f} U{cost / total:8.1%}")
    print(f"  {'step':12}{total:8.2f} U  (published code: {PUBLISHED[version]} U)")
    print(f"  outside the network's forward and backward: {1 - network / total:.1%}", flush=True)


def scaled_config(
    version: str, scenes: Path, *, encoder: str, size: tuple[int, int], num_tokens: int | None = None
) -> dict[str, Any]:
    """The published configuration for sample scenes, with one encoder, one size of images and one number of tokens.

    Args:
        version: of the model.
        scenes: an indexed dataset.
        encoder: everything that is as wide as the published one is as wide as this one.
        size: width and height of the images.
        num_tokens: of every step; None takes the middle of the published range.
    """
    values = load_json(CONFIGS / f"{version}.json")
    if version == "v1":
        values["model"]["encoder"] = encoder
    else:
        wide, shape = ENCODERS["dinov2_vitl14"], ENCODERS[encoder]
        values["model"] = _replaced(values["model"], {wide.dim: shape.dim, wide.dim + 2: shape.dim + 2})
        published = values["model"]["encoder"]["intermediate_layers"]
        layers = [(layer + 1) * shape.depth // wide.depth - 1 for layer in published]
        values["model"]["encoder"] |= {"backbone": encoder, "intermediate_layers": layers}
    middle = num_tokens or sum(values["model"]["num_tokens_range"]) // 2
    values["model"]["num_tokens_range"] = [middle, middle]
    dataset = {"name": "scenes", "path": str(scenes), "label_type": LABELS[version], "depth_unit": 1.0}
    values["data"] |= {"image_sizes": [list(size)], "fov_range_relative": [0.5, 1.0], "datasets": [dataset]}
    return values


def _replaced(value: Any, numbers: dict[int, int]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, numbers) for item in value]
    return numbers.get(value, value) if isinstance(value, int) else value


if __name__ == "__main__":
    main()
