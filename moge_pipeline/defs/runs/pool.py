"""The limit of the pool `gpu` follows the accelerators of the machine that trains."""

from __future__ import annotations

import contextlib

import dagster as dg
from sqlalchemy.exc import IntegrityError

from moge_core.accelerators import visible_accelerators
from moge_core.errors import MoGeError
from moge_pipeline.catalog import project_root
from moge_pipeline.defs.references import GPU_POOL
from moge_pipeline.defs.resources.launchers.settings import read_launcher_settings

OWN_LIMIT = "moge/limit-of-pool-gpu"
"""Key, among the instance's cursors, of the limit that was last set here. A limit of another value is a person's."""

SHIPPED_DEFAULT = 1
"""The `default_limit` of the project's `dagster.yaml`. One of another value is a person's."""


def follow_devices(instance: dg.DagsterInstance) -> None:
    """Let as many trainings and evaluations run side by side as this machine has accelerators.

    They get different ones, see `moge_core.device_leases`. Left alone are limits that a person set, in the user
    interface, by `dagster instance concurrency set gpu N` or in `dagster.yaml`, and those of deployments with a
    cluster, where the devices of this machine say nothing. On a machine without accelerators nothing is set.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits or _has_clusters():
        return
    cursors = instance.daemon_cursor_storage
    own = cursors.get_cursor_values({OWN_LIMIT}).get(OWN_LIMIT)
    wanted = max(len(visible_accelerators()), 1)
    pool = next((pool for pool in storage.get_pool_limits() if pool.name == GPU_POOL), None)
    if pool is None or pool.from_default:
        now = instance.global_op_concurrency_default_limit
        is_ours = now == SHIPPED_DEFAULT
    else:
        now = pool.limit
        is_ours = str(now) == own
    if is_ours and now != wanted:
        cursors.set_cursor_values({OWN_LIMIT: str(wanted)})
        with contextlib.suppress(IntegrityError):  # a run that began at the same moment was faster
            storage.set_concurrency_slots(GPU_POOL, wanted)


def _has_clusters() -> bool:
    try:
        return bool(read_launcher_settings(project_root()).launchers)
    except MoGeError:  # whoever launches something hears of it
        return True
