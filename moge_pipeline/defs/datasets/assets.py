"""`raw/<dataset>`, the folder as the user left it, and `index/<dataset>`, the list of instances that training reads."""

import warnings
from collections.abc import Iterator
from typing import Any

import dagster as dg

from moge_core.errors import MoGeError
from moge_pipeline.catalog import DatasetEntry
from moge_pipeline.defs.datasets.checks import check_results, findings_table, index_check_specs
from moge_pipeline.defs.errors import mendable_errors
from moge_pipeline.defs.runs.worker import begin_step


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

    with warnings.catch_warnings():
        # Each dataset would print Dagster's note that observable source assets are in beta.
        warnings.simplefilter("ignore", dg.BetaWarning)
        decorate = dg.observable_source_asset(
            key=raw_key(entry.slug),
            group_name="raw",
            description=f"RGB-D instances of {entry.name} at `{entry.path}`. Observing tells whether anything in the"
            f" folder has changed; used by {', '.join(entry.used_by)}.",
            metadata={"path": dg.MetadataValue.path(entry.path)},
        )
        return decorate(observe)


def index_asset(entry: DatasetEntry) -> dg.AssetsDefinition:
    """The lists of instances that configurations read this dataset by, checked instance by instance."""
    key = index_key(entry.slug)
    lists = ", ".join(f"`{variant.index}` with `{variant.depth}`" for variant in entry.variants)

    @dg.asset(
        key=key,
        deps=[raw_key(entry.slug)],
        group_name="index",
        check_specs=index_check_specs(key),
        kinds={"python"},
        description=f"List of the usable instances of {entry.name}, and `.moge/manifest.parquet` with what is known of"
        f" each. Lists in use: {lists}. A list made by hand is checked and adopted, never rewritten.",
    )
    def index(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        from moge_core.datasets import index_dataset

        begin_step()
        reports = []
        for variant in entry.variants:
            with mendable_errors():
                report = index_dataset(entry.path, index_name=variant.index, depth_name=variant.depth)
            context.log.info(f"{report.index_path}: {len(report.instances)} of {report.num_scanned} instances")
            reports.append(report)
        findings = [finding for report in reports for finding in report.findings]
        yield dg.MaterializeResult(
            data_version=dg.DataVersion("-".join(report.digest for report in reports)),
            metadata={
                "instances": len(reports[0].instances),
                "scanned": reports[0].num_scanned,
                "errors": sum(finding.severity == "error" for finding in findings),
                "warnings": sum(finding.severity == "warning" for finding in findings),
                "digest": reports[0].digest,
                "path": dg.MetadataValue.path(reports[0].index_path),
                "manifest": dg.MetadataValue.path(reports[0].manifest_path),
                "adopted": reports[0].adopted,
                "lists": dg.MetadataValue.table(
                    [
                        dg.TableRecord(
                            {
                                "index": variant.index,
                                "depth": variant.depth,
                                "instances": len(report.instances),
                                "digest": report.digest,
                            }
                        )
                        for variant, report in zip(entry.variants, reports, strict=True)
                    ]
                ),
                "findings": findings_table(findings),
            },
            check_results=check_results(reports),
        )

    return index
