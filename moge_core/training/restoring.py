"""Which process reads what of the checkpoint that a training goes on from.

Process 0 alone looks for it and compares digests, which reads all its files. Then every process maps the files of model
and optimiser, so that those of one machine share the memory that they take, and process 0 that of the average. Of
weights that are spread over the processes (FSDP) process 0 opens all files alone, and sends everyone its part.
"""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from moge_core.training.agreement import all_or_none, found_by_main
from moge_core.training.checkpoints import TrainingState, find_checkpoint, read_checkpoint
from moge_core.training.sharding import sharding_is_wanted
from moge_core.training.workspace import CheckpointInfo, Workspace


def load_on_all(workspace: Workspace, checkpoint: str, accelerator: Accelerator) -> TrainingState | None:
    """The state that `--checkpoint` names, the same checkpoint on every process; None for `latest` without one.

    Where weights are spread, processes other than the main one get a state without tensors.

    Raises:
        MoGeError: of `find_checkpoint` and `read_checkpoint`, on every process, whichever had it.
    """
    is_main: bool = accelerator.is_main_process
    found = found_by_main(lambda: find_checkpoint(workspace, checkpoint), is_main=is_main)
    if found is None:
        return None
    if sharding_is_wanted():
        return _read_by_main(found, is_main)
    return all_or_none(lambda: read_checkpoint(found, with_average=is_main))


def _read_by_main(found: CheckpointInfo | Path, is_main: bool) -> TrainingState:
    opened: list[TrainingState] = []

    def read() -> TrainingState:
        opened.append(read_checkpoint(found))
        return opened[0].without_tensors()

    outline = found_by_main(read, is_main=is_main)
    return opened[0] if is_main else outline
