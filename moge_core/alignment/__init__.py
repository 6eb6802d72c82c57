"""Optimal scale and shift between point maps or depth maps: see `moge_core.alignment.solvers`."""

from moge_core.alignment.solvers import (
    METHODS,
    align,
    align_affine_lstsq,
    align_depth_affine,
    align_depth_scale,
    align_points_scale,
    align_points_scale_xyz_shift,
    align_points_scale_z_shift,
    align_points_xyz_shift,
    align_points_z_shift,
)

__all__ = [
    "METHODS",
    "align",
    "align_affine_lstsq",
    "align_depth_affine",
    "align_depth_scale",
    "align_points_scale",
    "align_points_scale_xyz_shift",
    "align_points_scale_z_shift",
    "align_points_xyz_shift",
    "align_points_z_shift",
]
