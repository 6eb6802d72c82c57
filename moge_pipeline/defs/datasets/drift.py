"""Whether a dataset is still what it was when it was last indexed, and whether its index still tells what is there."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from moge_core.errors import MoGeError
from moge_pipeline.catalog import DatasetEntry
from moge_pipeline.defs.runs.history import latest_metadata

if TYPE_CHECKING:
    from moge_core.datasets import DatasetStatistics

STATISTICS = "statistics"
"""Key of an index's metadata that holds its `DatasetStatistics`."""

_PROMISES = {
    "size_stable": ("The list has not shrunk since it was last made.", frozenset({"instances"})),
    "depth_stable": (
        "Depths, the share of pixels that have one, and focal lengths are distributed as they last were.",
        frozenset({"median depth", "share of known pixels", "focal length"}),
    ),
}


def drift_check_specs(key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The checks of an index against its former self."""
    return [dg.AssetCheckSpec(name, asset=key, description=promise) for name, (promise, _) in _PROMISES.items()]


def former_statistics(instance: dg.DagsterInstance, key: dg.AssetKey) -> "DatasetStatistics | None":
    """What the newest materialization of an index recorded; None where there is none, or none that can be read."""
    from moge_core.datasets import DatasetStatistics

    recorded = (latest_metadata(instance, key) or {}).get(STATISTICS)
    try:
        return DatasetStatistics.model_validate(recorded) if recorded is not None else None
    except ValueError:  # of another version
        return None


def drift_results(before: "DatasetStatistics | None", now: "DatasetStatistics") -> list[dg.AssetCheckResult]:
    """How far the numbers of a list have moved since the materialization before."""
    from moge_core.datasets import compare_statistics

    drifts = compare_statistics(before, now) if before is not None else []
    results = []
    for name, (_, figures) in _PROMISES.items():
        found = [drift for drift in drifts if drift.what in figures]
        severe = any(drift.severity == "error" for drift in found)
        told: dict[str, Any] = {}
        for drift in found:
            told |= {f"{drift.what} before": float(drift.before), f"{drift.what} now": float(drift.now)}
        results.append(
            dg.AssetCheckResult(
                check_name=name,
                passed=not found,
                severity=dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN,
                description="; ".join(map(str, found)) or ("nothing to compare with yet" if before is None else None),
                metadata=told,
            )
        )
    return results


def freshness_check(entry: DatasetEntry) -> dg.AssetChecksDefinition:
    """`indexed` of a folder: its index still tells what is there. Runs by itself, not with every indexing."""
    key = dg.AssetKey(["index", entry.slug])

    @dg.asset_check(
        asset=dg.AssetKey(["raw", entry.slug]),
        name="indexed",
        description="No file of the dataset has been added, removed or changed since its index was made.",
    )
    def indexed(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        from moge_core.datasets import dataset_fingerprint

        known = (latest_metadata(context.instance, key) or {}).get("fingerprint")
        try:
            now = dataset_fingerprint(entry.path)
        except MoGeError as error:
            return _stale(str(error))
        if known is None:
            return _stale("The dataset has not been indexed yet.")
        if known != now:
            return _stale(f"Files have changed since. Materialize {key.to_user_string()} to take them in.")
        return dg.AssetCheckResult(passed=True)

    return indexed


def _stale(description: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, description=description)
