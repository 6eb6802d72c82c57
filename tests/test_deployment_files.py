"""What the files of `deploy/` promise: one way in, no password that works unasked, trainings that get time to save."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from moge_core import __version__
from moge_pipeline.defs.training.run_config import LaunchConfig

REPOSITORY = Path(__file__).resolve().parents[1]
DEPLOY = REPOSITORY / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
GRACE_S = float(LaunchConfig.model_fields["terminate_grace_s"].default)


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return values


def unit_settings(unit: Path) -> list[tuple[str, str]]:
    lines = unit.read_text().splitlines()
    return [
        (key, value) for key, _, value in (line.partition("=") for line in lines if not line.startswith(("#", "[")))
    ]


def test_only_the_proxy_is_published_and_on_the_loopback_address_unless_told_otherwise() -> None:
    published = {name: service["ports"] for name, service in compose()["services"].items() if "ports" in service}
    assert published == {"proxy": ["${MOGE_BIND:-127.0.0.1}:${MOGE_PORT:-8080}:8080"]}
    assert all(service.get("network_mode") is None for service in compose()["services"].values())
    assert compose()["networks"]["inside"]["internal"] is True
    example = (DEPLOY / "compose.env.example").read_text()
    assert re.findall("^MOGE_BIND=(.*)$", example, re.MULTILINE) == ["127.0.0.1"]


def test_the_proxy_asks_everybody_for_a_password_but_for_its_own_health() -> None:
    text = (DEPLOY / "nginx" / "moge-server.conf").read_text()
    server, *locations = re.split(r"^location ", text, flags=re.MULTILINE)
    assert re.search(r'^auth_basic +"MoGe";$', server, re.MULTILINE)
    open_places = [location.split("{")[0].strip() for location in locations if "auth_basic" in location]
    assert open_places == ["= /healthz"]


def test_no_password_has_a_value_before_somebody_chose_one() -> None:
    examples = [DEPLOY / "compose.env.example", *(DEPLOY / "systemd").glob("*.example")]
    lines = [line for path in examples for line in path.read_text().splitlines() if not line.startswith("#")]
    passwords = [line for line in lines if "PASSWORD" in line]
    assert len(passwords) == 5
    assert all(line.endswith("=") for line in passwords)
    used = re.findall(r"\$\{(\w*PASSWORD\w*)([^}]*)\}", (DEPLOY / "compose.yaml").read_text())
    assert {name for name, _ in used} == {f"MOGE_{role}_PASSWORD" for role in ("POSTGRES", "DAGSTER_DB", "MLFLOW_DB")}
    assert all(otherwise.startswith(":?") for _, otherwise in used), "empty must not start"


def test_every_image_is_pinned_and_ours_is_this_version() -> None:
    images = {name: service["image"] for name, service in compose()["services"].items()}
    for name in ("postgres", "proxy"):
        assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?-bookworm", images.pop(name))
    assert set(images.values()) == {f"moge-pipeline:{__version__}"}
    bases = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert len(set(bases)) == 1 and re.fullmatch(r"python:3\.\d+\.\d+-slim-bookworm", bases[0])


def test_what_the_compose_file_refers_to_exists() -> None:
    project = compose()
    services, volumes, networks = project["services"], project["volumes"], project["networks"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= services.keys(), name
        assert set(service["networks"]) <= networks.keys(), name
        assert service["restart"] == "unless-stopped" and "healthcheck" in service, name
        assert {secret["source"] for secret in service.get("secrets", ())} <= project["secrets"].keys(), name
        for dependency in service.get("depends_on", ()):
            assert service["depends_on"][dependency] == {"condition": "service_healthy"}
        for volume in service.get("volumes", ()):
            source = volume.replace("${", "{").split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), volume
            elif not source.startswith("{"):
                assert source in volumes, volume
    assert compose("compose.gpu.yaml")["services"].keys() <= services.keys()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    for source in " ".join(copied).split():
        assert (REPOSITORY / source).exists() and f"!{source}" in ignored, source


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not installed")
@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]], ids=len)
def test_docker_compose_accepts_the_files_and_refuses_an_empty_password(tmp_path: Path, files: list[str]) -> None:
    command = ["docker", "compose", *(word for name in files for word in ("--file", str(DEPLOY / name)))]
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker has no compose plugin")
    chosen = tmp_path / "env"
    chosen.write_text(re.sub("^(MOGE_.*)=$", r"\1=/chosen", (DEPLOY / "compose.env.example").read_text(), flags=re.M))
    accepted = subprocess.run([*command, "--env-file", chosen, "config"], capture_output=True, text=True, check=False)
    assert accepted.returncode == 0 and accepted.stderr == "", accepted.stderr
    empty = DEPLOY / "compose.env.example"
    refused = subprocess.run([*command, "--env-file", empty, "config"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0 and "set it in .env" in refused.stderr


def test_reports_are_mounted_for_reading_only() -> None:
    (mount,) = compose()["services"]["reports"]["volumes"]
    assert mount.endswith(":/srv/moge/workspace:ro")
    assert not any(key == "ReadWritePaths" for key, _ in unit_settings(DEPLOY / "systemd" / "moge-reports.service"))


def test_a_stop_gives_trainings_the_time_to_save() -> None:
    code = compose()["services"]["code"]
    assert float(code["stop_grace_period"].removesuffix("s")) >= GRACE_S + 90
    # Docker signals the first process only; tini hands that on to the runs.
    assert 'ENTRYPOINT ["tini", "-g", "--"]' in (DEPLOY / "Dockerfile").read_text()
    settings = dict(unit_settings(DEPLOY / "systemd" / "moge-code.service"))
    assert (settings["KillMode"], settings["KillSignal"]) == ("control-group", "SIGTERM")
    assert float(settings["TimeoutStopSec"]) >= GRACE_S + 90
    assert settings["OOMPolicy"] == "continue"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_listens_on_the_loopback_address_as_its_own_user_and_restarts_alone(unit: Path) -> None:
    settings = unit_settings(unit)
    values = dict(settings)
    words = values["ExecStart"].split()
    if "--host" in words:
        assert words[words.index("--host") + 1] == "127.0.0.1"
    assert ("--host" in words) == ("--port" in words)
    assert (values["User"], values["Group"], values["Restart"]) == ("moge", "moge", "always")
    # These would restart or stop the code location, and with it the trainings, along with a neighbour.
    assert not {key for key, _ in settings} & {"Requires", "BindsTo", "PartOf", "Requisite"}
    assert (values["ProtectSystem"], values["NoNewPrivileges"], values["CapabilityBoundingSet"]) == (
        "strict",
        "yes",
        "",
    )
    secrets = [value for key, value in settings if key == "Environment" and "PASSWORD" in value]
    assert secrets == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_every_line_of_a_unit(unit: Path) -> None:
    told = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    ours = [line for line in told.stderr.splitlines() if str(unit) in line or unit.name in line]
    assert [line for line in ours if "is not executable" not in line] == []


def test_a_deployment_differs_from_the_project_in_its_storage_only() -> None:
    ours, deployed = (yaml.safe_load((folder / "dagster.yaml").read_text()) for folder in (REPOSITORY, DEPLOY))
    for name in ours.keys() - {"storage", "local_artifact_storage", "compute_logs"}:
        assert deployed[name] == ours[name], name
