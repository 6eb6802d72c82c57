from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moge_core import alignment
from moge_core.alignment import (
    align,
    align_affine_lstsq,
    align_depth_affine,
    align_depth_scale,
    align_points_scale,
    align_points_scale_xyz_shift,
    align_points_scale_z_shift,
    align_points_xyz_shift,
    align_points_z_shift,
    sorting,
)
from moge_core.errors import InputError

Solution = tuple[Tensor, Tensor]
Solver = Callable[..., Solution]

truncations = st.sampled_from([None, 1.0, 0.05])


def solve(
    name: str, source: Tensor, target: Tensor, weight: Tensor, trunc: float | None, method: str = "search"
) -> Solution:
    """Any solver's result as scale (B,) and shift (B, 1) for depths or (B, 3) for points."""
    result = getattr(alignment, name)(source, target, weight, trunc, method=method)
    dims = 1 if source.dim() == weight.dim() else 3
    scale, shift = result if isinstance(result, tuple) else (result, torch.zeros(len(source), dims))
    if not isinstance(result, tuple) and name.endswith("shift"):
        scale, shift = torch.ones(len(source)), result
    return scale, shift.reshape(len(source), -1)


def objective(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None, scale: Tensor, shift: Tensor
) -> Tensor:
    """What the solvers minimise, (B,), in float64."""
    used = weight > 0
    dims = shift.shape[-1]
    source, target = (
        torch.where(used[..., None], v.reshape(*weight.shape, dims), 0).double() for v in (source, target)
    )
    residual = (scale.double()[:, None, None] * source + shift.double()[:, None] - target).abs()
    residual = residual * weight.double()[..., None]
    return (residual if trunc is None else residual.clamp(max=trunc)).sum((1, 2))


def best_by_brute_force(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None, moves: list[bool]
) -> float:
    """Least objective of one problem (N, D) over every anchor and every zero of a residual."""
    best = math.inf
    moving = torch.tensor(moves)
    for anchor in (weight > 0).nonzero()[:, 0]:
        x = (source - torch.where(moving, source[anchor], 0)).flatten()
        y = (target - torch.where(moving, target[anchor], 0)).flatten()
        w = weight[:, None].expand(source.shape).flatten()
        scales = torch.cat([(y / x)[(x != 0) & (w > 0)], torch.zeros(1, dtype=x.dtype)])
        residual = w * (scales[:, None] * x - y).abs()
        cost = (residual if trunc is None else residual.clamp(max=trunc)).sum(1)
        best = min(best, float(cost.min()))
    return best


# Golden figures.


def golden_cases(golden_dir: Path) -> list[tuple[str, str, float | None, tuple[Tensor, Tensor, Tensor], Tensor]]:
    """(solver, case, trunc, (source, target, weight), objective of the reference)."""
    cases = []
    with np.load(golden_dir / "align" / "align.npz") as stored:
        arrays = dict(stored)
    for key, value in arrays.items():
        if not key.endswith(".objective64"):
            continue
        name = key.removesuffix(".objective64")
        stem, _, trunc = name.partition(".trunc_")
        solver, _, case = stem.partition(".")
        fields = ("x", "y", "w") if solver == "align" else ("src", "tgt", "w")
        place = f"align.{case}" if solver == "align" else name if solver.startswith("align_depth") else f"points.{case}"
        inputs = tuple(torch.from_numpy(arrays[f"{place}.{field}"]) for field in fields)
        solver = "align" if solver == "align" else solver.removesuffix("_zw").removesuffix("_const_src")
        bound = None if trunc == "None" else float(trunc)
        cases.append((solver, name, bound, inputs, torch.from_numpy(value)))
    return cases  # type: ignore[return-value]


