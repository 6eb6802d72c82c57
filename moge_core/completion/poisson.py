"""Harmonic interpolation on the pixel grid: what a Poisson problem becomes once the prediction is taken off.

To follow given gradients g in the gaps of x, with x = known values elsewhere, is to minimise

    sum over neighbours i, j of  w_ij ((x_i - x_j) - (g_i - g_j))^2.

With y = x - g this is the sum of w_ij (y_i - y_j)^2: y is harmonic in the gaps and lies between the values at their
rims, which bounds what a poor prediction can do. The system is solved by conjugate gradients with a multigrid cycle as
preconditioner. Everything is an array of the image's shape, so memory is a few times the image, and the time per pixel
does not grow with the size of the gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_MAX_ITERATIONS = 200
_DAMPING = 0.8
_SWEEPS = 2
_COARSEST_CELLS = 256
# A sum over blocks makes coarse edges twice as stiff as a grid of that spacing has them.
_COARSE_EDGE = 0.5


def interpolate_harmonic(
    values: Array, known: Array, gaps: Array, weights_x: Array, weights_y: Array, pull: float, tolerance: float
) -> npt.NDArray[np.float64]:
    """Fill gaps such that each of their pixels is the weighted mean of its neighbours.

    Args:
        values: (H, W), finite where `known`.
        known: (H, W) bool, pixels that hold their value.
        gaps: (H, W) bool, pixels to fill; none of them known. Pixels that are neither take no part.
        weights_x: (H, W - 1), at least 0, of the edges between horizontal neighbours.
        weights_y: (H - 1, W), likewise, vertical.
        pull: weight above 0 that draws every gap pixel to 0; it decides where no known pixel is in reach.
        tolerance: size of the residual, relative to the forces, at which the solver stops.

    Returns:
        (H, W), `values` where known, 0 where neither known nor gap.
    """
    held = np.where(known, values, 0).astype(np.float64)
    across_x = gaps[:, 1:] & gaps[:, :-1]
    across_y = gaps[1:] & gaps[:-1]
    # An edge to a known pixel acts as a spring to that pixel's value.
    stiff_x = np.where(known[:, 1:] & gaps[:, :-1] | gaps[:, 1:] & known[:, :-1], weights_x, 0).astype(np.float64)
    stiff_y = np.where(known[1:] & gaps[:-1] | gaps[1:] & known[:-1], weights_y, 0).astype(np.float64)
    mass = np.where(gaps, pull, 0.0)
    force = np.zeros(gaps.shape)
    for total, factor in ((mass, None), (force, held)):
        total[:, :-1] += stiff_x if factor is None else stiff_x * factor[:, 1:]
        total[:, 1:] += stiff_x if factor is None else stiff_x * factor[:, :-1]
        total[:-1] += stiff_y if factor is None else stiff_y * factor[1:]
        total[1:] += stiff_y if factor is None else stiff_y * factor[:-1]
    mass[~gaps] = force[~gaps] = 0
    level = _Level.make(np.where(across_x, weights_x, 0.0), np.where(across_y, weights_y, 0.0), mass)
    filled = _solve(level, force, tolerance)
    return np.where(known, held, np.where(gaps, filled, 0))


@dataclass(frozen=True)
class _Level:
    """The operator (A y)_i = (sum_j w_ij + m_i) y_i - sum_j w_ij y_j on one grid."""

    weights_x: Array
    weights_y: Array
    mass: Array
    diagonal: Array
    inverse: Array

    @classmethod
    def make(cls, weights_x: Array, weights_y: Array, mass: Array) -> _Level:
        diagonal = mass.copy()
        diagonal[:, :-1] += weights_x
        diagonal[:, 1:] += weights_x
        diagonal[:-1] += weights_y
        diagonal[1:] += weights_y
        inverse = np.divide(1, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
        return cls(weights_x, weights_y, mass, diagonal, inverse)

    def astype(self, dtype: type) -> _Level:
        return _Level.make(*(v.astype(dtype) for v in (self.weights_x, self.weights_y, self.mass)))

    def apply(self, y: Array) -> Array:
        result = self.diagonal * y
        result[:, :-1] -= self.weights_x * y[:, 1:]
        result[:, 1:] -= self.weights_x * y[:, :-1]
        result[:-1] -= self.weights_y * y[1:]
        result[1:] -= self.weights_y * y[:-1]
        return result

    def inverted(self) -> Array:
        """The inverse (N, N) float32 over the N cells; cells outside the problem are decoupled."""
        height, width = self.mass.shape
        cells = np.arange(height * width).reshape(height, width)
        matrix = np.diag(np.where(self.diagonal > 0, self.diagonal, 1).ravel().astype(np.float64))
        for weights, first, second in (
            (self.weights_x, cells[:, :-1], cells[:, 1:]),
            (self.weights_y, cells[:-1], cells[1:]),
        ):
            matrix[first.ravel(), second.ravel()] = matrix[second.ravel(), first.ravel()] = -weights.ravel()
        return np.linalg.inv(matrix).astype(np.float32)

    def coarser(self) -> _Level:
        """The grid of blocks of 2 x 2."""
        weights_x = _COARSE_EDGE * _sum_pairs(self.weights_x[:, 1::2], axis=0)
        weights_y = _COARSE_EDGE * _sum_pairs(self.weights_y[1::2], axis=1)
        return _Level.make(weights_x, weights_y, _block_sums(self.mass))


def _solve(level: _Level, force: Array, tolerance: float) -> Array:
    """Preconditioned conjugate gradients for A y = force, from 0."""
    y = np.zeros_like(force)
    aim = tolerance * float(np.abs(force).max(initial=0))
    if aim == 0:
        return y
    cycle = _Multigrid(level)
    residual = force.copy()
    direction = np.zeros_like(force)
    before = 1.0
    for _ in range(_MAX_ITERATIONS):
        size = float(np.abs(residual).max())
        if size <= aim:
            break
        # float32 is enough for a preconditioner; residuals are brought to its range.
        step = cycle((residual / size).astype(np.float32)).astype(np.float64) * size
        now = float(np.vdot(residual, step))
        direction *= now / before
        direction += step
        bent = level.apply(direction)
        length = now / float(np.vdot(direction, bent))
        y += length * direction
        residual -= length * bent
        before = now
    return y


class _Multigrid:
    """An approximate inverse of a level's operator: the same symmetric linear map for every force."""

    def __init__(self, level: _Level) -> None:
        self._levels = [level.astype(np.float32)]
        while self._levels[-1].mass.size > _COARSEST_CELLS:
            self._levels.append(self._levels[-1].coarser())
        self._coarsest = self._levels.pop().inverted()

    def __call__(self, force: Array, depth: int = 0) -> Array:
        if depth == len(self._levels):
            return (self._coarsest @ force.ravel()).reshape(force.shape)
        level = self._levels[depth]
        y = _DAMPING * level.inverse * force
        self._smooth(level, y, force, _SWEEPS - 1)
        coarse = self(_block_sums(force - level.apply(y)), depth + 1)
        y += coarse.repeat(2, axis=0).repeat(2, axis=1)[: y.shape[0], : y.shape[1]]
        self._smooth(level, y, force, _SWEEPS)
        return y

    @staticmethod
    def _smooth(level: _Level, y: Array, force: Array, sweeps: int) -> None:
        for _ in range(sweeps):
            y += _DAMPING * level.inverse * (force - level.apply(y))


def _block_sums(v: Array) -> Array:
    return _sum_pairs(_sum_pairs(v, axis=0), axis=1)


def _sum_pairs(v: Array, axis: int) -> Array:
    """Sums of elements 2 i and 2 i + 1 along an axis; a last element without partner stands alone."""
    even, odd = (v[::2], v[1::2]) if axis == 0 else (v[:, ::2], v[:, 1::2])
    result = even.copy()
    if axis == 0:
        result[: odd.shape[0]] += odd
    else:
        result[:, : odd.shape[1]] += odd
    return result
