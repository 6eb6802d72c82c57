from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moge_core.errors import InputError
from moge_core.geometry import depth_map_to_normal_map, depth_map_to_point_map, image_uv, point_map_to_normal_map

CAMERA = np.float32([[0.9, 0, 0.3], [0, 1.2, 0.6], [0, 0, 1]])


def plane_depth(width: int, height: int, normal: np.ndarray, distance: float, intrinsics: np.ndarray) -> np.ndarray:
    """Depth (H, W), float64, of the plane normal . p = -distance."""
    uv = image_uv(width, height, dtype=np.float64)
    rays = (uv - intrinsics[:2, 2]) / np.diag(intrinsics)[:2]
    return -distance / (rays @ normal[:2] + normal[2])


def bumpy_depth(seed: int, height: int = 23, width: int = 31) -> np.ndarray:
    """A depth map with steps, holes and sky."""
    rng = np.random.default_rng(seed)
    depth = (3 + np.cumsum(rng.normal(0, 0.02, (height, width)), axis=1)).astype(np.float32)
    depth[:, width // 2 :] += 2
    depth[rng.random(depth.shape) < 0.1] = np.nan
    depth[:4] = np.inf
    return depth


@pytest.mark.parametrize("threshold", [None, 88, 60])
@pytest.mark.parametrize("case", "01")
def test_normals_are_those_of_the_published_code_where_it_gives_any(golden, kind, case, threshold):
    depth, intrinsics = golden[f"d2p.{case}.depth"], golden[f"fov.{case}.K"]
    reference, reference_mask = golden[f"normal.{case}.et{threshold}"], golden[f"normal.{case}.et{threshold}.mask"]
    normals, mask = depth_map_to_normal_map(kind(depth), kind(intrinsics), kind(np.isfinite(depth)), threshold)
    normals, mask = np.asarray(normals), np.asarray(mask)
    assert np.array_equal(mask, reference_mask)
    assert np.isfinite(normals).all()
    assert (normals[~mask] == 0).all()
    given = mask & np.isfinite(reference).all(-1)
    assert given.sum() > 1000
    np.testing.assert_allclose(normals[given], reference[given], atol=2e-5)


@given(
    tilt=st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6)),
    distance=st.floats(1e-3, 1e4),
    shape=st.tuples(st.integers(2, 24), st.integers(2, 24)),
    cx=st.floats(-0.5, 1.5),
    cy=st.floats(-0.5, 1.5),
)
@settings(deadline=None)
def test_a_plane_has_its_own_normal_everywhere_up_to_the_border(tilt, distance, shape, cx, cy):
    intrinsics = np.array([[1.5, 0, cx], [0, 1.1, cy], [0, 0, 1]])
    normal = np.array([*tilt, -2.0]) / np.linalg.norm([*tilt, -2.0])
    depth = plane_depth(shape[1], shape[0], normal, distance, intrinsics)
    normals, mask = depth_map_to_normal_map(depth, intrinsics)
    seen = depth > 0
    if seen.all():
        assert mask.all()
        np.testing.assert_allclose(normals, np.broadcast_to(normal, normals.shape), atol=1e-7)


@given(
    depth=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 7), st.integers(1, 7)),
        elements=st.floats(width=32) | st.sampled_from([0.0, 1e-38, 1e-30, 1.0, 1e30, 3e38, np.inf, np.nan]),
    ),
    threshold=st.none() | st.floats(1, 90),
)
@settings(deadline=None, max_examples=200)
def test_no_value_of_float32_makes_a_nan_or_a_normal_that_is_not_unit(depth, threshold):
    for convert in (np.asarray, torch.from_numpy):
        normals, mask = depth_map_to_normal_map(convert(depth), convert(CAMERA), None, threshold)
        normals, mask = np.asarray(normals), np.asarray(mask)
        assert np.isfinite(normals).all()
        np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), mask.astype(np.float32), atol=1e-5)
        assert not mask[~np.isfinite(depth)].any()


def test_differences_beyond_float32_make_no_nan(kind):
    signs = np.indices((8, 8)).sum(0) % 2 * 2 - 1
    points = (signs[..., None] * np.float32([3e38, 2e38, 1e38])).astype(np.float32)
    points[3:5, 3:5] = 1
    normals, mask = point_map_to_normal_map(kind(points), edge_threshold=88)
    assert np.isfinite(np.asarray(normals)).all()
    assert not np.asarray(mask).any()


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_normals_do_not_depend_on_the_unit_even_at_the_ends_of_float32(kind, scale):
    depth = bumpy_depth(1)
    expected, expected_mask = depth_map_to_normal_map(depth, CAMERA, edge_threshold=88)
    scaled = (depth.astype(np.float64) * scale).astype(np.float32)
    normals, mask = depth_map_to_normal_map(kind(scaled), kind(CAMERA), edge_threshold=88)
    assert (np.asarray(mask) != expected_mask).mean() < 0.005
    both = np.asarray(mask) & expected_mask
    np.testing.assert_allclose(np.asarray(normals)[both], expected[both], atol=1e-3)


