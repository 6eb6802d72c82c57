"""Under which conditions a score was made: scores of different ones are never compared. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moge_core.models.precision import Precision


@dataclass(frozen=True)
class ScoringConditions:
    """What a score depends on besides the weights. Every record of scores has these keys.

    Attributes:
        precision: of the network's encoder.
        num_tokens: resolution of the predictions.
        instances_digest: of the instances that were to be scored, see `digest_instances`.
        not_scored: those of them that could not be, `dataset/instance`.
    """

    precision: Precision
    num_tokens: int
    instances_digest: str
    not_scored: list[str] = field(default_factory=list)


def digest_instances(names: Iterable[str]) -> str:
    """Changes with the instances, by their names and order; 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:16]


def are_comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records of scores were made under the same conditions; one that does not tell them is like none."""
    keys = [each.name for each in fields(ScoringConditions)]
    return all(key in one and key in other and one[key] == other[key] for key in keys)
