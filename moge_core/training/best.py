"""The best checkpoint so far, as best.json tells it, and what may be compared with it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from accelerate.utils import broadcast_object_list

from moge_core.errors import MoGeError
from moge_core.evaluation import ScoringConditions, are_comparable
from moge_core.models.checkpoint import read_model_file
from moge_core.models.weights import check_weights
from moge_core.training.network import Network
from moge_core.training.scoring import HeldOutScorer, HeldOutScores
from moge_core.training.tracking import finite_only
from moge_core.training.workspace import Workspace

logger = logging.getLogger(__name__)


def best_record(step: int, metric: str, scores: HeldOutScores) -> dict[str, Any] | None:
    """What best.json says of a step if that is the best; None where the metric is not finite."""
    value = scores.values.get(metric, math.nan)
    if not math.isfinite(value):
        return None
    return {
        "step": step,
        "metric": metric,
        "value": value,
        "scores": finite_only(scores.values),
        **asdict(scores.conditions),
    }


def is_better(record: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    """Whether a step takes the best one's place; both are of this run, see `is_scored_alike`.

    Scores on different instances are not compared, since some could not be read one time: what was scored on more of
    them takes over.
    """
    if best is None:
        return True
    if are_comparable(record, best):
        return bool(record["value"] < best["value"])
    logger.warning("step %d is not compared with step %d, other instances were scored", record["step"], best["step"])
    return len(record["not_scored"]) < len(best["not_scored"])


def is_scored_alike(best: Mapping[str, Any], metric: str, conditions: ScoringConditions) -> bool:
    """Whether a record was made under the conditions of this run, whatever could be read at the time."""
    asked = asdict(replace(conditions, not_scored=best.get("not_scored", [])))
    return best.get("metric") == metric and are_comparable(best, asked)


def score_anew(
    best: Mapping[str, Any],
    metric: str,
    workspace: Workspace,
    network: Network,
    scorer: HeldOutScorer,
    *,
    is_main: bool,
) -> dict[str, Any] | None:
    """The record of the best step under the conditions of this run; its weights are lent to the network meanwhile.

    To be called by all ranks.

    Returns:
        None where its weights are gone.
    """
    step = int(best["step"])
    scores = None
    for prefix in ("eval", "eval_ema"):
        weights = _weights_of(workspace, step, prefix, network) if is_main else {}
        (is_there,) = broadcast_object_list([weights is not None])
        if is_there:
            with network.lent(weights or {}):
                found = scorer.score(network.raw_model, prefix)
            scores = found if scores is None else scores | found
    record = None if scores is None else best_record(step, metric, scores)
    if is_main and record is None:
        logger.warning("the best checkpoint so far, of step %d, cannot be scored anew: the next one takes over", step)
    elif is_main and record is not None:
        logger.info("the best checkpoint so far, of step %d, scored anew: %s %.4f", step, metric, record["value"])
    return record


def claim(
    best: Mapping[str, Any], workspace: Workspace, network: Network, scorer: HeldOutScorer, *, is_main: bool
) -> dict[str, Any] | None:
    """Scores of the best step on instances that it was not chosen by, of its weights that were better on the others.

    To be called by all ranks.

    Returns:
        None where its weights are gone or none of the instances can be scored.
    """
    known = {prefix: best["scores"].get(f"{prefix}.rel", math.inf) for prefix in ("eval", "eval_ema")}
    prefix = min(known, key=known.__getitem__)
    weights = _weights_of(workspace, int(best["step"]), prefix, network) if is_main else {}
    (is_there,) = broadcast_object_list([weights is not None])
    if not is_there:
        return None
    with network.lent(weights or {}):
        found = scorer.score(network.raw_model)
    named = {name: found.values[f"eval.{name}"] for name in ("rel", "delta1") if f"eval.{name}" in found.values}
    if not math.isfinite(named.get("rel", math.nan)):
        return None
    if is_main:
        whose = "averaged" if prefix == "eval_ema" else "plain"
        logger.info("claimed: rel %.4f of step %d, its %s weights", named["rel"], best["step"], whose)
    return {"weights": "ema" if prefix == "eval_ema" else "model", "scores": named, **asdict(found.conditions)}


def _weights_of(workspace: Workspace, step: int, prefix: str, network: Network) -> Mapping[str, Any] | None:
    try:
        info = workspace.checkpoint_at(step)
        path = info.ema_path if prefix == "eval_ema" else info.model_path
        if path is None:
            return None
        weights = read_model_file(path).weights
        check_weights(network.raw_model, weights, where=path)
    except MoGeError as error:
        logger.warning("%s", error)
        return None
    return weights
