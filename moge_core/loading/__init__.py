"""From index to batch: sampling, view, augmentation, loader.

`DataConfig` and `DatasetConfig` need neither torch nor OpenCV; the rest is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moge_core.loading.config import DataConfig, DatasetConfig

if TYPE_CHECKING:
    from moge_core.loading.failures import Failure
    from moge_core.loading.loader import TrainLoader

__all__ = ["DataConfig", "DatasetConfig", "Failure", "TrainLoader"]


def __getattr__(name: str) -> Any:
    if name == "TrainLoader":
        from moge_core.loading.loader import TrainLoader

        return TrainLoader
    if name == "Failure":
        from moge_core.loading.failures import Failure

        return Failure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
