"""Colour maps: what is near is red, what is unknown or infinite has a colour of its own, and no map is too odd."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moge_core.errors import InputError
from moge_core.visualization import colorize_depth, colorize_mask, colorize_normal
from moge_core.visualization.colors import INF_COLOR, UNKNOWN_COLOR


def test_near_is_red_far_is_violet() -> None:
    picture = colorize_depth(np.geomspace(1, 100, 64, dtype=np.float32)[None])
    red, green, blue = picture[0, 0].astype(int)
    assert red > 1.5 * max(green, blue)
    red, green, blue = picture[0, -1].astype(int)
    assert blue > 1.2 * max(red, green)


def test_a_scale_and_shift_of_disparity_changes_nothing() -> None:
    depth = np.random.default_rng(0).uniform(1, 20, (30, 40))
    assert np.abs(colorize_depth(1 / (3 / depth + 0.7)).astype(int) - colorize_depth(depth)).max() <= 3


def test_a_few_wild_pixels_do_not_flatten_the_rest() -> None:
    depth = np.linspace(1, 5, 1000).reshape(25, 40)
    wild = depth.copy()
    wild[0, :3] = 1e-6
    assert np.abs(colorize_depth(wild).astype(int) - colorize_depth(depth))[1:].max() < 30


def test_unknown_infinite_and_masked_pixels_have_their_own_colours() -> None:
    depth = np.array([[np.nan, np.inf, -1.0], [0.0, 2.0, 3.0]], np.float32)
    mask = np.array([[True, True, True], [True, True, False]])
    picture = colorize_depth(depth, mask)
    unknown = (picture == UNKNOWN_COLOR).all(-1)
    assert unknown.tolist() == [[True, False, True], [True, False, True]]
    assert tuple(picture[0, 1]) == INF_COLOR
    assert tuple(colorize_depth(depth, inf_color=(1, 2, 3))[0, 1]) == (1, 2, 3)
    assert (colorize_depth(depth, np.zeros_like(mask)) == UNKNOWN_COLOR).all()


def test_given_bounds_make_pictures_comparable() -> None:
    one = np.array([[1.0, 2.0, 4.0]])
    other = np.array([[2.0, 4.0, 8.0]])
    pictures = [colorize_depth(depth, near=1.0, far=10.0) for depth in (one, other)]
    assert np.array_equal(pictures[0][0, 1:], pictures[1][0, :2])
    raw = [colorize_depth(depth, normalize=False) for depth in (one, other)]
    assert np.array_equal(raw[0][0, 1:], raw[1][0, :2])


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6),
        elements=st.floats(width=16),
    ),
    st.booleans(),
)
def test_every_depth_map_gets_a_picture(depth: np.ndarray, normalize: bool) -> None:
    picture = colorize_depth(depth, normalize=normalize)
    assert picture.shape == (*depth.shape, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("value", [1e-38, 3e38, 5.0])
def test_float32_extremes_and_a_single_depth_are_shown(value: float) -> None:
    picture = colorize_depth(np.full((2, 3), value, np.float32))
    assert not (picture == UNKNOWN_COLOR).all(-1).any()


def test_normals_towards_the_camera_are_blue_to_the_right_red_upwards_green() -> None:
    normal = np.array([[[0, 0, -1], [1, 0, 0], [0, -1, 0], [np.nan, 0, 0]]], np.float32)
    picture = colorize_normal(normal)
    assert picture[0].tolist() == [[128, 128, 255], [255, 128, 128], [128, 255, 128], list(UNKNOWN_COLOR)]
    assert (colorize_normal(normal, np.zeros((1, 4), bool)) == UNKNOWN_COLOR).all()


def test_masks_are_black_and_white_and_probabilities_grey() -> None:
    assert colorize_mask(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]
    picture = colorize_mask(np.array([[0.5, 2.0, np.nan]], np.float32))
    assert picture.tolist() == [[[128] * 3, [255] * 3, list(UNKNOWN_COLOR)]]
    assert colorize_mask(np.zeros((0, 4))).shape == (0, 4, 3)


def test_wrong_shapes_and_bounds_are_named() -> None:
    with pytest.raises(InputError, match="depth"):
        colorize_depth(np.zeros(3))
    with pytest.raises(InputError, match="mask"):
        colorize_depth(np.ones((2, 3)), np.ones((3, 2), bool))
    with pytest.raises(InputError, match="near"):
        colorize_depth(np.ones((2, 3)), near=3, far=2)
    with pytest.raises(InputError, match="near"):
        colorize_depth(np.ones((2, 3)), near=0)
    with pytest.raises(InputError, match="normal"):
        colorize_normal(np.zeros((2, 3)))
    with pytest.raises(InputError, match="mask"):
        colorize_mask(np.zeros((2, 3, 1)))
