"""Errors that a person can mend, shown by Dagster as the sentence they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import dagster as dg

from moge_core.errors import MoGeError

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