@given(seed=st.integers(0, 99), share=st.floats(0, 1), threshold=st.sampled_from([None, 60, 88]))
@settings(deadline=None, max_examples=30)
def test_what_lies_outside_the_mask_never_reaches_the_result(seed, share, threshold):
    depth = bumpy_depth(seed)
    mask = np.random.default_rng(seed).random(depth.shape) < share
    garbage = np.where(mask, depth, np.random.default_rng(seed + 1).choice([np.nan, np.inf, -1, 1e38], depth.shape))
    for convert in (np.asarray, torch.from_numpy):
        expected = depth_map_to_normal_map(convert(depth), convert(CAMERA), convert(mask), threshold)
        found = depth_map_to_normal_map(convert(garbage.astype(np.float32)), convert(CAMERA), convert(mask), threshold)
        for one, other in zip(expected, found, strict=True):
            assert np.array_equal(one, other)
        assert not np.asarray(found[1])[~mask].any()


@given(seed=st.integers(0, 99), threshold=st.sampled_from([None, 60, 88]))
@settings(deadline=None, max_examples=30)
def test_a_mirrored_scene_has_mirrored_normals(seed, threshold):
    points = depth_map_to_point_map(bumpy_depth(seed), CAMERA)
    normals, mask = point_map_to_normal_map(points, edge_threshold=threshold)
    for axis, sign in ((1, np.float32([-1, 1, 1])), (0, np.float32([1, -1, 1]))):
        mirrored, mirrored_mask = point_map_to_normal_map(np.flip(points, axis) * sign, edge_threshold=threshold)
        assert np.array_equal(np.flip(mirrored_mask, axis), mask)
        np.testing.assert_allclose(np.flip(mirrored, axis) * sign, normals, atol=1e-5)


def test_triangles_seen_edge_on_do_not_count(kind):
    # A wall facing the camera with a step: across the step, triangles are nearly parallel to the view rays.
    depth = np.full((20, 20), 2, np.float32)
    depth[:, 10:] = 6
    normals, mask = depth_map_to_normal_map(kind(depth), kind(CAMERA), edge_threshold=80)
    assert np.asarray(mask).all()
    np.testing.assert_allclose(normals, np.broadcast_to(np.float32([0, 0, -1]), (20, 20, 3)), atol=1e-5)
    smeared, _ = depth_map_to_normal_map(kind(depth), kind(CAMERA))
    assert float(abs(np.asarray(smeared)[:, 9, 0]).max()) > 0.3


def test_normals_look_towards_the_camera(kind):
    points = np.asarray(depth_map_to_point_map(bumpy_depth(5), CAMERA))
    normals, mask = point_map_to_normal_map(kind(points))
    valid = np.asarray(mask)
    assert ((np.asarray(normals)[valid] * points[valid]).sum(-1) < 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_a_line_of_pixels_has_no_normals(kind, shape):
    normals, mask = depth_map_to_normal_map(kind(np.ones(shape, np.float32)), kind(CAMERA), edge_threshold=88)
    assert not np.asarray(mask).any()
    assert (np.asarray(normals) == 0).all()


def test_an_empty_mask_leaves_no_normals(kind):
    points = kind(np.asarray(depth_map_to_point_map(bumpy_depth(0), CAMERA)))
    normals, mask = point_map_to_normal_map(points, kind(np.zeros((23, 31), bool)))
    assert not np.asarray(mask).any()
    assert (np.asarray(normals) == 0).all()


@pytest.mark.parametrize("shape", [(150, 700), (301, 97)])
def test_maps_of_many_bands_and_batches_equal_torch_in_one_piece(shape):
    depth = np.stack([bumpy_depth(seed, *shape) for seed in range(2)])
    cameras = np.stack([CAMERA, CAMERA * np.float32([[2], [2], [1]])])
    mask = np.random.default_rng(0).random(depth.shape) < 0.9
    normals, valid = depth_map_to_normal_map(depth, cameras, mask, 88)
    tensors = (torch.from_numpy(value) for value in (depth, cameras, mask))
    torch_normals, torch_valid = depth_map_to_normal_map(*tensors, 88)
    assert (valid != torch_valid.numpy()).mean() < 1e-4
    both = valid & torch_valid.numpy()
    np.testing.assert_allclose(normals[both], torch_normals.numpy()[both], atol=1e-4)
    for one in range(2):
        alone, _ = depth_map_to_normal_map(depth[one], cameras[one], mask[one], 88)
        assert np.array_equal(alone, normals[one])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"points": np.ones((4, 4, 2), np.float32)}, r"points.*\(\.\.\., H, W, 3\)"),
        ({"points": np.ones((4, 4, 3), np.float32), "mask": np.ones((4, 5), bool)}, r"mask.*\(4, 4\) of points"),
        ({"points": np.ones((4, 4, 3), np.float32), "mask": np.ones((4, 4))}, "boolean"),
        ({"points": np.ones((4, 4, 3), np.float32), "edge_threshold": 0}, "edge_threshold"),
        ({"points": np.ones((4, 4, 3), np.float32), "edge_threshold": 91}, "90 degrees"),
        ({"points": np.ones((4, 4, 3), np.float32), "mask": torch.ones(4, 4, dtype=torch.bool)}, "torch tensor"),
    ],
)
def test_what_is_no_point_map_is_refused_by_name(arguments, words):
    with pytest.raises(InputError, match=words):
        point_map_to_normal_map(**arguments)
