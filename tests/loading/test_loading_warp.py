"""Warped images, depth and normals: equal to the published ones, and true to geometry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_planes import PLANE, PLANE_DISTANCE, plane_depth

from moge_core.geometry import depth_map_edge
from moge_core.loading.view import View, rotation_onto_axis, sample_view
from moge_core.loading.warp import Warp

CASES = (0, 1, 2)


@pytest.fixture(params=CASES)
def case(request, golden):
    """Image, depth and warp of one published case, and a function for its results."""
    name = f"warp.{request.param}"
    image, depth = golden[f"{name}.image"], golden[f"{name}.depth"]
    target = tuple(int(side) for side in golden[f"{name}.tgt_hw"])
    warp = Warp(golden[f"{name}.transform"].astype(np.float64), depth.shape, target)
    return image, depth, warp, lambda what: golden[f"{name}.{what}"]


def nearest_of(warp, depth):
    return warp.nearest(depth, ~np.isnan(depth), outside=np.nan)


def depth_of(warp, depth, smooth):
    return warp.depth(depth[warp.region], smooth[warp.region], nearest_of(warp, depth))


def share_of_different(one, other):
    return 1 - np.isclose(one, other, rtol=1e-5, equal_nan=True).mean()


@pytest.mark.parametrize("interpolation", ["lanczos", "bilinear"])
def test_published_image_warps_are_reproduced(case, interpolation):
    image, _, warp, published = case
    difference = np.abs(warp.image(image, interpolation).astype(int) - published(f"image_{interpolation}"))
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.001


def test_cubic_warps_are_close_to_the_published_lanczos_ones(case):
    """In all but noise: the mean difference is a small part of what bilinear interpolation loses."""
    image, _, warp, published = case
    lanczos = published("image_lanczos").astype(int)
    cubic, bilinear = (np.abs(warp.image(image, kind).astype(int) - lanczos).mean() for kind in ("cubic", "bilinear"))
    assert cubic < 0.45 * bilinear


def test_published_depth_warps_are_reproduced(case):
    _, depth, warp, published = case
    nearest, expected = nearest_of(warp, depth), published("depth_nearest_sparse")
    assert (
        share_of_different(nearest, expected) < 0.0002
    )  # one pixel in 16,500 lies on a border between two source pixels

    with np.errstate(divide="ignore"):
        inverse, expected = warp.bilinear(np.nan_to_num(1 / depth[warp.region])), published("disp_bilinear")
    known = ~np.isnan(inverse) & ~np.isnan(expected)
    assert known.sum() > 50
    np.testing.assert_allclose(inverse[known], expected[known], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(1 / warp.z_ratio(), published("z_factor"), atol=1e-6)


@settings(max_examples=60)
@given(
    source=st.sampled_from([(90, 120), (120, 90), (300, 40), (16, 16)]),
    size=st.sampled_from([(50, 70), (130, 40), (24, 24), (1, 1)]),
    narrow=st.floats(0.1, 1.0),
    seed=st.integers(0, 1000),
)
def test_working_on_what_the_view_sees_changes_nothing(source, size, narrow, seed):
    """Images, nearest values and edges of the part are those of the whole source, up to the rounding of places."""
    rng = np.random.default_rng(seed)
    camera = np.array([[1.0, 0, 0.4], [0, source[1] / source[0], 0.6], [0, 0, 1]])
    view = sample_view(
        camera,
        size[1] / size[0],
        fov_range_absolute=(1, 179),
        fov_range_relative=(narrow, narrow),
        center_augmentation=1.0,
        rng=rng,
    )
    warp = Warp.to_view(camera, view, source, size)
    whole = Warp.to_view(camera, view, source, size)
    object.__setattr__(whole, "_region_of", lambda grid: (slice(0, grid[0]), slice(0, grid[1])))
    image = rng.integers(0, 256, (*source, 3), dtype=np.uint8)
    depth = rng.choice(np.float32([np.nan, 1, 1.02, 3]), source, p=[0.3, 0.3, 0.3, 0.1])
    for kind in ("cubic", "lanczos"):
        difference = np.abs(warp.image(image, kind).astype(int) - whole.image(image, kind))
        # OpenCV rounds places to 1/32 of a pixel, and those just between two of these may go either way: in noise,
        # where a whole pixel off would make a mean of 80, that is up to 23 of 255.
        assert difference.max() <= 32 and difference.mean() < 3
    # Beyond rounding, which decides where a place lies just between two pixels.
    assert share_of_different(nearest_of(warp, depth), nearest_of(whole, depth)) < 0.01

    def warped_depth(warp):
        part = depth[warp.region]
        finite = np.isfinite(part)
        smooth = finite & ~depth_map_edge(part, ltol=0.01, kernel_size=5, mask=finite)
        return warp.depth(part, smooth, nearest_of(warp, depth))

    assert share_of_different(warped_depth(warp), warped_depth(whole)) < 0.01


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
    warp = Warp.to_view(camera, view, source, size)
    warped = depth_of(warp, depth, np.ones(source, dtype=bool))

    u, v = (np.arange(size[1]) + 0.5) / size[1], (np.arange(size[0]) + 0.5) / size[0]
    rays = np.stack([*np.meshgrid(u, v), np.ones(size)], axis=-1) @ np.linalg.inv(view.intrinsics).T
    distance = (rays * warped[..., None]) @ (view.rotation @ PLANE)
    # Next to the source's border the nearest pixel stands in, half a pixel off.
    inner = np.isfinite(distance)
    inner[[0, -1]] = inner[:, [0, -1]] = False
    np.testing.assert_allclose(distance[inner], -PLANE_DISTANCE, rtol=5e-3)

    normal = np.broadcast_to(PLANE.astype(np.float32), (*source, 3))
    turned = warp.normal(normal[warp.region], view.rotation)
    known = ~np.isnan(turned[..., 0])
    np.testing.assert_allclose(turned[known], np.broadcast_to(view.rotation @ PLANE, turned[known].shape), atol=1e-5)


def test_what_lies_outside_the_source_is_unknown():
    camera = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    turned = View(camera.astype(np.float32), rotation_onto_axis(np.array([0.5, 0, 1])).astype(np.float32))
    warp = Warp.to_view(camera, turned, (32, 32), (32, 32))
    depth = np.full((32, 32), 2, dtype=np.float32)
    outside = np.isnan(depth_of(warp, depth, np.ones((32, 32), dtype=bool)))
    assert outside[:, -8:].all() and not outside[8:-8, :8].any()
    normal = warp.normal(np.broadcast_to(np.float32([0, 0, -1]), (32, 32, 3))[warp.region], np.eye(3))
    assert np.isnan(normal[outside]).all()


def test_unknown_and_infinite_depth_do_not_leak_into_their_neighbours():
    depth = np.full((40, 40), 2, dtype=np.float32)
    depth[:20] = np.inf
    depth[:, :10] = np.nan
    zoom = np.array([[0.7, 0, 0.13], [0, 0.7, 0.17], [0, 0, 1.0]])
    warped = depth_of(Warp(zoom, (40, 40), (64, 64)), depth, np.isfinite(depth))
    values = warped[np.isfinite(warped)]
    assert values.size and np.isinf(warped).any() and np.isnan(warped).any()
    np.testing.assert_array_equal(values, 2)


def test_a_normal_beside_an_unknown_one_is_unknown_or_of_unit_length():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(30, 30, 3)).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normal[10:12, 10:12] = np.nan
    warped = Warp(np.eye(3), (30, 30), (45, 45)).normal(normal, np.eye(3))
    length = np.linalg.norm(warped, axis=-1)
    assert np.isnan(length[15:18, 15:18]).all()
    np.testing.assert_allclose(length[~np.isnan(length)], 1, atol=1e-5)
