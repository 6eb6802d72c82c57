"""What is checked before a training is launched: every dataset of the configuration has its index. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moge_core.datasets import index_digest, read_index
from moge_core.datasets.layout import DEPTH_NAME, missing_index_fix
from moge_core.errors import DatasetError, MissingIndexError
from moge_core.loading.config import data_root
from moge_core.training.config import TrainConfig


@dataclass(frozen=True)
class DatasetIdentity:
    """Which data a training read."""

    name: str
    path: Path
    index_path: Path
    digest: str
    num_instances: int
    depth: str = DEPTH_NAME

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def check_training_inputs(config: TrainConfig) -> list[DatasetIdentity]:
    """Find the index of every dataset.

    Raises:
        MissingIndexError: names the dataset, where it was looked for, and the command that mends it.
        DatasetError: an index that lists no instance, or none that may be listed.
    """
    identities = []
    for position, dataset in enumerate(config.data.datasets):
        if dataset.weight == 0:  # switched off: never drawn, so it need not be there
            continue
        path = dataset.resolved_path()
        index_path = path / dataset.index
        where = f"{config.source}: data.datasets.{position} ({dataset.name})"
        depth_flag = "" if dataset.depth == DEPTH_NAME else f" --depth {dataset.depth}"
        if not path.is_dir():
            raise MissingIndexError(
                where,
                "needs its dataset",
                found=f"no folder {path}",
                fix=f"Relative paths start at {data_root()} (set MOGE_DATA_ROOT to change that). Import the data, "
                f"e.g. with `moge import rgbd-folder SOURCE -o {path} ...`, then run `moge index {path}{depth_flag}`.",
            )
        if not index_path.is_file():
            raise MissingIndexError(
                where, f"needs the index {index_path}", found="no such file", fix=missing_index_fix(path, dataset.index)
            )
        instances = read_index(path, dataset.index)
        if not instances:
            raise DatasetError(
                where,
                f"needs at least one instance in {index_path}",
                found="none",
                fix=f"Run `moge validate {path}` to see what is wrong with its instances.",
            )
        identities.append(
            DatasetIdentity(
                dataset.name,
                path,
                index_path,
                index_digest(path, dataset.index, depth_name=dataset.depth),
                len(instances),
                dataset.depth,
            )
        )
    return identities
