"""Files of a dataset and of results: one module per kind of artifact. Everything takes a path or a binary file object.

    image        read_image, write_image (JPEG, PNG), read_image_size (of any of these files, without decoding)
    depth        read_depth, write_depth (16-bit PNG, logarithmic)
    normal       read_normal, write_normal (16-bit PNG)
    mask         read_mask, write_mask (8-bit PNG)
    segmentation read_segmentation, write_segmentation (PNG with label names)
    meta         read_meta, write_meta (JSON with the camera)
    point_cloud  write_ply, read_ply, write_glb

A file written to a path appears complete or not at all. Readers look at headers before they allocate; what they accept
is set in `limits`. Files that do not hold what they should raise `FormatError`, and one that is not there
FileNotFoundError.
"""

from moge_core.io import limits
from moge_core.io.depth import DepthWarning, read_depth, write_depth
from moge_core.io.files import PathOrFile, atomic_open, file_digest
from moge_core.io.headers import read_image_size
from moge_core.io.image import read_image, write_image
from moge_core.io.mask import read_mask, write_mask
from moge_core.io.meta import read_meta, write_meta
from moge_core.io.normal import NormalWarning, read_normal, write_normal
from moge_core.io.point_cloud import PointCloud, read_ply, write_glb, write_ply
from moge_core.io.segmentation import read_segmentation, write_segmentation

__all__ = [
    "DepthWarning",
    "NormalWarning",
    "PathOrFile",
    "PointCloud",
    "atomic_open",
    "file_digest",
    "limits",
    "read_depth",
    "read_image",
    "read_image_size",
    "read_mask",
    "read_meta",
    "read_normal",
    "read_ply",
    "read_segmentation",
    "write_depth",
    "write_glb",
    "write_image",
    "write_mask",
    "write_meta",
    "write_normal",
    "write_ply",
    "write_segmentation",
]
