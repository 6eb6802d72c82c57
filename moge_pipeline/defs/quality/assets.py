"""`quality/<dataset>`: pictures, statistics and point clouds by which a person judges a dataset."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from moge_pipeline.addresses import report_url
from moge_pipeline.catalog import Catalog, DatasetEntry, DatasetVariant, slug_of
from moge_pipeline.defs.conditions import on_new_data
from moge_pipeline.defs.datasets.assets import index_key
from moge_pipeline.defs.errors import mendable_errors
from moge_pipeline.defs.quality.checks import threshold_check_specs, threshold_results
from moge_pipeline.defs.quality.thumbnails import picture
from moge_pipeline.defs.references import code_references, owners_of_dataset
from moge_pipeline.defs.runs.worker import begin_step

if TYPE_CHECKING:
    from moge_core.datasets import QualityReport

# Numbers that Dagster draws over the materializations of an asset.
_PLOTTED = ("num_instances", "num_left_out", "valid_share", "depth_median")


class QualityConfig(dg.Config):
    """How much of the dataset the report shows."""

    num_samples: int = Field(8, ge=1, description="Instances to show.")
    seed: int = Field(0, description="Another seed shows others.")
    max_left_out_share: float = Field(
        0.1, ge=0, le=1, description="Share of the instances that may be broken and left out of the list."
    )
    min_known_share: float = Field(
        0.01, ge=0, le=1, description="Mean share of the pixels whose depth must be known (sparse LiDAR has 0.04)."
    )


def quality_asset(entry: DatasetEntry, catalog: Catalog) -> dg.AssetsDefinition:
    """The quality report of one dataset, one part for each list that configurations read."""
    out_dir = catalog.workspace_dir / "quality" / entry.slug

    @dg.asset(
        key=["quality", entry.slug],
        deps=[index_key(entry.slug)],
        group_name="quality",
        kinds={"python"},
        owners=owners_of_dataset(entry, catalog),
        metadata=code_references(entry.named_in),
        automation_condition=on_new_data(entry.path),
        check_specs=threshold_check_specs(dg.AssetKey(["quality", entry.slug])),
        description=f"What {entry.name} looks like: one page to open in a browser (`report.html`), with sampled"
        " instances as pictures and as point clouds to turn, the distribution of depths and cameras, and what is wrong;"
        f" the clouds as PLY, too. Below `{out_dir.relative_to(catalog.root)}`.",
    )
    def quality(context: dg.AssetExecutionContext, config: QualityConfig) -> Iterator[dg.MaterializeResult[Any]]:
        begin_step()
        results: list[dg.AssetCheckResult] = []
        metadata: dict[str, Any] = {}
        for number, variant in enumerate(entry.variants):
            main = number == 0
            folder = out_dir if main else out_dir / _folder_of(variant)
            report = _write_report(entry, variant, folder, config)
            part = _metadata(entry, report, folder, catalog.workspace_dir)
            results = results or threshold_results(report, config.max_left_out_share, config.min_known_share)
            context.log.info(f"Wrote the report of {variant.index} with {variant.depth} to {folder}")
            metadata |= (
                part if main else {f"{key} ({variant.index}, {variant.depth})": value for key, value in part.items()}
            )
        yield dg.MaterializeResult(metadata=metadata, check_results=results)

    return quality


def _write_report(entry: DatasetEntry, variant: DatasetVariant, folder: Path, config: QualityConfig) -> "QualityReport":
    from moge_core.datasets import write_quality_report

    with mendable_errors():
        return write_quality_report(
            entry.path,
            folder,
            index_name=variant.index,
            depth_name=variant.depth,
            num_samples=config.num_samples,
            seed=config.seed,
        )


def _metadata(entry: DatasetEntry, report: "QualityReport", folder: Path, workspace_dir: Path) -> dict[str, Any]:
    problems = [dg.TableRecord({"instance": name, "problem": text}) for name, text in report.problems.items()]
    clouds = [dg.TableRecord({"instance": name, "ply": str(path)}) for name, path in report.ply_paths.items()]
    numbers = {name: _rounded(value) for name, value in report.statistics.items()}
    return {
        "verdict": report.verdict,
        "report_page": dg.MetadataValue.url(report_url(Path(report.html_path), workspace_dir)),
        "contact_sheet": picture(Path(report.contact_sheet), f"Sampled instances of {entry.name}"),
        "depth_histogram": picture(Path(report.depth_histogram), f"Depths of {entry.name}"),
        **({"problems": dg.MetadataValue.table(problems)} if problems else {}),
        # The same page as a file, for where no report server runs.
        "page": dg.MetadataValue.path(report.html_path),
        **{name: numbers[name] for name in _PLOTTED if name in numbers},
        "statistics": dg.MetadataValue.json(numbers),
        "point_clouds": dg.MetadataValue.table(clouds),
        "report": dg.MetadataValue.path(folder),
    }


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _folder_of(variant: DatasetVariant) -> str:
    return f"{slug_of(variant.index)}-{slug_of(variant.depth)}"
