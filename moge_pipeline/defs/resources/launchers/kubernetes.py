"""Trainings as pods of Kubernetes, whose log carries what they report, as dagster-k8s has it."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from moge_core.errors import MissingDependencyError, TrainingError
from moge_pipeline.defs.resources.launchers.jobs import LaunchFolder, record_launch, watch
from moge_pipeline.defs.resources.launchers.pipes import open_session, reported
from moge_pipeline.defs.resources.launchers.protocol import LaunchResources, LaunchResult
from moge_pipeline.defs.resources.launchers.settings import KubernetesSettings

CONTAINER = "training"

_SECONDS_FOR_LAST_LOGS = 60.0
_NOT_FOUND = 404


class KubernetesLauncher:
    """Runs the command in one pod, which gets the GPUs of one node."""

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings

    def run(
        self,
        context: dg.AssetExecutionContext,
        argv: Sequence[str],
        env: Mapping[str, str],
        resources: LaunchResources,
    ) -> LaunchResult:
        """See `Launcher.run`.

        Raises:
            MissingDependencyError: the extra `k8s` is not installed.
            TrainingError: there is no cluster, or it refuses the pod.
        """
        settings = self._settings
        api = core_api(settings.context)
        from dagster_k8s import PipesK8sPodLogsMessageReader

        folder = LaunchFolder(context, resources)
        folder.beat()
        reader = PipesK8sPodLogsMessageReader()
        with open_session(context, dg.PipesEnvContextInjector(), reader) as session:
            task = folder.task(settings.python or "python", argv, resources, settings.abandoned_after_s)
            name = pod_name(folder.name)
            labels = {"dagster/run-id": context.run.run_id, "app.kubernetes.io/name": "moge-training"}
            environment = {**env, **session.get_bootstrap_env_vars()}
            pod = Pod(api, settings.namespace, name, settings.poll_s, math.ceil(resources.terminate_grace_s))
            pod.create(pod_manifest(settings, name, task, environment, resources, labels))
            record = {"launcher": "kubernetes", "id": name, "namespace": settings.namespace}
            logs = _PodLogs(context, reader, pod)
            try:
                record_launch(context, record | ({"context": settings.context} if settings.context else {}))

                def tick() -> None:
                    folder.beat()
                    if pod.has_started() and not logs.is_alive() and not logs.has_begun:
                        logs.start()

                exit_code, timed_out = watch(context, pod, resources, tick)
                if logs.has_begun:
                    logs.join(_SECONDS_FOR_LAST_LOGS)
            finally:
                pod.kill()
        tags = {"kubernetes_pod": name, "kubernetes_namespace": settings.namespace, "kubernetes_reason": pod.reason}
        return reported(session, exit_code, timed_out=timed_out, tags=tags)


def pod_manifest(
    settings: KubernetesSettings,
    name: str,
    task: Sequence[str],
    env: Mapping[str, str],
    resources: LaunchResources,
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """The pod that runs `task`, as Kubernetes' API takes it."""
    grace_s = math.ceil(resources.terminate_grace_s)
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if settings.cpus is not None:
        requests["cpu"] = f"{settings.cpus:g}"
    if settings.memory_mb is not None:
        requests["memory"] = limits["memory"] = f"{settings.memory_mb}Mi"
    if settings.gpus:
        limits[settings.gpu_resource] = str(settings.gpus)
    volumes: list[dict[str, Any]] = [
        # Loader workers hand over batches here; the 64 MiB that containers get are not enough for one.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{settings.shared_memory_mb}Mi"}}
    ]
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108  # the pod's own
    for number, volume in enumerate(settings.volumes):
        source: dict[str, Any] = (
            {"persistentVolumeClaim": {"claimName": volume.claim}}
            if volume.claim is not None
            else {"hostPath": {"path": volume.host_path}}
        )
        volumes.append({"name": f"volume-{number}", **source})
        mounts.append({"name": f"volume-{number}", "mountPath": volume.mount_path, "readOnly": volume.read_only})
    variables = {"PYTHONUNBUFFERED": "1", **settings.env, **env}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.image,
        "command": list(task),
        "workingDir": str(resources.cwd),
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "resources": {"requests": requests, "limits": limits},
        "volumeMounts": mounts,
    }
    if settings.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in settings.secrets]
    if settings.image_pull_policy is not None:
        container["imagePullPolicy"] = settings.image_pull_policy
    spec: dict[str, Any] = {
        # A pod that ended early is judged here, by what the trainer said, and not started again blindly.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_s,
        "containers": [container],
        "volumes": volumes,
    }
    if resources.max_runtime_s is not None:
        # The launcher asks the training to end before; this is for one that nobody watches any more.
        spec["activeDeadlineSeconds"] = math.ceil(resources.max_runtime_s) + grace_s + 60
    if settings.service_account is not None:
        spec["serviceAccountName"] = settings.service_account
    if settings.node_selector:
        spec["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in settings.tolerations]
    metadata = {"name": name, "namespace": settings.namespace, "labels": dict(labels)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


class Pod:
    """One pod; see `Job` for the methods.

    Attributes:
        reason: why it is in its phase, as Kubernetes says, or the phase itself.
    """

    def __init__(self, api: Any, namespace: str, name: str, poll_s: float, grace_s: int) -> None:
        self.api, self.namespace, self.name = api, namespace, name
        self.reason = "Pending"
        self._poll_s, self._grace_s = poll_s, grace_s
        self._next_look = 0.0
        self._is_deleted = False

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Hand it to the cluster.

        Raises:
            TrainingError: the cluster refuses it.
        """
        from kubernetes.client import ApiException

        try:
            self.api.create_namespaced_pod(self.namespace, dict(manifest))
        except ApiException as error:
            raise TrainingError(
                f"namespace {self.namespace}", "must accept the pod", found=error.body or error.reason
            ) from None

    def poll(self) -> int | None:
        """See `Job.poll`. A server that does not answer says nothing about the pod."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + self._poll_s
        try:
            status = self.api.read_namespaced_pod(self.name, self.namespace).status
        except ApiException as error:
            return -15 if error.status == _NOT_FOUND else None
        except HTTPError:
            return None
        self.reason = status.reason or status.phase
        if status.phase not in ("Succeeded", "Failed"):
            return None
        if status.phase == "Succeeded":
            return 0
        ended = [each.state.terminated for each in status.container_statuses or [] if each.state.terminated]
        if ended and ended[0].reason:
            self.reason = status.reason or ended[0].reason
        return int(ended[0].exit_code or 1) if ended else 1

    def has_started(self) -> bool:
        """See `Job.has_started`."""
        return self.reason != "Pending"

    def ask_to_end(self) -> None:
        """See `Job.ask_to_end`. Kubernetes kills what has not ended after the grace period."""
        if not self._is_deleted:
            self._delete(self._grace_s)
            self._is_deleted = True

    def kill(self) -> None:
        """See `Job.kill`."""
        self._delete(0)

    def _delete(self, grace_s: int) -> None:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            self.api.delete_namespaced_pod(self.name, self.namespace, grace_period_seconds=grace_s)
        except (ApiException, HTTPError):  # gone already, or asked again when the server answers
            return


def end_abandoned_pod(record: Mapping[str, str]) -> None:
    """Delete the pod of a launch record with the grace period of its own, without waiting for it.

    Raises:
        MissingDependencyError: the extra `k8s` is not installed.
        TrainingError: there is no cluster.
    """
    api = core_api(record.get("context"))
    from kubernetes.client import ApiException

    try:
        api.delete_namespaced_pod(record["id"], record["namespace"])
    except ApiException as error:
        if error.status != _NOT_FOUND:
            raise


def pod_name(text: str) -> str:
    """`text` as Kubernetes allows it for a name, with the time that makes it unique."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48]
    return f"{plain}-{int(time.time())}"


def core_api(context: str | None) -> Any:
    """The client of the cluster's API: of this cluster inside of one, else of the kubeconfig file.

    Raises:
        MissingDependencyError: the extra `k8s` is not installed.
        TrainingError: nothing says where the cluster is.
    """
    try:
        import dagster_k8s  # noqa: F401
        import kubernetes
    except ImportError:
        raise MissingDependencyError(
            "launcher `kubernetes`", "needs dagster-k8s", fix='pip install "moge-pipeline[k8s]"'
        ) from None
    try:
        if context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            kubernetes.config.load_incluster_config()
        else:
            kubernetes.config.load_kube_config(context=context)
    except kubernetes.config.ConfigException as error:
        raise TrainingError(
            "launcher `kubernetes`",
            "needs a cluster",
            found=error,
            fix="Set KUBECONFIG, or run Dagster inside of the cluster.",
        ) from None
    return kubernetes.client.CoreV1Api()


class _PodLogs(threading.Thread):
    """Follows the pod's log: messages go to the session, the rest to this process's output."""

    def __init__(self, context: dg.AssetExecutionContext, reader: Any, pod: Pod) -> None:
        super().__init__(daemon=True)
        self._context, self._reader, self._pod = context, reader, pod
        self.has_begun = False

    def start(self) -> None:
        """See `threading.Thread.start`."""
        self.has_begun = True
        super().start()

    def run(self) -> None:
        """Follow to the end of the pod."""
        try:
            self._reader.consume_pod_logs(
                context=self._context,
                core_api=self._pod.api,
                pod_name=self._pod.name,
                namespace=self._pod.namespace,
            )
        except Exception as error:  # the client's and urllib3's own; a training must not end over its output
            self._context.log.warning(f"The log of pod {self._pod.name} cannot be read: {error}")
