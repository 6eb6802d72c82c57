"""Datasets on disk: layout, sample scenes, importers, index, splits, validation, quarantine, inspection and report.

Names are loaded when they are first used, so that importing this package costs nothing: the pipeline's definitions do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moge_core.datasets.import_log import ImportEvent, read_import_log
    from moge_core.datasets.importers import (
        ImportReport,
        import_arrays,
        import_blendedmvs,
        import_colmap,
        import_dgp,
        import_hypersim,
        import_kitti,
        import_nuscenes,
        import_nyu_mat,
        import_rgbd_folder,
        import_stereo,
        import_table,
        import_tartanair,
    )
    from moge_core.datasets.index import (
        IndexReport,
        content_digest,
        dataset_fingerprint,
        index_dataset,
        index_digest,
        names_digest,
    )
    from moge_core.datasets.inspection import inspect_dataset
    from moge_core.datasets.layout import Finding, read_index
    from moge_core.datasets.listed import ListedReport, check_listed
    from moge_core.datasets.quality import QualityReport, write_quality_report
    from moge_core.datasets.quarantine import quarantine_instances, read_quarantine, release_instances
    from moge_core.datasets.sample_scenes import render_sample_scenes
    from moge_core.datasets.splits import SplitReport, split_dataset
    from moge_core.datasets.statistics import DatasetStatistics, Drift, compare_statistics, depth_statistics
    from moge_core.datasets.validation import RULES, ValidationSettings, validate_dataset

__all__ = [
    "RULES",
    "DatasetStatistics",
    "Drift",
    "Finding",
    "ImportEvent",
    "ImportReport",
    "IndexReport",
    "ListedReport",
    "QualityReport",
    "SplitReport",
    "ValidationSettings",
    "check_listed",
    "compare_statistics",
    "content_digest",
    "dataset_fingerprint",
    "depth_statistics",
    "import_arrays",
    "import_blendedmvs",
    "import_colmap",
    "import_dgp",
    "import_hypersim",
    "import_kitti",
    "import_nuscenes",
    "import_nyu_mat",
    "import_rgbd_folder",
    "import_stereo",
    "import_table",
    "import_tartanair",
    "index_dataset",
    "index_digest",
    "inspect_dataset",
    "names_digest",
    "quarantine_instances",
    "read_import_log",
    "read_index",
    "read_quarantine",
    "release_instances",
    "render_sample_scenes",
    "split_dataset",
    "validate_dataset",
    "write_quality_report",
]

_HOME = {
    "RULES": "validation",
    "DatasetStatistics": "statistics",
    "Drift": "statistics",
    "Finding": "layout",
    "ImportEvent": "import_log",
    "ImportReport": "importers",
    "IndexReport": "index",
    "ListedReport": "listed",
    "QualityReport": "quality",
    "SplitReport": "splits",
    "ValidationSettings": "validation",
    "check_listed": "listed",
    "compare_statistics": "statistics",
    "content_digest": "index",
    "dataset_fingerprint": "index",
    "depth_statistics": "statistics",
    "import_arrays": "importers",
    "import_blendedmvs": "importers",
    "import_colmap": "importers",
    "import_dgp": "importers",
    "import_hypersim": "importers",
    "import_kitti": "importers",
    "import_nuscenes": "importers",
    "import_nyu_mat": "importers",
    "import_rgbd_folder": "importers",
    "import_stereo": "importers",
    "import_table": "importers",
    "import_tartanair": "importers",
    "index_dataset": "index",
    "index_digest": "index",
    "inspect_dataset": "inspection",
    "names_digest": "index",
    "quarantine_instances": "quarantine",
    "read_import_log": "import_log",
    "read_index": "layout",
    "read_quarantine": "quarantine",
    "release_instances": "quarantine",
    "render_sample_scenes": "sample_scenes",
    "split_dataset": "splits",
    "validate_dataset": "validation",
    "write_quality_report": "quality",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
