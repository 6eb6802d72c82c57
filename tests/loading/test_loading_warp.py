"""Warped images, depth and normals: equal to the published ones, and true to geometry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_planes import PLANE, PLANE_DISTANCE, plane_depth

from moge_core.loading import warp
from moge_core.loading.view import View, rotation_onto_axis, sample_view

CASES = (0, 1, 2)


@pytest.fixture(params=CASES)
def case(request, golden):
    """Image, depth, transform and target size of one published warp, and a function for its results."""
    name = f"warp.{request.param}"
    size = tuple(int(side) for side in golden[f"{name}.tgt_hw"])
    transform = golden[f"{name}.transform"].astype(np.float64)
    return golden[f"{name}.image"], golden[f"{name}.depth"], transform, size, lambda what: golden[f"{name}.{what}"]


@pytest.mark.parametrize("interpolation", ["lanczos", "bilinear"])
def test_published_image_warps_are_reproduced(case, interpolation):
    image, _, transform, size, published = case
    warped = warp.warp_image(image, transform, size, interpolation)
    difference = np.abs(warped.astype(int) - published(f"image_{interpolation}"))
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.001


def test_published_depth_warps_are_reproduced(case):
    _, depth, transform, size, published = case
    nearest, expected = warp.warp_nearest(depth, transform, size), published("depth_nearest_sparse")
    with np.errstate(invalid="ignore"):
        same = (nearest == expected) | (np.isnan(nearest) & np.isnan(expected))
    assert (~same).mean() < 0.0002  # one pixel in 16,500 lies on a border between two source pixels

    inverse, expected = warp.warp_inverse_depth(depth, transform, size), published("disp_bilinear")
    known = ~np.isnan(expected)
    np.testing.assert_allclose(inverse[known], expected[known], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(1 / warp.z_ratio(transform, size), published("z_factor"), atol=1e-6)


@settings(max_examples=40)
@given(
    center=st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8)),
    source=st.sampled_from([(60, 80), (80, 60), (200, 30)]),
    size=st.sampled_from([(50, 70), (70, 50), (24, 24), (1, 1)]),
    seed=st.integers(0, 1000),
)
def test_a_warped_plane_is_the_turned_plane(center, source, size, seed):
    """Points from the warped depth and the view's intrinsics are R times points of the source."""
    height, width = source
    camera = np.array([[1.0, 0, center[0]], [0, width / height, center[1]], [0, 0, 1]])
    view = sample_view(
        camera,
        size[1] / size[0],
        fov_range_absolute=(1, 179),
        fov_range_relative=(0.3, 1.0),
        center_augmentation=1.0,
        rng=np.random.default_rng(seed),
    )
    depth = plane_depth(camera, *source)
    transform = warp.view_transform(camera, view)
    warped = warp.warp_depth(depth, transform, size, np.ones(source, dtype=bool))

    u, v = (np.arange(size[1]) + 0.5) / size[1], (np.arange(size[0]) + 0.5) / size[0]
    rays = np.stack([*np.meshgrid(u, v), np.ones(size)], axis=-1) @ np.linalg.inv(view.intrinsics).T
    distance = (rays * warped[..., None]) @ (view.rotation @ PLANE)
    # Next to the source's border the nearest pixel stands in, half a pixel off.
    inner = np.isfinite(distance)
    inner[[0, -1]] = inner[:, [0, -1]] = False
    np.testing.assert_allclose(distance[inner], -PLANE_DISTANCE, rtol=2e-3)

    normal = np.broadcast_to(PLANE.astype(np.float32), (*source, 3))
    turned = warp.warp_normal(normal, transform, view.rotation, size)
    known = ~np.isnan(turned[..., 0])
    np.testing.assert_allclose(turned[known], np.broadcast_to(view.rotation @ PLANE, turned[known].shape), atol=1e-5)


def test_what_lies_outside_the_source_is_unknown():
    camera = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    turned = View(camera.astype(np.float32), rotation_onto_axis(np.array([0.5, 0, 1])).astype(np.float32))
    transform = warp.view_transform(camera, turned)
    depth = np.full((32, 32), 2, dtype=np.float32)
    outside = np.isnan(warp.warp_depth(depth, transform, (32, 32), np.ones((32, 32), dtype=bool)))
    assert outside[:, -8:].all() and not outside[8:-8, :8].any()
    normal = warp.warp_normal(np.broadcast_to(np.float32([0, 0, -1]), (32, 32, 3)), transform, np.eye(3), (32, 32))
    assert np.isnan(normal[outside]).all()


def test_unknown_and_infinite_depth_do_not_leak_into_their_neighbours():
    depth = np.full((40, 40), 2, dtype=np.float32)
    depth[:20] = np.inf
    depth[:, :10] = np.nan
    zoom = np.array([[0.7, 0, 0.13], [0, 0.7, 0.17], [0, 0, 1.0]])
    warped = warp.warp_depth(depth, zoom, (64, 64), np.isfinite(depth))
    values = warped[np.isfinite(warped)]
    assert values.size and np.isinf(warped).any() and np.isnan(warped).any()
    np.testing.assert_array_equal(values, 2)


def test_a_normal_beside_an_unknown_one_is_unknown_or_of_unit_length():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(30, 30, 3)).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normal[10:12, 10:12] = np.nan
    warped = warp.warp_normal(normal, np.eye(3), np.eye(3), (45, 45))
    length = np.linalg.norm(warped, axis=-1)
    assert np.isnan(length[15:18, 15:18]).all()
    np.testing.assert_allclose(length[~np.isnan(length)], 1, atol=1e-5)
