from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moge_core.errors import InputError
from moge_core.geometry import depth_map_to_point_map, image_uv, project_points, unproject_points

off_centre_cameras = st.builds(
    lambda fx, fy, skew, cx, cy: np.array([[fx, skew, cx], [0, fy, cy], [0, 0, 1]]),
    st.floats(0.2, 5),
    st.floats(0.2, 5),
    st.floats(-0.1, 0.1),
    st.floats(-1, 2),
    st.floats(-1, 2),
)
image_shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))


def test_point_maps_are_those_of_the_published_code(golden, kind):
    for case in "01":
        depth, intrinsics = golden[f"d2p.{case}.depth"], golden[f"fov.{case}.K"]
        points = depth_map_to_point_map(kind(depth), kind(intrinsics))
        assert tuple(points.shape) == (*depth.shape, 3)
        np.testing.assert_allclose(points, golden[f"d2p.{case}.points_pt"], atol=5e-6)


@given(intrinsics=off_centre_cameras, shape=image_shapes, seed=st.integers(0, 99))
@settings(deadline=None)
def test_every_point_projects_onto_its_own_pixel(intrinsics, shape, seed):
    depth = np.random.default_rng(seed).uniform(0.1, 100, shape)
    points = depth_map_to_point_map(depth, intrinsics)
    uv, z = project_points(points, intrinsics)
    np.testing.assert_allclose(uv, image_uv(shape[1], shape[0], dtype=np.float64), atol=1e-9)
    assert np.array_equal(z, depth)
    np.testing.assert_allclose(unproject_points(uv, z, intrinsics), points, rtol=1e-9, atol=1e-9)


@given(intrinsics=off_centre_cameras, shape=image_shapes, seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_flipped_image_and_camera_see_the_flipped_scene(intrinsics, shape, seed):
    depth = np.random.default_rng(seed).uniform(0.1, 100, shape)
    flipped_camera = intrinsics.copy()
    flipped_camera[0, 1], flipped_camera[0, 2] = -intrinsics[0, 1], 1 - intrinsics[0, 2]
    flipped = depth_map_to_point_map(depth[:, ::-1], flipped_camera)
    expected = depth_map_to_point_map(depth, intrinsics)[:, ::-1] * [-1, 1, 1]
    np.testing.assert_allclose(flipped, expected, rtol=1e-9, atol=1e-9)


@given(
    depth=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.floats(width=32)),
    intrinsics=off_centre_cameras,
)
@settings(deadline=None)
def test_numpy_and_torch_agree_on_any_float32(depth, intrinsics):
    points = depth_map_to_point_map(depth, intrinsics)
    assert points.dtype == np.float32
    tensor = depth_map_to_point_map(torch.from_numpy(depth), torch.from_numpy(intrinsics))
    np.testing.assert_allclose(tensor, points, rtol=1e-6)


def test_double_precision_stays_double(kind):
    depth = np.random.default_rng(0).uniform(1, 2, (7, 9))
    points = depth_map_to_point_map(kind(depth), kind(np.eye(3)))
    expected = np.concatenate([image_uv(9, 7, dtype=np.float64), np.ones((7, 9, 1))], -1) * depth[..., None]
    np.testing.assert_allclose(points, expected, rtol=1e-14)


def test_unknown_depth_has_no_point_and_the_sky_is_infinitely_far(kind):
    points = depth_map_to_point_map(
        kind(np.float32([[np.nan, np.inf]])), kind(np.float32([[1, 0, 0.5], [0, 1, 0.4], [0, 0, 1]]))
    )
    assert np.isnan(np.asarray(points)[0, 0]).all()
    assert np.isinf(np.asarray(points)[0, 1]).all()


def test_each_map_of_a_batch_has_its_own_camera(kind):
    depth = np.random.default_rng(0).uniform(1, 2, (3, 4, 5)).astype(np.float32)
    cameras = np.stack([np.diag(np.float32([f, f, 1])) for f in (0.5, 1, 2)])
    together = np.asarray(depth_map_to_point_map(kind(depth), kind(cameras)))
    for one, alone in enumerate(together):
        assert np.array_equal(alone, depth_map_to_point_map(depth[one], cameras[one]))
    shared = np.asarray(depth_map_to_point_map(kind(depth), kind(cameras[0])))
    assert np.array_equal(shared[0], together[0])


def test_projecting_keeps_no_hold_on_the_points():
    points = np.ones((4, 3), np.float32)
    _, z = project_points(points, np.eye(3))
    z[:] = 7
    assert (points == 1).all()


@pytest.mark.parametrize(
    ("depth", "intrinsics", "words"),
    [
        (np.ones(4, np.float32), np.eye(3), r"depth.*\(\.\.\., H, W\)"),
        (np.ones((4, 0), np.float32), np.eye(3), "at least one pixel"),
        (np.ones((4, 4), np.uint16), np.eye(3), "floating-point"),
        (np.ones((2, 4, 4), np.float32), np.stack([np.eye(3)] * 3), "intrinsics.*broadcast"),
        (np.ones((4, 4), np.float32), torch.eye(3), "torch tensor like intrinsics"),
        ([[1.0]], np.eye(3), "numpy array or a torch tensor"),
    ],
)
def test_what_is_no_depth_map_is_refused_by_name(depth, intrinsics, words):
    with pytest.raises(InputError, match=words):
        depth_map_to_point_map(depth, intrinsics)


def test_numpy_users_do_not_pay_for_torch():
    code = """
import sys
import numpy as np
import moge_core.geometry as geometry
points = geometry.depth_map_to_point_map(np.ones((8, 8), np.float32), np.eye(3, dtype=np.float32))
geometry.point_map_to_normal_map(points, edge_threshold=88)
geometry.depth_map_edge(points[..., 2], ltol=0.01)
geometry.masked_nearest_resize(points, mask=points[..., 2] > 0, size=(4, 4))
geometry.recover_focal_shift(points)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
