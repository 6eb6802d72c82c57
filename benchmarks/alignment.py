"""How near the fast search comes to the exhaustive one: `python -m benchmarks.alignment`, two minutes.

Prints, for each kind of problem, how many are more than 0.1 % above the exhaustive optimum and the worst of them.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.alignment_problems import ADVERSARIAL_KINDS, SCENE_KINDS, make_problems

# (shift, side, problems of each kind)
SIZES = (
    ("xyz", 4, 100),
    ("xyz", 6, 100),
    ("xyz", 9, 80),
    ("xyz", 12, 60),
    ("xyz", 24, 10),
    ("z", 8, 60),
    ("z", 12, 40),
    ("z", 32, 8),
    ("z", 48, 2),
)
# A solution is rounded to float32, which shows where the optimum is next to nothing.
ROUNDING = 1e-5


def excess(kind: str, shift: str, side: int, count: int) -> Tensor:
    """Relative excess (B,) of the search over the exhaustive optimum."""
    problems = make_problems(kind, shift, count, side, seed=zlib.crc32(f"{kind} {shift} {side}".encode()))
    best, found = (problems.solve(shift, method) for method in ("exhaustive", "search"))
    return (found - best - ROUNDING).clamp(min=0) / best.clamp(min=ROUNDING)


def main() -> None:
    """Print one table."""
    print("| problems | number | above 0.1 % | worst |\n|---|---|---|---|")
    everything = []
    for family, kinds in (("scene-like", SCENE_KINDS), ("adversarial", ADVERSARIAL_KINDS)):
        family_results = []
        for kind in tqdm(kinds, desc=family, leave=False):
            results = torch.cat([excess(kind, *size) for size in SIZES])
            print(_row(kind, results), flush=True)
            family_results.append(results)
        print(_row(f"**{family}**", torch.cat(family_results)), flush=True)
        everything += family_results
    print(_row("**all**", torch.cat(everything)))


def _row(name: str, results: Tensor) -> str:
    above = int((results > 1e-3).sum())
    return f"| {name} | {len(results)} | {above} ({above / len(results):.2%}) | {float(results.max()):.2%} |"


if __name__ == "__main__":
    main()
