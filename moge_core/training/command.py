"""The training command: flags in, exit code out."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import click

from moge_core.errors import DatasetError, MoGeError, NonFiniteError, WorkspaceError
from moge_core.training.advice import advise, num_processes
from moge_core.training.config import TrainConfig, load_train_config
from moge_core.training.determinism import deterministic_algorithms
from moge_core.training.flags import OPTIONS, TrainFlags, resolve_flags
from moge_core.training.preflight import DatasetIdentity, check_training_inputs
from moge_core.training.tracking import Observer, Observers
from moge_core.training.workspace import ExitCode, RunStatus, Workspace

logger = logging.getLogger("moge_core.training")


def run_training(given: dict[str, Any], observers: Sequence[Observer] = ()) -> ExitCode:
    """Check everything that can be checked without torch, then train.

    Args:
        given: flags as the command line gives them; None means unset.
        observers: hear of progress, on rank 0.

    Returns:
        how it ended.

    Raises:
        MoGeError: the run cannot start.
    """
    config = load_train_config(given["config"])
    flags = resolve_flags(given, config)
    datasets = check_training_inputs(config)
    for advice in advise(config, flags, num_processes()):
        logger.warning("%s", advice)
    with ExitStack() as stack:
        # Sets what torch and CUDA read when they start.
        stack.enter_context(deterministic_algorithms(flags.deterministic))
        if flags.dry_run:
            return _print_plan(config, flags, datasets)
        if int(os.environ.get("RANK", "0")) == 0:
            stack.enter_context(Workspace(flags.workspace).lock())
        from moge_core.training.trainer import Trainer

        trainer = Trainer(config, flags, datasets, observers)
        try:
            status = trainer.train()
        except MoGeError as error:  # the trainer has told its observers
            print(f"error: {error}", file=sys.stderr, flush=True)
            return _code_of(error)
    return ExitCode.INTERRUPTED if status.state == "interrupted" else ExitCode.FINISHED


def _print_plan(config: TrainConfig, flags: TrainFlags, datasets: Sequence[DatasetIdentity]) -> ExitCode:
    from moge_core.training.dry_run import dry_run

    plan = dry_run(config, flags, datasets)
    if int(os.environ.get("RANK", "0")) == 0:
        print("\n".join(plan.lines), flush=True)
    return ExitCode.FINISHED if plan.fits else ExitCode.STORAGE


def _code_of(error: MoGeError) -> ExitCode:
    kinds: dict[type[MoGeError], ExitCode] = {
        NonFiniteError: ExitCode.NON_FINITE,
        DatasetError: ExitCode.BAD_DATA,
        WorkspaceError: ExitCode.STORAGE,
    }
    return next((code for kind, code in kinds.items() if isinstance(error, kind)), ExitCode.FAILED)


def main(argv: Sequence[str] | None = None, observers: Sequence[Observer] = ()) -> int:
    """Parse flags, train, and return the exit code (see `ExitCode`); errors are one line on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    command = click.Command(
        "moge_core.training",
        params=[],
        callback=lambda **given: given,
        help="Train a MoGe model. Launch with `accelerate launch -m moge_core.training ...`.",
        context_settings={"token_normalize_func": lambda token: token.replace("-", "_")},
    )
    for option in reversed(OPTIONS):
        command = option(command)
    try:
        given = command.main(args=None if argv is None else list(argv), standalone_mode=False)
        if not isinstance(given, dict):  # --help was printed
            return int(ExitCode.FINISHED)
        return int(run_training(given, observers))
    except click.ClickException as error:
        error.show()
        return int(ExitCode.REFUSED)
    except MoGeError as error:
        # Refused before there was a run: nobody else tells the observers why.
        Observers(observers).on_end(RunStatus("failed", str(error), -1, 0, resumable=False))
        print(f"error: {error}", file=sys.stderr, flush=True)
        return int(ExitCode.REFUSED)
