"""The exhaustive search: every point as anchor, every zero of a residual as scale. The oracle of the fast search."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moge_core.alignment.lines import best_elements_of_chunk, moving_part
from moge_core.alignment.sorting import rows_per_chunk


@torch.no_grad()
def search_anchors_exhaustively(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None, num_fixed: int
) -> tuple[Tensor, Tensor]:
    """Best anchor (B,) in 0..N-1 and, with it, best element (B,) in 0..N*D-1 of points (B, N, D).

    Every point of weight > 0 is tried. A problem without such points keeps anchor 0 and element 0, both masked to 0.
    """
    source, target, weight = source.double(), target.double(), weight.double()
    _, size, dims = source.shape
    best = torch.full(weight.shape, math.inf, dtype=torch.float64, device=weight.device)
    element = torch.zeros(weight.shape, dtype=torch.long, device=weight.device)
    problems, anchors = (weight > 0).nonzero(as_tuple=True)
    rows = rows_per_chunk(weight.device, 3 * size * dims)
    for problem, anchor in zip(torch.split(problems, rows), torch.split(anchors, rows), strict=True):
        x, y = (v[problem] - moving_part(v[problem, anchor], num_fixed)[:, None] for v in (source, target))
        # Masked points were zero and became minus the anchor: their weight keeps them out.
        w = weight[problem, :, None].expand(x.shape)
        index, objective = best_elements_of_chunk(x.flatten(1), y.flatten(1), w.flatten(1), trunc, torch.float64)
        best[problem, anchor] = objective
        element[problem, anchor] = index
    anchor = best.argmin(-1)
    return anchor, element.gather(-1, anchor[:, None])[:, 0]
