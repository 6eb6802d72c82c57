"""Importers: from the layouts in which data is published to the dataset format. One file a layout.

Each is a generator of `records.Record`; `writing.run_import` makes instances of them, in parallel, resumably.
Names are loaded when they are first used: the command line asks only for the vocabulary of its options.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moge_core.datasets.importers.array_files import import_arrays
    from moge_core.datasets.importers.blendedmvs import import_blendedmvs
    from moge_core.datasets.importers.colmap import import_colmap
    from moge_core.datasets.importers.dgp import import_dgp
    from moge_core.datasets.importers.hypersim import import_hypersim, read_hypersim_depth
    from moge_core.datasets.importers.kitti import import_kitti
    from moge_core.datasets.importers.nuscenes import import_nuscenes
    from moge_core.datasets.importers.nyu_mat import import_nyu_mat
    from moge_core.datasets.importers.presets import PRESETS, Preset
    from moge_core.datasets.importers.rgbd_folder import import_rgbd_folder
    from moge_core.datasets.importers.stereo import import_stereo
    from moge_core.datasets.importers.table import import_table
    from moge_core.datasets.importers.tartanair import import_tartanair
    from moge_core.datasets.importers.writing import ImportReport

__all__ = [
    "PRESETS",
    "ImportReport",
    "Preset",
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
    "read_hypersim_depth",
]

_HOME = {
    "ImportReport": "writing",
    "PRESETS": "presets",
    "Preset": "presets",
    "import_arrays": "array_files",
    "import_blendedmvs": "blendedmvs",
    "import_colmap": "colmap",
    "import_dgp": "dgp",
    "import_hypersim": "hypersim",
    "import_kitti": "kitti",
    "import_nuscenes": "nuscenes",
    "import_nyu_mat": "nyu_mat",
    "import_rgbd_folder": "rgbd_folder",
    "import_stereo": "stereo",
    "import_table": "table",
    "import_tartanair": "tartanair",
    "read_hypersim_depth": "hypersim",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
