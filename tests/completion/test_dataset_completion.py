"""A dataset completed by a model: what is written, what is skipped, what a failure does, and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from damaged_depth import DAMAGES, fill_nearest, predicted, relative_error

from moge_core.cli import cli
from moge_core.completion import complete_dataset
from moge_core.datasets import index_dataset, read_index, render_sample_scenes
from moge_core.datasets.inspection import load_instance
from moge_core.errors import InputError
from moge_core.io import read_depth, read_image, write_depth
from moge_core.models import build_model, load_model, save_model

CONFIG: dict[str, Any] = {
    "data": {
        "image_sizes": [[56, 42], [42, 56]],
        "fov_range_absolute": [30, 120],
        "fov_range_relative": [0.7, 1.0],
        "image_augmentation": [],
        "datasets": [{"name": "scenes", "path": "scenes", "label_type": "synthetic", "depth_unit": 1.0}],
    },
    "model_version": "v1",
    "model": {
        "encoder": "dinov2_vitt14",
        "remap_output": "exp",
        "intermediate_layers": 2,
        "dim_proj": 32,
        "dim_upsample": [16, 8],
        "num_tokens_range": [12, 12],
        "last_conv_channels": 8,
    },
    "optimizer": {"type": "AdamW", "params": [{"params": {"include": ["*"]}, "lr": 1e-3}]},
    "lr_scheduler": {"type": "LambdaLR", "params": {"lr_lambda": "min(1.0, (epoch + 1) / 10)"}},
    "loss": {
        "synthetic": {
            "global": {"function": "affine_invariant_global_loss", "params": {"align_resolution": 8}},
            "mask": {"function": "mask_l2_loss"},
        }
    },
    "run": {"batch_size_forward": 8, "init": "random", "save_every": 100, "num_iterations": 100},
}


class Oracle:
    """Knows each scene by its image, up to scale and shift, as a good model would."""

    device = torch.device("cpu")

    def __init__(self, dataset: Path, scale: float = 1.0) -> None:
        self.calls, self.weight, self.answers = 0, torch.tensor([scale]), {}
        for name in read_index(dataset):
            scene = load_instance(dataset / name)
            self.answers[scene.image.tobytes()] = predicted(scene.depth, np.random.default_rng(0))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}

    def infer(self, image: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        self.calls += 1
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        depth = torch.from_numpy(self.answers[pixels.tobytes()])
        return {"depth": depth, "mask": torch.ones(depth.shape, dtype=torch.bool)}


@pytest.fixture
def damaged(heldout: Path, tmp_path: Path) -> Path:
    """A copy of the scenes with a second depth map, `raw.png`, that has holes, displaced blocks and salt."""
    folder = tmp_path / "damaged"
    shutil.copytree(heldout, folder)
    damage(folder)
    return folder


def damage(folder: Path) -> None:
    for number, name in enumerate(read_index(folder)):
        depth = read_depth(folder / name / "depth.png")
        write_depth(
            folder / name / "raw.png", DAMAGES["everything"](depth, np.random.default_rng(number)), max_range=1e9
        )


def errors(folder: Path) -> tuple[float, float]:
    before, after = [], []
    for name in read_index(folder):
        truth = read_depth(folder / name / "depth.png")
        before.append(relative_error(fill_nearest(read_depth(folder / name / "raw.png")), truth))
        after.append(relative_error(read_depth(folder / name / "depth_completed.png"), truth))
    return float(np.mean(before)), float(np.mean(after))


def test_every_instance_gets_a_completed_map_beside_its_depth_and_the_sheet_shows_some(damaged: Path) -> None:
    originals = {name: (damaged / name / "raw.png").read_bytes() for name in read_index(damaged)}
    heard: list[tuple[int, int]] = []
    sheet = damaged.parent / "sheet.png"
    report = complete_dataset(
        damaged,
        Oracle(damaged),  # type: ignore[arg-type]
        depth_name="raw.png",
        sheet=sheet,
        num_samples=2,
        progress=lambda *at: heard.append(at),
    )
    assert report.written == read_index(damaged)
    assert (report.failures, report.skipped) == ([], [])
    assert report.num_dropped > 0
    assert report.num_filled > 0
    assert heard[-1] == (8, 8)
    before, after = errors(damaged)
    assert after <= 0.7 * before
    assert {name: (damaged / name / "raw.png").read_bytes() for name in originals} == originals
    assert report.sheet_path == sheet
    height, width = read_image(sheet).shape[:2]
    assert width > height  # two rows of five pictures


def test_what_is_up_to_date_is_skipped_and_what_changed_is_made_again(damaged: Path) -> None:
    model = Oracle(damaged)
    complete_dataset(damaged, model, depth_name="raw.png")  # type: ignore[arg-type]
    model.calls = 0
    again = complete_dataset(damaged, model, depth_name="raw.png")  # type: ignore[arg-type]
    assert (model.calls, again.written, again.skipped) == (0, [], read_index(damaged))
    first, second, third = read_index(damaged)[:3]
    shutil.copy(damaged / first / "depth.png", damaged / first / "raw.png")
    (damaged / second / "depth_completed.json").unlink()  # as a run that was killed between the two files leaves it
    (damaged / third / "depth_completed.png").write_bytes(b"half")
    assert complete_dataset(damaged, model, depth_name="raw.png").written == [first, second, third]  # type: ignore[arg-type]
    other = complete_dataset(damaged, Oracle(damaged, scale=2), depth_name="raw.png")  # type: ignore[arg-type]
    assert other.written == read_index(damaged)
    options = complete_dataset(damaged, Oracle(damaged, scale=2), depth_name="raw.png", tolerance=0.2)  # type: ignore[arg-type]
    assert options.written == read_index(damaged)


def test_a_bad_instance_is_told_with_its_reason_and_the_others_are_done(damaged: Path) -> None:
    model = Oracle(damaged)
    broken, missing, unknown = read_index(damaged)[:3]
    (damaged / broken / "raw.png").write_bytes(b"no depth")
    (damaged / missing / "raw.png").unlink()
    shape = read_depth(damaged / unknown / "depth.png").shape
    write_depth(damaged / unknown / "raw.png", np.full(shape, np.nan, np.float32))
    report = complete_dataset(damaged, model, depth_name="raw.png")  # type: ignore[arg-type]
    assert [name for name, _ in report.failures] == [broken, missing, unknown]
    assert "raw.png" in report.failures[1][1]
    assert "finite depth" in report.failures[2][1]
    assert report.written == read_index(damaged)[3:]
    assert not (damaged / unknown / "depth_completed.png").exists()


@pytest.mark.parametrize("name", ["raw.png", "../out.png", "mask.png", "out.jpg", "", "image.jpg"])
def test_an_output_name_that_would_overwrite_data_or_leave_the_instance_is_refused(damaged: Path, name: str) -> None:
    with pytest.raises(InputError, match="output_name"):
        complete_dataset(damaged, Oracle(damaged), depth_name="raw.png", output_name=name)  # type: ignore[arg-type]


def test_the_command_completes_a_dataset_with_a_checkpoint_and_exits_with_1_on_failures(damaged: Path) -> None:
    torch.manual_seed(0)
    checkpoint, sheet = damaged.parent / "model.pt", damaged.parent / "sheet.png"
    save_model(checkpoint, build_model("v1", **CONFIG["model"]))
    arguments = ["complete", str(damaged), "--model", str(checkpoint), "--depth", "raw.png", "-o", "done.png"]
    result = CliRunner().invoke(cli, [*arguments, "--sheet", str(sheet), "--samples", "2", "--num_tokens", "12"])
    assert result.exit_code == 0, result.output
    assert "8 completed, 0 up to date" in result.output
    assert sheet.is_file()
    for name in read_index(damaged):
        assert not np.isnan(read_depth(damaged / name / "done.png")).any()
    (damaged / read_index(damaged)[0] / "raw.png").write_bytes(b"no depth")
    result = CliRunner().invoke(cli, [*arguments, "--num-tokens", "12"])
    assert result.exit_code == 1
    assert "7 up to date" in result.output
    assert "failed" in result.output


@pytest.mark.slow
def test_a_model_trained_briefly_on_sample_scenes_lowers_the_error_of_held_out_scenes_by_30_percent(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moge_core.training import main as train

    render_sample_scenes(tmp_path / "scenes", 64, 5, size=(96, 72))
    index_dataset(tmp_path / "scenes")
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    config, workspace = tmp_path / "config.json", tmp_path / "workspace"
    config.write_text(json.dumps(CONFIG))
    flags = ["--config", str(config), "--workspace", str(workspace), "--num_workers", "0", "--enable_mlflow", "False"]
    assert train(flags) == 0
    checkpoint = max((workspace / "checkpoint").glob("[0-9]*[0-9].pt"))
    complete_dataset(damaged, load_model(checkpoint), depth_name="raw.png")
    before, after = errors(damaged)
    assert after <= 0.7 * before
