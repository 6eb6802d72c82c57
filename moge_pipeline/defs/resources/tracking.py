"""dagster-mlflow's resource, opened when an asset trains and closed with the ending that the asset really had."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import dagster as dg

from moge_core.training.mlflow_tracking import metric_name
from moge_pipeline.process_tree import interrupts_held

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "moge"
MLFLOW_UI = "http://127.0.0.1:5000"
DAGSTER_UI = "http://127.0.0.1:3000"
PROBE_TIMEOUT_S = 5.0
MAX_PARAM_CHARACTERS = 6000
TRACKING_TAG = "moge/tracking"
TRACKING_OPEN, TRACKING_CLOSED = "open", "closed"
TRACKING_URI_TAG = "moge/tracking_uri"
"""Tags of a Dagster run: whether MLflow runs of it may still be open, and in which store."""


class TrainingInterruptedError(dg.Failure):
    """The training was asked to end from outside Dagster; it can go on from its last checkpoint."""


@dataclass
class TrackedRun:
    """One asset's run in MLflow. `run_id` is None where the store did not answer; everything here then does nothing."""

    tracking_uri: str
    run_id: str | None = None
    url: str | None = None
    client: MlflowClient | None = field(default=None, repr=False)
    log: Any = None

    @property
    def environment(self) -> dict[str, str]:
        """What lets the trainer join this run, or open its own once the store is back."""
        return {"MLFLOW_TRACKING_URI": self.tracking_uri, **({"MLFLOW_RUN_ID": self.run_id} if self.run_id else {})}

    @property
    def metadata(self) -> dict[str, Any]:
        """How a materialization names this run."""
        known: dict[str, Any] = {"mlflow_store": self.tracking_uri}
        if self.run_id and self.url:
            known |= {"mlflow_run": dg.MetadataValue.url(self.url), "mlflow_run_id": self.run_id}
        return known

    def describe(self, *, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None) -> None:
        """Add parameters and tags; a store that fails now costs a warning."""
        if self.client is None or self.run_id is None:
            return
        from mlflow.entities import Param, RunTag

        try:
            self.client.log_batch(
                self.run_id,
                params=[Param(key, str(value)[:MAX_PARAM_CHARACTERS]) for key, value in (params or {}).items()],
                tags=[RunTag(key, str(value)) for key, value in (tags or {}).items()],
            )
        except Exception as error:  # whatever the store does, training goes on
            self.log.warning(f"MLflow did not take parameters and tags: {error}")

    def measure(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics; a store that fails now costs a warning."""
        if self.client is None or self.run_id is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        try:
            self.client.log_batch(
                self.run_id, metrics=[Metric(metric_name(name), value, now, step) for name, value in metrics.items()]
            )
        except Exception as error:  # whatever the store does, the asset's own result counts
            self.log.warning(f"MLflow did not take metrics: {error}")


class MlflowTracking:
    """Opens one MLflow run for each asset that trains.

    dagster-mlflow by itself opens a run for everything that shares the process, and one for all assets of a Dagster
    run; here it joins a run that was made for this asset.
    """

    def __init__(self, init_context: dg.InitResourceContext, tracking_uri: str, experiment: str) -> None:
        self._init_context = init_context
        self.tracking_uri = tracking_uri
        self.experiment = experiment

    @contextlib.contextmanager
    def asset_run(self, context: dg.AssetExecutionContext, name: str) -> Iterator[TrackedRun]:
        """The asset's run, called `name`: FINISHED at the end, KILLED when cancelled, FAILED for any other error."""
        with contextlib.ExitStack() as opened:
            run = TrackedRun(self.tracking_uri, log=context.log)
            try:
                self._open(run, context, name, opened)
                yield run
            except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt, TrainingInterruptedError):
                self._close(run, context, "KILLED")
                raise
            except BaseException:
                self._close(run, context, "FAILED")
                raise
            self._close(run, context, "FINISHED")

    def _open(
        self, run: TrackedRun, context: dg.AssetExecutionContext, name: str, opened: contextlib.ExitStack
    ) -> None:
        reason = unreachable_because(self.tracking_uri)
        if reason is None:
            try:
                self._join(run, context, name, opened)
            except Exception as error:  # any failure of the store: training goes on without it
                reason = str(error) or type(error).__name__
                self._close(run, context, "FAILED")
        if reason is not None:
            run.run_id, run.client = None, None
            context.log.warning(
                f"MLflow at {self.tracking_uri} does not answer; training goes on without it. Reason: {reason}"
            )

    def _join(
        self, run: TrackedRun, context: dg.AssetExecutionContext, name: str, opened: contextlib.ExitStack
    ) -> None:
        from moge_core.training.mlflow_tracking import fail_fast

        fail_fast()
        import mlflow

        with warnings.catch_warnings():
            # dagster-mlflow notes at import and use that it is in beta.
            warnings.simplefilter("ignore", dg.BetaWarning)
            from dagster_mlflow import mlflow_tracking

        mlflow.set_tracking_uri(self.tracking_uri)
        client = mlflow.MlflowClient(self.tracking_uri)
        found = client.get_experiment_by_name(self.experiment)
        experiment_id = (
            found.experiment_id
            if found
            else client.create_experiment(self.experiment, artifact_folder(self.tracking_uri))
        )
        asset_key = context.asset_key.to_user_string()
        same = f"tags.dagster_run_id = '{context.run.run_id}' and tags.dagster_asset_key = '{asset_key}'"
        earlier = client.search_runs([experiment_id], same, max_results=1)
        tags = {
            "dagster_run_id": context.run.run_id,
            "dagster_asset_key": asset_key,
            "dagster_run": dagster_run_url(context.run.run_id),
        }
        # Should this process be killed, whoever looks after lost runs knows where to close this one.
        open_tags = {TRACKING_TAG: TRACKING_OPEN, TRACKING_URI_TAG: self.tracking_uri}
        context.instance.add_run_tags(context.run.run_id, open_tags)
        # A retry of the step continues the run of its first attempt.
        entity = earlier[0] if earlier else client.create_run(experiment_id, tags=tags, run_name=name)
        run.run_id, run.client = entity.info.run_id, client
        run.url = f"{os.environ.get('MOGE_MLFLOW_UI', MLFLOW_UI)}/#/experiments/{experiment_id}/runs/{run.run_id}"
        settings = {
            "experiment_name": self.experiment,
            "mlflow_tracking_uri": self.tracking_uri,
            "mlflow_run_id": run.run_id,
            "env": {},
            # dagster-mlflow renames the run after the Dagster job, which is `__ASSET_JOB` for all of them.
            "extra_tags": {**tags, "mlflow.runName": name},
        }
        resource: Any = contextlib.contextmanager(mlflow_tracking.resource_fn)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)
            opened.enter_context(resource(self._init_context.replace_config(settings)))

    def _close(self, run: TrackedRun, context: dg.AssetExecutionContext, status: str) -> None:
        if run.run_id is None or run.client is None:
            return
        import mlflow

        run_id = context.run.run_id

        with interrupts_held():
            try:
                mlflow.end_run(status)
                # The fluent call does nothing when the active run is not ours any more.
                run.client.set_terminated(run.run_id, status)
                # Other steps of the same Dagster run may be at work.
                experiment = run.client.get_run(run.run_id).info.experiment_id
                same = f"tags.dagster_run_id = '{run_id}' and attributes.status = 'RUNNING'"
                if not run.client.search_runs([experiment], same, max_results=1):
                    context.instance.add_run_tags(run_id, {TRACKING_TAG: TRACKING_CLOSED})
            except Exception as error:  # the asset's own ending counts, not the store's
                run.log.warning(f"MLflow did not record the ending {status}: {error}")


