from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.errors import InputError
from moge_core.geometry import (
    denormalize_intrinsics,
    focal_to_fov,
    focal_to_intrinsics,
    fov_to_focal,
    image_uv,
    intrinsics_from_fov,
    intrinsics_to_focal,
    intrinsics_to_fov,
    normalize_intrinsics,
    normalized_view_plane_uv,
)

fovs = st.floats(0.02, math.pi - 0.02)
aspects = st.floats(0.1, 10)
sizes = st.integers(1, 4000)


def test_fields_of_view_are_those_of_the_published_code(golden, kind):
    for case in "01":
        fov_x, fov_y = intrinsics_to_fov(kind(golden[f"fov.{case}.K"]))
        np.testing.assert_allclose([float(fov_x), float(fov_y)], golden[f"fov.{case}.out"], rtol=1e-6)


@given(fov_x=fovs, fov_y=fovs)
@settings(deadline=None)
def test_intrinsics_and_fields_of_view_are_two_names_of_one_thing(fov_x, fov_y):
    intrinsics = intrinsics_from_fov(np.float64([fov_x]), np.float64([fov_y]))
    assert intrinsics.shape == (1, 3, 3)
    assert intrinsics[0, :2, 2].tolist() == [0.5, 0.5]
    back_x, back_y = intrinsics_to_fov(intrinsics)
    np.testing.assert_allclose([back_x[0], back_y[0]], [fov_x, fov_y], rtol=1e-9)


@given(fov=fovs, aspect=aspects)
@settings(deadline=None)
def test_one_field_of_view_and_the_aspect_ratio_give_square_pixels(fov, aspect):
    for intrinsics in (
        intrinsics_from_fov(fov_x=np.float64(fov)[None], aspect_ratio=aspect),
        intrinsics_from_fov(fov_y=np.float64(fov)[None], aspect_ratio=aspect),
    ):
        # A pixel is square when fx * W = fy * H.
        assert intrinsics[0, 0, 0] * aspect == pytest.approx(intrinsics[0, 1, 1], rel=1e-9)


@given(fov_x=fovs, aspect=aspects)
@settings(deadline=None)
def test_the_relative_focal_length_and_the_field_of_view_are_two_names_of_one_thing(fov_x, aspect):
    focal = fov_to_focal(np.float64([fov_x]), aspect)
    np.testing.assert_allclose(focal_to_fov(focal, aspect)[0], [fov_x], rtol=1e-9)
    intrinsics = focal_to_intrinsics(focal, aspect)
    np.testing.assert_allclose(intrinsics_to_focal(intrinsics), focal, rtol=1e-9)
    np.testing.assert_allclose(intrinsics, intrinsics_from_fov(np.float64([fov_x]), aspect_ratio=aspect), rtol=1e-9)


def test_a_focal_length_of_one_sees_half_the_diagonal_at_45_degrees():
    intrinsics = focal_to_intrinsics(1.0, 4 / 3)
    half_diagonal = np.hypot(0.5 / intrinsics[0, 0], 0.5 / intrinsics[1, 1])
    assert half_diagonal == pytest.approx(1)


@given(width=sizes, height=sizes, cx=st.floats(-500, 4500), cy=st.floats(-500, 4500), skew=st.floats(-5, 5))
@settings(deadline=None)
def test_pixel_intrinsics_survive_normalising_and_back(width, height, cx, cy, skew):
    in_pixels = np.array([[525.0, skew, cx], [0, 520.0, cy], [0, 0, 1]])
    back = denormalize_intrinsics(normalize_intrinsics(in_pixels, width, height), width, height)
    np.testing.assert_allclose(back, in_pixels, rtol=1e-9, atol=1e-9)


def test_a_principal_point_in_the_middle_pixel_corner_becomes_one_half():
    intrinsics = normalize_intrinsics([[525, 0, 319.5], [0, 525, 239.5], [0, 0, 1]], 640, 480)
    assert intrinsics.dtype == np.float32
    assert intrinsics[:2, 2].tolist() == [0.5, 0.5]
    assert intrinsics[0, 0] == np.float32(525 / 640)
    assert intrinsics[1, 1] == np.float32(525 / 480)