@pytest.mark.parametrize("method", alignment.METHODS)
def test_no_objective_is_above_the_published_solvers(golden_dir: Path, method: str) -> None:
    cases = golden_cases(golden_dir)
    assert len(cases) > 100
    for solver, name, trunc, (source, target, weight), reference in cases:
        name_of_solver = "align_depth_scale" if solver == "align" else solver
        scale, shift = solve(name_of_solver, source, target, weight, trunc, method)
        found = objective(source, target, weight, trunc, scale, shift)
        within = found <= reference * (1 + 1e-4) + 1e-5
        assert (within | (weight.sum(1) == 0)).all(), (name, found, reference)


@pytest.mark.parametrize("trunc", [None, 1.0])
def test_gradients_of_the_scale_are_the_published_ones(golden_dir: Path, trunc: float | None) -> None:
    with np.load(golden_dir / "align" / "align.npz") as stored:
        field = {
            name: torch.from_numpy(stored[f"align.grad.trunc_{trunc}.{name}"])
            for name in ("x", "y", "w", "grad_x", "grad_y")
        }
    x, y = field["x"].requires_grad_(), field["y"].requires_grad_()
    align(x, y, field["w"], trunc)[0].sum().backward()
    torch.testing.assert_close(x.grad, field["grad_x"])
    torch.testing.assert_close(y.grad, field["grad_y"])


@pytest.mark.parametrize("solver", [align_points_scale_z_shift, align_points_scale_xyz_shift])
def test_gradients_of_scale_and_shift_are_the_published_ones(golden_dir: Path, solver: Solver) -> None:
    with np.load(golden_dir / "align" / "align.npz") as stored:
        names = ("src", "tgt", "w", "grad_src_of_sum_s_plus_123_dot_t")
        source, target, weight, gradient = (
            torch.from_numpy(stored[f"{solver.__name__}.grad.{name}"]) for name in names
        )
    source.requires_grad_()
    scale, shift = solver(source, target, weight, 1.0)
    (scale.sum() + (shift * torch.tensor([1.0, 2.0, 3.0])).sum()).backward()
    torch.testing.assert_close(source.grad, gradient, rtol=1e-5, atol=1e-5)


