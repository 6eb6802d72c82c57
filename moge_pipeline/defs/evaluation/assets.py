"""`evaluation_<training or finetuning>`: held-out scores of its best checkpoint, with the history of all its runs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from moge_core.device_leases import leased_device
from moge_core.errors import WorkspaceError
from moge_core.evaluation import are_comparable
from moge_core.training import Workspace, finished_workspaces
from moge_pipeline.catalog import Catalog, FinetuneEntry, TrainingEntry, evaluation_name
from moge_pipeline.defs.errors import mendable_errors, never_finished, usable
from moge_pipeline.defs.quality.thumbnails import markdown_picture
from moge_pipeline.defs.references import trained_asset
from moge_pipeline.defs.resources.tracking import TrackedRun
from moge_pipeline.defs.runs.worker import begin_step

if TYPE_CHECKING:
    from moge_core.training.evaluation import Evaluation

HELD_OUT_CHECK = "scored_on_unseen_data"
REGRESSION_CHECK = "no_worse_than_before"
TOLERATED = 1.05
"""An error that is larger by this factor than that of the evaluation before is a regression."""

_ROWS_OF_HISTORY = 20


class EvaluationConfig(dg.Config):
    """How much is scored."""

    num_instances: int = Field(32, ge=1, description="Held-out instances to score of each dataset, evenly spaced.")
    workspace: str = Field("newest", description="Number of the run to score, e.g. `3` (default: the newest finished).")


def evaluation_asset(entry: TrainingEntry | FinetuneEntry, catalog: Catalog) -> dg.AssetsDefinition:
    """The scores of one training or finetuning."""
    name = evaluation_name(entry.asset_name)
    key = dg.AssetKey([name])

    @trained_asset(
        entry,
        name=name,
        deps=[dg.AssetKey([entry.asset_name])],
        group="evaluation",
        check_specs=_check_specs(key),
        description=f"Error of the best checkpoint of `{entry.asset_name}` on instances that its training never saw:"
        " those of each dataset's `.val.txt`, or the share that `eval_fraction` holds out. The step and its weights are"
        " chosen by one part of these, and scored on the other. `rel` is the relative error"
        " of affine-invariant points (lower is better), `delta1` the share of points within 25 % (higher is better)."
        f" Kept in `workspace/{entry.asset_name}/<n>/evaluation.json`, all runs in `evaluations.jsonl` beside.",
    )
    def evaluate(
        context: dg.AssetExecutionContext, config: EvaluationConfig, mlflow: dg.ResourceParam[Any]
    ) -> Iterator[dg.MaterializeResult[Any]]:
        begin_step()
        usable(entry.config, entry.error)
        from moge_core.training.evaluation import evaluate_best, read_history

        with mendable_errors():
            workspace = _workspace_of(entry.asset_name, config.workspace, catalog)
            context.log.info(f"Scoring the best checkpoint of {workspace.path}")
            holder = f"{name}, run {context.run.run_id[:8]}"
            with (
                leased_device(holder, context.log.info) as device,
                mlflow.asset_run(context, f"{name}/{workspace.path.name}") as run,
            ):
                evaluation = evaluate_best(
                    workspace,
                    most=config.num_instances,
                    device=device,
                    progress=lambda done, total: context.log.info(f"Scored {done} of {total} sets of weights"),
                    tell=context.log.info,
                )
                _tell_mlflow(run, workspace, evaluation)
                tracked = run.metadata
        history = read_history(workspace.path.parent)
        yield dg.MaterializeResult(
            metadata={**_metadata(workspace, evaluation), **_history_metadata(entry.asset_name, history), **tracked},
            check_results=_check_results(evaluation, history),
        )

    return evaluate


def _check_specs(key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    promises = {
        HELD_OUT_CHECK: "At least one dataset has instances that training never saw.",
        REGRESSION_CHECK: f"The error is at most {TOLERATED:g} times that of the evaluation before on the same"
        " instances, or else that of the parent.",
    }
    return [dg.AssetCheckSpec(name, asset=key, description=promise) for name, promise in promises.items()]


def _workspace_of(asset_name: str, wanted: str, catalog: Catalog) -> Workspace:
    root = catalog.workspace_dir / asset_name
    if wanted != "newest":
        workspace = Workspace(root / wanted)
        if not wanted.isdigit() or not workspace.config_path.is_file():
            raise WorkspaceError(workspace.path, "must be the workspace of a training", fix="Name it by its number.")
        return workspace
    finished = finished_workspaces(root)
    if not finished:
        raise never_finished(root, asset_name, "to score")
    return finished[0]


def _tell_mlflow(run: TrackedRun, workspace: Workspace, evaluation: "Evaluation") -> None:
    """The scores as metrics at the checkpoint's step; the run lies below that of the training."""
    training_run = workspace.tracking_run_id()
    tags = {
        "moge.workspace": str(workspace.path),
        "moge.checkpoint": evaluation.checkpoint,
        "moge.checkpoint_sha256": evaluation.sha256,
        "moge.weights": evaluation.weights,
        **{f"moge.{name}": str(value) for name, value in _conditions(evaluation).items()},
        "mlflow.parentRunId": training_run,
    }
    run.describe(tags={key: value for key, value in tags.items() if value is not None})
    metrics = {f"heldout/{name}": value for name, value in evaluation.scores.items()}
    for dataset, scores in evaluation.datasets.items():
        metrics |= {f"heldout/{dataset}/{name}": value for name, value in scores.items()}
    run.measure(metrics, step=evaluation.step)


