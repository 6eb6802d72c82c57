"""The training command: flags in, exit code out."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import click

from moge_core.errors import MoGeError
from moge_core.training.config import load_train_config
from moge_core.training.flags import OPTIONS, resolve_flags
from moge_core.training.preflight import check_training_inputs
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
    with ExitStack() as stack:
        if int(os.environ.get("RANK", "0")) == 0:
            stack.enter_context(Workspace(flags.workspace).lock())
        from moge_core.training.trainer import Trainer

        trainer = Trainer(config, flags, datasets, observers)
        try:
            status = trainer.train()
        except MoGeError as error:  # the trainer has told its observers
            print(f"error: {error}", file=sys.stderr, flush=True)
            return ExitCode.FAILED
    return ExitCode.INTERRUPTED if status.state == "interrupted" else ExitCode.FINISHED


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
