from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.errors import InputError
from moge_core.geometry import focal as focal_module
from moge_core.geometry import normalized_view_plane_uv, recover_focal_shift

CASES = [
    *(
        f"focal_shift.{case}.{noise}.{mask}"
        for case in "01"
        for noise in ("exact", "noisy")
        for mask in ("mask", "nomask")
    ),
    "focal_shift.v1.random_weights",
    "focal_shift.v2.random_weights",
]


def shifted_points(height: int, width: int, focal: float, shift: float, seed: int = 0) -> np.ndarray:
    """A point map (H, W, 3), float32, seen with the focal length, whose z lacks the shift."""
    z = np.random.default_rng(seed).uniform(1, 6, (height, width))
    uv = normalized_view_plane_uv(width, height, dtype=np.float64)
    return np.concatenate([uv * z[..., None] / focal, (z - shift)[..., None]], -1).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_focal_length_and_shift_are_those_of_the_published_code(golden, manifest, kind, case):
    points, mask, expected = kind(golden[f"{case}.points"]), golden[f"{case}.mask"], manifest[case]
    mask = None if mask.size == 0 else kind(mask)
    focal, shift = recover_focal_shift(points, mask)
    assert float(focal) == pytest.approx(expected["focal"], rel=1e-5)
    assert float(shift) == pytest.approx(expected["shift"], rel=1e-5)
    focal, shift = recover_focal_shift(points, mask, focal=expected["given_focal"])
    assert float(focal) == pytest.approx(expected["given_focal"], rel=1e-6)
    assert float(shift) == pytest.approx(expected["shift_given_focal"], rel=1e-5)


@given(
    focal=st.floats(0.3, 4),
    shift=st.floats(-0.8, 0.8),
    shape=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_exact_points_give_their_focal_length_and_shift(focal, shift, shape, seed):
    points = shifted_points(*shape, focal, shift, seed)
    found_focal, found_shift = recover_focal_shift(points)
    assert found_focal == pytest.approx(focal, rel=2e-3)
    assert found_shift == pytest.approx(shift, abs=2e-3)
    kept_focal, found_shift = recover_focal_shift(points, focal=focal)
    assert kept_focal == np.float32(focal)
    assert found_shift == pytest.approx(shift, abs=2e-3)


def test_each_map_of_a_batch_is_solved_as_if_alone(kind):
    rng = np.random.default_rng(1)
    maps = [shifted_points(40, 56, focal, shift) for focal, shift in ((0.6, 0.5), (1.2, -0.3), (2.5, 0.0))]
    maps.append(rng.normal(size=(40, 56, 3)).astype(np.float32))
    points = np.stack([*maps, np.full_like(maps[0], np.nan), maps[0]]).reshape(2, 3, 40, 56, 3)
    mask = rng.random((2, 3, 40, 56)) < 0.8
    focal, shift = recover_focal_shift(kind(points), kind(mask))
    assert tuple(focal.shape) == tuple(shift.shape) == (2, 3)
    for image in np.ndindex(2, 3):
        alone_focal, alone_shift = recover_focal_shift(points[image], mask[image])
        np.testing.assert_allclose(float(focal[image]), alone_focal, rtol=1e-5)
        np.testing.assert_allclose(float(shift[image]), alone_shift, rtol=1e-5)


def test_the_solver_that_never_makes_the_host_wait_finds_the_same(monkeypatch):
    points = np.stack([shifted_points(40, 56, focal, shift) for focal, shift in ((0.6, 0.5), (1.2, -0.3))])
    expected = recover_focal_shift(torch.from_numpy(points))
    monkeypatch.setattr(focal_module, "is_on_host", lambda _: False)
    found = recover_focal_shift(torch.from_numpy(points))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_each_map_of_a_batch_may_have_its_own_given_focal_length(kind):
    points = np.stack([shifted_points(40, 40, 0.8, 0.4), shifted_points(40, 40, 2.0, -0.2)])
    focal, shift = recover_focal_shift(kind(points), focal=kind(np.float32([0.8, 2.0])))
    np.testing.assert_allclose(np.asarray(focal), [0.8, 2.0], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(shift), [0.4, -0.2], atol=1e-3)


@pytest.mark.parametrize("given_focal", [None, 1.7])
def test_fewer_than_two_points_leave_the_shift_at_zero(kind, given_focal):
    points = shifted_points(64, 64, 1.5, 0.5)
    none, one = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    one[5, 6] = True
    for mask in (none, one):
        focal, shift = recover_focal_shift(kind(points), kind(mask), focal=given_focal)
        assert float(focal) == np.float32(given_focal or 1)
        assert float(shift) == 0
    focal, shift = recover_focal_shift(kind(points[:1, :1]), kind(one[:1, :1]), focal=given_focal)
    assert (float(focal), float(shift)) == (np.float32(given_focal or 1), 0)


def test_points_that_are_not_finite_or_masked_out_never_enter_the_sums(kind):
    points = shifted_points(64, 64, 1.5, 0.5)
    mask = np.random.default_rng(0).random((64, 64)) < 0.7
    expected = [float(value) for value in recover_focal_shift(points, mask)]
    spoilt = points.copy()
    spoilt[~mask] = np.random.default_rng(1).choice([np.nan, np.inf, 3e38, 0], spoilt[~mask].shape)
    assert [float(value) for value in recover_focal_shift(kind(spoilt), kind(mask))] == pytest.approx(expected)
    spoilt[~mask] = np.nan
    assert [float(value) for value in recover_focal_shift(kind(spoilt))] == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-20, 1.0, 1e20, 3e38, np.nan, np.inf], ids=lambda value: f"{value:g}")
def test_absurd_points_still_give_finite_numbers(kind, value):
    signs = np.random.default_rng(0).choice(np.float32([-1, -0.3, 0.5, 1]), (16, 16, 3))
    for points in (np.full((16, 16, 3), value, np.float32), signs * np.float32(value)):
        for given_focal in (None, 1.0):
            focal, shift = recover_focal_shift(kind(points), focal=given_focal)
            assert np.isfinite(float(focal))
            assert np.isfinite(float(shift))


def test_no_gradient_is_kept():
    points = torch.from_numpy(shifted_points(32, 32, 1.0, 0.2)).requires_grad_()
    focal, shift = recover_focal_shift(points)
    assert not focal.requires_grad
    assert not shift.requires_grad


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"points": np.ones((4, 4), np.float32)}, "points"),
        ({"mask": np.ones((4, 4), bool)}, "mask"),
        ({"focal": np.ones(3)}, "focal"),
        ({"focal": -1.0}, "focal"),
        ({"downsample_size": (0, 4)}, "downsample_size"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(arguments, words):
    with pytest.raises(InputError, match=words):
        recover_focal_shift(**{"points": np.ones((8, 8, 3), np.float32), **arguments})
