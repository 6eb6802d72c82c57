"""Instances that could not be used: named, counted, and too many of them end the run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from moge_core.errors import DatasetError, InputError

logger = logging.getLogger(__name__)


WORKER_DIED = "worker-died"
"""Rule of an instance during which a worker process died. It is skipped once that has happened twice."""


class Failure(NamedTuple):
    """One instance that was drawn and could not be used.

    Attributes:
        dataset: the dataset's name.
        instance: its path within the dataset.
        rule: id of the broken rule, as `moge_core.datasets` names them, or one of the loader's own: `depth-in-view`,
            `normal-decodable`, `processing`, `worker-died`.
        detail: what was found.
    """

    dataset: str
    instance: str
    rule: str
    detail: str


class FailureCount(NamedTuple):
    """How many draws could not be used, up to some place of the stream.

    Attributes:
        total: since the log began.
        num_recent: recent draws, at most 10,000, those of an earlier run that goes on among them.
        num_recent_failed: how many of these failed.
    """

    total: int
    num_recent: int
    num_recent_failed: int


class FailureLog:
    """Every skipped instance once, how often each rule was broken, and the quota.

    Args:
        max_share: most of the last `window` draws that may fail.
        window: number of draws that the share is taken over.
        min_failures: so many may always fail, so that one broken instance does not end a run that has just begun.
        path: file to list every failure in once, a JSON object a line; what it lists already stays.
    """

    def __init__(
        self,
        max_share: float = 0.01,
        window: int = 10_000,
        min_failures: int = 32,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        if not 0 <= max_share <= 1:
            raise InputError("max_failure_share", "must be in 0..1", found=max_share)
        self._max_share = max_share
        self._min_failures = min_failures if max_share > 0 else 0
        self._draws: deque[bool] = deque(maxlen=window)
        self._path = None if path is None else Path(path)
        # Read when the first failure is listed: by then the file of an abandoned run is out of the way.
        self._listed: set[tuple[str, str, str]] | None = None
        self._reported: set[tuple[str, str, str]] = set()
        self.failures: list[Failure] = []
        self.counts: Counter[tuple[str, str]] = Counter()

    def count(self) -> FailureCount:
        """What has been recorded so far."""
        return FailureCount(sum(self.counts.values()), len(self._draws), sum(self._draws))

    def go_on(self, num_draws: int, num_failed: int) -> None:
        """Begin with the window of an earlier run; which of its draws failed is forgotten, the oldest are taken."""
        self._draws.clear()
        self._draws.extend([True] * num_failed + [False] * (num_draws - num_failed))

    def record(self, num_used: int, failures: Iterable[Failure]) -> None:
        """Count the draws behind a batch.

        Raises:
            DatasetError: more draws failed than the quota allows; names the instances.
        """
        failures = list(failures)
        self._draws.extend([False] * num_used + [True] * len(failures))
        for failure in failures:
            self.counts[failure.dataset, failure.rule] += 1
            if failure[:3] not in self._reported:
                self._reported.add(failure[:3])
                self.failures.append(failure)
                if failure.rule != WORKER_DIED:  # told already, and another worker may well manage
                    logger.warning("skipped %s/%s (%s): %s", *failure)
                self._list(failure)
        num_failed = sum(self._draws)
        if num_failed > max(self._min_failures, self._max_share * len(self._draws)):
            rule = f"at most {self._max_share:.1%} of the drawn instances may be unusable"
            raise unusable(rule, f"{num_failed} of the last {len(self._draws)} draws", self.failures)

    def _list(self, failure: Failure) -> None:
        if self._path is None:
            return
        if self._listed is None:
            self._listed = _listed_in(self._path)
        if failure[:3] in self._listed:
            return
        self._listed.add(failure[:3])
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(failure._asdict()) + "\n")
        except OSError as error:
            logger.warning("%s: the failure cannot be listed: %s", self._path, error)


def unusable(rule: str, which: str, failures: Sequence[Failure]) -> DatasetError:
    """An error that names what failed."""
    shown = [f"  {dataset}/{instance} ({rule_id}): {detail}" for dataset, instance, rule_id, detail in failures]
    more = [f"  and {len(shown) - 20} more"] if len(shown) > 20 else []
    return DatasetError(
        "data",
        rule,
        found="\n".join([f"{which}:", *shown[:20], *more, ""]),
        fix="Run `moge validate` on the datasets, then mend these instances or take them out of the index.",
    )


def _listed_in(path: Path | None) -> set[tuple[str, str, str]]:
    listed = set()
    if path is not None and path.is_file():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError):  # a line that a crash cut short
                entry = json.loads(line)
                listed.add((entry["dataset"], entry["instance"], entry["rule"]))
    return listed
