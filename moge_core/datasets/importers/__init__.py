"""Importers: from the layouts in which data is published to the dataset format. One file a layout.

Each is a generator of `records.Record`; `writing.run_import` makes instances of them, in parallel, resumably.
"""

from moge_core.datasets.importers.rgbd_folder import PRESETS, import_rgbd_folder
from moge_core.datasets.importers.writing import ImportReport

__all__ = ["PRESETS", "ImportReport", "import_rgbd_folder"]
