"""Errors that a person can mend, shown by Dagster as the sentence they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import dagster as dg

from moge_core.errors import MoGeError, WorkspaceError

ConfigT = TypeVar("ConfigT")


@contextlib.contextmanager
def mendable_errors() -> Iterator[None]:
    """Turn a `MoGeError` into a `dg.Failure` with the same text; trying again would not help, so it is not retried."""
    try:
        yield
    except MoGeError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def usable(config: ConfigT | None, error: MoGeError | None) -> ConfigT:
    """`config`, unless the catalog recorded why it cannot be used.

    Raises:
        dg.Failure: with the recorded error's text.
    """
    if error is not None:
        with mendable_errors():
            raise error
    assert config is not None
    return config


def never_finished(root: Path, asset_name: str, purpose: str) -> WorkspaceError:
    """Of an asset without a finished run, where `purpose` (such as "to score") needs one; `root` holds its runs."""
    return WorkspaceError(
        root,
        f"needs a finished run of {asset_name} {purpose}",
        found="none",
        fix=f"Materialize it first: `dagster asset materialize --select {asset_name}`.",
    )
