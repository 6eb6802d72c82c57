"""Importers: from the layouts in which data is published to the dataset format. One file a layout.

Each is a generator of `records.Record`; `writing.run_import` makes instances of them, in parallel, resumably.
"""

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
