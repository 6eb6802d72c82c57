"""Trainings on the accelerator that the CPU plays.

with played_training() as played:
    main(["--config", ...])
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from accelerate import Accelerator
from played_accelerator import Played, played_accelerator


@contextlib.contextmanager
def played_training() -> Iterator[Played]:
    """Within the block, trainings of this process run on the played accelerator; accelerate would take the CPU."""
    with played_accelerator() as played, mock.patch.object(Accelerator, "device", played.device):
        yield played
