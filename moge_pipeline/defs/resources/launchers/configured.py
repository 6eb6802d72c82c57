"""The launcher that deployments configure: which one runs is decided at each launch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import dagster as dg

from moge_core.errors import InputError
from moge_pipeline.catalog import read_catalog
from moge_pipeline.defs.errors import mendable_errors
from moge_pipeline.defs.resources.launchers.local import LocalLauncher
from moge_pipeline.defs.resources.launchers.protocol import Launcher, LaunchResources, LaunchResult
from moge_pipeline.defs.resources.launchers.settings import (
    LOCAL,
    ClusterSettings,
    KubernetesSettings,
    LauncherSettings,
    RaySettings,
    read_launcher_settings,
)


class ConfiguredLauncher:
    """Runs the command where the run configuration, or else `configs/launchers.json`, says.

    The file is read when something is launched, so a mistake in it fails that launch and nothing else.

    Args:
        root: the project's folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def run(
        self,
        context: dg.AssetExecutionContext,
        argv: Sequence[str],
        env: Mapping[str, str],
        resources: LaunchResources,
    ) -> LaunchResult:
        """See `Launcher.run`. The result's tags name the launcher, too.

        Raises:
            dg.Failure: the file, the name or the cluster's settings are wrong, or the command could not be started.
        """
        with mendable_errors():
            settings = read_launcher_settings(self._root)
            name = settings.choose(context.asset_key.path[-1], resources.launcher)
            launcher: Launcher = LocalLauncher() if name == LOCAL else build_launcher(settings.launchers[name])
            if name != LOCAL:
                context.log.info(f"Launcher: {name}")
            self._tell_of_unknown_assets(context, settings)
            result = launcher.run(context, argv, env, resources)
        return replace(result, tags={"launcher": name, **result.tags})

    def _tell_of_unknown_assets(self, context: dg.AssetExecutionContext, settings: LauncherSettings) -> None:
        catalog = read_catalog(self._root)
        unknown = sorted({*settings.assets} - {*catalog.trainings, *catalog.finetunes})
        if unknown:
            context.log.warning(
                f"{settings.source}: assets names {', '.join(unknown)}, which no training or finetuning is called."
            )


def build_launcher(settings: ClusterSettings) -> Launcher:
    """The launcher of a cluster; its packages are imported when it runs."""
    if isinstance(settings, RaySettings):
        from moge_pipeline.defs.resources.launchers.ray import RayLauncher

        return RayLauncher(settings)
    if isinstance(settings, KubernetesSettings):
        from moge_pipeline.defs.resources.launchers.kubernetes import KubernetesLauncher

        return KubernetesLauncher(settings)
    from moge_pipeline.defs.resources.launchers.slurm import SlurmLauncher

    return SlurmLauncher(settings)


def end_abandoned_launch(record: Mapping[str, str] | str) -> None:
    """End the job of a run whose watcher is gone, without waiting for it; one that has ended already is left alone.

    The job gets the grace period of its launch to save; what is left after it is killed where the job runs.

    Args:
        record: value of the run's tag `moge/launch`, as it stands there or read as JSON.

    Raises:
        MoGeError: the record is of no known launcher, or the packages of its launcher are missing.
        Exception: whatever the cluster's client raises when the cluster cannot be reached.
    """
    values: Mapping[str, str] = json.loads(record) if isinstance(record, str) else record
    match values.get("launcher"):
        case "slurm":
            from moge_pipeline.defs.resources.launchers.slurm import end_abandoned_job

            end_abandoned_job(values)
        case "ray":
            from moge_pipeline.defs.resources.launchers.ray import end_abandoned_ray_job

            end_abandoned_ray_job(values)
        case "kubernetes":
            from moge_pipeline.defs.resources.launchers.kubernetes import end_abandoned_pod

            end_abandoned_pod(values)
        case other:
            raise InputError("launch record", "must name the launcher slurm, ray or kubernetes", found=repr(other))