def test_least_squares_weigh_both_columns(golden_dir: Path) -> None:
    with np.load(golden_dir / "align" / "align.npz") as stored:
        for case, fields in (("none", "xy"), ("random", "xyw")):
            inputs = [torch.from_numpy(stored[f"align_affine_lstsq.{case}.{field}"]) for field in fields]
            a, b = align_affine_lstsq(*inputs)
            np.testing.assert_allclose(a, stored[f"align_affine_lstsq.{case}.a_documented"], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(b, stored[f"align_affine_lstsq.{case}.b_documented"], rtol=1e-4, atol=1e-4)


# The optimum.


@st.composite
def problems(draw: st.DrawFn, dims: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """One problem (N, D) in float64: noise, outliers, ties, points without weight."""
    size = draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    source = torch.randn(size, dims, generator=generator, dtype=torch.float64)
    target = draw(st.sampled_from([1.7, -0.8, 0.0])) * source + draw(st.sampled_from([0.0, 0.01, 1.0])) * torch.randn(
        size, dims, generator=generator, dtype=torch.float64
    )
    target[torch.rand(size, generator=generator) < 0.2] += 100
    if draw(st.booleans()):
        source, target = (source * 2).round(), (target * 2).round()
    weight = torch.rand(size, generator=generator, dtype=torch.float64) * draw(st.sampled_from([1e-3, 1.0, 1e3]))
    weight[torch.rand(size, generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))] = 0
    return source, target, weight


@settings(max_examples=60, deadline=None)
@given(problems(), truncations)
def test_the_scale_and_shift_of_points_are_the_best_of_all_anchors(
    problem: tuple[Tensor, Tensor, Tensor], trunc: float | None
) -> None:
    source, target, weight = problem
    for (solver, moves), method in itertools.product(
        ((align_points_scale_z_shift, [False, False, True]), (align_points_scale_xyz_shift, [True] * 3)),
        alignment.METHODS,
    ):
        scale, shift = solver(source[None], target[None], weight[None], trunc, method=method)
        if not weight.any():
            assert scale.item() == 0
            assert not shift.any()
            continue
        found = float(objective(source[None], target[None], weight[None], trunc, scale, shift))
        best = best_by_brute_force(source, target, weight, trunc, moves)
        assert found == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert not shift[0, ~torch.tensor(moves)].any()


@settings(max_examples=60, deadline=None)
@given(problems(dims=1), truncations)
def test_the_scale_and_shift_of_depths_are_the_best_of_all_anchors(
    problem: tuple[Tensor, Tensor, Tensor], trunc: float | None
) -> None:
    source, target, weight = problem
    depth, true = source.T, target.T
    scale, shift = align_depth_affine(depth, true, weight[None], trunc)
    if weight.any():
        best = best_by_brute_force(source, target, weight, trunc, [True])
        found = objective(depth, true, weight[None], trunc, scale, shift[:, None])
        assert float(found) == pytest.approx(best, rel=1e-9, abs=1e-9)

    scale, loss, index = align(depth, true, weight[None], trunc)
    scales = torch.cat([(true / depth)[(depth != 0) & (weight > 0)], torch.zeros(1, dtype=depth.dtype)])
    repeated = (v.expand(len(scales), -1) for v in (depth, true, weight[None]))
    costs = objective(*repeated, trunc, scales, torch.zeros(len(scales), 1))
    assert float(loss) == pytest.approx(float(costs.min()), rel=1e-9, abs=1e-9)
    if float(scale) != 0:
        assert float(scale) == float(true[0, index] / depth[0, index])
    assert float(align_depth_scale(depth, true, weight[None], trunc)) == float(scale)


@settings(max_examples=40, deadline=None)
@given(problems(), truncations)
def test_shifts_alone_are_the_best_per_coordinate(problem: tuple[Tensor, Tensor, Tensor], trunc: float | None) -> None:
    source, target, weight = problem
    for solver, coordinates in ((align_points_z_shift, [2]), (align_points_xyz_shift, [0, 1, 2])):
        shift = solver(source[None], target[None], weight[None], trunc)
        for coordinate in range(3):
            if coordinate not in coordinates or not weight.any():
                assert shift[0, coordinate] == 0
                continue
            difference = target[:, coordinate] - source[:, coordinate]
            costs = weight * (difference[weight > 0][:, None] - difference).abs()
            own = weight * (shift[0, coordinate] - difference).abs()
            if trunc is not None:
                costs, own = costs.clamp(max=trunc), own.clamp(max=trunc)
            assert float(own.sum()) == pytest.approx(float(costs.sum(1).min()), rel=1e-9, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 10), st.floats(-5, 5), truncations)
