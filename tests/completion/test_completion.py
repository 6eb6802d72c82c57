"""Filter and completion of depth maps: what is wrong goes, what is unknown is filled, what is right stays."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from damaged_depth import DAMAGES, fill_nearest, predicted, relative_error

from moge_core.completion import complete_depth, filter_depth
from moge_core.completion.poisson import interpolate_harmonic
from moge_core.datasets.inspection import LoadedInstance
from moge_core.errors import InputError

Array = npt.NDArray[Any]


def two_walls(height: int = 60, width: int = 80) -> Array:
    """A near wall on the left, a slanted far one on the right."""
    depth = np.repeat(np.linspace(4, 6, width, dtype=np.float32)[None], height, axis=0)
    depth[:, : width // 2] = 2
    return depth


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_error_against_the_truth_falls_by_30_percent_with_a_good_prediction(
    loaded_scenes: list[LoadedInstance], damage: str
) -> None:
    before, after = [], []
    for number, scene in enumerate(loaded_scenes):
        rng = np.random.default_rng(number)
        damaged = DAMAGES[damage](scene.depth, rng)
        prediction = predicted(scene.depth, rng)
        completed = complete_depth(filter_depth(damaged, prediction, image=scene.image), prediction, image=scene.image)
        before.append(relative_error(fill_nearest(damaged), scene.depth))
        after.append(relative_error(completed, scene.depth))
    assert np.mean(after) <= 0.7 * np.mean(before)


@pytest.mark.parametrize("damage", ["holes", "displaced blocks", "salt", "everything"])
def test_a_prediction_without_any_sense_does_not_make_it_worse(
    loaded_scenes: list[LoadedInstance], damage: str
) -> None:
    before, after = [], []
    for number, scene in enumerate(loaded_scenes):
        rng = np.random.default_rng(number)
        damaged = DAMAGES[damage](scene.depth, rng)
        nonsense = predicted(np.flip(loaded_scenes[number - 1].depth).reshape(scene.depth.shape), rng)
        completed = complete_depth(filter_depth(damaged, nonsense, image=scene.image), nonsense, image=scene.image)
        before.append(relative_error(fill_nearest(damaged), scene.depth))
        after.append(relative_error(completed, scene.depth))
    assert np.mean(after) <= np.mean(before)


def test_kept_pixels_and_sky_hold_their_values_bit_for_bit() -> None:
    depth = two_walls()
    prediction = 0.3 * depth + 0.1
    depth[:5] = np.inf
    depth[20:40, 30:60] = np.nan
    completed = complete_depth(depth, prediction)
    known = ~np.isnan(depth)
    assert completed.dtype == np.float32
    assert completed[known].tobytes() == depth[known].tobytes()
    assert np.isfinite(completed[~known]).all()


def test_gaps_follow_the_gradients_of_the_prediction_across_a_depth_edge() -> None:
    truth = two_walls()
    damaged = truth.copy()
    damaged[10:50, 20:70] = np.nan
    completed = complete_depth(damaged, 0.3 * truth + 0.1)
    np.testing.assert_allclose(completed, truth, rtol=1e-3)


def test_a_gap_that_nothing_known_touches_gets_the_aligned_prediction() -> None:
    truth = two_walls()
    damaged = truth.copy()
    damaged[:, 30:] = np.inf
    damaged[20:30, 50:60] = np.nan  # an island in the sky
    prediction = truth.copy()
    prediction[:, 15:30] = 2.2  # so that the known part has a spread to align by
    damaged[:, 15:30] = 2.2
    completed = complete_depth(damaged, 0.5 * prediction)
    np.testing.assert_allclose(completed[20:30, 50:60], truth[20:30, 50:60], rtol=1e-3)


def test_the_filter_drops_a_displaced_block_and_salt_and_keeps_the_rest() -> None:
    truth = two_walls()
    damaged = truth.copy()
    damaged[10:25, 5:20] *= 1.3
    damaged[40, 60] *= 3
    damaged[50, 10] /= 3
    wrong = damaged != truth
    dropped = np.isnan(filter_depth(damaged, 0.4 * truth + 0.2))
    np.testing.assert_array_equal(dropped, wrong)


def test_a_true_object_that_the_image_shows_stays_even_when_the_prediction_misses_it() -> None:
    depth = np.full((60, 80), 4, np.float32)
    depth[20:40, 30:50] = 2
    flat, plain = np.full((60, 80), 3, np.float32), np.full((60, 80, 3), 128, np.uint8)
    shown = plain.copy()
    shown[20:40, 30:50] = 200
    assert np.isnan(filter_depth(depth, flat, image=plain)[20:40, 30:50]).all()
    assert not np.isnan(filter_depth(depth, flat, image=shown)).any()


def test_an_object_in_the_shadow_of_a_sensor_is_not_taken_for_a_displaced_piece() -> None:
    depth = np.full((60, 80), 4, np.float32)
    depth[19:41, 29:51] = np.nan
    depth[20:40, 30:50] = 2
    depth[30, 29] = 4  # the one place where both are known side by side
    image = np.full((60, 80, 3), 128, np.uint8)
    assert not np.isnan(filter_depth(depth, np.full_like(depth, 3), image=image)[20:40, 30:50]).any()


def test_a_good_model_drops_outliers_of_sparse_depth() -> None:
    truth = two_walls()
    rng = np.random.default_rng(0)
    known = rng.random(truth.shape) < 0.1
    wrong = known & (rng.random(truth.shape) < 0.03)
    damaged = np.where(known, np.where(wrong, 2 * truth, truth), np.float32(np.nan))
    filtered = filter_depth(damaged, 0.4 * truth)
    assert wrong.any()
    np.testing.assert_array_equal(known & np.isnan(filtered), wrong)


def test_very_sparse_depth_keeps_what_it_has(loaded_scenes: list[LoadedInstance]) -> None:
    truth = loaded_scenes[0].depth
    rng = np.random.default_rng(1)
    damaged = np.where(rng.random(truth.shape) < 0.002, truth, np.float32(np.nan))
    prediction = predicted(truth, rng)
    filtered = filter_depth(damaged, prediction)
    assert np.isfinite(filtered).sum() >= 0.9 * np.isfinite(damaged).sum()
    assert relative_error(complete_depth(filtered, prediction), truth) < relative_error(fill_nearest(damaged), truth)


def test_one_known_pixel_gives_the_prediction_its_unit() -> None:
    truth = two_walls()
    damaged = np.full_like(truth, np.nan)
    damaged[30, 10] = truth[30, 10]
    np.testing.assert_allclose(complete_depth(damaged, 0.25 * truth), truth, rtol=1e-3)


def test_depth_without_a_finite_pixel_has_no_unit_to_complete_to() -> None:
    unknown = np.full((4, 5), np.nan, np.float32)
    assert np.isnan(filter_depth(unknown, np.ones((4, 5), np.float32))).all()
    with pytest.raises(InputError, match="finite depth"):
        complete_depth(unknown, np.ones((4, 5), np.float32))


def test_a_map_of_sky_alone_is_complete() -> None:
    sky = np.full((4, 5), np.inf, np.float32)
    assert np.isposinf(
        complete_depth(filter_depth(sky, np.ones((4, 5), np.float32)), np.ones((4, 5), np.float32))
    ).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (2, 2), (5, 300), (257, 33)])
def test_maps_of_every_shape_are_completed(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    depth = rng.uniform(1, 2, shape).astype(np.float32)
    depth.flat[1:] = np.where(rng.random(depth.size - 1) < 0.5, depth.flat[1:], np.nan)
    image = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
    prediction = rng.uniform(1, 2, shape).astype(np.float32)
    completed = complete_depth(filter_depth(depth, prediction, image=image), prediction, image=image)
    assert completed.shape == shape
    assert np.isfinite(completed).all()


@pytest.mark.parametrize("unit", [1e-36, 1e36])
def test_depths_at_the_ends_of_float32_are_completed(unit: float) -> None:
    truth = two_walls()
    damaged = (truth.astype(np.float64) * unit).astype(np.float32)
    damaged[10:30, 20:60] = np.nan
    completed = complete_depth(filter_depth(damaged, truth), truth)
    np.testing.assert_allclose(completed / np.float32(unit), truth, rtol=1e-3)


def test_a_prediction_that_is_nowhere_finite_leaves_smooth_filling() -> None:
    truth = np.full((20, 30), 3, np.float32)
    damaged = truth.copy()
    damaged[5:15, 5:25] = np.nan
    np.testing.assert_allclose(complete_depth(damaged, np.full_like(truth, np.nan)), truth, rtol=1e-4)


def test_unknown_sky_follows_the_mask_unless_known_depth_contradicts_it() -> None:
    depth = two_walls()
    depth[:20] = np.nan
    mask = np.ones(depth.shape, np.bool_)
    mask[:15] = False
    sky = np.isposinf(complete_depth(depth, depth, mask=mask))
    np.testing.assert_array_equal(sky, ~mask)
    depth[5, 10:70] = 4  # the sensor saw something there
    assert np.isfinite(complete_depth(depth, depth, mask=mask)).all()
    assert np.isfinite(complete_depth(depth, depth)).all()


def test_harmonic_interpolation_solves_its_equations() -> None:
    rng = np.random.default_rng(3)
    height, width = 41, 30
    known = rng.random((height, width)) < 0.2
    gaps = ~known & (rng.random((height, width)) < 0.9)
    values = rng.normal(size=(height, width))
    weights_x = rng.uniform(0.001, 1, (height, width - 1))
    weights_y = rng.uniform(0.001, 1, (height - 1, width))
    filled = interpolate_harmonic(values, known, gaps, weights_x, weights_y, 1e-6, 1e-9)
    cells = np.arange(height * width).reshape(height, width)
    weights = np.zeros((cells.size, cells.size))
    weights[cells[:, 1:].ravel(), cells[:, :-1].ravel()] = weights_x.ravel()
    weights[cells[1:].ravel(), cells[:-1].ravel()] = weights_y.ravel()
    weights += weights.T
    used = (known | gaps).ravel()
    weights[~used] = 0
    weights[:, ~used] = 0
    matrix = np.diag(weights.sum(1) + 1e-6) - weights
    inner, held = gaps.ravel(), known.ravel()
    expected = np.linalg.solve(matrix[np.ix_(inner, inner)], -matrix[np.ix_(inner, held)] @ values.ravel()[held])
    np.testing.assert_allclose(filled.ravel()[inner], expected, atol=1e-6)


@pytest.mark.slow
def test_full_hd_is_completed_in_tens_of_seconds() -> None:
    rng = np.random.default_rng(4)
    truth = two_walls(1080, 1920)
    damaged = DAMAGES["everything"](truth, rng)
    damaged[200:800, 300:1500] = np.nan
    image = rng.integers(100, 140, (1080, 1920, 3), dtype=np.uint8)
    start = time.monotonic()
    completed = complete_depth(filter_depth(damaged, truth, image=image), truth, image=image)
    assert time.monotonic() - start < 90
    assert relative_error(completed, truth) < 0.01


def test_arguments_that_do_not_fit_are_refused_by_name() -> None:
    depth = np.ones((4, 5), np.float32)
    with pytest.raises(InputError, match="depth"):
        filter_depth(np.ones((4, 5), np.uint16), depth)
    with pytest.raises(InputError, match="prediction"):
        complete_depth(depth, np.ones((5, 4), np.float32))
    with pytest.raises(InputError, match="image"):
        filter_depth(depth, depth, image=np.ones((4, 5, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="mask"):
        complete_depth(depth, depth, mask=np.ones((4, 4), np.bool_))
    with pytest.raises(InputError, match="levels"):
        filter_depth(depth, depth, levels=(0,))
    with pytest.raises(InputError, match="tolerance"):
        filter_depth(depth, depth, tolerance=0)


def test_importing_completion_does_not_import_torch() -> None:
    code = "import sys, moge_core.completion; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
