"""`python -m benchmarks.pipeline`: what opening the project costs, for 24 datasets, 6 trainings and 6 finetunings.

Each figure is the median of several fresh processes; `dagster` is the time of Dagster's own import in the same process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

NUM_DATASETS, NUM_TRAININGS, NUM_RUNS = 24, 6, 7
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "train" / "sample.json"

_CODE = """
import time
begin = time.perf_counter()
import dagster
imported = time.perf_counter()
import moge_pipeline.definitions as definitions
loaded = time.perf_counter()
definitions.defs.get_repository_def()
print(imported - begin, loaded - imported, time.perf_counter() - loaded)
"""


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        _write_project(Path(folder))
        environment = {**os.environ, "MOGE_PROJECT_ROOT": folder}
        runs = []
        for _ in range(NUM_RUNS):
            done = subprocess.run(
                [sys.executable, "-c", _CODE], env=environment, capture_output=True, text=True, check=True
            )
            runs.append([float(word) for word in done.stdout.split()])
    dagster, definitions, repository = (statistics.median(column) for column in zip(*runs, strict=True))
    print(f"{NUM_DATASETS} datasets, {NUM_TRAININGS} trainings, {NUM_TRAININGS} finetunings; median of {NUM_RUNS}")
    print(f"{'import dagster':40} {dagster:6.2f} s   1.0")
    print(f"{'import moge_pipeline.definitions':40} {definitions:6.2f} s   {definitions / dagster:.1f}")
    print(f"{'resolve the repository':40} {repository:6.2f} s   {repository / dagster:.1f}")


def _write_project(root: Path) -> None:
    from moge_core.configuration import load_json

    config = load_json(CONFIG)
    template = config["data"]["datasets"][0]
    config["data"]["datasets"] = [
        {**template, "name": f"dataset_{number}", "path": f"data/{number}"} for number in range(NUM_DATASETS)
    ]
    for stage in ("train", "finetune"):
        (root / "configs" / stage).mkdir(parents=True)
    for number in range(NUM_TRAININGS):
        (root / f"configs/train/model_{number}.json").write_text(json.dumps(config))
        finetune = {
            "base": f"train_model_{number}",
            "config": f"configs/train/model_{number}.json",
            "schedule": {"cron": "0 3 * * *"},
        }
        (root / f"configs/finetune/model_{number}.json").write_text(json.dumps(finetune))


if __name__ == "__main__":
    main()
