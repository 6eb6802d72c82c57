"""Importers: from the layouts in which data is published to the dataset format. One file a layout."""

from moge_core.datasets.importers.rgbd_folder import ImportReport, import_rgbd_folder

__all__ = ["ImportReport", "import_rgbd_folder"]
