"""Held-out scores of a run's best checkpoint, kept beside the run and in a history over all runs of an asset."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moge_core.datasets.lists import FOLDER_RULE, SCENE_RULE
from moge_core.errors import WorkspaceError
from moge_core.io.files import atomic_open
from moge_core.training.config import load_train_config
from moge_core.training.workspace import CheckpointInfo, Workspace, write_json

if TYPE_CHECKING:
    import torch

    from moge_core.models.precision import Precision
    from moge_core.training.scoring import HeldOutScores
    from moge_core.training.validation import HeldOut

logger = logging.getLogger(__name__)

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
        scores: `rel` and `delta1` of affine-invariant points (MoGe-1, section 4), means over the datasets, on instances
            that neither the step nor its weights were chosen by; empty when there are none.
        datasets: the same for each dataset, with `instances`, how many were scored.
        parent_scores: `scores` of the checkpoint that the training began with, where that is still there.
        time: when, in UTC.
        precision, num_tokens, instances_digest, not_scored: see `ScoringConditions`; None where no score is claimed.
        selection: the same scores on the instances that the weights were chosen by.
        unclaimed: why there is no score of a dataset, by its name.
        rule: by which the training held out, see `lists.SCENE_RULE`. By the one of before the score is on what the
            weights were chosen by.
    """

    checkpoint: str
    sha256: str | None
    step: int
    weights: str
    scores: Mapping[str, float]
    datasets: Mapping[str, Mapping[str, float]]
    parent_scores: Mapping[str, float] | None
    time: str
    precision: Precision | None = None
    num_tokens: int | None = None
    instances_digest: str | None = None
    not_scored: list[str] | None = None
    selection: Mapping[str, float] = field(default_factory=dict)
    unclaimed: Mapping[str, str] = field(default_factory=dict)
    rule: int = SCENE_RULE


def evaluate_best(
    workspace: Workspace,
    *,
    most: int = 32,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    batch_size: int = 4,
    progress: Progress | None = None,
    tell: Callable[[str], None] = logger.info,
) -> Evaluation:
    """Score the best checkpoint of a run: that of best.json, or else the newest.

    Of its plain weights and their average those count that are better on the part of what was held out that the step
    was chosen by: a short training is ahead of its average. The score is that on the other part. Writes evaluation.json
    into the workspace and a line into `evaluations.jsonl` beside it.

    Args:
        workspace: of a training that has a complete checkpoint and its config.json.
        most: instances to score of each dataset, evenly spaced over what was held out.
        device: where the models run, see `choose_device`.
        precision: of the networks' encoders.
        batch_size: images of one size that are predicted at once.
        progress: called with (done, total), in model files.
        tell: hears of device and precision.

    Raises:
        InputError: there is no such device.
        WorkspaceError: there is no complete checkpoint.
        MoGeError: the configuration, a list of instances or the checkpoint cannot be read.
    """
    from moge_core.devices import choose_device, describe_device
    from moge_core.models import load_model
    from moge_core.training.scoring import HeldOutScorer, scoring_tokens
    from moge_core.training.validation import rule_of, untrained_instances

    checkpoint = _best_of(workspace)
    config = load_train_config(workspace.config_path)
    split = untrained_instances(config.data, _fraction_of(checkpoint.manifest), most, rule_of(checkpoint.manifest))
    target = choose_device(device)
    tell(f"device {describe_device(target)}, precision {precision}")
    for line in split.told:
        tell(line)
    own = {"model": checkpoint.model_path, "ema": checkpoint.ema_path}
    total = sum(path is not None for path in own.values()) + 2
    done = 0

    def score(path: Path | None, held_out: list[HeldOut]) -> HeldOutScores | None:
        nonlocal done
        found = None
        if path is not None and held_out:
            model = load_model(path).to(target)
            scorer = HeldOutScorer(held_out, scoring_tokens(model), batch_size=batch_size, precision=precision)
            found = scorer.score(model)
        done += 1
        if progress:
            progress(min(done, total), total)
        return found

    chosen_by = {name: found for name, path in own.items() if (found := score(path, split.held_out)) is not None}
    weights = min(chosen_by, key=lambda name: _rank(chosen_by[name]), default="model")
    is_same = split.rule == FOLDER_RULE
    claimed = chosen_by.get(weights) if is_same else score(own[weights], split.claimed)
    parent = score(_parent_of(checkpoint.manifest), split.claimed)
    best = replace(
        _evaluation(checkpoint, weights, claimed, split.claimed, parent),
        selection=_named(chosen_by[weights], "eval") if weights in chosen_by and not is_same else {},
        unclaimed=split.unclaimed,
        rule=split.rule,
    )
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


def _evaluation(
    checkpoint: CheckpointInfo,
    weights: str,
    found: HeldOutScores | None,
    held_out: list[HeldOut],
    parent: HeldOutScores | None,
) -> Evaluation:
    path = checkpoint.model_path if weights == "model" else checkpoint.ema_path
    assert path is not None
    plain = Evaluation(
        checkpoint=str(path.absolute()),
        sha256=checkpoint.recorded_digest(path),
        step=checkpoint.step,
        weights=weights,
        scores={},
        datasets={},
        parent_scores=None,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if found is None:
        return plain
    missed = set(found.conditions.not_scored)
    datasets = {}
    for each in held_out:
        num_scored = sum(f"{each.name}/{instance}" not in missed for instance in each.instances)
        datasets[each.name] = {"instances": num_scored, **_named(found, f"eval.{each.name}")}
    is_like_parent = parent is not None and parent.conditions == found.conditions
    return replace(
        plain,
        scores=_named(found, "eval"),
        datasets=datasets,
        parent_scores=_named(parent, "eval") if parent is not None and is_like_parent else None,
        **asdict(found.conditions),
    )


def _named(scores: HeldOutScores, prefix: str) -> dict[str, float]:
    return {name: scores.values[key] for name in ("rel", "delta1") if (key := f"{prefix}.{name}") in scores.values}


def _rank(scores: HeldOutScores) -> tuple[int, float]:
    """The lower the better; what could be scored on fewer instances comes last."""
    return len(scores.conditions.not_scored), scores.values.get("eval.rel", math.inf)


def _remember(workspace: Workspace, evaluation: Evaluation) -> None:
    history = [*read_history(workspace.path.parent), {"workspace": workspace.path.name, **asdict(evaluation)}]
    with atomic_open(workspace.path.parent / HISTORY_NAME) as file:
        file.write("".join(f"{json.dumps(line)}\n" for line in history).encode())