def _metadata(workspace: Workspace, evaluation: "Evaluation") -> dict[str, Any]:
    known: dict[str, Any] = {
        **{name: float(value) for name, value in evaluation.scores.items() if math.isfinite(value)},
        "workspace": dg.MetadataValue.path(workspace.path),
        "checkpoint": dg.MetadataValue.path(evaluation.checkpoint),
        "checkpoint_sha256": evaluation.sha256 or "not recorded",
        "step": evaluation.step,
        "weights": {"ema": "moving average", "model": "as trained"}[evaluation.weights],
    }
    known |= _conditions(evaluation)
    if evaluation.datasets:
        rows: list[dict[str, str | float]] = [
            {"dataset": name, **scores} for name, scores in evaluation.datasets.items()
        ]
        known["datasets"] = dg.MetadataValue.table([dg.TableRecord(row) for row in rows])
    known |= {f"selection_{name}": float(v) for name, v in evaluation.selection.items() if math.isfinite(v)}
    if evaluation.unclaimed:
        known["unclaimed"] = dict(evaluation.unclaimed)
    if evaluation.parent_scores and math.isfinite(evaluation.parent_scores.get("rel", math.nan)):
        known["rel_of_parent"] = float(evaluation.parent_scores["rel"])
    return known


def _conditions(evaluation: "Evaluation") -> dict[str, Any]:
    """Under which the scores were made; empty where nothing was scored."""
    if not evaluation.scores:
        return {}
    return {
        "precision": evaluation.precision,
        "num_tokens": evaluation.num_tokens,
        "instances_digest": evaluation.instances_digest,
    }


def _history_metadata(asset_name: str, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from moge_core.visualization import plot_lines

    scored = [each for each in history if each["scores"]]
    if not scored:
        return {}
    picture = plot_lines(
        _comparable_lines(scored),
        title=f"Held-out error of {asset_name}",
        x_label="evaluation",
        y_label="rel",
    )
    rows = [
        {
            "time": each["time"],
            "run": each["workspace"],
            "step": each["step"],
            "rel": each["scores"].get("rel"),
            "delta1": each["scores"].get("delta1"),
            "precision": each.get("precision"),
            "num_tokens": each.get("num_tokens"),
            "instances": each.get("instances_digest"),
        }
        for each in reversed(scored[-_ROWS_OF_HISTORY:])
    ]
    return {
        "score_over_time": markdown_picture(picture, f"Held-out error of {asset_name} over its evaluations"),
        "history": dg.MetadataValue.table([dg.TableRecord(row) for row in rows]),
    }


def _comparable_lines(scored: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """`rel` over the number of the evaluation. No line connects scores that may not be compared."""
    present, otherwise = "rel", "rel, scored otherwise"
    lines: dict[str, tuple[list[int], list[float]]] = {present: ([], []), otherwise: ([], [])}
    before: dict[str, Mapping[str, Any]] = {}
    for number, each in enumerate(scored, start=1):
        name = present if each is scored[-1] or are_comparable(each, scored[-1]) else otherwise
        x, y = lines[name]
        if name in before and not are_comparable(each, before[name]):
            x.append(number)
            y.append(math.nan)  # a gap
        x.append(number)
        y.append(each["scores"].get("rel", math.nan))
        before[name] = each
    return {name: line for name, line in lines.items() if line[0]}


def _check_results(evaluation: "Evaluation", history: Sequence[Mapping[str, Any]]) -> list[dg.AssetCheckResult]:
    held_out = dg.AssetCheckResult(
        check_name=HELD_OUT_CHECK,
        passed=bool(evaluation.scores),
        severity=dg.AssetCheckSeverity.WARN,
        description=None if evaluation.scores else _why_unscored(evaluation),
    )
    now = evaluation.scores.get("rel")
    comparable = [each["scores"] for each in history[:-1] if are_comparable(each, asdict(evaluation))]
    if (
        not comparable and evaluation.parent_scores
    ):  # new data change what is held out; the parent was scored on it, too
        comparable = [evaluation.parent_scores]
    earlier = [scores["rel"] for scores in comparable if scores.get("rel") is not None]
    before = earlier[-1] if earlier else None
    worse = now is not None and before is not None and not now <= TOLERATED * before
    told = {"before": before, "now": now}
    description = f"rel was {before:.4f} and is {now:.4f}" if before is not None and now is not None else None
    if now is not None and before is None and len(history) > 1:
        description = "No evaluation before was made on the same instances, at the same resolution and precision."
    regression = dg.AssetCheckResult(
        check_name=REGRESSION_CHECK,
        passed=not worse,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
        metadata={name: float(value) for name, value in told.items() if value is not None and math.isfinite(value)},
    )
    return [held_out, regression]


def _why_unscored(evaluation: "Evaluation") -> str:
    if evaluation.unclaimed:
        return "; ".join(f"{name}: {why}" for name, why in evaluation.unclaimed.items())
    return (
        "Nothing was held out, so nothing can be scored. Set `eval_every` and `eval_fraction` in the"
        " configuration's `run` section, or split the dataset: `moge index DATASET --val-fraction 0.05`."
    )
