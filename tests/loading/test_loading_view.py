"""The sampled camera: equal to the published one, within its limits, within the source image."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moge_core.errors import InputError
from moge_core.loading.view import sample_view


def test_all_324_published_views_are_reproduced(golden):
    for case in range(324):
        view = sample_view(
            golden["sp.K"][case],
            float(golden["sp.tgt_aspect"][case]),
            fov_range_absolute=tuple(golden["sp.fov_abs"][case]),
            fov_range_relative=tuple(golden["sp.fov_rel"][case]),
            center_augmentation=float(golden["sp.center_aug"][case]),
            rng=np.random.default_rng(int(golden["sp.seed"][case])),
        )
        np.testing.assert_allclose(view.intrinsics, golden["sp.tgt_K"][case], rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(view.rotation, golden["sp.R"][case], atol=1e-6)


cameras = st.builds(
    lambda fx, fy, cx, cy: np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
    *[st.floats(0.12, 4.0)] * 2,
    *[st.floats(0.1, 0.9)] * 2,
)


@given(
    camera=cameras,
    aspect_ratio=st.floats(0.3, 3.0),
    absolute=st.tuples(st.floats(1, 60), st.floats(60, 179)),
    relative=st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1.0)),
    center_augmentation=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_a_view_shows_only_the_source_and_obeys_its_limits(
    camera, aspect_ratio, absolute, relative, center_augmentation, seed
):
    view = sample_view(
        camera,
        aspect_ratio,
        fov_range_absolute=absolute,
        fov_range_relative=relative,
        center_augmentation=center_augmentation,
        rng=np.random.default_rng(seed),
    )
    fx, fy = view.intrinsics[0, 0], view.intrinsics[1, 1]
    assert fy / fx == pytest.approx(aspect_ratio, rel=1e-5), "pixels are not square"
    fov_x, source_fov_x = 2 * math.atan(0.5 / fx), 2 * math.atan(0.5 / camera[0, 0])
    assert math.degrees(fov_x) <= absolute[1] * (1 + 1e-6)
    assert fov_x <= relative[1] * source_fov_x * (1 + 1e-6)
    np.testing.assert_allclose(view.rotation @ view.rotation.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(view.rotation) == pytest.approx(1, abs=1e-6)

    corners = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=float)
    rays = np.linalg.inv(view.intrinsics.astype(float)) @ corners.T
    seen = camera @ view.rotation.T.astype(float) @ rays
    assert (seen[2] > 0).all()
    uv = seen[:2] / seen[2]
    assert (uv > -1e-4).all() and (uv < 1 + 1e-4).all()


def test_the_three_draws_happen_even_where_their_ranges_are_empty():
    rng, twin = np.random.default_rng(3), np.random.default_rng(3)
    camera = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    sample_view(camera, 1.0, fov_range_absolute=(1, 179), fov_range_relative=(1, 1), center_augmentation=0, rng=rng)
    for _ in range(3):
        twin.uniform()
    assert rng.uniform() == twin.uniform()


@pytest.mark.parametrize(
    ("camera", "rule"),
    [
        (np.zeros((3, 3)), "last row"),
        (np.diag([0.0, 1, 1]), "invertible"),
        (np.diag([-1.0, 1, 1]), "invertible"),
        (np.array([[525.0, 0, 319.5], [0, 525, 239.5], [0, 0, 1]]), "normalised"),
        (np.array([[np.nan, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]), "finite"),
        (np.eye(4), "matrix"),
    ],
)
def test_a_matrix_that_is_no_normalised_camera_is_refused(camera, rule):
    with pytest.raises(InputError, match=rule):
        sample_view(
            camera,
            1.0,
            fov_range_absolute=(1, 179),
            fov_range_relative=(0.5, 1),
            center_augmentation=0,
            rng=np.random.default_rng(0),
        )
