"""What a LiDAR beside the camera measured of things that the camera cannot see is left out, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from driving import Array, Box, measure
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moge_core.datasets.importers import occlusion
from moge_core.datasets.importers.occlusion import hidden_returns
from moge_core.datasets.importers.projection import project_points

WIDTH, HEIGHT, FOCAL = 800, 500, 600.0
INTRINSICS = np.array([[FOCAL / WIDTH, 0, 0.5], [0, FOCAL / HEIGHT, 0.5], [0, 0, 1]])


def in_picture(points: Array) -> tuple[Array, Array]:
    """Places in pixels (N, 2), and which are in the picture."""
    uv = points[:, :2] / points[:, 2:] * FOCAL + (WIDTH / 2, HEIGHT / 2)
    return uv, ((uv >= 0) & (uv < (WIDTH, HEIGHT))).all(axis=1)


def hidden(points: Array, uv: Array, sensor: Array | None) -> Array:
    return hidden_returns(points, uv, WIDTH * HEIGHT, (FOCAL, FOCAL), sensor)


@given(
    side=st.floats(-1.2, 1.2),
    height=st.floats(-0.6, 0.3),
    back=st.floats(-0.5, 0.3),
    near=st.floats(5, 9),
    gap=st.floats(1.4, 5),
)
@example(side=0.5, height=0, back=0, near=7.5, gap=1.75)
@example(side=0.0007895730749958101, height=0.25, back=0.0, near=6.5, gap=2.0)
@settings(max_examples=30, deadline=None)
def test_no_wall_remains_among_the_points_of_a_box_before_it_and_nothing_visible_goes(
    side: float, height: float, back: float, near: float, gap: float
) -> None:
    box = Box(0, 0, 1, 0.6, near)
    points, number = measure(np.array([side, height, back]), [box], near * gap)
    depth = project_points(points, INTRINSICS, WIDTH, HEIGHT, sensor=(side, height, back))
    uv, inside = in_picture(points)
    points, uv, on_box = points[inside], uv[inside], number[inside] == 0
    column, row = np.floor(uv).astype(int).T
    # A pixel may hold two points of one surface, of which the nearer is kept.
    kept = np.isclose(depth[row, column], points[:, 2], rtol=0.01)
    assert kept[on_box].all()
    # Of two points in one pixel the nearer is kept.
    pixel = row * WIDTH + column
    # Nobody knows to the last part of a pixel how far the box reaches: neither just outside of its outermost returns
    # nor between them and its edge.
    low, high = uv[on_box].min(axis=0), uv[on_box].max(axis=0)
    beside = ((uv > low - 0.5) & (uv < high + 0.5)).all(axis=1)
    assert kept[~on_box & ~beside & ~box.covers(points) & ~np.isin(pixel, pixel[on_box])].all()
    among = ((uv > low + 0.5) & (uv < high - 0.5)).all(axis=1)
    assert not kept[~on_box & among].any()


def test_of_many_boxes_the_visible_returns_stay_and_most_hidden_ones_go() -> None:
    num_hidden = num_found = num_visible = num_wrong = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        sensor = rng.uniform((-1, -0.6, -0.5), (1, 0.3, 0.3))
        boxes = [Box(*rng.uniform((-5, -1.5, 0.3, 0.3, 4), (5, 1.5, 1.5, 1.2, 15))) for _ in range(12)]
        points, _ = measure(sensor, boxes, wall=25)
        uv, inside = in_picture(points)
        points, uv = points[inside], uv[inside]
        truth = np.any([box.covers(points) for box in boxes], axis=0)
        found = hidden(points, uv, sensor)
        num_hidden, num_visible = num_hidden + truth.sum(), num_visible + (~truth).sum()
        num_found, num_wrong = num_found + (truth & found).sum(), num_wrong + (~truth & found).sum()
    assert num_hidden > 10_000
    assert num_wrong < 5e-5 * num_visible
    # What remains stands between the outermost returns of a box and its edge.
    assert num_found > 0.8 * num_hidden


def test_a_wall_seen_by_both_through_a_fence_stays() -> None:
    sensor = np.array([0.0, -0.02, 0.0])
    fence = [Box(x, 0, 0.1, 2, 8) for x in np.arange(-3, 3, 0.4)]
    points, number = measure(sensor, fence, wall=16)
    uv, inside = in_picture(points)
    assert (number[inside] >= 0).sum() > 1000
    assert not hidden(points[inside], uv[inside], sensor).any()


def ground_and_boxes() -> tuple[Array, Array]:
    """A rough road 1.5 m below the camera, and two boxes before a wall, of a LiDAR at (0.9, -0.5, 0)."""
    rng = np.random.default_rng(0)
    boxes = [Box(-1.5, 0, 1, 0.6, 6), Box(1.5, 0, 0.8, 0.6, 8)]
    points, _ = measure(np.array([0.9, -0.5, 0]), boxes, wall=25, spacing_deg=0.5)
    road = np.stack([rng.uniform(-10, 10, 3000), 1.5 + rng.normal(0, 0.02, 3000), rng.uniform(4, 24, 3000)], axis=-1)
    points = np.vstack([points[points[:, 1] < 1.4], road])
    uv, inside = in_picture(points)
    return points[inside], uv[inside]


def test_a_place_where_no_sensor_stood_is_not_taken_for_its_view() -> None:
    """Sweeps in the vehicle's axes have their origin on the ground, from where the road's returns hide one another."""
    points, uv = ground_and_boxes()
    assert hidden(points, uv, np.array([0.9, -0.5, 0])).sum() > 100
    np.testing.assert_array_equal(hidden(points, uv, np.array([0.3, 1.5, -1.6])), hidden(points, uv, None))


def test_without_the_sensors_place_a_far_return_inside_a_near_surface_goes_all_the_same() -> None:
    across, down = np.meshgrid(np.arange(-1, 1, 0.05), np.arange(-1, 1, 0.05))
    surface = np.stack([across.ravel(), down.ravel(), np.full(across.size, 5.0)], axis=-1)
    behind = np.array([[0.11, 0.07, 5.0], [-0.32, 0.4, 5.0]]) * 4
    points = np.vstack([surface, behind])
    uv, _ = in_picture(points)
    assert np.flatnonzero(hidden(points, uv, None)).tolist() == [len(surface), len(surface) + 1]


LAYOUTS = {
    "spread": lambda rng, num: rng.uniform((-600, -180), (600, 180), (num, 2)),
    "within four pixels": lambda rng, num: rng.uniform(-2, 2, (num, 2)),
    "one place": lambda rng, num: np.zeros((num, 2)),
    "one line": lambda rng, num: np.stack([rng.uniform(-600, 600, num), np.zeros(num)], axis=-1),
    "a heap": lambda rng, num: rng.normal(0, 30, (num, 2)),
    "tenfold": lambda rng, num: rng.uniform((-600, -180), (600, 180), (num // 10, 2)).repeat(10, axis=0),
}


@pytest.mark.parametrize("sensor", [None, (0.3, -0.5, 0.0)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_work_does_not_grow_with_how_returns_crowd(
    layout: str, sensor: tuple[float, float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_pairs = 0
    inner = occlusion._pairs_of

    def count(*arguments: Any) -> Any:
        nonlocal num_pairs
        pairs = inner(*arguments)
        num_pairs += len(pairs.place)
        return pairs

    monkeypatch.setattr(occlusion, "_pairs_of", count)
    rng = np.random.default_rng(0)
    num = 20_000
    uv = LAYOUTS[layout](rng, num)
    z = rng.uniform(10, 50, len(uv))
    points = np.stack([uv[:, 0] / 700 * z, uv[:, 1] / 700 * z, z], axis=-1)
    place = None if sensor is None else np.array(sensor)
    hidden_returns(points, uv, 1242 * 375, (700.0, 700.0), place)
    # Of all pairs there are 400 million.
    assert num_pairs <= 3 * 144 * num


def test_a_return_behind_a_dense_surface_goes_however_dense_it_is() -> None:
    for spacing in (0.05, 0.01):
        across, down = np.meshgrid(np.arange(-1, 1, spacing), np.arange(-1, 1, spacing))
        surface = np.stack([across.ravel(), down.ravel(), np.full(across.size, 5.0)], axis=-1)
        points = np.vstack([surface, surface[:50] * 0 + [0, 0, 5.0], np.array([[0.11, 0.07, 5.0]]) * 4])
        uv, _ = in_picture(points)
        assert np.flatnonzero(hidden(points, uv, None)).tolist() == [len(points) - 1]


@pytest.mark.parametrize("num", [0, 1, 2, 3])
def test_sweeps_of_few_points_are_projected_as_they_are(num: int) -> None:
    points = np.array([[0.0, 0, 5], [0.5, 0, 9], [-0.5, 0.1, 7]])[:num]
    depth = project_points(points, INTRINSICS, WIDTH, HEIGHT, sensor=(0.4, 0.0, 0.0))
    np.testing.assert_allclose(np.sort(depth[np.isfinite(depth)]), np.sort(points[:, 2]))


def test_points_behind_the_camera_beside_the_picture_or_not_finite_are_not_seen() -> None:
    points = np.array([[0, 0, -5], [0, 0, 0], [9, 0, 5], [0, np.nan, 5], [np.inf, 0, 5], [0.001, 0.001, 6], [0, 0, 7]])
    depth = project_points(points, INTRINSICS, WIDTH, HEIGHT, drop_hidden=False)
    assert np.isfinite(depth).sum() == 1
    assert depth[HEIGHT // 2, WIDTH // 2] == 6
