"""`new_dataset_job`: looks at a dataset that no configuration names yet, and says how to name it."""

import json
from pathlib import Path
from typing import Any

import dagster as dg

from moge_core.loading.config import data_root
from moge_pipeline.catalog import Catalog, slug_of
from moge_pipeline.defs.datasets.checks import findings_table
from moge_pipeline.defs.errors import mendable_errors
from moge_pipeline.defs.quality.thumbnails import picture

_OP = "new_dataset"


class NewDatasetConfig(dg.Config):
    """Which folder to look at."""

    path: str
    """The dataset's folder."""
    depth: str = "depth.png"
    """File name of its depth maps."""


def new_dataset_config(path: Path) -> dict[str, Any]:
    """Run configuration of `new_dataset_job` for one folder."""
    return {"ops": {_OP: {"config": {"path": str(path)}}}}


def new_dataset_job(catalog: Catalog) -> dg.JobDefinition:
    """Indexes and checks one folder and writes its quality report, below `workspace/new_datasets/`."""
    reports_dir = catalog.workspace_dir / "new_datasets"

    @dg.op(name=_OP, out=dg.Out(dg.Nothing))
    def look_at(context: dg.OpExecutionContext, config: NewDatasetConfig) -> None:
        from moge_core.datasets import index_dataset, write_quality_report

        path = Path(config.path)
        with mendable_errors():
            index = index_dataset(path, depth_name=config.depth)
            report = write_quality_report(path, reports_dir / slug_of(path.name), depth_name=config.depth)
        lines = configuration_lines(path, config.depth)
        context.log.info(
            f"{path}: {len(index.instances)} of {index.num_scanned} instances can be used, {index.num_broken} are"
            f" broken. Verdict: {report.verdict}. To train with it, add this to `data.datasets` of a configuration,"
            f" with the label of the losses that suit its depth, and reload the code location:\n{lines}"
        )
        context.add_output_metadata(
            {
                "path": dg.MetadataValue.path(path),
                "instances": len(index.instances),
                "scanned": index.num_scanned,
                "broken": index.num_broken,
                "verdict": report.verdict,
                "page": dg.MetadataValue.path(report.html_path),
                "contact_sheet": picture(Path(report.contact_sheet), f"Sampled instances of {path.name}"),
                "findings": findings_table(index.findings),
                "add to a configuration": dg.MetadataValue.md(f"```json\n{lines}\n```"),
            }
        )

    @dg.job(name="new_dataset_job", description="Indexes, checks and shows a dataset that no configuration names yet.")
    def job() -> None:
        look_at()

    return job


def configuration_lines(path: Path, depth_name: str = "depth.png") -> str:
    """What to add to `data.datasets` of a training configuration; the label is for a person to choose."""
    root = data_root().resolve()
    shown = path.resolve().relative_to(root) if path.resolve().is_relative_to(root) else path.resolve()
    entry = {"name": slug_of(path.name), "path": shown.as_posix(), "label_type": "synthetic", "weight": 1.0}
    if depth_name != "depth.png":
        entry["depth"] = depth_name
    return json.dumps(entry)
