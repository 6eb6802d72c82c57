"""`make demo`: from nothing to a trained model and its lineage, through Dagster, with a score that shows it learnt.

Every step looks first whether its result is there, so a second run ends at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from moge_core.datasets import read_index
from moge_core.datasets.parallel import num_cores
from moge_core.errors import MissingIndexError, MoGeError
from moge_core.training import Workspace, finished_workspaces, load_train_config
from moge_pipeline.accelerate_command import has_gpu
from moge_pipeline.catalog import project_root

TRAIN_DATA = Path("data/sample")
HELDOUT_DATA = Path("data/sample_heldout")
# Number, seed and size: many small scenes teach more in a minute than few large ones.
SCENES = {TRAIN_DATA: (2400, 1, "200x150"), HELDOUT_DATA: (32, 2, "320x240")}
CONFIG = Path("configs/train/sample.json")
TRAINING_ROOT = Path("workspace/train_sample")
QUALITY_ROOT = Path("workspace/quality/sample")
SELECTION = "+train_sample,quality/sample,evaluation_train_sample"
MATERIALIZE = ["-m", "dagster", "asset", "materialize", "-m", "moge_pipeline.definitions"]
AIM = 0.85
"""The model's score over the best constant's: at most this much, or the demo has failed."""


def main() -> int:
    """Run the demo in the project's folder; returns the exit code."""
    os.chdir(project_root())
    try:
        return _demonstrate()
    except MoGeError as error:
        print(f"demo stopped: {error}", file=sys.stderr)
        return 2


def _demonstrate() -> int:
    _make_scenes()
    workspace = _finished_training()
    if workspace is None or not any(QUALITY_ROOT.rglob("*.ply")):
        _run([*MATERIALIZE, "--select", SELECTION, "--config-json", json.dumps(_run_config())])
        workspace = _finished_training()
        assert workspace is not None, "a materialization that succeeded leaves a finished training"
    else:
        print(f"train_sample: {workspace.path} is finished already")
    scores = _score(workspace)
    _tell(workspace, scores)
    return 0 if scores["trained"] <= AIM * scores["constant"] else 1


def _make_scenes() -> None:
    for folder, (count, seed, size) in SCENES.items():
        try:
            have = len(read_index(folder))
        except MissingIndexError:
            have = 0
        if have == count:
            print(f"{folder}: {count} scenes are there already")
            continue
        flags = ["--count", str(count), "--seed", str(seed), "--size", size]
        _run(["-m", "moge_core.cli", "sample-scenes", str(folder), *flags])
        if folder == HELDOUT_DATA:  # the other is indexed by its asset
            _run(["-m", "moge_core.cli", "index", str(folder)])


def _finished_training() -> Workspace | None:
    """The newest finished run of the demo's configuration as it is now, trained to its end."""
    config = load_train_config(CONFIG)
    for workspace in finished_workspaces(TRAINING_ROOT):
        status, checkpoint = workspace.status(), workspace.latest_checkpoint()
        if status is None or checkpoint is None or status.num_iterations != config.run.num_iterations:
            continue
        if checkpoint.manifest["config_digest"] == config.digest():
            return workspace
    return None


def _run_config() -> dict[str, Any]:
    """Without a GPU two processes of one thread train almost twice as fast as one of two; the batch stays the same."""
    if has_gpu() or num_cores() < 2:
        return {}
    batch_size = load_train_config(CONFIG).run.batch_size_forward
    assert batch_size is not None
    flags = {"num_processes": 2, "batch_size_forward": batch_size // 2, "num_workers": 0}
    return {"ops": {"train_sample": {"config": flags}}}


def _score(workspace: Workspace) -> dict[str, float]:
    """Held-out scores before and after training and of the best constant, kept beside the run."""
    path = workspace.path / "heldout.json"
    if not path.is_file():
        first, last = workspace.checkpoint_at(0), workspace.latest_checkpoint()
        assert last is not None
        arguments = ["--data", str(HELDOUT_DATA), "--constant-from", str(TRAIN_DATA), "--json", str(path)]
        _run(["-m", "moge_core.cli", "evaluate", str(first.model_path), str(last.model_path), *arguments])
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    step_0, trained = (score["rel"] for score in values["checkpoints"].values())
    return {"step_0": step_0, "constant": values["constant"]["rel"], "trained": trained}


def _tell(workspace: Workspace, scores: dict[str, float]) -> None:
    plys = sorted(QUALITY_ROOT.rglob("*.ply"))
    ratio = scores["trained"] / scores["constant"]
    print(f"""
Affine-invariant point error (rel) on {SCENES[HELDOUT_DATA][0]} scenes that the model never saw:
    before training        {scores["step_0"]:.4f}
    best constant map      {scores["constant"]:.4f}
    trained                {scores["trained"]:.4f}   = {ratio:.2f} x constant (aim: at most {AIM})

What was made:
    dataset                {TRAIN_DATA} ({SCENES[TRAIN_DATA][0]} scenes; list in {TRAIN_DATA / ".index.txt"})
    point clouds           {len(plys)} PLY files below {QUALITY_ROOT}, e.g. {plys[0] if plys else "-"}
    the data as a page     {next(iter(QUALITY_ROOT.glob("*.html")), "-")}
    checkpoints            {workspace.checkpoint_dir}
    predictions            {workspace.path / "vis"}
    metrics                {workspace.metrics_path}

How to look at it:
    make dev               Dagster at http://127.0.0.1:3000 (lineage, runs), MLflow at http://127.0.0.1:5000
    open the page          in any browser; its point clouds can be turned
    open a PLY             in MeshLab, CloudCompare or Blender""")


def _run(arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    result = subprocess.run([sys.executable, *arguments], env=environment, check=False)
    if result.returncode != 0:
        sys.exit(f"demo stopped: `python {' '.join(arguments)}` ended with code {result.returncode}")


if __name__ == "__main__":
    sys.exit(main())
