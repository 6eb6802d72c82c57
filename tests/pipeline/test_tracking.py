"""MLflow runs end as their assets do, and a store that is down stops nothing."""

import os
import signal
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pipeline_project import FakeLauncher, Project, metadata_of

from moge_pipeline.defs.resources.tracking import (
    TrainingInterruptedError,
    artifact_folder,
    mlflow_resource,
    unreachable_because,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def tracking(uri: str) -> Any:
    return mlflow_resource.configured({"mlflow_tracking_uri": uri})


def track(uri: str, body: Callable[[], None]) -> dg.ExecuteInProcessResult:
    """Run an asset that does `body` inside its MLflow run."""

    @dg.asset
    def tracked(context: dg.AssetExecutionContext, mlflow: dg.ResourceParam[Any]) -> None:
        with mlflow.asset_run(context, "tracked/1") as run:
            run.describe(params={"digest": "abc"}, tags={"moge.workspace": "w"})
            body()

    return dg.materialize([tracked], resources={"mlflow": tracking(uri)}, raise_on_error=False)


def runs_of(uri: str, result: dg.ExecuteInProcessResult) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("moge")
    return list(client.search_runs([experiment.experiment_id], f"tags.dagster_run_id = '{result.run_id}'"))


def fail() -> None:
    raise RuntimeError("trouble")


def stop_from_outside() -> None:
    raise TrainingInterruptedError("SIGTERM")


@pytest.mark.parametrize(
    ("body", "status"),
    [(lambda: None, "FINISHED"), (fail, "FAILED"), (stop_from_outside, "KILLED")],
    ids=["ok", "error", "outside"],
)
def test_an_mlflow_run_ends_as_its_asset_does(store: str, body: Callable[[], None], status: str) -> None:
    result = track(store, body)
    assert result.success == (status == "FINISHED")
    (run,) = runs_of(store, result)
    assert run.info.status == status
    assert run.info.end_time is not None
    assert run.info.run_name == "tracked/1"
    assert run.data.params == {"digest": "abc"}
    assert run.data.tags["dagster_asset_key"] == "tracked"
    assert run.data.tags["dagster_run"].endswith(f"/runs/{result.run_id}")


def test_a_cancelled_run_is_killed_in_mlflow(store: str) -> None:
    import mlflow

    def cancel() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    result = track(store, cancel)
    assert not result.success
    (run,) = runs_of(store, result)
    assert run.info.status == "KILLED"
    assert mlflow.active_run() is None


def test_two_trainings_of_one_dagster_run_have_a_run_each(project: Project, store: str) -> None:
    project.train("a")
    project.train("b")
    project.index()
    launcher = FakeLauncher()
    result = project.materialize("train_a", "train_b", launcher=launcher, mlflow=tracking(store))
    assert result.success
    runs = runs_of(store, result)
    assert {run.info.run_name for run in runs} == {"train_a/1", "train_b/1"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert launcher.env["MLFLOW_TRACKING_URI"] == store
    assert launcher.env["MLFLOW_RUN_ID"] in {run.info.run_id for run in runs}


def test_a_materialization_and_its_mlflow_run_name_each_other(project: Project, store: str) -> None:
    project.train("sample")
    project.index()
    result = project.materialize("train_sample", mlflow=tracking(store))
    metadata = metadata_of(result)
    (run,) = runs_of(store, result)
    assert metadata["mlflow_run"].startswith("http://127.0.0.1:5000/#/experiments/")
    assert metadata["mlflow_run"].endswith(f"/runs/{run.info.run_id}")
    assert run.data.tags["moge.workspace"] == metadata["workspace"]
    assert run.data.tags["moge.config_digest"] == metadata["config_digest"]
    assert run.data.tags["moge.dataset.sample"] == metadata["datasets"].records[0].data["digest"]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere/mlflow.db", "http://not a host"])
def test_a_dead_store_costs_seconds_and_a_warning_never_the_training(
    project: Project, uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    project.train("sample")
    project.index()
    launcher = FakeLauncher()
    began = time.monotonic()
    result = project.materialize("train_sample", launcher=launcher, mlflow=tracking(uri))
    assert result.success
    assert time.monotonic() - began < 20
    assert "mlflow_run" not in metadata_of(result)
    tracked = {name: value for name, value in launcher.env.items() if name.startswith("MLFLOW_")}
    assert tracked == {"MLFLOW_TRACKING_URI": uri}, "the trainer opens a run once the store is back"
    assert "training goes on without it" in capfd.readouterr().err


def test_a_store_that_answers_is_reachable(tmp_path: Path) -> None:
    assert unreachable_because(f"sqlite:///{tmp_path}/mlflow.db") is None
    assert unreachable_because("http://127.0.0.1:9") is not None


@pytest.mark.parametrize(("code", "reachable"), [(200, True), (401, True), (404, True), (502, False), (503, False)])
def test_a_server_behind_a_password_is_reachable_and_a_proxy_without_its_server_is_not(
    code: int, reachable: bool
) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            reason = unreachable_because(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert (reason is None) == reachable, reason


def test_artifacts_lie_beside_a_sqlite_store_and_where_a_server_puts_them() -> None:
    assert artifact_folder("sqlite:////data/mlflow.db") == "file:///data/mlartifacts"
    assert artifact_folder("http://127.0.0.1:5000") is None


def test_the_store_is_the_projects_own_unless_the_environment_names_another(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uri() -> str:
        with dg.build_resources({"mlflow": mlflow_resource}) as resources:
            return str(resources.mlflow.tracking_uri)

    monkeypatch.setenv("MOGE_PROJECT_ROOT", str(project.root))
    assert uri() == f"sqlite:///{project.root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert uri() == "http://tracking:5000"
