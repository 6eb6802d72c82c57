"""Whether training with the fast search learns as much: `python -m benchmarks.alignment_training`, 20 minutes.

Trains the sample model with either search from several seeds and prints held-out scores, their means and spreads. The
alignments are larger than the sample configuration's, so that the search has something to miss.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from moge_core.configuration import deep_merge, load_json
from moge_core.datasets import index_dataset, render_sample_scenes
from moge_core.evaluation import score_model
from moge_core.models import load_model

SAMPLE = Path(__file__).resolve().parents[1] / "configs" / "train" / "sample.json"
SEEDS = (0, 1, 2)
NUM_STEPS = 300


def main() -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for scenes, count, seed in (("train", 1200, 1), ("heldout", 48, 2)):
            render_sample_scenes(folder / scenes, count, seed, size=(200, 150))
            index_dataset(folder / scenes)
        print(f"held-out rel of points_affine_invariant after {NUM_STEPS} steps\n")
        print(f"| search | {' | '.join(f'seed {seed}' for seed in SEEDS)} | mean | spread |")
        print(f"|---|{'---|' * (len(SEEDS) + 2)}")
        for method in ("search", "exhaustive"):
            scores = [_score(folder, method, seed) for seed in SEEDS]
            mean, spread = statistics.mean(scores), statistics.stdev(scores)
            print(f"| {method} | {' | '.join(f'{s:.4f}' for s in scores)} | {mean:.4f} | {spread:.4f} |", flush=True)


def _score(folder: Path, method: str, seed: int) -> float:
    loss = {
        "global": {"params": {"align_resolution": 16, "method": method}},
        "patch_4": {"params": {"align_resolution": 12, "num_patches": 2, "method": method}},
    }
    data = {"datasets": [{"name": "train", "path": "train", "label_type": "synthetic", "depth_unit": 1.0}]}
    schedule = {"params": {"lr_lambda": f"min(1.0, (epoch + 1) / 30) * max(0.02, 1 - epoch / {NUM_STEPS})"}}
    run = {"num_iterations": NUM_STEPS, "save_every": NUM_STEPS, "vis_every": 0, "log_every": 100, "enable_ema": False}
    changes = {"data": data, "lr_scheduler": schedule, "loss": {"synthetic": loss}, "run": run}
    config, workspace = folder / f"{method}{seed}.json", folder / f"{method}{seed}"
    config.write_text(json.dumps(deep_merge(load_json(SAMPLE), changes)))
    command = [sys.executable, "-m", "moge_core.training", "--config", str(config), "--workspace", str(workspace)]
    flags = ["--seed", str(seed), "--enable_mlflow", "False"]
    environment = {**os.environ, "MOGE_DATA_ROOT": str(folder)}
    subprocess.run([*command, *flags], check=True, env=environment, stderr=subprocess.DEVNULL)
    model = load_model(workspace / "checkpoint" / f"{NUM_STEPS - 1:08d}.pt")
    return score_model(model, folder / "heldout")["rel"]


if __name__ == "__main__":
    main()
