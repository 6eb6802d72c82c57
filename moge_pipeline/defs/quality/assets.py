"""`quality/<dataset>`: pictures, statistics and point clouds by which a person judges a dataset."""

from pathlib import Path
from typing import Any

import dagster as dg

from moge_pipeline.catalog import Catalog, DatasetEntry, DatasetVariant, slug_of
from moge_pipeline.defs.datasets.assets import index_key
from moge_pipeline.defs.errors import mendable_errors
from moge_pipeline.defs.quality.thumbnails import picture
from moge_pipeline.defs.runs.worker import begin_step


class QualityConfig(dg.Config):
    """How much of the dataset the report shows."""

    num_samples: int = 8
    seed: int = 0


def quality_asset(entry: DatasetEntry, catalog: Catalog) -> dg.AssetsDefinition:
    """The quality report of one dataset, one part for each list that configurations read."""
    out_dir = catalog.workspace_dir / "quality" / entry.slug

    @dg.asset(
        key=["quality", entry.slug],
        deps=[index_key(entry.slug)],
        group_name="quality",
        kinds={"python"},
        description=f"What {entry.name} looks like: one page to open in a browser (`report.html`), with sampled"
        " instances as pictures and as point clouds to turn, the distribution of depths and cameras, and what is wrong;"
        f" the clouds as PLY, too. Below `{out_dir.relative_to(catalog.root)}`.",
    )
    def quality(context: dg.AssetExecutionContext, config: QualityConfig) -> dg.MaterializeResult[Any]:
        begin_step()
        metadata: dict[str, Any] = {}
        for number, variant in enumerate(entry.variants):
            main = number == 0
            folder = out_dir if main else out_dir / _folder_of(variant)
            part = _write_report(entry, variant, folder, config)
            context.log.info(f"Wrote the report of {variant.index} with {variant.depth} to {folder}")
            metadata |= (
                part if main else {f"{key} ({variant.index}, {variant.depth})": value for key, value in part.items()}
            )
        return dg.MaterializeResult(metadata=metadata)

    return quality


def _write_report(entry: DatasetEntry, variant: DatasetVariant, folder: Path, config: QualityConfig) -> dict[str, Any]:
    from moge_core.datasets import write_quality_report

    with mendable_errors():
        report = write_quality_report(
            entry.path,
            folder,
            index_name=variant.index,
            depth_name=variant.depth,
            num_samples=config.num_samples,
            seed=config.seed,
        )
    problems = [dg.TableRecord({"instance": name, "problem": text}) for name, text in report.problems.items()]
    clouds = [dg.TableRecord({"instance": name, "ply": str(path)}) for name, path in report.ply_paths.items()]
    return {
        "verdict": report.verdict,
        # A path that can be copied: browsers do not follow links from a page of a server to a file.
        "page": dg.MetadataValue.path(report.html_path),
        "contact_sheet": picture(Path(report.contact_sheet), f"Sampled instances of {entry.name}"),
        "depth_histogram": picture(Path(report.depth_histogram), f"Depths of {entry.name}"),
        "point_clouds": dg.MetadataValue.table(clouds),
        "statistics": dg.MetadataValue.json(report.statistics),
        "report": dg.MetadataValue.path(folder),
        **({"problems": dg.MetadataValue.table(problems)} if problems else {}),
    }


def _folder_of(variant: DatasetVariant) -> str:
    return f"{slug_of(variant.index)}-{slug_of(variant.depth)}"
