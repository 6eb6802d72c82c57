"""Losses and alignments on a real device: no waiting, the CPU's values, and a search that finds the optimum."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from objective_batches import LABELS, batch_of

from benchmarks.alignment_problems import ADVERSARIAL_KINDS, SCENE_KINDS, Problems, make_problems
from moge_core.training import load_train_config
from moge_core.training.objective import Objective, compute_objective

pytestmark = pytest.mark.cuda
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "train"
SIDES = {"xyz": (5, 9, 13), "z": (6, 16)}


@pytest.mark.parametrize("version", LABELS)
def test_losses_do_not_wait_for_the_device(version: str, device: torch.device, only_cuda: None) -> None:
    output, batch = batch_of(LABELS[version], str(device))
    loss_sets = load_train_config(CONFIGS / f"{version}.json").loss
    compute_objective(output, batch, loss_sets, 0).total.backward()  # libraries are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        compute_objective(output, batch, loss_sets, 0).total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("version", LABELS)
def test_losses_and_gradients_are_those_of_the_cpu(version: str, device: torch.device) -> None:
    (ours, gradient), (theirs, reference) = (_objective(version, name) for name in (str(device), "cpu"))
    torch.testing.assert_close(ours.total.cpu(), theirs.total, rtol=1e-3, atol=1e-5)
    assert torch.equal(ours.num_valid.cpu(), theirs.num_valid)
    difference = (gradient.cpu() - reference).norm() / reference.norm()
    assert float(difference) < 0.01


def _objective(version: str, device: str) -> tuple[Objective, torch.Tensor]:
    output, batch = batch_of(LABELS[version], device)
    objective = compute_objective(output, batch, load_train_config(CONFIGS / f"{version}.json").loss, 0)
    objective.total.backward()
    gradient = output["points"].grad
    assert gradient is not None
    return objective, gradient


@pytest.mark.parametrize("shift", SIDES)
def test_the_search_finds_the_optimum_of_trying_every_anchor(shift: str, device: torch.device) -> None:
    found = {
        kind: torch.cat([_excess(kind, shift, side, device) for side in SIDES[shift]])
        for kind in (*SCENE_KINDS, *ADVERSARIAL_KINDS)
    }
    scenes = torch.cat([found[kind] for kind in SCENE_KINDS])
    assert float((scenes > 1e-3).double().mean()) <= 0.005
    # A device, unlike a CPU, does not solve anew what is left with most of its terms truncated: docs/benchmarks.md.
    assert float((torch.cat(list(found.values())) > 1e-3).double().mean()) <= 0.02


def _excess(kind: str, shift: str, side: int, device: torch.device) -> torch.Tensor:
    """By how much the search is above the exhaustive optimum, relatively; both are rounded to float32."""
    problems = make_problems(kind, shift, 6, side, zlib.crc32(f"{kind}{side}".encode()))
    there = _moved(problems, device)
    best, found = (there.solve(shift, method).cpu() for method in ("exhaustive", "search"))
    return (found - best - 1e-5).clamp(min=0) / best.clamp(min=1e-5)


def _moved(problems: Problems, device: torch.device) -> Problems:
    source, target, weight = (value.to(device) for value in (problems.source, problems.target, problems.weight))
    return replace(problems, source=source, target=target, weight=weight)
