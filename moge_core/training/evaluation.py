"""Held-out scores of a run's best checkpoint, kept beside the run and in a history over all runs of an asset."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moge_core.errors import WorkspaceError
from moge_core.io.files import atomic_open
from moge_core.training.config import load_train_config
from moge_core.training.workspace import CheckpointInfo, Workspace, write_json

if TYPE_CHECKING:
    from moge_core.models import MoGeModel
    from moge_core.training.validation import HeldOut

HISTORY_NAME = "evaluations.jsonl"
EVALUATION_NAME = "evaluation.json"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one checkpoint on what its training never saw.

    Attributes:
        checkpoint: the model file that was scored.
        sha256: its digest, as the manifest recorded it.
        step: of the checkpoint.
        weights: `ema` for the average, `model` for the plain weights.
        scores: `rel` and `delta1` of affine-invariant points (MoGe-1, section 4), means over the datasets; empty when
            nothing was held out.
        datasets: the same for each dataset, with `instances`, how many were scored.
        parent_scores: `scores` of the checkpoint that the training began with, where that is still there.
        time: when, in UTC.
    """

    checkpoint: str
    sha256: str | None
    step: int
    weights: str
    scores: Mapping[str, float]
    datasets: Mapping[str, Mapping[str, float]]
    parent_scores: Mapping[str, float] | None
    time: str


def evaluate_best(workspace: Workspace, *, most: int = 32, progress: Progress | None = None) -> Evaluation:
    """Score the best checkpoint of a run: that of best.json, or else the newest.

    Its plain weights and their average are both scored, and the better ones count: a short training is ahead of its
    average. Writes evaluation.json into the workspace and a line into `evaluations.jsonl` beside it.

    Args:
        workspace: of a training that has a complete checkpoint and its config.json.
        most: instances to score of each dataset, evenly spaced over what was held out.
        progress: called with (done, total), in model files.

    Raises:
        WorkspaceError: there is no complete checkpoint.
        MoGeError: the configuration, a list of instances or the checkpoint cannot be read.
    """
    from moge_core.training.validation import untrained_instances

    checkpoint = _best_of(workspace)
    config = load_train_config(workspace.config_path)
    held_out = untrained_instances(config.data, _fraction_of(checkpoint.manifest), most)
    files = {
        "model": checkpoint.model_path,
        "ema": checkpoint.ema_path,
        "parent": _parent_of(checkpoint.manifest),
    }
    found: dict[str, dict[str, float]] = {}
    for done, (name, path) in enumerate(files.items(), start=1):
        if path is not None:
            found[name] = _scores_of(path, held_out)
        if progress:
            progress(done, len(files))
    parent = found.pop("parent", None)
    best = _evaluation(checkpoint, min(found, key=lambda name: _rank(found[name])), found, held_out, parent)
    write_json(workspace.path / EVALUATION_NAME, asdict(best))
    _remember(workspace, best)
    return best


def read_history(root: Path) -> list[dict[str, Any]]:
    """The evaluations of all runs below `root`, oldest first, each with its `workspace`; passes over broken lines."""
    path = root / HISTORY_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    history = []
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:  # a killed process wrote it
            continue
        if isinstance(values, dict) and isinstance(values.get("scores"), dict):
            history.append(values)
    return history


def _best_of(workspace: Workspace) -> CheckpointInfo:
    best = workspace.best()
    complete = {checkpoint.step: checkpoint for checkpoint in workspace.checkpoints()}
    if not complete:
        raise WorkspaceError(
            workspace.path, "must hold a complete checkpoint", found="none", fix="Train first; a save must be complete."
        )
    return complete[best["step"] if best is not None and best["step"] in complete else max(complete)]


def _fraction_of(manifest: Mapping[str, Any]) -> float | None:
    """Share of the datasets that the training held out; None if it held nothing out."""
    if manifest.get("held_out") is None:
        return None
    return float(manifest.get("held_out_fraction") or 0.0)


def _parent_of(manifest: Mapping[str, Any]) -> Path | None:
    """The checkpoint that the training began with, where it has one and the file is there."""
    parent = manifest.get("parent")
    path = Path(parent["path"]) if isinstance(parent, Mapping) and parent.get("path") else None
    return path if path is not None and path.is_file() else None


def _scores_of(path: Path, held_out: list[HeldOut]) -> dict[str, float]:
    """As `score_held_out`; empty when nothing is held out."""
    if not held_out:
        return {}
    from moge_core.models import load_model
    from moge_core.training.validation import score_held_out

    model = load_model(path).to(_device())
    return score_held_out(model, held_out, _num_tokens(model))


def _evaluation(
    checkpoint: CheckpointInfo,
    weights: str,
    found: Mapping[str, Mapping[str, float]],
    held_out: list[HeldOut],
    parent: Mapping[str, float] | None,
) -> Evaluation:
    path = checkpoint.model_path if weights == "model" else checkpoint.ema_path
    assert path is not None
    scores = found[weights]
    return Evaluation(
        checkpoint=str(path.absolute()),
        sha256=checkpoint.recorded_digest(path),
        step=checkpoint.step,
        weights=weights,
        scores=_named(scores, "eval"),
        datasets={
            each.name: {"instances": len(each.instances), **_named(scores, f"eval.{each.name}")} for each in held_out
        },
        parent_scores=_named(parent, "eval") if parent else None,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _named(scores: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name: scores[key] for name in ("rel", "delta1") if (key := f"{prefix}.{name}") in scores}


def _num_tokens(model: MoGeModel) -> int:
    """The middle of the range, where scores during training are made as well."""
    least, most = model.num_tokens_range
    return (int(least) + int(most)) // 2


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _rank(scores: Mapping[str, float]) -> float:
    value = scores.get("rel", math.inf)
    return value if math.isfinite(value) else math.inf


def _remember(workspace: Workspace, evaluation: Evaluation) -> None:
    history = [*read_history(workspace.path.parent), {"workspace": workspace.path.name, **asdict(evaluation)}]
    with atomic_open(workspace.path.parent / HISTORY_NAME) as file:
        file.write("".join(f"{json.dumps(line)}\n" for line in history).encode())
