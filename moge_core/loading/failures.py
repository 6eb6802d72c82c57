"""Instances that could not be used: named, counted, and too many of them end the run."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from moge_core.errors import DatasetError, InputError

logger = logging.getLogger(__name__)


class Failure(NamedTuple):
    """One instance that was drawn and could not be used.

    Attributes:
        dataset: the dataset's name.
        instance: its path within the dataset.
        rule: id of the broken rule, as `moge_core.datasets` names them, or one of the loader's own: `depth-in-view`,
            `normal-decodable`, `processing`.
        detail: what was found.
    """

    dataset: str
    instance: str
    rule: str
    detail: str


class FailureLog:
    """Every skipped instance once, how often each rule was broken, and the quota.

    Args:
        max_share: most of the last `window` draws that may fail.
        window: number of draws that the share is taken over.
        min_failures: so many may always fail, so that one broken instance does not end a run that has just begun.
    """

    def __init__(self, max_share: float = 0.01, window: int = 10_000, min_failures: int = 32) -> None:
        if not 0 <= max_share <= 1:
            raise InputError("max_failure_share", "must be in 0..1", found=max_share)
        self._max_share = max_share
        self._min_failures = min_failures if max_share > 0 else 0
        self._draws: deque[bool] = deque(maxlen=window)
        self._reported: set[tuple[str, str, str]] = set()
        self.failures: list[Failure] = []
        self.counts: Counter[tuple[str, str]] = Counter()

    def record(self, num_used: int, failures: Iterable[Failure]) -> None:
        """Count the draws behind a batch.

        Raises:
            DatasetError: more draws failed than the quota allows; names the instances.
        """
        self._draws.extend([False] * num_used)
        for failure in failures:
            self._draws.append(True)
            self.counts[failure.dataset, failure.rule] += 1
            if failure[:3] not in self._reported:
                self._reported.add(failure[:3])
                self.failures.append(failure)
                logger.warning("skipped %s/%s (%s): %s", *failure)
        num_failed = sum(self._draws)
        if num_failed > max(self._min_failures, self._max_share * len(self._draws)):
            raise self.error(f"at most {self._max_share:.1%} of the drawn instances may be unusable", num_failed)

    def error(self, rule: str, num_failed: int) -> DatasetError:
        """An error that names what failed."""
        shown = [
            f"  {dataset}/{instance} ({rule_id}): {detail}" for dataset, instance, rule_id, detail in self.failures
        ]
        more = [f"  and {len(shown) - 20} more"] if len(shown) > 20 else []
        return DatasetError(
            "data",
            rule,
            found="\n".join([f"{num_failed} of the last {len(self._draws)} draws:", *shown[:20], *more, ""]),
            fix="Run `moge validate` on the datasets, then mend these instances or take them out of the index.",
        )
