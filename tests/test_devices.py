"""Every command that runs a model takes a device by its name, says which one it is, and keeps everything on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from played_accelerator import Played, played_accelerator
from tiny_models import CONFIGS, tiny_model

from moge_core.cli import cli
from moge_core.configuration import load_json
from moge_core.datasets import index_dataset, read_index, render_sample_scenes
from moge_core.devices import choose_device, describe_device
from moge_core.errors import InputError
from moge_core.inference.panorama import panorama_views
from moge_core.io import read_depth, write_image
from moge_core.loading import TrainLoader
from moge_core.models import save_model
from moge_core.training import load_train_config
from moge_core.training.overfit import preflight
from moge_core.training.pictures import PredictionPictures

REPOSITORY = Path(__file__).resolve().parents[1]
TOKENS = ("--num-tokens", "12")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `scenes`, a checkpoint of each version and a training configuration."""
    folder = tmp_path_factory.mktemp("devices")
    render_sample_scenes(folder / "scenes", 2, 3, size=(48, 36))
    index_dataset(folder / "scenes")
    for version in CONFIGS:
        save_model(folder / f"{version}.pt", tiny_model(version))
    config = load_json(REPOSITORY / "configs" / "train" / "sample.json")
    config["data"]["datasets"] = [{"name": "scenes", "path": str(folder / "scenes"), "label_type": "synthetic"}]
    config["data"]["image_sizes"] = [[56, 42]]
    config["model"] = CONFIGS["v1"]
    config["run"] = {"init": "random"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def on_played(*arguments: object) -> tuple[Any, Played]:
    """A command on the accelerator that the CPU plays."""
    with played_accelerator() as played:
        return run(*arguments, "--device", played.device), played


# --- choosing ---


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    for name in ("cuda:77", "mps", "gpu"):
        with pytest.raises(InputError) as error:
            choose_device(name)
        assert error.value.found is not None and name in error.value.found and len(error.value.found) < 250
        assert error.value.fix is not None and "cpu" in error.value.fix


def test_the_default_is_the_current_gpu_and_without_one_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr("moge_core.devices.torch.zeros", lambda *_, device: device)
    assert describe_device(choose_device()) == "cuda:1 (NVIDIA H200)"
    assert choose_device("cuda:0") == torch.device("cuda:0")
    assert choose_device("cpu") == torch.device("cpu")


COMMANDS: Mapping[str, tuple[str, ...]] = {
    "infer": ("-i", "photo.png", "-o", "out", "--model", "model.pt"),
    "evaluate": ("model.pt", "--data", "data"),
    "complete": ("data", "--model", "model.pt"),
    "preflight": (str(REPOSITORY / "configs" / "train" / "sample.json"),),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_a_device_that_is_not_there_before_it_reads_a_model(command: str) -> None:
    result = run(command, *COMMANDS[command], "--device", "cuda:77", code=2)
    assert result.stderr.startswith("Error: --device: must be a device of this machine; found cuda:77")
    assert len(result.output.strip().splitlines()) == 1


# --- whole commands on an accelerator ---


def test_an_evaluation_is_made_on_the_device_and_scores_are_those_of_a_cpu(root: Path) -> None:
    command = ("evaluate", root / "v2.pt", "--data", root / "scenes", *TOKENS, "--batch-size", 2)
    here = run(*command, "--device", "cpu")
    there, played = on_played(*command)
    assert here.stderr == "device cpu, precision fp32\n" and there.stderr == "device meta, precision fp32\n"
    assert there.stdout == here.stdout
    assert played.started["convolution"] > 10


def test_a_completion_is_predicted_on_the_device(root: Path, tmp_path: Path) -> None:
    depths = []
    for number, place in enumerate((run, on_played)):
        shutil.copytree(root / "scenes", tmp_path / str(number))
        (tmp_path / str(number) / ".index.txt").write_text(read_index(root / "scenes")[0] + "\n")
        place("complete", tmp_path / str(number), "--model", root / "v1.pt", *TOKENS)
        first = read_index(tmp_path / str(number))[0]
        depths.append(read_depth(tmp_path / str(number) / first / "depth_completed.png"))
    np.testing.assert_allclose(*depths, rtol=1e-3)  # 16 bits in a file


def test_what_was_completed_in_another_precision_is_completed_again(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "scenes", tmp_path / "scenes")
    command = ("complete", tmp_path / "scenes", "--model", root / "v1.pt", *TOKENS)
    assert "2 completed, 0 up to date" in run(*command).stdout
    for path in (tmp_path / "scenes").rglob("depth_completed.json"):  # as it was before a precision could be chosen
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "precision"}))
    assert "0 completed, 2 up to date" in run(*command).stdout
    result = run(*command, "--precision", "bf16")
    assert "2 completed, 0 up to date" in result.stdout and "precision bf16" in result.stderr


@pytest.mark.parametrize("panorama", [False, True])
def test_photos_and_panoramas_are_predicted_on_the_device(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, panorama: bool
) -> None:
    views = panorama_views()
    monkeypatch.setattr("moge_core.inference.panorama.panorama_views", lambda: views[:1])  # twelve take as many seconds
    write_image(tmp_path / "photo.png", np.random.default_rng(0).integers(0, 255, (24, 48, 3), np.uint8))
    flags = ["--panorama"] if panorama else []
    maps = []
    for place in (run, on_played):
        out = tmp_path / place.__name__
        place("infer", "-i", tmp_path / "photo.png", "-o", out, "--model", root / "v2.pt", *TOKENS, "--maps", *flags)
        with np.load(out / "photo" / "maps.npz") as arrays:
            maps.append(arrays["points"])
    np.testing.assert_allclose(*maps, rtol=1e-4)


def test_a_preflight_trains_on_the_device(root: Path) -> None:
    config = load_train_config(root / "config.json")
    with played_accelerator() as played:
        there = preflight(config, num_instances=1, max_steps=1, device=played.device)
    here = preflight(config, num_instances=1, max_steps=1, device="cpu")
    assert there.losses == pytest.approx(here.losses, rel=1e-5)
    assert played.started["convolution_backward"] > 10


def test_pictures_are_float32_and_drawn_on_the_device(root: Path, tmp_path: Path) -> None:
    with TrainLoader(load_train_config(root / "config.json").data, 2, 0, num_workers=0) as loader:
        batch = next(iter(loader))

    def draw(name: str, device: str) -> Any:
        pictures = PredictionPictures(tmp_path / name)
        pictures.take_truth([batch])
        folder = pictures.draw(tiny_model("v1").to(device), 0, num_tokens=12)
        with np.load(folder / "0001" / "points.npz") as arrays:
            return arrays["points"]

    plain = draw("plain", "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(draw("autocast", "cpu"), plain)
    with played_accelerator() as played:
        np.testing.assert_allclose(draw("played", str(played.device)), plain, rtol=1e-4)
