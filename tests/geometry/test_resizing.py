from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moge_core.errors import InputError
from moge_core.geometry import masked_nearest_resize, resizing


def search_every_window(mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Valid, rows and columns, pixel by pixel, straight from the definition; (0, 0) where invalid."""
    sides, windows, centres = mask.shape, [], []
    for length, target in zip(sides, size, strict=True):
        factor = max(1, length / target)
        centre = np.linspace(0.5 / target, 1 - 0.5 / target, target).astype(np.float32) * np.float32(length)
        corner = np.round(centre - np.float32(factor / 2)).astype(int)
        windows.append([range(max(c, 0), min(c + math.ceil(factor), length)) for c in corner])
        centres.append(centre)
    valid, rows, columns = np.zeros(size, bool), np.zeros(size, int), np.zeros(size, int)
    for i, j in np.ndindex(*size):
        best = np.float32(np.inf)
        for row in windows[0][i]:
            for column in windows[1][j]:
                dy = np.float32(row + 0.5) - centres[0][i]
                dx = np.float32(column + 0.5) - centres[1][j]
                if mask[row, column] and dy * dy + dx * dx < best:
                    best = dy * dy + dx * dx
                    valid[i, j], rows[i, j], columns[i, j] = True, row, column
    return valid, rows, columns


@pytest.mark.parametrize("size", [(16, 16), (60, 80), (7, 13)])
@pytest.mark.parametrize("case", "01")
def test_resizing_is_that_of_the_published_code(golden, kind, case, size):
    depth, name = golden[f"d2p.{case}.depth"], f"mnr.{case}.{size[0]}x{size[1]}"
    resized, mask, index = masked_nearest_resize(
        kind(depth), mask=kind(np.isfinite(depth)), size=size, return_index=True
    )
    assert np.array_equal(mask, golden[name + ".mask"])
    assert np.array_equal(np.stack([np.asarray(axis) for axis in index]), golden[name + ".idx"])
    assert np.array_equal(resized, golden[name + ".np"], equal_nan=True)


sides = st.integers(1, 20)


@given(shape=st.tuples(sides, sides), size=st.tuples(sides, sides), share=st.floats(0, 1), seed=st.integers(0, 99))
@example(shape=(20, 20), size=(10, 10), share=1.0, seed=0)
@example(shape=(20, 18), size=(5, 3), share=0.05, seed=1)
@settings(deadline=None, max_examples=80)
def test_every_target_takes_the_first_nearest_valid_pixel_of_its_window(shape, size, share, seed):
    mask = np.random.default_rng(seed).random(shape) < share
    valid, rows, columns = search_every_window(mask, size)
    for convert in (np.asarray, torch.from_numpy):
        found, index = masked_nearest_resize(mask=convert(mask), size=size, return_index=True)
        assert np.array_equal(found, valid)
        assert np.array_equal(np.asarray(index[0])[valid], rows[valid])
        assert np.array_equal(np.asarray(index[1])[valid], columns[valid])


@pytest.mark.parametrize(("length", "target"), [(26, 13), (42, 35), (52, 26), (1080, 540), (1920, 1366), (997, 64)])
def test_a_full_mask_gives_what_the_search_of_whole_windows_gives(length, target):
    mask = torch.ones(length, 83, dtype=torch.bool)
    quick = masked_nearest_resize(mask=mask, size=(target, 64), return_index=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resizing, "is_on_host", lambda _: False)
        whole = masked_nearest_resize(mask=mask, size=(target, 64), return_index=True)
    assert all(torch.equal(one, other) for one, other in zip(quick[1], whole[1], strict=True))


@given(seed=st.integers(0, 99), share=st.floats(0, 0.2))
@settings(deadline=None, max_examples=10)
def test_a_search_in_small_pieces_finds_the_same(seed, share):
    mask = np.random.default_rng(seed).random((61, 47)) < share
    whole = masked_nearest_resize(mask=mask, size=(9, 11), return_index=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resizing, "_SEARCH_PIXELS", 100)
        pieces = masked_nearest_resize(mask=mask, size=(9, 11), return_index=True)
    assert np.array_equal(whole[0], pieces[0])
    assert all(np.array_equal(one, other) for one, other in zip(whole[1], pieces[1], strict=True))


@given(seed=st.integers(0, 99), share=st.floats(0, 1))
@settings(deadline=None, max_examples=10)
def test_the_search_that_never_makes_the_host_wait_finds_the_same(seed, share):
    mask = torch.from_numpy(np.random.default_rng(seed).random((2, 23, 31)) < share)
    on_host = masked_nearest_resize(mask=mask, size=(9, 40), return_index=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resizing, "is_on_host", lambda _: False)
        on_device = masked_nearest_resize(mask=mask, size=(9, 40), return_index=True)
    assert torch.equal(on_host[0], on_device[0])
    assert all(torch.equal(one, other) for one, other in zip(on_host[1], on_device[1], strict=True))


def test_all_maps_are_taken_from_the_same_pixels_whatever_they_hold(kind):
    rng = np.random.default_rng(0)
    mask = rng.random((2, 3, 20, 30)) < 0.5
    points = rng.normal(size=(2, 3, 20, 30, 3)).astype(np.float32)
    ids = np.arange(mask.size, dtype=np.int64).reshape(mask.shape)
    small_points, small_ids, small_mask, (rows, columns) = masked_nearest_resize(
        kind(points), kind(ids), mask=kind(mask), size=(6, 7), return_index=True
    )
    assert tuple(small_points.shape) == (2, 3, 6, 7, 3)
    assert small_ids.dtype == kind(ids).dtype
    flat = np.asarray(small_ids)
    assert np.array_equal(flat % 600, np.asarray(rows) * 30 + np.asarray(columns))
    assert np.array_equal(np.asarray(small_points), points.reshape(-1, 3)[flat])
    assert mask.reshape(-1)[flat[np.asarray(small_mask)]].all()
    for image in np.ndindex(2, 3):
        alone, alone_mask = masked_nearest_resize(ids[image], mask=mask[image], size=(6, 7))
        assert np.array_equal(alone, flat[image])
        assert np.array_equal(alone_mask, np.asarray(small_mask)[image])


def test_the_same_size_changes_nothing(kind):
    depth = np.random.default_rng(0).normal(size=(23, 17)).astype(np.float32)
    mask = depth > 0
    resized, resized_mask = masked_nearest_resize(kind(depth), mask=kind(mask), size=(23, 17))
    assert np.array_equal(resized, depth)
    assert np.array_equal(resized_mask, mask)


def test_an_empty_mask_has_no_valid_target(kind):
    for shape, size in (((40, 30), (8, 8)), ((1, 1), (1, 1)), ((1, 1), (5, 4))):
        _, mask = masked_nearest_resize(kind(np.ones(shape, np.float32)), mask=kind(np.zeros(shape, bool)), size=size)
        assert tuple(mask.shape) == size
        assert not np.asarray(mask).any()


def test_a_single_valid_pixel_is_found_wherever_its_window_is(kind):
    for position in ((0, 0), (499, 0), (250, 333), (499, 777)):
        mask = np.zeros((500, 778), bool)
        mask[position] = True
        resized, index = masked_nearest_resize(mask=kind(mask), size=(1, 1), return_index=True)
        assert bool(resized[0, 0])
        assert (int(index[0][0, 0]), int(index[1][0, 0])) == position


def test_an_empty_batch_stays_empty(kind):
    resized, mask = masked_nearest_resize(
        kind(np.ones((0, 8, 9), np.float32)), mask=kind(np.ones((0, 8, 9), bool)), size=(4, 4)
    )
    assert tuple(resized.shape) == tuple(mask.shape) == (0, 4, 4)


def test_gradients_reach_the_pixels_that_were_taken_and_no_others():
    depth = torch.ones(8, 8, requires_grad=True)
    resized, _ = masked_nearest_resize(depth, mask=torch.ones(8, 8, dtype=torch.bool), size=(2, 2))
    resized.sum().backward()
    assert depth.grad is not None
    assert int(depth.grad.sum()) == int((depth.grad > 0).sum()) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mask": np.ones((4, 4))}, "boolean"),
        ({"mask": np.ones(4, bool)}, r"\(\.\.\., H, W\)"),
        ({"mask": np.ones((4, 0), bool)}, "at least one pixel"),
        ({"mask": np.ones((4, 4), bool), "size": (0, 3)}, "size"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(arguments, words):
    with pytest.raises(InputError, match=words):
        masked_nearest_resize(**{"size": (2, 2), **arguments})


def test_a_map_of_another_size_than_the_mask_is_refused_by_its_position():
    mask = np.ones((4, 5), bool)
    with pytest.raises(InputError, match=r"maps\[1\]"):
        masked_nearest_resize(np.ones((4, 5)), np.ones((5, 4)), mask=mask, size=(2, 2))
