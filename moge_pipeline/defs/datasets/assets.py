"""`raw/<dataset>`, the folder as the user left it, and `index/<dataset>`, the list of instances that training reads."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from moge_core.errors import MoGeError
from moge_pipeline.catalog import Catalog, DatasetEntry
from moge_pipeline.defs.conditions import OBSERVE_CRON, on_new_data
from moge_pipeline.defs.datasets.checks import as_used, check_results, findings_table, index_check_specs
from moge_pipeline.defs.datasets.drift import STATISTICS, drift_check_specs, drift_results, former_statistics
from moge_pipeline.defs.errors import mendable_errors
from moge_pipeline.defs.references import beta_features, code_references, owners_of_dataset
from moge_pipeline.defs.runs.worker import begin_step

_INPUT_VERSION_TAG = "dagster/input_data_version/"

if TYPE_CHECKING:
    from moge_core.datasets import IndexReport


def raw_key(slug: str) -> dg.AssetKey:
    """Asset of a dataset's folder."""
    return dg.AssetKey(["raw", slug])


def index_key(slug: str) -> dg.AssetKey:
    """Asset of a dataset's list of instances."""
    return dg.AssetKey(["index", slug])


def raw_asset(entry: DatasetEntry) -> dg.SourceAsset:
    """The dataset's folder: observed, never made. Its version changes with the files in it."""

    def observe(context: dg.OpExecutionContext) -> dg.ObserveResult:
        from moge_core.datasets import dataset_fingerprint

        path = dg.MetadataValue.path(entry.path)
        try:
            version, state = dataset_fingerprint(entry.path), "present"
        except MoGeError as error:
            # Looking at a folder that is not there yet is no failure; whatever needs its data will fail and say so.
            context.log.warning(str(error))
            version, state = "absent", str(error)
        return dg.ObserveResult(data_version=dg.DataVersion(version), metadata={"path": path, "state": state})

    with beta_features():
        decorate = dg.observable_source_asset(
            key=raw_key(entry.slug),
            group_name="raw",
            description=f"The folder of {entry.name}, `{entry.path}`, with its RGB-D instances. Observing tells whether"
            f" anything in it has changed. Used by {', '.join(entry.used_by)}.",
            metadata={"path": dg.MetadataValue.path(entry.path)},
            tags={"dagster/kind/file": ""},
            automation_condition=dg.AutomationCondition.cron_tick_passed(OBSERVE_CRON)
            & ~dg.AutomationCondition.in_progress(),
        )
        return decorate(observe)


def index_asset(entry: DatasetEntry, catalog: Catalog) -> dg.AssetsDefinition:
    """The lists of instances that configurations read this dataset by, checked instance by instance."""
    key = index_key(entry.slug)
    lists = ", ".join(f"`{variant.index}` with `{variant.depth}`" for variant in entry.variants)

    @dg.asset(
        key=key,
        deps=[raw_key(entry.slug)],
        group_name="index",
        check_specs=[*index_check_specs(key), *drift_check_specs(key)],
        kinds={"python", "parquet"},
        owners=owners_of_dataset(entry, catalog),
        metadata=code_references(entry.named_in),
        automation_condition=on_new_data(entry.path),
        description=f"The usable instances of {entry.name}, as a list, and what is known of each, in"
        f" `.moge/manifest.parquet`. Lists in use: {lists}."
        " A list made by hand is checked and adopted, never rewritten.",
    )
    def index(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        from moge_core.datasets import dataset_fingerprint, depth_statistics, index_dataset

        begin_step()
        before = former_statistics(context.instance, key)
        with mendable_errors():
            # Before the scan: what changes during it makes the index out of date.
            fingerprint = dataset_fingerprint(entry.path)
        context.log_event(_observation(entry, fingerprint))
        reports = []
        for variant in entry.variants:
            with mendable_errors():
                report = index_dataset(entry.path, index_name=variant.index, depth_name=variant.depth)
            context.log.info(f"{report.index_path}: {len(report.instances)} of {report.num_scanned} instances")
            with mendable_errors():
                reports.append(as_used(report, entry, variant))
        with mendable_errors():
            statistics = depth_statistics(entry.path, entry.variants[0].index, entry.variants[0].depth)
        findings = [finding for report in reports for finding in report.findings]
        yield dg.MaterializeResult(
            data_version=dg.DataVersion("-".join(report.digest for report in reports)),
            # The folder was looked at just now; Dagster by itself would name the observation before.
            tags={_INPUT_VERSION_TAG + raw_key(entry.slug).to_user_string(): fingerprint},
            metadata={
                "instances": len(reports[0].instances),
                "scanned": reports[0].num_scanned,
                "errors": sum(finding.severity == "error" for finding in findings),
                "warnings": sum(finding.severity == "warning" for finding in findings),
                **({"findings": findings_table(findings)} if findings else {}),
                "lists": _lists_table(entry, reports),
                "path": dg.MetadataValue.path(reports[0].index_path),
                "manifest": dg.MetadataValue.path(reports[0].manifest_path),
                "adopted": reports[0].adopted,
                STATISTICS: dg.MetadataValue.json(statistics.model_dump()),
                "digest": reports[0].digest,
                "fingerprint": fingerprint,
            },
            check_results=[*check_results(reports), *drift_results(before, statistics)],
        )

    return index


def _lists_table(entry: DatasetEntry, reports: "Sequence[IndexReport]") -> dg.TableMetadataValue:
    rows: list[dict[str, str | int]] = [
        {
            "index": variant.index,
            "depth": variant.depth,
            "instances": len(report.instances),
            "digest": report.digest,
        }
        for variant, report in zip(entry.variants, reports, strict=True)
    ]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows])


def _observation(entry: DatasetEntry, fingerprint: str) -> dg.AssetObservation:
    """What an index saw of the folder that it lists, so that the graph shows the folder as observed."""
    version = {"dagster/data_version": fingerprint, "dagster/data_version_is_user_provided": "true"}
    return dg.AssetObservation(
        raw_key(entry.slug),
        metadata={"path": dg.MetadataValue.path(entry.path), "state": "present"},
        tags=version,
    )
