"""The deployment of docs/deployment.md on one machine: Dagster and MLflow on a real PostgreSQL, the commands of the
systemd units, and the proxy in front of them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from deployment import (
    DEPLOY,
    HOST,
    Deployment,
    Postgres,
    environment_file,
    fetch,
    free_port,
    postgres_server,
    wait_until,
)
from shop import alive, environment, open_shop

from moge_core.training import Workspace

pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(600),
    # MLflow reads PostgreSQL through an option of SQLAlchemy that is going.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
TERMINATE = "mutation Terminate($id: String!) { terminateRun(runId: $id) { __typename } }"
STATUS = "query Status($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
FOREVER = {"num_iterations": 100000, "log_every": 1, "resume": "never", "num_processes": 1, "batch_size_forward": 1}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server with both databases."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def deployment(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Every service of the systemd units but the proxy, in a project with `train_sample`."""
    root, home = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("home")
    open_shop(root)
    for name in ("dagster.yaml", "workspace.yaml", "dg.toml"):
        (root / name).unlink()
    shutil.copy(DEPLOY / "dagster.yaml", home)
    ports = {service: free_port() for service in ("mlflow", "code", "webserver", "reports")}
    units = [environment_file(f"systemd/{name}.env.example") for name in ("moge", "dagster", "mlflow")]
    env = {
        **environment(f"test-{os.getpid()}-deployment"),
        **{name: value for unit in units for name, value in unit.items()},
        "HOME": str(home),
        "MOGE_PROJECT_ROOT": str(root),
        "DAGSTER_HOME": str(home),
        "MOGE_POSTGRES_PORT": str(postgres.port),
        "MOGE_DAGSTER_DB_PASSWORD": postgres.passwords["dagster"],
        "PGPASSWORD": postgres.passwords["mlflow"],
        "MOGE_CODE_PORT": str(ports["code"]),
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{ports['mlflow']}",
        "MLFLOW_BACKEND_STORE_URI": units[2]["MLFLOW_BACKEND_STORE_URI"].replace(":5432", f":{postgres.port}"),
        "MLFLOW_ARTIFACTS_DESTINATION": str(home / "mlflow" / "artifacts"),
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{HOST}:{ports['mlflow']}",
    }
    services = Deployment(root, env, ports)
    try:
        for service in ("mlflow", "reports", "code"):
            services.start(service)
        for service in ("mlflow", "reports", "code"):
            services.await_service(service)
        for service in ("webserver", "daemon"):
            services.start(service)
        services.await_service("webserver")
        yield services
    finally:
        services.stop(*services.running)


@contextlib.contextmanager
def second_instance(deployment: Deployment) -> Iterator[dg.DagsterInstance]:
    """Another reader of the same history."""
    names = ("MOGE_POSTGRES_HOST", "MOGE_POSTGRES_PORT", "MOGE_DAGSTER_DB_PASSWORD")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, deployment.env[name])
        with dg.DagsterInstance.from_config(deployment.env["DAGSTER_HOME"]) as instance:
            yield instance


