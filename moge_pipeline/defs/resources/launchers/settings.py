"""`configs/launchers.json`: where trainings run. Without it, on this machine.

{
  "default": "local",
  "launchers": {"cluster": {"type": "slurm", "partition": "gpu", "nodes": 2, "gpus_per_node": 8}},
  "assets": {"train_v1": "cluster"}
}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from moge_core.configuration import StrictModel, load_json, parse_as
from moge_core.errors import ConfigError

LOCAL = "local"
PATH_VARIABLE = "MOGE_LAUNCHERS"
"""Environment variable with the path of another file than `configs/launchers.json`."""


class JobSettings(StrictModel):
    """What every kind of cluster has.

    Attributes:
        python: interpreter of the machines that run the job, which has this project installed.
        poll_s: seconds between two looks at the job.
        abandoned_after_s: a job whose launcher has shown no sign of life for so many seconds saves and ends; None lets
            it go on without one.
    """

    python: str | None = None
    poll_s: float = Field(5.0, gt=0)
    abandoned_after_s: float | None = Field(300.0, ge=30)


class SlurmSettings(JobSettings):
    """A Slurm partition and what a job asks of it.

    Attributes:
        partition: where jobs go; None for the cluster's default.
        nodes: machines of a job.
        tasks_per_node: `accelerate launch`es on each, which share out its GPUs.
        gpus_per_node: GPUs that are asked for; 0 for none.
        cpus_per_task: cores of each task.
        memory_mb: memory of each node, MiB.
        time_limit: as sbatch's --time takes it. The training is asked to save a grace period before.
        requeue: whether a job that was preempted, or whose node failed, is started again by Slurm.
        setup: shell lines before the training, such as "module load cuda".
        options: further options of sbatch, such as "--account=vision".
    """

    type: Literal["slurm"]
    partition: str | None = None
    nodes: int = Field(1, ge=1)
    tasks_per_node: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    cpus_per_task: int | None = Field(None, ge=1)
    memory_mb: int | None = Field(None, ge=1)
    time_limit: str | None = Field(None, pattern=r"^(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})$")
    requeue: bool = True
    setup: list[str] = Field(default_factory=list)
    options: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _share_out_gpus(self) -> SlurmSettings:
        if self.gpus_per_node % self.tasks_per_node:
            raise ValueError("gpus_per_node must be a multiple of tasks_per_node")
        if any("\n" in option or not option.startswith("-") for option in self.options):
            raise ValueError('options must be single options of sbatch, such as "--account=vision"')
        return self


class RaySettings(JobSettings):
    """A Ray cluster.

    Attributes:
        address: of its dashboard, such as "http://head:8265".
        headers: HTTP headers for it, such as an authorisation.
        num_gpus: GPUs that the job reserves on its node.
        num_cpus: cores that it reserves.
        memory_mb: memory that it reserves, MiB.
        resources: Ray's custom resources that it reserves.
        working_dir: folder or archive that Ray copies to the node; None where the project is on all of them.
        pip: packages that Ray installs for the job.
    """

    type: Literal["ray"]
    address: str = "http://127.0.0.1:8265"
    headers: dict[str, str] = Field(default_factory=dict)
    num_gpus: float = Field(0.0, ge=0)
    num_cpus: float = Field(1.0, ge=0)
    memory_mb: int | None = Field(None, ge=1)
    resources: dict[str, float] = Field(default_factory=dict)
    working_dir: str | None = None
    pip: list[str] = Field(default_factory=list)


class VolumeSettings(StrictModel):
    """A folder inside the pod, from exactly one source.

    Attributes:
        mount_path: where the pod has it. The project's, its data's and its workspaces' paths must be the same in the
            pod as where Dagster runs.
        claim: name of a persistent volume claim.
        host_path: a folder of the node.
        read_only: whether the pod may only read it.
    """

    mount_path: str
    claim: str | None = None
    host_path: str | None = None
    read_only: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> VolumeSettings:
        if (self.claim is None) == (self.host_path is None):
            raise ValueError("a volume must name either a claim or a host_path")
        return self


class KubernetesSettings(JobSettings):
    """A namespace of Kubernetes and the pod of a training.

    Attributes:
        image: with this project installed.
        namespace: where pods go.
        context: of the kubeconfig file; None for its current one, or the service account inside a cluster.
        gpus: GPUs of the pod.
        gpu_resource: the resource's name by the device plugin.
        cpus: cores that it asks for.
        memory_mb: memory that it asks for and may use, MiB.
        shared_memory_mb: size of /dev/shm, in which workers hand over batches, MiB.
        volumes: folders of the pod; one must hold the workspaces.
        env: variables beside the training's.
        secrets: secrets whose keys become variables.
        service_account: that the pod runs as.
        image_pull_policy: None for Kubernetes' own choice.
        node_selector: labels of the nodes that it may run on.
        tolerations: as in a pod's specification.
    """

    type: Literal["kubernetes"]
    image: str
    namespace: str = "default"
    context: str | None = None
    gpus: int = Field(0, ge=0)
    gpu_resource: str = "nvidia.com/gpu"
    cpus: float | None = Field(None, gt=0)
    memory_mb: int | None = Field(None, ge=1)
    shared_memory_mb: int = Field(8192, ge=1)
    volumes: list[VolumeSettings] = Field(min_length=1)
    env: dict[str, str] = Field(default_factory=dict)
    secrets: list[str] = Field(default_factory=list)
    service_account: str | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[dict[str, Any]] = Field(default_factory=list)


ClusterSettings = SlurmSettings | RaySettings | KubernetesSettings
_KINDS: dict[str, type[SlurmSettings] | type[RaySettings] | type[KubernetesSettings]] = {
    "slurm": SlurmSettings,
    "ray": RaySettings,
    "kubernetes": KubernetesSettings,
}


class _LauncherFile(StrictModel):
    default: str = LOCAL
    launchers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    assets: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class LauncherSettings:
    """Which launchers there are, and which one an asset uses.

    Attributes:
        source: the file, for messages.
        default: name of the launcher of assets that nothing else is said of.
        launchers: settings by name; the launcher `local` has none.
        assets: names of launchers by the name of the asset.
    """

    source: Path
    default: str = LOCAL
    launchers: Mapping[str, ClusterSettings] = field(default_factory=dict)
    assets: Mapping[str, str] = field(default_factory=dict)

    def choose(self, asset: str, wanted: str | None = None) -> str:
        """The name of the launcher of an asset.

        Args:
            asset: the asset's name, such as "train_v1".
            wanted: what the run configuration asks for.

        Raises:
            ConfigError: there is no launcher of that name.
        """
        name = wanted or self.assets.get(asset, self.default)
        self._require(name, "run config: launcher" if wanted else f"{self.source}: default")
        return name

    def _require(self, name: str, where: str) -> None:
        known = [LOCAL, *self.launchers]
        if name not in known:
            raise ConfigError(
                where,
                "must be the name of a launcher",
                found=repr(name),
                fix=f"Known: {', '.join(known)}. Others are described in {self.source}.",
            )


def read_launcher_settings(root: Path) -> LauncherSettings:
    """The settings of the project in `root`; without a file there is the launcher `local` only.

    Raises:
        ConfigError: the file cannot be read, or a name or value in it is wrong.
    """
    given = os.environ.get(PATH_VARIABLE)
    path = Path(given) if given else root / "configs" / "launchers.json"
    if not given and not path.is_file():
        return LauncherSettings(path)
    file = parse_as(_LauncherFile, load_json(path), path)
    launchers = {name: _parse_launcher(name, values, path) for name, values in file.launchers.items()}
    settings = LauncherSettings(path, file.default, launchers, file.assets)
    settings._require(file.default, f"{path}: default")
    for asset, name in file.assets.items():
        settings._require(name, f"{path}: assets.{asset}")
    return settings


def _parse_launcher(name: str, values: Mapping[str, Any], path: Path) -> ClusterSettings:
    where = f"{path}: launchers.{name}"
    if name == LOCAL:
        raise ConfigError(where, "must have another name", fix="`local` is always this machine and has no settings.")
    kind = _KINDS.get(str(values.get("type")))
    if kind is None:
        raise ConfigError(
            f"{where}.type", f"must be one of {', '.join(_KINDS)}", found=repr(values.get("type", "nothing"))
        )
    return parse_as(kind, values, where)
