"""Dagster's usual executor, for runs that can be told from lost ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster import Executor
from dagster._core.errors import raise_execution_interrupts

from moge_pipeline.defs.resources.launchers import LAUNCH_TAG
from moge_pipeline.defs.runs.lost import Outcome, reap_lost_runs
from moge_pipeline.defs.runs.pool import follow_devices
from moge_pipeline.defs.runs.worker import Worker, marked_children

if TYPE_CHECKING:
    from dagster._core.execution.plan.plan import ExecutionPlan
    from dagster._core.execution.retries import RetryMode
    from dagster._core.execution.step_dependency_config import StepDependencyConfig

MOST_SECONDS_TO_WAIT = 180.0
"""How long a run that needs a pool waits for the processes of a lost run, which may be saving a checkpoint."""


class RunExecutor(Executor):
    """Executes as `inner` does. The run names its worker, this process; what it starts bears the run's mark.

    Lost runs are settled first: a step that needs a pool would wait for ever for the place of a run that was killed.
    """

    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    @property
    def retries(self) -> RetryMode:
        """As `inner` has it."""
        return self._inner.retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        """As `inner` has it."""
        return self._inner.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: ExecutionPlan) -> Iterator[Any]:
        """The events of the run."""
        run_id, instance = plan_context.run_id, plan_context.instance
        inherited = {LAUNCH_TAG: ""} if LAUNCH_TAG in plan_context.dagster_run.tags else {}
        instance.add_run_tags(run_id, {**Worker.here().tags(run_id), **inherited})
        needs_pool = any(step.pool for step in execution_plan.steps)
        deadline = time.monotonic() + (MOST_SECONDS_TO_WAIT if needs_pool else 0)
        while any(lost.outcome is Outcome.ENDING for lost in reap_lost_runs(instance)):
            if time.monotonic() >= deadline:
                break
            with raise_execution_interrupts():  # a cancellation does not wait
                time.sleep(1)
        if needs_pool:
            follow_devices(instance)
        with marked_children(run_id):
            yield from self._inner.execute(plan_context, execution_plan)


_USUAL = dg.multi_or_in_process_executor
_CONFIG: Any = _USUAL.config_schema


@dg.executor(name=_USUAL.name, config_schema=_CONFIG, requirements=_USUAL.get_requirements)
def run_executor(init_context: dg.InitExecutorContext) -> Executor:
    """Each step in a process of its own, or all in the run's process: configured as Dagster's default executor."""
    create = _USUAL.executor_creation_fn
    assert create is not None
    return RunExecutor(create(init_context))
