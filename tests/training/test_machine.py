"""The device of a training decides its precision, and what is told when its memory does not suffice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from moge_core.errors import ConfigError
from moge_core.training import ExitCode, main
from moge_core.training.devices import build_accelerator
from moge_core.training.flags import TrainFlags
from moge_core.training.memory import Work, out_of_memory

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose GPU has bf16, as far as torch is asked before anything runs there."""
    for name in ("is_available", "is_bf16_supported"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: True)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def launched_for_the_cpu(gpu_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --config_file configs/accelerate/cpu.yaml` gives its process on that machine."""
    argv = ["--config_file", str(REPOSITORY / "configs/accelerate/cpu.yaml"), "-m", "moge_core.training"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(argv))
    for name, value in prepare_simple_launcher_cmd_env(args)[1].items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)


def flags(**given: Any) -> TrainFlags:
    return TrainFlags(config=Path("x.json"), **given)


def test_a_launch_for_the_cpu_trains_in_float32_on_the_cpu_of_a_machine_with_a_gpu(launched_for_the_cpu: None) -> None:
    accelerator = build_accelerator(flags())
    assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", "no")


def test_bf16_on_the_cpu_of_a_machine_with_a_gpu_stays_possible(launched_for_the_cpu: None) -> None:
    accelerator = build_accelerator(flags(mixed_precision="bf16"))
    assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", "bf16")


def test_fp16_is_refused_by_the_device_that_trains_not_by_what_is_plugged_in(launched_for_the_cpu: None) -> None:
    with pytest.raises(ConfigError, match="told to use the CPU"):
        build_accelerator(flags(mixed_precision="fp16"))


def test_a_gpu_trains_in_bf16_by_default(gpu_machine: None) -> None:
    accelerator = build_accelerator(flags())
    assert (accelerator.device.type, accelerator.mixed_precision) == ("cuda", "bf16")


def test_apples_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert build_accelerator(flags()).device.type == "cpu"
    with pytest.raises(ConfigError, match="no GPU that this torch can use"):
        build_accelerator(flags(mixed_precision="fp16"))


# --- memory ---

TORCHS_WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB. If reserved but "
    "unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
VIEW = Work("training", 1800, (8, 3, 392, 518))


def told(work: Work | None, *, sharded: bool = False, **given: Any) -> str:
    return str(out_of_memory(torch.OutOfMemoryError(TORCHS_WORDS), work, flags(**given), sharded=sharded))


def test_a_lack_of_memory_names_the_view_the_tokens_and_torchs_figures() -> None:
    text = told(VIEW)
    assert text.startswith("training on 8 x 518 x 392 (views x width x height) with 1800 tokens: must fit")
    assert "Tried to allocate 2.00 GiB" in text and "expandable_segments" not in text


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ({"enable_gradient_checkpointing": False}, "recompute activations: --enable_gradient_checkpointing True."),
        ({}, "make the same batch of smaller parts: --batch_size_forward 4 --gradient_accumulation_steps 2."),
        (
            {"batch_size_forward": 9, "gradient_accumulation_steps": 2},
            "make the same batch of smaller parts: --batch_size_forward 3 --gradient_accumulation_steps 6.",
        ),
        ({"batch_size_forward": 1}, "lower the upper end of `num_tokens_range` (model) and of `area_range`"),
    ],
)
def test_the_cheapest_way_out_comes_first(given: dict[str, Any], first: str) -> None:
    assert f"First {first}" in told(VIEW, **given)
    assert told(VIEW, **given).endswith("several GPUs: configs/accelerate/fsdp.yaml.")
    assert "fsdp.yaml" not in told(VIEW, sharded=True, **given)


def test_smaller_batches_are_no_way_out_of_an_evaluation() -> None:
    text = told(Work("evaluation", 1850))
    assert text.startswith("evaluation with 1850 tokens:") and "--batch_size_forward" not in text


@pytest.mark.parametrize(
    ("failing", "phase"),
    [
        ("moge_core.training.trainer.compute_objective", "training on 2 x "),
        ("moge_core.training.scoring.score_instances", "evaluation with 16 tokens"),
    ],
)
def test_a_training_that_does_not_fit_says_so_and_can_go_on(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, phase: str
) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(TORCHS_WORDS)

    monkeypatch.setattr(failing, run_out)
    argv = ["--config", str(tiny_config()), "--workspace", str(tmp_path / "w"), "--num_workers", "0"]
    argv += ["--enable_mlflow", "False", "--num_iterations", "1", "--eval_every", "1", "--eval_fraction", "0.5"]
    assert main(argv) == ExitCode.FAILED
    status = json.loads((tmp_path / "w" / "status.json").read_text())
    assert status["reason"].startswith(f"TrainingError: {phase}") and status["resumable"]


def test_a_dry_run_that_does_not_fit_says_so(
    tiny_config: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(TORCHS_WORDS)

    monkeypatch.setattr("moge_core.training.trainer.compute_objective", run_out)
    argv = ["--config", str(tiny_config()), "--workspace", str(tmp_path / "w"), "--num_workers", "0", "--dry_run"]
    assert main(argv) == ExitCode.REFUSED
    assert "error: training on 2 x " in capsys.readouterr().err
