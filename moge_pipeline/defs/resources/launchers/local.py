"""Trainings as processes of this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

import dagster as dg

from moge_core.accelerators import allocator_environment
from moge_core.device_leases import leased_devices
from moge_pipeline.accelerate_command import ACCELERATE, patience
from moge_pipeline.defs.resources.launchers.pipes import pipes_session, reported
from moge_pipeline.defs.resources.launchers.protocol import LaunchResources, LaunchResult
from moge_pipeline.process_tree import ProcessTree, interrupts_held


class LocalLauncher:
    """Runs the command as a tree of processes on this machine.

    The command writes straight into the captured output of the step, so it can go on writing, and finish its
    checkpoint, when the step's own process has been killed.

    Where the machine has accelerators, the command gets as many as it has processes, and nothing else that the
    pipeline runs here gets them before its last process has ended.
    """

    def run(
        self,
        context: dg.AssetExecutionContext,
        argv: Sequence[str],
        env: Mapping[str, str],
        resources: LaunchResources,
    ) -> LaunchResult:
        """See `Launcher.run`. The result's tags name the devices, too, if there are any."""
        grace_s, timed_out = resources.terminate_grace_s, False
        surroundings = {**patience(grace_s), **os.environ, **env}
        holder = f"{context.asset_key.path[-1]}, run {context.run.run_id[:8]}"
        with (
            leased_devices(resources.num_processes, holder, context.log.info) as devices,
            pipes_session(context) as session,
        ):
            if devices.names:
                context.log.info(f"GPUs of this training: {', '.join(devices.names)}")
            tree = ProcessTree(
                argv,
                {
                    **surroundings,
                    **allocator_environment(surroundings),
                    **session.get_bootstrap_env_vars(),
                    **devices.environment,
                },
                resources.cwd,
                grace_s=grace_s,
                spared=ACCELERATE,
            )
            try:
                exit_code = tree.wait(resources.max_runtime_s)
            except subprocess.TimeoutExpired:
                timed_out = True
                context.log.info(f"The training has run for {resources.max_runtime_s:g} s, its maximum.")
                self._end(context, tree, grace_s)
                exit_code = tree.wait()
            except BaseException:
                with interrupts_held():
                    self._end(context, tree, grace_s)
                raise
            if tree.members():
                context.log.warning("The command left processes behind; ending them.")
                tree.terminate(grace_s)
        tags = {"gpus": ",".join(devices.names)} if devices.names else {}
        return reported(session, exit_code, timed_out=timed_out, tags=tags)

    def _end(self, context: dg.AssetExecutionContext, tree: ProcessTree, grace_s: float) -> None:
        context.log.info(f"Asking the training to save and end; it has {grace_s:g} s.")
        if not tree.terminate(grace_s):
            context.log.warning(f"Killed what was still running after {grace_s:g} s.")
