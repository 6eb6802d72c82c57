"""What one process of a training finds out and all of them then know, its error included.

A process that fails alone leaves the others waiting in their next exchange, until their patience ends. All functions
are collective: every process calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils import broadcast_object_list, gather_object

from moge_core.errors import MoGeError

Found = TypeVar("Found")


def found_by_main(find: Callable[[], Found], *, is_main: bool) -> Found:
    """What `find` returns on the main process, which alone calls it; it travels as pickled bytes.

    Raises:
        MoGeError: what `find` raised, on every process.
    """
    told: list[Found | MoGeError | None] = [_attempt(find) if is_main else None]
    broadcast_object_list(told)
    if isinstance(told[0], MoGeError):
        raise told[0]
    return told[0]  # type: ignore[return-value]


def all_or_none(attempt: Callable[[], Found]) -> Found:
    """What `attempt` returns on each process, once it has gone well on all of them.

    Raises:
        MoGeError: that of the first process where it did not, on every process.
    """
    outcome = _attempt(attempt)
    problems = gather_object([outcome if isinstance(outcome, MoGeError) else None])
    for problem in problems:
        if problem is not None:
            raise problem
    return outcome  # type: ignore[return-value]


def _attempt(function: Callable[[], Found]) -> Found | MoGeError:
    try:
        return function()
    except MoGeError as error:
        return error
