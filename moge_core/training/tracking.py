"""Who hears of a training run: metrics.jsonl, MLflow, and whatever else observes it. Imports no torch."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from moge_core.io.files import atomic_open
from moge_core.training.workspace import RunStatus

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Hears of a run's progress, on rank 0 only."""

    def on_start(self, workspace: Path, parameters: Mapping[str, Any]) -> None:
        """Training is about to begin; `parameters` are all flags and what was derived from them."""

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Means since the last call."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint is complete."""

    def on_end(self, status: RunStatus) -> None:
        """The run ended, one way or another."""


class Observers:
    """Passes every event on to each observer; one that fails is told in the log and never stops the training."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def on_start(self, workspace: Path, parameters: Mapping[str, Any]) -> None:
        """See `Observer`."""
        self._tell("on_start", workspace, parameters)

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Observer`."""
        self._tell("on_log", step, metrics)

    def on_checkpoint(self, step: int, path: Path) -> None:
        """See `Observer`."""
        self._tell("on_checkpoint", step, path)

    def on_end(self, status: RunStatus) -> None:
        """See `Observer`."""
        self._tell("on_end", status)

    def _tell(self, event: str, *arguments: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, event)(*arguments)
            except Exception as error:  # whatever tracking does, training goes on
                logger.warning("%s.%s failed: %s", type(observer).__name__, event, error)


class MetricsFile:
    """metrics.jsonl: one object a line, `{"step": ..., "loss": ...}`; not-a-number is null."""

    def __init__(self, path: Path, first_step: int = 0) -> None:
        self.path = path
        if path.is_file():
            self._drop_from(first_step)

    def _drop_from(self, first_step: int) -> None:
        """Forget lines that a resumed run will write again, and a line that a crash cut short."""
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < first_step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: dropped a damaged line", self.path)
        with atomic_open(self.path) as file:
            file.write("".join(line + "\n" for line in kept).encode())

    def on_start(self, workspace: Path, parameters: Mapping[str, Any]) -> None:
        """Nothing to write before the first metrics."""

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line."""
        values = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Checkpoints have manifests of their own."""

    def on_end(self, status: RunStatus) -> None:
        """The ending is in status.json."""


def default_tracking_uri(root: Path) -> str:
    """The MLflow store of a project folder."""
    return f"sqlite:///{root.resolve()}/mlflow.db"


def fail_fast() -> None:
    """Let a store that is down cost seconds, not MLflow's default of minutes; to be called before its import."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


class MLflowTracker:
    """Metrics, parameters and tags in MLflow.

    Joins the run that `MLFLOW_RUN_ID` names, or else opens one of its own. A store that does not answer costs a
    warning, not the training: the metrics are in metrics.jsonl anyway.
    """

    def __init__(self, tags: Mapping[str, str], experiment: str = "moge") -> None:
        fail_fast()
        import mlflow

        uri = os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(Path.cwd())
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        self._joined = os.environ.get("MLFLOW_RUN_ID")
        if self._joined:
            self.run_id = self._joined
        else:
            found = self._client.get_experiment_by_name(experiment)
            experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
            self.run_id = self._client.create_run(experiment_id, run_name=tags.get("mlflow.runName")).info.run_id
        for key, value in tags.items():
            if not (self._joined and key == "mlflow.runName"):
                self._client.set_tag(self.run_id, key, value)

    def on_start(self, workspace: Path, parameters: Mapping[str, Any]) -> None:
        """Log the parameters; a resumed run keeps those it began with."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        limit = 6000
        params = [Param(key, str(value)[:limit]) for key, value in parameters.items() if key not in known]
        self._client.log_batch(self.run_id, params=params)
        self._client.set_tag(self.run_id, "moge.workspace", str(workspace.resolve()))

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step's metrics in one request."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(key, value, now, step) for key, value in metrics.items() if math.isfinite(value)]
        self._client.log_batch(self.run_id, metrics=values)

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Name the newest checkpoint."""
        self._client.set_tag(self.run_id, "moge.checkpoint", str(path.resolve()))

    def on_end(self, status: RunStatus) -> None:
        """Record how the run ended; who opened the run closes it."""
        self._client.set_tag(self.run_id, "moge.ending", f"{status.state}: {status.reason}")
        if not self._joined:
            endings = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
            self._client.set_terminated(self.run_id, endings.get(status.state, "FAILED"))


def open_mlflow(tags: Mapping[str, str]) -> MLflowTracker | None:
    """The MLflow tracker, or None with a warning where the store does not answer."""
    try:
        return MLflowTracker(tags)
    except Exception as error:  # any failure of the store: training goes on without it
        logger.warning("MLflow does not answer, metrics go to metrics.jsonl alone: %s", error)
        return None
