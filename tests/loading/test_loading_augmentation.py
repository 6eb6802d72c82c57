"""Augmentations: equal to the published ones, in a fixed order, safe on odd inputs."""

from __future__ import annotations

import numpy as np
import pytest

from moge_core.errors import InputError
from moge_core.loading.augmentation import AUGMENTATIONS, augment, blur_by_depth


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("name", ["shot_noise", "blurring", "jpeg_loss"])
def test_published_augmentations_are_reproduced_exactly(golden, name, seed):
    image = golden["aug.image"]
    result = augment(image, golden["aug.depth"], [name], np.random.default_rng(seed))
    np.testing.assert_array_equal(result, golden.get(f"aug.{name}.seed{seed}", image))


@pytest.mark.parametrize("seed", range(7))
def test_published_colour_jitter_is_reproduced(golden, seed):
    result = augment(golden["aug.image"], golden["aug.depth"], ["jittering"], np.random.default_rng(seed))
    difference = np.abs(result.astype(int) - golden[f"aug.jittering.seed{seed}"])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.002


@pytest.mark.parametrize("seed", range(7))
def test_published_depth_of_field_draws_are_reproduced(golden, seed):
    image = golden["aug.image"]
    result = augment(image, golden["aug.depth"], ["dof"], np.random.default_rng(seed))
    _assert_equal_but_for_whole_means(result, golden.get(f"aug.dof.seed{seed}", image))


@pytest.mark.parametrize("max_radius", [2, 5, 11])
def test_published_depth_of_field_blur_is_reproduced(golden, max_radius):
    nearest = golden["dof.disp"].max()
    focus = float(np.median(golden["dof.disp"]) / nearest)
    result = blur_by_depth(golden["aug.image"], golden["dof.disp"] / nearest, focus, max_radius)
    _assert_equal_but_for_whole_means(result, golden[f"dof.r{max_radius}"])


def _assert_equal_but_for_whole_means(result, published):
    """Means that are whole numbers fall to the level below in the published code, by rounding; ours stay."""
    difference = result.astype(int) - published
    assert set(np.unique(difference)) <= {0, 1}
    assert (difference == 1).mean() < 0.05


def test_order_follows_the_table_and_not_the_configuration():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    depth = rng.uniform(1, 5, (20, 30)).astype(np.float32)
    names = list(AUGMENTATIONS)
    one = augment(image, depth, names, np.random.default_rng(5))
    other = augment(image, depth, names[::-1], np.random.default_rng(5))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 2)])
@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e-30, 1e30, 2.0])
def test_odd_images_and_depths_survive_every_augmentation(shape, fill):
    depth = np.full(shape, fill, dtype=np.float32)
    depth.flat[0] = 3
    image = np.full((*shape, 3), 255, dtype=np.uint8)
    for seed in range(8):
        result = augment(image, depth, list(AUGMENTATIONS), np.random.default_rng(seed))
        assert result.shape == image.shape and result.dtype == np.uint8


def test_what_is_in_focus_stays_sharp():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    disparity = np.full((60, 60), 0.2, dtype=np.float32)
    disparity[:, 30:] = 1
    result = blur_by_depth(image, disparity, 1.0, 8)
    np.testing.assert_array_equal(result[:, 40:], image[:, 40:])
    assert result[:, :20].std() < image[:, :20].std() / 3


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="sepia"):
        augment(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), np.float32), ["sepia"], np.random.default_rng(0))
