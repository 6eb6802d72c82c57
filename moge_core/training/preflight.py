"""What is checked before a training is launched: the data of the configuration, none of it with torch.

`check_training_inputs` finds the lists, which takes no time. `check_training_data` also makes sure that every instance
in them was validated as it lies there now, and refuses broken ones: where a training is started by a machine, nobody
looks at what is skipped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moge_core.datasets import ListedReport, check_listed, index_digest, read_index
from moge_core.datasets.layout import DEPTH_NAME, INDEX_NAME, VALIDATION_NAME, Progress, missing_index_fix
from moge_core.errors import DatasetError, MissingIndexError
from moge_core.loading.config import DatasetConfig, data_root
from moge_core.training.config import RunFlags, TrainConfig

# So many broken instances are told one by one; `moge validate` tells the rest.
_MOST_TOLD = 5
_TELL_EVERY_S = 30.0


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
    for where, dataset in _drawn(config):
        path, index_path = _located(where, dataset)
        instances = read_index(path, dataset.index)
        digest = index_digest(path, dataset.index, depth_name=dataset.depth)
        identities.append(DatasetIdentity(dataset.name, path, index_path, digest, len(instances), dataset.depth))
    return identities


def check_training_data(
    config: TrainConfig,
    flags: RunFlags | None = None,
    *,
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> list[DatasetIdentity]:
    """Make sure that every instance that the training may draw or score was validated as it is now, and is usable.

    Instances that are new or changed since they were last read are read now, and remembered in the dataset's manifest,
    so that a start without changes takes seconds. No list is written, whoever made it.

    Args:
        config: of the training.
        flags: say whether held-out lists are scored; by default the configuration's own.
        progress: called as `progress(done, total)` while the instances of a list are read.
        log: told of warnings, which do not keep the training from starting, and of what is read.

    Returns:
        what the training will read, as `check_training_inputs`.

    Raises:
        MissingIndexError, DatasetError: as `check_training_inputs`.
        DatasetError: broken instances; names for each dataset how many, the first with rule and evidence, and what to
            do.
        ConfigError: a dataset's thresholds cannot be read.
    """
    drawn = list(_drawn(config))
    # What is missing is told before hours are spent on reading the rest.
    for where, dataset in drawn:
        path, _ = _located(where, dataset)
        read_index(path, dataset.index)
    scores = bool((flags or config.run).eval_every)
    identities, problems = [], []
    for where, dataset in drawn:
        path = dataset.resolved_path()
        report = _checked(dataset, path, dataset.index, progress, log)
        listed = frozenset(report.instances)
        identities.append(
            DatasetIdentity(
                dataset.name, path, path / dataset.index, report.digest, len(report.instances), dataset.depth
            )
        )
        problems += _problems(where, dataset, report)
        if scores and (path / VALIDATION_NAME).is_file() and dataset.index != VALIDATION_NAME:
            problems += _problems(where, dataset, _checked(dataset, path, VALIDATION_NAME, progress, log, listed))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DatasetError(
            config.source,
            "needs datasets without broken instances",
            found=f"{len(problems)} lists with some:\n" + "\n".join(f"- {problem}" for problem in problems),
        )
    return identities


def _drawn(config: TrainConfig) -> list[tuple[str, DatasetConfig]]:
    """Where the configuration names each dataset, without those that are switched off: they need not be there."""
    return [
        (f"{config.source}: data.datasets.{position} ({dataset.name})", dataset)
        for position, dataset in enumerate(config.data.datasets)
        if dataset.weight > 0
    ]


def _located(where: str, dataset: DatasetConfig) -> tuple[Path, Path]:
    """Folder and list of a dataset.

    Raises:
        MissingIndexError: one of them is not there.
    """
    path = dataset.resolved_path()
    index_path = path / dataset.index
    if not path.is_dir():
        raise MissingIndexError(
            where,
            "needs its dataset",
            found=f"no folder {path}",
            fix=f"Relative paths start at {data_root()} (set MOGE_DATA_ROOT to change that). Import the data, "
            f"e.g. with `moge import rgbd-folder SOURCE -o {path} ...`, then run `moge index "
            f"{_words(path, INDEX_NAME, dataset.depth)}`.",
        )
    if not index_path.is_file():
        raise MissingIndexError(
            where, f"needs the index {index_path}", found="no such file", fix=missing_index_fix(path, dataset.index)
        )
    return path, index_path


def _checked(
    dataset: DatasetConfig,
    path: Path,
    index_name: str,
    progress: Progress | None,
    log: Callable[[str], None],
    told: frozenset[str] = frozenset(),
) -> ListedReport:
    """Check one list, and tell its warnings but for those of instances in `told`, by rule with the first of each."""
    told_at = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal told_at
        if progress is not None:
            progress(done, total)
        if time.monotonic() - told_at > _TELL_EVERY_S:
            told_at = time.monotonic()
            log(f"{dataset.name}: {done} of {total} are read")

    report = check_listed(
        path,
        index_name=index_name,
        depth_name=dataset.depth,
        label_type=dataset.label_type,
        depth_unit=dataset.depth_unit,
        progress=update,
        log=lambda text: log(f"{dataset.name}: {text}"),
    )
    for note in report.notes:
        log(f"{dataset.name}: {note}")
    warnings = [finding for finding in report.warnings if finding.instance not in told]
    for rule, count in sorted(Counter(finding.rule for finding in warnings).items()):
        first = next(finding for finding in warnings if finding.rule == rule)
        log(f"{dataset.name}: {count} x {rule} in {index_name}, first {first.instance}: {first.evidence}")
    return report


def _problems(where: str, dataset: DatasetConfig, report: ListedReport) -> list[DatasetError]:
    errors = report.errors
    if not errors:
        return []
    path = report.dataset_dir
    index_name = report.index_path.relative_to(path).as_posix()
    broken = len({finding.instance for finding in errors})
    first = "; ".join(f"{finding.instance}: {finding.rule}: {finding.evidence}" for finding in errors[:_MOST_TOLD])
    more = f"; and {len(errors) - _MOST_TOLD} more findings" if len(errors) > _MOST_TOLD else ""
    words = _words(path, index_name, dataset.depth)
    if report.written_by_us:
        # Splits follow the full list.
        index = f"moge index {_words(path, INDEX_NAME, dataset.depth)}"
        mend = f"mend them, or let `{index}` write the list without them"
    else:
        mend = f"mend them, or delete their lines from {index_name}, which is your own list and stays as it is"
    return [
        DatasetError(
            where,
            f"needs every instance of {report.index_path} to be usable",
            found=f"{broken} broken of {len(set(report.instances))}: {first}{more}",
            fix=f"`moge validate {words}` tells all; {mend}.",
        )
    ]


def _words(path: Path, index_name: str, depth_name: str) -> str:
    """Arguments of a `moge` command on this dataset."""
    index = "" if index_name == INDEX_NAME else f" --index {index_name}"
    depth = "" if depth_name == DEPTH_NAME else f" --depth {depth_name}"
    return f"{path}{index}{depth}"
