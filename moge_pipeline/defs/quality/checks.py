"""Thresholds of a quality report: told beside it, blocking nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from moge_core.datasets import QualityReport

_PROMISES = {
    "few_left_out": "Few instances are broken and left out of the list (`max_left_out_share`).",
    "depth_known": "Enough pixels have a known depth (`min_known_share`).",
    "samples_shown": "Every instance that was drawn could be shown.",
}


def threshold_check_specs(key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The checks that a quality asset carries."""
    return [dg.AssetCheckSpec(name, asset=key, description=promise) for name, promise in _PROMISES.items()]


def threshold_results(
    report: QualityReport, max_left_out_share: float, min_known_share: float
) -> list[dg.AssetCheckResult]:
    """Whether a report keeps the thresholds."""
    numbers = report.statistics
    total = numbers["num_instances"] + numbers["num_left_out"]
    left_out = numbers["num_left_out"] / total if total else 0.0
    known = numbers.get("valid_share")
    unshown = "; ".join(f"{name}: {text}" for name, text in report.problems.items())
    return [
        _result("few_left_out", left_out <= max_left_out_share, f"{left_out:.1%} of {total} instances are left out"),
        _result(
            "depth_known",
            known is None or known >= min_known_share,
            "not measured yet" if known is None else f"depth is known in {known:.1%} of the pixels",
        ),
        _result("samples_shown", not report.problems, unshown or f"{len(report.instances)} instances are shown"),
    ]


def _result(name: str, passed: bool, description: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=name, passed=bool(passed), severity=dg.AssetCheckSeverity.WARN, description=description
    )
