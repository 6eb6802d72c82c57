"""`--deterministic`: a run repeats to the bit on the same machine, GPUs included, as far as torch can.

A GPU adds up in the order in which its threads happen to come, so sums differ in their last bits from run to run. Torch
has ordered ways of most operations, which cost time, and refuses the others. Imports no torch before it is asked to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from moge_core.errors import ConfigError

logger = logging.getLogger(__name__)

# Products of matrices are ordered when cuBLAS has memory of fixed size to work in: eight buffers of 4096 KiB.
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_BUFFERS = ":4096:8"
_REFUSED = re.compile(r"(\w+) does not have a deterministic implementation")


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Within the block torch takes ordered algorithms alone; the process has its own settings again after it.

    Operations that have none are refused, not warned of: where torch only warns, it also leaves the gradient of
    attention, which it could order, to chance.

    Args:
        wanted: False changes nothing.

    Raises:
        ConfigError: within the block an operation was refused.
    """
    if not wanted:
        yield
        return
    before = os.environ.get(_CUBLAS)
    os.environ.setdefault(_CUBLAS, _CUBLAS_BUFFERS)  # read when CUDA starts
    import torch
    from torch.backends import cudnn

    deterministic: Any = torch.utils.deterministic  # whose attributes are not declared
    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings = cudnn.deterministic, cudnn.benchmark, deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True, warn_only=False)
        # Filling what nobody has written yet finds mistakes, and costs every operation a pass over its result.
        cudnn.deterministic, cudnn.benchmark, deterministic.fill_uninitialized_memory = True, False, False
        logger.info("deterministic: torch takes ordered algorithms alone, %s=%s", _CUBLAS, os.environ[_CUBLAS])
        yield
    except RuntimeError as error:
        if (refused := refusal(error)) is not None:
            raise refused from error
        raise
    finally:
        torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
        cudnn.deterministic, cudnn.benchmark, deterministic.fill_uninitialized_memory = settings
        if before is None:
            os.environ.pop(_CUBLAS, None)


def refusal(error: BaseException) -> ConfigError | None:
    """What to tell of torch's refusal of an operation; None for other errors."""
    refused = _REFUSED.search(str(error)) if isinstance(error, RuntimeError) else None
    if refused is None:
        return None
    return ConfigError(
        "--deterministic",
        "needs operations that torch can order on this device",
        found=refused[1],
        fix="The project's own losses and models have none that it cannot: do without it in a loss of your own, or "
        "leave the flag out.",
    )