def test_normalising_leaves_its_argument_alone(kind):
    in_pixels = kind(np.float32([[525, 0, 319.5], [0, 525, 239.5], [0, 0, 1]]))
    normalize_intrinsics(in_pixels, 640, 480)
    assert float(in_pixels[0, 2]) == 319.5


def test_batches_of_cameras_stay_of_their_kind(kind):
    fovs_x = kind(np.float32([[0.5, 1.0], [1.5, 2.0]]))
    intrinsics = intrinsics_from_fov(fov_x=fovs_x, aspect_ratio=1.5)
    assert type(intrinsics) is type(fovs_x)
    assert tuple(intrinsics.shape) == (2, 2, 3, 3)
    assert intrinsics.dtype == fovs_x.dtype
    np.testing.assert_allclose(intrinsics_to_fov(intrinsics)[0], fovs_x, rtol=1e-6)


def test_the_view_plane_is_that_of_the_published_code(golden):
    cases = [name for name in golden if name.startswith("uv.")]
    assert len(cases) == 4
    for case in cases:
        width, height, aspect = (part.lstrip("whar") for part in case.removeprefix("uv.").split(".", 2))
        aspect_ratio = None if aspect == "None" else float(aspect)
        uv = normalized_view_plane_uv(int(width), int(height), aspect_ratio)
        assert uv.dtype == np.float32
        np.testing.assert_allclose(uv, golden[case], atol=1e-7)
        tensor = normalized_view_plane_uv(int(width), int(height), aspect_ratio, dtype=torch.float32, device="cpu")
        assert torch.equal(tensor, torch.from_numpy(uv))


@given(width=st.integers(1, 60), height=st.integers(1, 60))
@settings(deadline=None)
def test_the_view_plane_is_where_a_camera_of_focal_length_one_sees_the_pixels(width, height):
    intrinsics = focal_to_intrinsics(np.float64([1.0]), width / height)[0]
    rays = (image_uv(width, height, dtype=np.float64) - intrinsics[:2, 2]) / np.diag(intrinsics)[:2]
    np.testing.assert_allclose(normalized_view_plane_uv(width, height, dtype=np.float64), rays, atol=1e-12)


def test_a_type_or_a_device_of_torch_asks_for_a_tensor():
    assert isinstance(normalized_view_plane_uv(3, 2), np.ndarray)
    assert normalized_view_plane_uv(3, 2, dtype=np.float64).dtype == np.float64
    assert normalized_view_plane_uv(3, 2, device="cpu").dtype == torch.float32
    assert normalized_view_plane_uv(3, 2, dtype=torch.float16).dtype == torch.float16
    assert normalized_view_plane_uv(3, 2, device=torch.device("cpu")).shape == (2, 3, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: intrinsics_from_fov(fov_x=1.0), "exactly two"),
        (lambda: intrinsics_from_fov(1.0, 1.0, 1.0), "exactly two"),
        (lambda: intrinsics_from_fov(fov_x=60.0, aspect_ratio=1.0), "radians"),
        (lambda: intrinsics_from_fov(fov_x=float("nan"), aspect_ratio=1.0), "fov_x"),
        (lambda: focal_to_intrinsics(1.0, 0.0), "aspect_ratio"),
        (lambda: intrinsics_to_fov([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]), "numpy array or a torch tensor"),
        (lambda: intrinsics_to_fov(np.eye(4)), r"\(\.\.\., 3, 3\)"),
        (lambda: intrinsics_to_fov(np.zeros((3, 3))), "fx, s, cx"),
        (lambda: intrinsics_to_fov(np.diag([0.0, 1.0, 1.0])), "focal lengths"),
        (lambda: intrinsics_to_fov(torch.full((3, 3), torch.nan)), "finite"),
        (lambda: intrinsics_to_fov(np.eye(3, dtype=int)), "floating-point"),
        (lambda: normalize_intrinsics(np.eye(3), 0, 480), "at least one pixel"),
        (lambda: normalize_intrinsics([[1, 2], [3]], 640, 480), "3x3"),
        (lambda: normalized_view_plane_uv(0, 4), "at least one pixel"),
        (lambda: image_uv(4, 0), "at least one pixel"),
        (lambda: normalized_view_plane_uv(4, 4, -1.0), "aspect_ratio"),
    ],
)
def test_what_is_no_camera_is_refused_by_name(call, words):
    with pytest.raises(InputError, match=words):
        call()
