"""What an accelerator is, asked in one place. Imports no torch."""

from __future__ import annotations

from typing import Any


def is_accelerator(device: Any) -> bool:
    """Whether work on a torch device goes on beside the host's, so that reading a value back makes the host wait.

    Everything that is done otherwise on a GPU than on a CPU asks this: copies ahead of need, pinned memory, and
    branches that a host takes by values it would have to wait for. So do meta tensors in tests that count.
    """
    return bool(device.type != "cpu")
