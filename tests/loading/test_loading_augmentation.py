"""Augmentations: equal to the published ones, in a fixed order, safe on odd inputs."""

from __future__ import annotations

import numpy as np
import pytest

from moge_core.errors import InputError
from moge_core.loading.augmentation import AUGMENTATIONS, augment, color
from moge_core.loading.augmentation.depth_of_field import _disc_means, blur_by_depth, fill_unknown
from moge_core.loading.augmentation.shot_noise import noise_table, photon_noise


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("name", ["blurring", "jpeg_loss"])
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


def test_the_mean_grey_of_a_large_image_is_taken_from_rows_of_it():
    """It enters the contrast with a factor of at most 0.1, so that half a level of it is next to nothing."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:600, :901]
    planes = [np.clip(plane + rng.integers(-20, 20, x.shape), 0, 255).astype(np.uint8) for plane in (y / 3, x / 4, x)]
    weights = np.float32([0.2989, 0.587, 0.114])
    grey = sum(weight * plane for weight, plane in zip(weights, planes, strict=True))
    assert color._mean_grey(planes) == pytest.approx(np.floor(grey).mean(), abs=0.5)


@pytest.mark.parametrize("photons_at_white", [101.3, 250.7, 1003.1, 3001.9, 9973.7])
def test_shot_noise_has_the_published_distribution(photons_at_white):
    """At every level the cumulative distribution is that of Poisson draws, to within a thousandth."""
    photons_per_level = photons_at_white / 255
    table = noise_table(photons_per_level)
    number = np.arange(int(photons_at_white + 8 * photons_at_white**0.5) + 20)
    log_factorial = np.concatenate([[0], np.cumsum(np.log(number[1:]))])
    levels = np.minimum(number / photons_per_level, 255).astype(int)
    np.testing.assert_array_equal(table[0], 0)
    for level in range(1, 256):
        mean = level * photons_per_level
        share = np.exp(number * np.log(mean) - mean - log_factorial)
        expected = np.cumsum(np.bincount(levels, share, minlength=256))
        found = np.cumsum(np.bincount(table[level], minlength=256)) / table.shape[1]
        # A photon may be worth more than a step: where the table rounds to another one, that much is the difference.
        assert np.abs(found - expected).max() < 4 / 4096


def test_shot_noise_is_drawn_evenly_and_independently():
    image = np.repeat(np.arange(256, dtype=np.uint8), 3 * 4000).reshape(800, 1280, 3)
    noisy = photon_noise(image, 1.7, np.random.default_rng(3)).astype(float)
    error = (noisy - image)[image == 100]
    # Rounded down to levels of 1/1.7 photon each, so half a level low on average.
    assert abs(error.mean() + 0.5) < 0.4
    assert error.std() == pytest.approx((100 / 1.7) ** 0.5, rel=0.03)
    assert abs(np.corrcoef(error[1:], error[:-1])[0, 1]) < 0.03


@pytest.mark.parametrize("seed", range(7))
def test_published_shot_noise_is_as_strong(golden, seed):
    image = golden["aug.image"].astype(int)
    published = golden.get(f"aug.shot_noise.seed{seed}")
    result = augment(golden["aug.image"], golden["aug.depth"], ["shot_noise"], np.random.default_rng(seed))
    if published is None:
        np.testing.assert_array_equal(result, image)
    else:
        assert (result - image).std() == pytest.approx((published - image).std(), rel=0.03)
        assert abs((result - image).mean() - (published - image).mean()) < 0.2


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


@pytest.mark.parametrize("radius", range(1, 12))
def test_blurring_keeps_whole_levels(radius):
    """The mean of equal levels is that level, for every size of disc."""
    levels = np.repeat(np.arange(256, dtype=np.uint8), 40)[None, :].repeat(40, axis=0)
    image = np.dstack([levels] * 3)
    result = _disc_means(image, np.full(levels.shape, radius, np.uint8))
    middle = result[20, 20::40, 0]
    np.testing.assert_array_equal(middle, np.arange(256))


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="sepia"):
        augment(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), np.float32), ["sepia"], np.random.default_rng(0))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.96])
def test_unknown_disparity_is_filled_smoothly_from_around(share):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:120, :161].astype(np.float32)
    slope = 0.2 + 0.6 * (x / 160 + y / 119) / 2
    unknown = rng.random(slope.shape) < share
    filled = fill_unknown(np.where(unknown, 0, slope).astype(np.float32), unknown)
    np.testing.assert_array_equal(filled[~unknown], slope[~unknown])
    assert np.abs(filled - slope).max() < 0.08
    nothing = fill_unknown(np.zeros((3, 5), np.float32), np.ones((3, 5), bool))
    np.testing.assert_array_equal(nothing, 0)
