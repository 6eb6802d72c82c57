"""Which launcher runs a training, and what is asked of each kind of cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline_project import Project, failure_text

from moge_core.errors import ConfigError, InputError
from moge_pipeline.accelerate_command import Machine, fitted_to
from moge_pipeline.defs.resources.launchers import ConfiguredLauncher, LaunchResources, end_abandoned_launch
from moge_pipeline.defs.resources.launchers.jobs import LaunchFolder
from moge_pipeline.defs.resources.launchers.kubernetes import pod_manifest
from moge_pipeline.defs.resources.launchers.ray import job_parameters
from moge_pipeline.defs.resources.launchers.settings import (
    KubernetesSettings,
    RaySettings,
    SlurmSettings,
    read_launcher_settings,
)
from moge_pipeline.defs.resources.launchers.slurm import batch_script
from moge_pipeline.training_process import going_on

CLUSTERS: dict[str, Any] = {
    "cluster": {"type": "slurm", "partition": "gpu", "nodes": 2, "gpus_per_node": 8},
    "rays": {"type": "ray", "address": "http://head:8265"},
}
COMMAND = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "4", "--num_machines", "1"),
    *("--num_cpu_threads_per_process", "64", "--multi_gpu", "--main_process_port", "0"),
    *("-m", "moge_pipeline.training_process", "--config", "c.json", "--workspace", "w", "--num_machines", "7"),
]


def write(root: Path, **values: Any) -> Path:
    path = root / "configs" / "launchers.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def folder(path: Path, name: str = "train_sample-0a1b2c3d-0") -> LaunchFolder:
    made = LaunchFolder.__new__(LaunchFolder)
    made.name, made.path = name, path
    return made


def resources(path: Path, **values: Any) -> LaunchResources:
    return LaunchResources(cwd=path, run_dir=path, **values)


# --- which launcher ---


def test_without_a_file_everything_runs_here(tmp_path: Path) -> None:
    assert read_launcher_settings(tmp_path).choose("train_sample") == "local"


def test_the_run_configuration_wins_over_the_asset_and_the_asset_over_the_default(tmp_path: Path) -> None:
    write(tmp_path, default="rays", launchers=CLUSTERS, assets={"train_v1": "cluster"})
    settings = read_launcher_settings(tmp_path)
    assert settings.choose("train_v1", "local") == "local"
    assert settings.choose("train_v1") == "cluster"
    assert settings.choose("train_v2") == "rays"


def test_another_file_can_be_named_and_must_exist_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "elsewhere", launchers=CLUSTERS, default="cluster")
    monkeypatch.setenv("MOGE_LAUNCHERS", str(path))
    assert read_launcher_settings(tmp_path).choose("train_v1") == "cluster"
    path.unlink()
    with pytest.raises(ConfigError, match="must exist"):
        read_launcher_settings(tmp_path)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"default": "clutser", "launchers": CLUSTERS}, "default.*'clutser'.*local, cluster, rays"),
        ({"assets": {"train_v1": "nowhere"}}, "assets.train_v1.*'nowhere'.*Known: local"),
        ({"launchers": {"local": {"type": "ray"}}}, "launchers.local.*another name"),
        ({"launchers": {"x": {"type": "slrum"}}}, "launchers.x.type.*slurm, ray, kubernetes.*'slrum'"),
        ({"launchers": {"x": {"type": "slurm", "partitoin": "gpu"}}}, "partitoin.*Did you mean `partition`"),
        ({"launchers": {"x": {"type": "slurm", "gpus_per_node": 3, "tasks_per_node": 2}}}, "multiple of tasks"),
        ({"launchers": {"x": {"type": "slurm", "time_limit": "two days"}}}, "time_limit"),
        ({"launchers": {"x": {"type": "slurm", "options": ["--a\nrm"]}}}, "single options"),
        ({"launchers": {"x": {"type": "kubernetes", "image": "moge"}}}, "volumes.*required"),
        (
            {"launchers": {"x": {"type": "kubernetes", "image": "moge", "volumes": [{"mount_path": "/d"}]}}},
            "either a claim or a host_path",
        ),
        ({"launcher": {}}, "Did you mean `launchers`"),
    ],
)
def test_a_mistake_in_the_file_is_named_where_it_stands(tmp_path: Path, values: dict[str, Any], text: str) -> None:
    write(tmp_path, **values)
    with pytest.raises(ConfigError, match=text):
        read_launcher_settings(tmp_path)


def test_a_broken_file_fails_the_launch_with_the_reason_and_nothing_else(project: Project) -> None:
    project.train("sample")
    project.index()
    write(project.root, launchers={"x": {"type": "slrum"}})
    assert project.definitions(), "the code location loads"
    result = project.materialize("train_sample", launcher=ConfiguredLauncher(project.root))
    assert "launchers.x.type" in failure_text(result)


def test_a_name_that_no_asset_has_is_told_where_something_is_launched(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    project.train("sample")
    project.index()
    write(project.root, launchers=CLUSTERS, assets={"train_smaple": "cluster"})
    config = {"launcher": "cluster", "num_processes": 3}  # refused, so nothing is launched
    project.materialize("train_sample", launcher=ConfiguredLauncher(project.root), config=config)
    assert "train_smaple, which no training or finetuning is called" in capfd.readouterr().err


def test_an_unknown_launcher_of_the_run_configuration_is_told(project: Project) -> None:
    project.train("sample")
    project.index()
    write(project.root, launchers=CLUSTERS)
    result = project.materialize(
        "train_sample", launcher=ConfiguredLauncher(project.root), config={"launcher": "clutser"}
    )
    assert "'clutser'" in failure_text(result) and "local, cluster, rays" in failure_text(result)


def test_processes_that_cannot_be_shared_out_are_refused_before_anything_is_submitted(project: Project) -> None:
    project.train("sample")
    project.index()
    write(project.root, default="cluster", launchers=CLUSTERS)
    result = project.materialize("train_sample", launcher=ConfiguredLauncher(project.root), config={"num_processes": 3})
    assert "must be a multiple of 2" in failure_text(result)


@pytest.mark.parametrize(("package", "kind", "extra"), [("dagster_ray", "rays", "ray"), ("dagster_k8s", "pods", "k8s")])
def test_a_missing_extra_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch, package: str, kind: str, extra: str
) -> None:
    project.train("sample")
    project.index()
    pods = {"type": "kubernetes", "image": "moge", "volumes": [{"mount_path": "/d", "claim": "data"}]}
    write(project.root, launchers={**CLUSTERS, "pods": pods})
    monkeypatch.setitem(sys.modules, package, None)
    result = project.materialize("train_sample", launcher=ConfiguredLauncher(project.root), config={"launcher": kind})
    assert f'pip install "moge-pipeline[{extra}]"' in failure_text(result)


def test_definitions_load_without_the_packages_of_any_cluster(project: Project) -> None:
    project.train("sample")
    write(project.root, default="cluster", launchers=CLUSTERS)
    code = (
        "import sys, pathlib; from moge_pipeline.definitions import build_definitions\n"
        "build_definitions(pathlib.Path(sys.argv[1])).resolve_all_asset_keys()\n"
        "print([name for name in ('torch', 'ray', 'dagster_ray', 'kubernetes', 'dagster_k8s') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(project.root)], capture_output=True, text=True, check=True)
    assert answer.stdout.strip().endswith("[]")


def test_a_record_of_no_known_launcher_is_refused() -> None:
    with pytest.raises(InputError, match="slurm, ray or kubernetes"):
        end_abandoned_launch({"launcher": "moon", "id": "1"})


# --- what is asked of the clusters ---


def test_the_batch_script_asks_for_what_is_configured_and_quotes_what_it_passes_on(tmp_path: Path) -> None:
    settings = SlurmSettings(
        type="slurm",
        partition="gpu",
        nodes=2,
        gpus_per_node=8,
        cpus_per_task=32,
        memory_mb=64000,
        time_limit="2-00:00:00",
        setup=["module load cuda"],
        options=["--account=vision"],
    )
    task = ["python", "-m", "x", "it's; $HOME"]
    script = batch_script(settings, folder(tmp_path), task, {"TOKEN": "a'b$c"}, resources(tmp_path))
    lines = script.splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert {
        "--partition=gpu",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=32",
        "--mem=64000M",
        "--time=2-00:00:00",
        "--signal=TERM@120",
        "--requeue",
        "--open-mode=append",
        "--account=vision",
        f"--output={tmp_path}/output.log",
    } <= set(options)
    assert lines.index("module load cuda") < next(i for i, line in enumerate(lines) if line.startswith("srun "))
    # The shell itself says whether it reads what was meant.
    echo = script.replace("srun", "printf '%s\\n' \"$TOKEN\"").replace("scontrol", ":").replace("module load", ":")
    (tmp_path / "job.sh").write_text(echo)
    answer = subprocess.run(["bash", str(tmp_path / "job.sh")], capture_output=True, text=True, check=True)
    told = answer.stdout.splitlines()
    assert told[0] == "a'b$c" and "it's; $HOME" in told
    assert (tmp_path / "exit_code.0").read_text() == "0\n"


def test_tasks_that_share_a_node_see_their_own_gpus_only(tmp_path: Path) -> None:
    settings = SlurmSettings(type="slurm", tasks_per_node=4, gpus_per_node=8, requeue=False)
    script = batch_script(settings, folder(tmp_path), ["true"], {}, resources(tmp_path))
    assert "#SBATCH --gpus-per-task=2" in script and "--gpus-per-node" not in script
    assert "#SBATCH --no-requeue" in script
    assert "--signal" not in script, "without a limit there is nothing to warn of"


def test_a_ray_job_gets_its_grace_period_and_no_shell_in_between(tmp_path: Path) -> None:
    settings = RaySettings(type="ray", num_gpus=4, memory_mb=1000, pip=["x"], resources={"a100": 1})
    parameters = job_parameters(settings, ["python", "a b"], {"A": "1"}, resources(tmp_path, terminate_grace_s=90))
    assert parameters["entrypoint"] == f"cd {tmp_path} && exec python 'a b'"
    assert parameters["runtime_env"]["env_vars"] == {"A": "1", "RAY_JOB_STOP_WAIT_TIME_S": "100"}
    assert parameters["runtime_env"]["pip"] == ["x"]
    assert (parameters["entrypoint_num_gpus"], parameters["entrypoint_memory"]) == (4, 1000 * 2**20)
    assert parameters["entrypoint_resources"] == {"a100": 1}


def test_the_pod_has_the_image_gpus_volumes_environment_and_grace_period(tmp_path: Path) -> None:
    from kubernetes.client import ApiClient

    settings = KubernetesSettings.model_validate(
        {
            "type": "kubernetes",
            "image": "registry/moge:1",
            "namespace": "vision",
            "gpus": 2,
            "cpus": 8,
            "memory_mb": 64000,
            "volumes": [
                {"mount_path": "/project", "claim": "project"},
                {"mount_path": "/data", "host_path": "/mnt/data", "read_only": True},
            ],
            "env": {"NCCL_DEBUG": "WARN"},
            "secrets": ["mlflow"],
            "service_account": "trainer",
            "node_selector": {"gpu": "a100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        }
    )
    task = ["python", "-m", "moge_pipeline.job_task", "--", "python", "-m", "accelerate.commands.launch"]
    manifest = pod_manifest(
        settings, "train-1", task, {"A": "1"}, resources(tmp_path, terminate_grace_s=30, max_runtime_s=600), {"r": "1"}
    )
    spec, (container,) = manifest["spec"], manifest["spec"]["containers"]
    assert manifest["metadata"] == {"name": "train-1", "namespace": "vision", "labels": {"r": "1"}}
    assert (container["image"], container["command"]) == ("registry/moge:1", task)
    assert container["workingDir"] == str(tmp_path)
    assert container["resources"] == {
        "requests": {"cpu": "8", "memory": "64000Mi"},
        "limits": {"memory": "64000Mi", "nvidia.com/gpu": "2"},
    }
    assert {entry["name"]: entry["value"] for entry in container["env"]} == {
        "PYTHONUNBUFFERED": "1",
        "NCCL_DEBUG": "WARN",
        "A": "1",
    }
    assert container["envFrom"] == [{"secretRef": {"name": "mlflow"}}]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/data"]["readOnly"] and not mounts["/project"]["readOnly"] and "/dev/shm" in mounts  # noqa: S108
    assert {"name": "volume-0", "persistentVolumeClaim": {"claimName": "project"}} in spec["volumes"]
    assert {"name": "volume-1", "hostPath": {"path": "/mnt/data"}} in spec["volumes"]
    assert (spec["terminationGracePeriodSeconds"], spec["restartPolicy"]) == (30, "Never")
    assert spec["activeDeadlineSeconds"] == 690
    assert (spec["serviceAccountName"], spec["nodeSelector"]) == ("trainer", {"gpu": "a100"})
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]

    # The client knows the fields of its API: what it reads and writes again must be what was meant.
    class Answer:
        data = json.dumps(manifest)

    client = ApiClient()
    assert client.sanitize_for_serialization(client.deserialize(Answer(), "V1Pod")) == manifest


# --- what runs there ---


def test_the_command_is_fitted_to_its_place_among_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    argv = fitted_to(COMMAND, Machine(rank=1, count=2, host="node1", port=15012))
    split = argv.index("-m", 2)
    flags = argv[:split]
    assert {flag: flags[flags.index(flag) + 1] for flag in ("--num_processes", "--num_machines", "--machine_rank")} == {
        "--num_processes": "4",
        "--num_machines": "2",
        "--machine_rank": "1",
    }
    assert flags[flags.index("--main_process_ip") + 1] == "node1"
    assert flags[flags.index("--main_process_port") + 1] == "15012"
    assert flags[flags.index("--num_cpu_threads_per_process") + 1] == "3"
    assert "--multi_gpu" in flags and "--cpu" not in flags
    assert argv[split:] == COMMAND[COMMAND.index("-m", 3) :], "the training's own flags stay"


@pytest.mark.parametrize("there", [True, False])
def test_a_command_made_without_a_gpu_uses_the_one_where_it_runs(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    argv = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu", "-m", "x"]
    monkeypatch.setattr("moge_pipeline.accelerate_command.has_gpu", lambda: there)
    assert ("--cpu" not in fitted_to(argv, Machine())) == there


def test_another_command_stays_as_it_is() -> None:
    assert fitted_to(["python", "x.py"], Machine(1, 2)) == ["python", "x.py"]


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ([], ["--checkpoint", "latest"]),
        (["--checkpoint", "/base.pt"], ["--checkpoint", "latest"]),
        (["--checkpoint", "latest"], ["--checkpoint", "latest"]),
        (["--checkpoint", "2"], ["--checkpoint", "2"]),
    ],
)
def test_a_command_that_is_run_again_goes_on_from_its_own_newest_checkpoint(
    tmp_path: Path, given: list[str], becomes: list[str]
) -> None:
    from pipeline_project import save_fake_checkpoint

    from moge_core.training import Workspace

    flags = ["--workspace", str(tmp_path)]
    assert going_on([*flags, *given]) == [*flags, *given], "nothing is there yet"
    save_fake_checkpoint(Workspace(tmp_path), 3)
    assert going_on([*flags, *given]) == [*flags, *becomes]
