"""Cameras, point maps, normals, edges, masked resizing, and the recovery of focal length and shift.

Every function takes numpy arrays or torch tensors, batch dimensions first, and returns the same kind on the same
device; torch is not imported for those who pass arrays.
"""

from moge_core.geometry.cameras import (
    denormalize_intrinsics,
    focal_to_fov,
    focal_to_intrinsics,
    fov_to_focal,
    intrinsics_from_fov,
    intrinsics_to_focal,
    intrinsics_to_fov,
    normalize_intrinsics,
)
from moge_core.geometry.edges import depth_map_edge
from moge_core.geometry.focal import recover_focal_shift
from moge_core.geometry.normals import depth_map_to_normal_map, point_map_to_normal_map
from moge_core.geometry.point_maps import depth_map_to_point_map, project_points, unproject_points
from moge_core.geometry.resizing import masked_nearest_resize
from moge_core.geometry.uv import image_uv, normalized_view_plane_uv

__all__ = [
    "denormalize_intrinsics",
    "depth_map_edge",
    "depth_map_to_normal_map",
    "depth_map_to_point_map",
    "focal_to_fov",
    "focal_to_intrinsics",
    "fov_to_focal",
    "image_uv",
    "intrinsics_from_fov",
    "intrinsics_to_focal",
    "intrinsics_to_fov",
    "masked_nearest_resize",
    "normalize_intrinsics",
    "normalized_view_plane_uv",
    "point_map_to_normal_map",
    "project_points",
    "recover_focal_shift",
    "unproject_points",
]