@dg.resource(
    config_schema={
        "experiment_name": dg.Field(str, default_value=EXPERIMENT, description="MLflow experiment of all trainings."),
        "mlflow_tracking_uri": dg.Field(
            dg.Noneable(dg.StringSource),
            default_value=None,
            is_required=False,
            description="MLflow store; by default MLFLOW_TRACKING_URI, or else mlflow.db in the project's folder.",
        ),
    },
    description="MLflow runs of trainings, by dagster-mlflow. A store that does not answer stops no training.",
)
def mlflow_resource(init_context: dg.InitResourceContext) -> MlflowTracking:
    """The resource that training assets take as `mlflow`; dagster_mlflow is imported when one of them trains."""
    from moge_core.training.mlflow_tracking import default_tracking_uri
    from moge_pipeline.catalog import project_root

    settings = init_context.resource_config
    uri = (
        settings["mlflow_tracking_uri"] or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(project_root())
    )
    return MlflowTracking(init_context, uri, settings["experiment_name"])


def unreachable_because(tracking_uri: str) -> str | None:
    """Why the store cannot be used, told within seconds where MLflow would retry for minutes; None when it can."""
    address = urlparse(tracking_uri)
    try:
        if address.scheme in ("http", "https"):
            with urlopen(f"{tracking_uri.rstrip('/')}/health", timeout=PROBE_TIMEOUT_S):  # noqa: S310  # scheme checked above
                return None
        if address.scheme == "sqlite":
            with contextlib.closing(sqlite3.connect(_sqlite_path(tracking_uri), timeout=PROBE_TIMEOUT_S)) as store:
                store.execute("PRAGMA schema_version")
    except HTTPError as error:
        # A server or proxy that asks for a password, or keeps this page elsewhere, is there; what fails is told by 5xx.
        return None if error.code < 500 else str(error)
    except Exception as error:  # sockets, addresses and sqlite each have kinds of their own
        return str(error) or type(error).__name__
    return None


def artifact_folder(tracking_uri: str) -> str | None:
    """Where a new experiment keeps its artifacts: beside a sqlite store, as MLflow's own default depends on the
    working directory. None leaves the choice to a server."""
    if urlparse(tracking_uri).scheme != "sqlite":
        return None
    return (_sqlite_path(tracking_uri).parent / "mlartifacts").as_uri()


def dagster_run_url(run_id: str) -> str:
    """Page of a Dagster run."""
    return f"{os.environ.get('MOGE_DAGSTER_UI', DAGSTER_UI)}/runs/{run_id}"


def _sqlite_path(tracking_uri: str) -> Path:
    return Path(tracking_uri.removeprefix("sqlite:///")).absolute()