def test_scale_and_shift_follow_a_rescaled_and_shifted_source(
    seed: int, factor: float, offset: float, trunc: float | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(1, 30, 3, generator=generator, dtype=torch.float64)
    target = 1.5 * source + 0.1 * torch.randn(1, 30, 3, generator=generator, dtype=torch.float64)
    weight = torch.rand(1, 30, generator=generator, dtype=torch.float64) + 0.1
    moved = source * factor + torch.tensor([0.0, 0.0, offset], dtype=torch.float64)
    scale, shift = align_points_scale_z_shift(source, target, weight, trunc)
    moved_scale, moved_shift = align_points_scale_z_shift(moved, target, weight, trunc)
    before = objective(source, target, weight, trunc, scale, shift)
    after = objective(moved, target, weight, trunc, moved_scale, moved_shift)
    # x and y keep their offset under a z shift only if the offset is along z, as it is here
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("magnitude", [1e-25, 1e-8, 1.0, 1e8, 1e25])
def test_steep_and_flat_elements_together_do_not_confuse_the_sweep(magnitude: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 200, generator=generator, dtype=torch.float64)
    y = 2 * x + 0.01 * torch.randn(1, 200, generator=generator, dtype=torch.float64)
    x[:, ::4] *= magnitude  # their ratios lie far away, their slopes differ as much
    scale, loss, _ = align(x, y, torch.ones_like(x), 1.0)
    scales = (y / x)[0]
    costs = (scales[:, None] * x - y).abs().clamp(max=1).sum(1)
    assert float(loss) == pytest.approx(float(costs.min()), rel=1e-9)
    assert float(scale) == pytest.approx(2, abs=0.1)


# Rows of a batch.


@pytest.mark.parametrize(
    "name",
    [
        "align_depth_scale",
        "align_depth_affine",
        "align_points_scale",
        "align_points_scale_z_shift",
        "align_points_scale_xyz_shift",
        "align_points_z_shift",
        "align_points_xyz_shift",
    ],
)
@pytest.mark.parametrize("trunc", [None, 1.0])
def test_a_row_without_weight_gets_nothing_from_its_neighbours(name: str, trunc: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 20) if "depth" in name else (3, 20, 3)
    source = torch.randn(shape, generator=generator)
    target = 2 * source + 1
    weight = torch.ones(3, 20)
    weight[1] = 0
    source[1] = math.nan
    scale, shift = solve(name, source, target, weight, trunc)
    alone_scale, alone_shift = solve(name, source[[0, 2]], target[[0, 2]], weight[[0, 2]], trunc)
    torch.testing.assert_close(scale[[0, 2]], alone_scale)
    torch.testing.assert_close(shift[[0, 2]], alone_shift)
    if not name.startswith(("align_points_z", "align_points_xyz")):
        assert scale[1] == 0
    assert not shift[1].any()


@pytest.mark.parametrize("trunc", [None, 1.0])
@pytest.mark.parametrize("solver", [align_points_scale_z_shift, align_points_scale_xyz_shift])
def test_masked_points_leak_neither_values_nor_gradients(solver: Solver, trunc: float | None) -> None:
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(2, 30, 3, generator=generator)
    target = 1.3 * source + 0.1 * torch.randn(2, 30, 3, generator=generator)
    weight = (torch.rand(2, 30, generator=generator) > 0.5).float()
    expected = solver(source, target, weight, trunc)
    for poison in (math.nan, math.inf, -1e30):
        poisoned_source = torch.where(weight[..., None] > 0, source, poison).requires_grad_()
        poisoned_target = torch.where(weight[..., None] > 0, target, poison)
        scale, shift = solver(poisoned_source, poisoned_target, weight, trunc)
        torch.testing.assert_close((scale.detach(), shift.detach()), expected)
        (scale.sum() + shift.sum()).backward()
        assert poisoned_source.grad is not None
        assert poisoned_source.grad.isfinite().all()
        assert not poisoned_source.grad[weight == 0].any()


def test_a_weighted_value_that_is_not_finite_shows_in_its_own_row_only() -> None:
    source = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(2))
    target = source * 2
    source[0, 3, 1] = math.nan
    scale, shift = align_points_scale_z_shift(source, target, torch.ones(2, 10), 1.0)
    assert scale.isnan().tolist() == [True, False]
    assert shift[0].isnan().all()
    assert scale[1] == pytest.approx(2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), truncations)
