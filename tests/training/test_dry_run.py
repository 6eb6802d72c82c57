"""`--dry_run`: it measures what a training will do, on any device and in any number of processes, and adds it up."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launches import run_two
from played_training import played_training

from moge_core.loading import DataConfig
from moge_core.loading.profiling import LoaderRate
from moge_core.loading.sampling import Sampler
from moge_core.training import ExitCode, main
from moge_core.training.estimate import Interruption, StepSeconds, estimate, num_times
from moge_core.training.trainer import Trainer

Config = Callable[..., Path]
SIZES = {"image_sizes": [[56, 42], [70, 56], [42, 84], [84, 70]]}


def arguments(config: Path, workspace: Path, *flags: str) -> list[str]:
    return ["--config", str(config), "--workspace", str(workspace), "--enable_mlflow", "False", "--dry_run", *flags]


@pytest.fixture
def cheap(tiny_config: Config) -> Path:
    """The tiny configuration with the cheapest of losses, images of several sizes and a phase of low resolution."""
    path = tiny_config(data=SIZES, low_resolution_training_steps=99)
    values = json.loads(path.read_text())
    values["loss"] = {"synthetic": {"mask": {"function": "mask_l2_loss"}}}
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, tuple[int, ...], Any]]]:
    """Tokens, shape and device of the batches of every step that is made."""
    seen: list[tuple[int, tuple[int, ...], Any]] = []
    train_step = Trainer.train_step

    def noted(trainer: Trainer, step: int, batches: Any, *more: int) -> bool:
        def noting() -> Iterator[Any]:
            for batch in batches:
                seen.append((trainer.report.work, tuple(batch["image"].shape), batch["image"].device))
                yield batch

        result = train_step(trainer, step, noting(), *more)
        work = trainer.report.work
        assert work is not None
        seen[-1] = (work.num_tokens, *seen[-1][1:])
        return result

    monkeypatch.setattr(Trainer, "train_step", noted)
    yield seen


@pytest.mark.slow
def test_it_measures_the_greatest_step_and_those_that_the_phases_are_made_of(
    cheap: Path, tmp_path: Path, steps: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num_iterations", "5000", "--save_every", "1000", "--eval_every", "1000", "--eval_fraction", "0.3"]
    assert main(arguments(cheap, tmp_path / "w", *flags)) == 0
    mean, largest = (2, 3, 56, 70), (2, 3, 70, 84)
    assert [step[:2] for step in steps] == [(20, largest), (12, mean), (16, mean), (20, mean), (20, largest)]
    plan = capsys.readouterr().out
    for part in (
        r"on images of 70x56: [\d.]+ s with 12, [\d.]+ s with 16, [\d.]+ s with 20 tokens",
        r"on the largest, 84x70: [\d.]+ s with 20 tokens",
        r"[\d.]+ images/s by the training itself, while nothing trains",
        r"the steps take [\d.]+ \([\d.]+ at low resolution\)",
        r"\d+ workers? with \d+ cores? for each process would feed them",
        r"100 steps at low resolution in .*, 4,900 steps after in .*, 6 checkpoints in .*, 5 evaluations in",
        r"held out       scenes: [1-9] scored",
    ):
        assert re.search(part, plan), part


@pytest.mark.slow
def test_it_runs_on_an_accelerator(cheap: Path, tmp_path: Path, steps: list[Any]) -> None:
    with played_training() as played:
        assert main(arguments(cheap, tmp_path / "w", "--num_iterations", "9")) == 0
    assert len(steps) == 5 and {device for _, _, device in steps} == {played.device}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_make_one_plan(cheap: Path, tmp_path: Path) -> None:
    flags = arguments(cheap, tmp_path / "w", "--num_iterations", "100000000", "--save_every", "1", "--num_workers", "1")
    first, second = run_two("-m", "moge_core.training", *flags)
    # Both know that the disk is too small, though one of them wrote the checkpoint and tells the plan.
    assert first[0] == second[0] == ExitCode.STORAGE, first[2] + second[2]
    assert "batch          4 = 2 x 1 micro-batches x 2 processes" in first[1] and second[1] == ""
    assert "images/s by 1 worker of each process" in first[1]
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.json"}


# --- what is added up ---


def test_steps_count_by_the_phase_that_they_lie_in() -> None:
    fast = LoaderRate(images_per_second=1e9, cpu_s=0.1, waiting_s=0.02, num_workers=4)
    seconds = StepSeconds(least=1.0, mean=2.0, greatest=4.5)
    assert seconds.average == pytest.approx(13.5 / 6)
    interruptions = [Interruption("saves", 40, 3.0, at_step_0=True), Interruption("scores", 40, 5.0, at_step_0=False)]

    def told(steps: range, low: int) -> list[tuple[str, int, float]]:
        parts = estimate(steps, low, seconds, fast, 8, interruptions)
        return [(part.name, part.count, part.seconds) for part in parts]

    # Steps 0 to 10 have the least tokens; saved at 0, 40, 80 and 99.
    assert told(range(100), 10) == [
        ("steps at low resolution", 11, 11.0),
        ("steps after", 89, pytest.approx(89 * 2.25)),
        ("saves", 4, 12.0),
        ("scores", 3, 15.0),
    ]
    # Resumed within the phase, after it, and at the end of all.
    assert [part[1] for part in told(range(6, 100), 10)] == [5, 89, 3, 3]
    assert told(range(50, 99), 10)[0] == ("steps", 49, pytest.approx(49 * 2.25))
    assert told(range(100, 100), 10) == []


def test_a_cost_that_is_a_cubic_of_the_tokens_is_averaged_exactly() -> None:
    def cost(tokens: float) -> float:
        return 1 + tokens / 1000 + (tokens / 2000) ** 2 + (tokens / 4000) ** 3

    seconds = StepSeconds(*(cost(tokens) for tokens in (1200, 2400, 3600)))
    exact = sum(cost(tokens) for tokens in range(1200, 3601)) / 2401
    assert seconds.average == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(
    ("every", "first", "stop", "at_step_0"), [(3, 0, 10, True), (3, 0, 10, False), (4, 5, 9, True), (1, 0, 1, False)]
)
def test_what_is_due_is_counted_as_the_trainer_does_it(every: int, first: int, stop: int, at_step_0: bool) -> None:
    due = [s for s in range(first, stop) if s == stop - 1 or (s % every == 0 and (s > 0 or at_step_0))]
    assert num_times(range(first, stop), every, at_step_0=at_step_0) == len(due)


def test_a_loader_that_is_too_slow_sets_the_pace() -> None:
    beside = LoaderRate(images_per_second=10, cpu_s=0.3, waiting_s=0.1, num_workers=4)
    within = LoaderRate(images_per_second=10, cpu_s=0.1, waiting_s=0.0, num_workers=0)
    assert [beside.seconds_with_loading(step_s, 20) for step_s in (1.0, 3.0)] == [2.0, 3.0]
    assert within.seconds_with_loading(1.0, 20) == 3.0
    assert beside.needed_for(20) == (8, 6)
    assert beside.needed_for(0.01) == (1, 1)


# --- the sizes that it measures at ---


@pytest.mark.parametrize(
    "section",
    [
        {"area_range": [250_000, 1_000_000], "aspect_ratio_range": [0.5, 2.0]},
        {"area_range": [2000, 3000], "aspect_ratio_range": [1.7, 1.9]},
        SIZES,
    ],
)
def test_no_step_has_larger_images_and_their_mean_is_met(section: dict[str, Any]) -> None:
    datasets = [{"name": "a", "path": "a", "label_type": "x"}]
    config = DataConfig.model_validate(
        {**section, "datasets": datasets, "fov_range_absolute": [1, 179], "fov_range_relative": [0.1, 1.0]}
    )
    sampler = Sampler(config, [["one"]], 0)
    mean, largest = sampler.sizes
    areas = [math.prod(sampler.image_size(step, {0})) for step in range(2000)]
    assert math.prod(largest) == pytest.approx(max(areas), rel=0.01)  # sides are whole pixels
    # Of a list of sizes it is one of them.
    assert math.prod(mean) == pytest.approx(sum(areas) / len(areas), rel=0.25 if "image_sizes" in section else 0.03)