def materialization(deployment: Deployment, asset: str) -> dict[str, Any]:
    """Metadata of the asset's newest materialization, as another process reads it."""
    with second_instance(deployment) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None and event.asset_materialization is not None
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def mlflow_run(deployment: Deployment, dagster_run_id: str) -> Any:
    """The run in MLflow that belongs to a run of Dagster, asked of the server."""
    import mlflow

    client = mlflow.MlflowClient(deployment.env["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("moge")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.dagster_run_id = '{dagster_run_id}'")
    return run


def launch_endless_training(deployment: Deployment) -> tuple[str, Workspace]:
    """`train_sample` as the Launchpad starts it, past its first steps: the run's id and the workspace."""
    workspaces = deployment.root / "workspace" / "train_sample"
    before = set(workspaces.glob("*"))
    selector = {
        "repositoryLocationName": "moge",
        "repositoryName": "__repository__",
        "jobName": "__ASSET_JOB",
        "assetSelection": [{"path": ["train_sample"]}],
        "assetCheckSelection": [],
    }
    params = {"selector": selector, "runConfigData": {"ops": {"train_sample": {"config": FOREVER}}}}
    launched: dict[str, Any] = {}

    def is_launched() -> bool:
        launched.update(deployment.graphql(LAUNCH, params=params)["launchRun"])
        # The webserver notices by and by that a code location is back.
        assert launched["__typename"] in ("LaunchRunSuccess", "InvalidSubsetError"), launched
        return launched["__typename"] == "LaunchRunSuccess"

    wait_until(is_launched, 60, pause=1)
    run_id = launched["run"]["runId"]
    found: list[Workspace] = []

    def has_begun() -> bool:
        assert status(deployment, run_id) not in ("FAILURE", "CANCELED"), deployment.log("code").read_text()[-4000:]
        found[:] = [Workspace(path) for path in set(workspaces.glob("*")) - before]
        return any(num_steps(workspace) >= 2 for workspace in found)

    wait_until(has_begun, 180, pause=1)
    return run_id, found[0]


def num_steps(workspace: Workspace) -> int:
    return len(workspace.metrics_path.read_text().splitlines()) if workspace.metrics_path.is_file() else 0


def status(deployment: Deployment, run_id: str) -> str:
    return str(deployment.graphql(STATUS, id=run_id)["runOrError"]["status"])


def trainers() -> list[str]:
    return [command for command in alive(f"test-{os.getpid()}-deployment") if "training_process" in command]


def assert_saved_and_told(deployment: Deployment, run_id: str, workspace: Workspace, dagster_status: str) -> None:
    told, checkpoint = workspace.status(), workspace.latest_checkpoint()
    assert told is not None and (told.state, told.resumable) == ("interrupted", True)
    assert checkpoint is not None and checkpoint.step == told.step
    assert trainers() == []
    with second_instance(deployment) as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None and run.status.value == dagster_status
    assert mlflow_run(deployment, run_id).info.status == "KILLED"


def test_one_command_goes_from_raw_to_a_checkpoint_with_all_history_in_postgres(
    deployment: Deployment, postgres: Postgres
) -> None:
    argv = [sys.executable, "-m", "dagster", "asset", "materialize", "--select", "+train_sample"]
    done = subprocess.run(
        argv, cwd=deployment.root, env=deployment.env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

    trained = materialization(deployment, "train_sample")
    assert trained["step"] == 3 and Path(trained["checkpoint"]).is_file()
    assert postgres.query("dagster", "SELECT status FROM runs") == "SUCCESS"
    assert int(postgres.query("dagster", "SELECT count(*) FROM event_logs WHERE asset_key LIKE '%train_sample%'")) > 0
    home = Path(deployment.env["DAGSTER_HOME"])
    assert list(home.rglob("*.db")) == list(deployment.root.rglob("*.db")) == []

    run_id = trained["mlflow_run_id"]
    assert postgres.query("mlflow", "SELECT status FROM runs WHERE run_uuid = :'run'", run=run_id) == "FINISHED"
    loss = postgres.query(
        "mlflow", "SELECT value FROM latest_metrics WHERE run_uuid = :'run' AND key = 'loss'", run=run_id
    )
    assert float(loss) == pytest.approx(trained["loss"])
    digest = "SELECT value FROM params WHERE run_uuid = :'run' AND key = 'dataset.sample.digest'"
    assert postgres.query("mlflow", digest, run=run_id) == trained["datasets"].records[0].data["digest"]
    uri = postgres.query("mlflow", "SELECT artifact_uri FROM runs WHERE run_uuid = :'run'", run=run_id)
    assert uri.startswith("mlflow-artifacts:")


def test_artifacts_go_through_the_mlflow_server(deployment: Deployment, tmp_path: Path) -> None:
    import mlflow

    trained = materialization(deployment, "train_sample")
    client = mlflow.MlflowClient(deployment.env["MLFLOW_TRACKING_URI"])
    path = client.download_artifacts(trained["mlflow_run_id"], "config.json", str(tmp_path))
    assert json.loads(Path(path).read_text()) == json.loads((Path(trained["workspace"]) / "config.json").read_text())
    stored = Path(deployment.env["MLFLOW_ARTIFACTS_DESTINATION"])
    assert list(stored.rglob("config.json")) != []


def test_each_role_sees_its_own_database_only(postgres: Postgres) -> None:
    with pytest.raises(PermissionError, match="permission denied"):
        postgres.query("dagster", "SELECT 1", role="mlflow")
    with pytest.raises(PermissionError, match="permission denied"):
        postgres.query("mlflow", "SELECT 1", role="dagster")
    stranger = Postgres(postgres.port, {**postgres.passwords, "dagster": "guess"})
    with pytest.raises(PermissionError, match="password authentication failed"):
        stranger.query("dagster", "SELECT 1")


def test_a_training_outlives_webserver_and_daemon_and_a_code_location_that_is_asked_alone_to_end(
    deployment: Deployment,
) -> None:
    run_id, workspace = launch_endless_training(deployment)
    deployment.stop("webserver", "daemon")
    server = deployment.running["code"]
    server.send_signal(signal.SIGTERM)
    before = num_steps(workspace)
    wait_until(lambda: num_steps(workspace) > before + 2, 60)
    deployment.start("webserver")
    deployment.await_service("webserver")
    assert status(deployment, run_id) == "STARTED" and server.poll() is None

    answer = deployment.graphql(TERMINATE, id=run_id)["terminateRun"]
    assert answer["__typename"] == "TerminateRunSuccess"
    wait_until(lambda: status(deployment, run_id) == "CANCELED", 90, pause=1)
    assert_saved_and_told(deployment, run_id, workspace, "CANCELED")
    assert server.wait(60) == 0, "it ends with its last run"
    for service in ("code", "daemon"):
        deployment.start(service)
    deployment.await_service("code")


def test_a_stop_of_the_code_location_lets_its_trainings_save_and_tell_how_they_ended(deployment: Deployment) -> None:
    run_id, workspace = launch_endless_training(deployment)
    deployment.stop("code")
    wait_until(lambda: status(deployment, run_id) in ("CANCELED", "FAILURE"), 30, pause=1)
    assert_saved_and_told(deployment, run_id, workspace, status(deployment, run_id))


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed; packaging/install_services.sh does")
def test_nothing_passes_the_proxy_without_the_password(deployment: Deployment, tmp_path: Path) -> None:
    report = deployment.root / "workspace" / "quality" / "two words" / "report.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("<!doctype html><title>two words</title>")
    with proxy(deployment, tmp_path) as address:
        password = {"Authorization": "Basic " + base64.b64encode(b"ada:correct horse").decode()}
        wrong = {"Authorization": "Basic " + base64.b64encode(b"ada:guess").decode()}
        pages = {
            "/server_info": b"dagster_version",
            "/graphql?query={version}": b"version",
            "/mlflow/": b"<html",
            "/mlflow/api/2.0/mlflow/experiments/get-by-name?experiment_name=moge": b"mlflow-artifacts:",
            "/reports/": b"two%20words/report.html",
            "/reports/quality/two%20words/report.html": b"<title>two words</title>",
        }
        for page, content in pages.items():
            for headers in ({}, wrong):
                assert fetch(address + page, headers=headers)[0] == 401, page
            code, body = fetch(address + page, headers=password)
            assert code == 200 and content in body, (page, code, body[:300])
        assert fetch(f"{address}/healthz") == (200, b"OK\n")

        foreign = {**password, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
        own = {**password, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
        query = json.dumps({"query": "{ version }"}).encode()
        json_type = {"Content-Type": "application/json"}
        assert fetch(f"{address}/graphql", query, {**foreign, **json_type})[0] == 403
        assert fetch(f"{address}/graphql", query, {**own, **json_type})[0] == 200
        link = {**password, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert fetch(f"{address}/server_info", headers=link)[0] == 200


@contextlib.contextmanager
def proxy(deployment: Deployment, folder: Path) -> Iterator[str]:
    """nginx with the configuration of the systemd variant, on ports of this test; its address."""
    port = free_port()
    secret = subprocess.run(
        ["openssl", "passwd", "-6", "correct horse"], capture_output=True, text=True, check=True
    ).stdout
    (folder / "htpasswd").write_text(f"ada:{secret}")
    ports = {"8080": port, "3000": deployment.ports["webserver"], "5000": deployment.ports["mlflow"]}
    ports["3001"] = deployment.ports["reports"]
    for name in ("host.conf", "moge-maps.conf", "moge-server.conf"):
        text = (DEPLOY / "nginx" / name).read_text().replace("/etc/nginx/moge", str(folder))
        for usual, here in ports.items():
            text = text.replace(f"{HOST}:{usual}", f"{HOST}:{here}")
        (folder / name).write_text(text)
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log stderr warn; events {{}}\n"
        f"http {{ access_log off; {places} include {folder}/host.conf; }}\n"
    )
    argv = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    subprocess.run([*argv, "-t"], check=True, capture_output=True)
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as server:
        try:
            wait_until(lambda: fetch(f"http://{HOST}:{port}/healthz")[0] == 200, 30, server)
            yield f"http://{HOST}:{port}"
        finally:
            server.send_signal(signal.SIGQUIT)
            _, errors = server.communicate(timeout=30)
    assert [line for line in errors.splitlines() if "password mismatch" not in line] == []
