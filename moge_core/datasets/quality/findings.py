"""What validation found, grouped by rule: errors first, the most frequent first, the worst instances as examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import IMAGE_NAME, Finding, check_entry, check_instance_links
from moge_core.datasets.manifest import InstanceRecord
from moge_core.datasets.quality.samples import small_depth_picture, small_picture
from moge_core.errors import MoGeError

_NUM_EXAMPLES = 4
_NUM_NAMES = 200
_THUMBNAIL_SIDE = 160


@dataclass(frozen=True)
class Example:
    """One finding with what can be seen of its instance.

    Attributes:
        finding: the finding.
        listed: True when the list names the instance.
        image, depth: small pictures; None where they cannot be had.
    """

    finding: Finding
    listed: bool
    image: npt.NDArray[np.uint8] | None
    depth: npt.NDArray[np.uint8] | None


@dataclass(frozen=True)
class FindingGroup:
    """All findings of one rule and severity.

    Attributes:
        severity, rule: what they share.
        sentence: what must hold; empty for a rule that this version does not know.
        count: instances that break it.
        examples: some of them, the worst first.
        more: others, by instance and evidence.
        num_untold: how many are in neither.
    """

    severity: Literal["error", "warning"]
    rule: str
    sentence: str
    count: int
    examples: list[Example]
    more: list[Finding]
    num_untold: int


def group_findings(
    findings: Sequence[Finding], root: Path, depth_name: str, listed: frozenset[str], records: Sequence[InstanceRecord]
) -> list[FindingGroup]:
    """The findings by severity and rule.

    Within a rule an instance comes before another when it has more errors, then more findings, then fewer known pixels.

    Args:
        findings: in any order.
        root: the dataset's resolved folder, to read examples from.
        depth_name: file name of the depth maps.
        listed: the instances of the list.
        records: what is known of the instances.
    """
    from moge_core.datasets import RULES

    num_errors = Counter(finding.instance for finding in findings if finding.severity == "error")
    num_findings = Counter(finding.instance for finding in findings)
    valid_shares = {record.path: record.valid_share for record in records if record.valid_share is not None}

    def badness(finding: Finding) -> tuple[Any, ...]:
        name = finding.instance
        return -num_errors[name], -num_findings[name], valid_shares.get(name, 1.0), name

    groups: dict[tuple[Literal["error", "warning"], str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.rule), []).append(finding)
    thumbnails = _Thumbnails(root, depth_name)
    result = []
    for (severity, rule), members in sorted(
        groups.items(), key=lambda item: (item[0][0] != "error", -len(item[1]), item[0][1])
    ):
        members.sort(key=badness)
        shown, rest = members[:_NUM_EXAMPLES], members[_NUM_EXAMPLES:]
        examples = [Example(finding, finding.instance in listed, *thumbnails.of(finding.instance)) for finding in shown]
        result.append(
            FindingGroup(
                severity,
                rule,
                RULES[rule].promise if rule in RULES else "",
                len({finding.instance for finding in members}),
                examples,
                rest[:_NUM_NAMES],
                max(0, len(rest) - _NUM_NAMES),
            )
        )
    return result


def count_rules(findings: Sequence[Finding]) -> Mapping[tuple[str, str], int]:
    """How many instances break each (severity, rule)."""
    return Counter((severity, rule) for severity, rule, _ in {(f.severity, f.rule, f.instance) for f in findings})


class _Thumbnails:
    """Small pictures of instances of which anything may be broken; each is read once."""

    def __init__(self, root: Path, depth_name: str) -> None:
        self._root = root
        self._depth_name = depth_name
        self._known: dict[str, tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.uint8] | None]] = {}

    def of(self, instance: str) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.uint8] | None]:
        """Image and depth; None for what cannot be decoded."""
        if instance not in self._known:
            self._known[instance] = (self._image(instance), self._depth(instance))
        return self._known[instance]

    def _image(self, instance: str) -> npt.NDArray[np.uint8] | None:
        from moge_core.io import read_image

        try:
            return small_picture(read_image(self._path(instance, IMAGE_NAME)), _THUMBNAIL_SIDE)
        except (MoGeError, OSError, ValueError):
            return None

    def _depth(self, instance: str) -> npt.NDArray[np.uint8] | None:
        from moge_core.io import read_depth

        try:
            return small_depth_picture(read_depth(self._path(instance, self._depth_name)), _THUMBNAIL_SIDE)
        except (MoGeError, OSError, ValueError):
            return None

    def _path(self, instance: str, name: str) -> Path:
        # A finding may be about a path that leads out of the dataset: nothing is read there.
        check_entry(instance, where=instance)
        check_instance_links(self._root, instance, (name,))
        return self._root / instance / name