def test_gradients_agree_with_finite_differences(seed: int, trunc: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(1, 8, 3, generator=generator, dtype=torch.float64)
    target = torch.randn(1, 8, 3, generator=generator, dtype=torch.float64)
    weight = torch.rand(1, 8, generator=generator, dtype=torch.float64) + 0.1
    for solver in (align_points_scale_z_shift, align_points_scale_xyz_shift):
        # Where two anchors are as good, as when all other points are truncated, a tiny change switches between them:
        # there is no derivative to compare.
        best = torch.cat([part.flatten() for part in solver(source, target, weight, trunc)])
        for _ in range(16):
            nudge = 1e-5 * torch.randn(source.shape, generator=generator, dtype=torch.float64)
            near = torch.cat([part.flatten() for part in solver(source + nudge, target, weight, trunc)])
            assume(float((near - best).abs().max()) < 1e-3)
        inputs = source.clone().requires_grad_(), target.clone().requires_grad_()
        arguments = (lambda s, t, solver=solver: solver(s, t, weight, trunc)), inputs
        assert torch.autograd.gradcheck(*arguments, eps=1e-7, atol=1e-4)


def test_batch_dimensions_are_free_and_results_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    source, target = torch.randn(2, 3, 9, 3, generator=generator), torch.randn(2, 3, 9, 3, generator=generator)
    weight = torch.rand(2, 3, 9, generator=generator)
    scale, shift = align_points_scale_xyz_shift(source, target, weight, 1.0)
    assert scale.shape == (2, 3)
    assert shift.shape == (2, 3, 3)
    monkeypatch.setattr(sorting, "_CHUNK_CPU", 1)
    chunked = align_points_scale_xyz_shift(source, target, weight, 1.0)
    one = align_points_scale_xyz_shift(source[1, 2], target[1, 2], weight[1, 2], 1.0)
    torch.testing.assert_close(chunked, (scale, shift))
    torch.testing.assert_close(one, (scale[1, 2], shift[1, 2]))


@pytest.mark.parametrize("shape", [(9,), (1, 9), (3, 1, 9), (1, 4, 1), (3, 4, 9)])
@pytest.mark.parametrize("trunc", [None, 0.5])
def test_weights_that_broadcast_weigh_as_those_that_were_expanded(shape: tuple[int, ...], trunc: float | None) -> None:
    generator = torch.Generator().manual_seed(7)
    points = [torch.randn(3, 4, 9, 3, generator=generator) for _ in range(2)]
    weight = torch.rand(shape, generator=generator) - 0.2
    whole = weight.expand(3, 4, 9).clone()
    depths = [one[..., 2] for one in points]
    torch.testing.assert_close(align(*depths, weight, trunc), align(*depths, whole, trunc), rtol=0, atol=0)
    torch.testing.assert_close(
        align_points_scale_xyz_shift(*points, weight, trunc),
        align_points_scale_xyz_shift(*points, whole, trunc),
        rtol=0,
        atol=0,
    )
    given = weight.clone().requires_grad_()
    align(*depths, given, trunc)[1].sum().backward()
    whole.requires_grad_()
    align(*depths, whole, trunc)[1].sum().backward()
    torch.testing.assert_close(given.grad, whole.grad.sum_to_size(shape))


def test_problems_without_points_and_batches_without_problems_are_solved() -> None:
    empty = torch.zeros(2, 0, 3)
    scale, shift = align_points_scale_xyz_shift(empty, empty, torch.zeros(2, 0), 1.0)
    assert scale.tolist() == [0, 0]
    assert not shift.any()
    assert align_points_scale(empty, empty, torch.zeros(2, 0)).tolist() == [0, 0]
    assert align_affine_lstsq(torch.zeros(2, 0), torch.zeros(2, 0))[0].tolist() == [0, 0]
    none = torch.zeros(0, 5, 3)
    assert align_points_scale_z_shift(none, none, torch.zeros(0, 5), 1.0)[0].shape == (0,)


def test_least_squares_without_spread_take_the_mean() -> None:
    a, b = align_affine_lstsq(torch.ones(1, 3), torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[1.0, 1.0, 2.0]]))
    assert (a.item(), b.item()) == (0, 3.75)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"target": torch.zeros(1, 4, 3)}, "target"),
        ({"weight": torch.zeros(1, 4)}, "weight"),
        ({"source": torch.zeros(1, 5, 2)}, "source"),
        ({"trunc": 0.0}, "trunc"),
        ({"trunc": math.inf}, "trunc"),
        ({"method": "guess"}, "method"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, object], named: str) -> None:
    arguments = {"source": torch.ones(1, 5, 3), "target": torch.ones(1, 5, 3), "weight": torch.ones(1, 5)} | change
    with pytest.raises(InputError, match=f"^{named}"):
        align_points_scale_xyz_shift(**arguments)
