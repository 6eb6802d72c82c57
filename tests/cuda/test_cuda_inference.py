"""Predictions, panoramas and completed depth of a real device are those of the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from exact_plane import exact_plane_model
from tiny_models import CONFIGS as MODELS

from moge_core.cli import cli
from moge_core.datasets import read_index
from moge_core.inference import Prediction, predict, predict_panorama
from moge_core.inference.prediction import Precision
from moge_core.io import read_depth, read_image, write_depth, write_image
from moge_core.models import MoGeModel, build_model, save_model

pytestmark = pytest.mark.cuda
IMAGE = np.random.default_rng(0).integers(0, 255, (84, 112, 3), dtype=np.uint8)


def model_that_sees_a_plane(version: str) -> MoGeModel:
    """Its geometry is well defined, whatever its random weights; all of an image belongs to the scene."""
    model = exact_plane_model(version, MODELS[version])
    model.mask_threshold = -np.inf
    return model


def assert_alike(ours: Prediction, theirs: Prediction) -> None:
    assert (ours.mask == theirs.mask).mean() > 0.99
    both = ours.mask & theirs.mask
    assert both.mean() > 0.5
    np.testing.assert_allclose(ours.depth[both], theirs.depth[both], rtol=2e-3)
    np.testing.assert_allclose(ours.points[both], theirs.points[both], rtol=2e-3, atol=2e-3 * theirs.depth[both].max())
    np.testing.assert_allclose(ours.fov_deg, theirs.fov_deg, rtol=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("version", MODELS)
def test_a_prediction_is_that_of_the_cpu(version: str, precision: Precision, device: torch.device) -> None:
    model = model_that_sees_a_plane(version)
    (theirs,) = predict(model, [IMAGE], num_tokens=12)
    first, second = predict(model.to(device), [IMAGE, IMAGE], num_tokens=12, precision=precision)
    if version == "v2":  # metres are a matter of the network: compare the shapes
        theirs, first, second = (_in_shape(each) for each in (theirs, first, second))
    assert_alike(first, theirs)
    assert_alike(second, theirs)


def _in_shape(prediction: Prediction) -> Prediction:
    scale = np.median(prediction.depth[prediction.mask])
    return Prediction(**{**vars(prediction), "depth": prediction.depth / scale, "points": prediction.points / scale})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_panorama_is_that_of_the_cpu(precision: Precision, device: torch.device) -> None:
    model, image = model_that_sees_a_plane("v1"), np.repeat(IMAGE, 2, axis=1)[:, :168]
    theirs = predict_panorama(model, image, num_tokens=12)
    assert_alike(predict_panorama(model.to(device), image, num_tokens=12, precision=precision), theirs)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_model("v1", **MODELS["v1"])
    model.dinov2.begin_from_scratch()
    save_model(tmp_path / "model.pt", model)
    return tmp_path / "model.pt"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_command_writes_what_it_promises(
    precision: str, checkpoint: Path, tmp_path: Path, device: torch.device
) -> None:
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "one.jpg", IMAGE)
    flags = ["--model", str(checkpoint), "--device", str(device), "--precision", precision, "--maps", "--ply"]
    run("infer", "-i", str(tmp_path / "photos"), "-o", str(tmp_path / "out"), *flags)
    assert {"maps.npz", "pointcloud.ply", "fov.json"} <= {path.name for path in (tmp_path / "out").rglob("*.*")}


def test_completed_depth_is_that_of_the_cpu(
    checkpoint: Path, scenes: Path, tmp_path: Path, device: torch.device
) -> None:
    shutil.copytree(scenes / "scenes", tmp_path / "scenes")
    names = read_index(tmp_path / "scenes")
    for name in names:
        path = tmp_path / "scenes" / name / "depth.png"
        depth = read_depth(path)
        depth[20:40, 30:60] = np.nan
        write_depth(path, depth)
    completed = {where: _completed(tmp_path / "scenes", checkpoint, where) for where in (str(device), "cpu")}
    for ours, theirs in zip(completed[str(device)], completed["cpu"], strict=True):
        assert not np.isnan(ours).any()
        assert np.isclose(ours, theirs, rtol=0.01, equal_nan=True).mean() > 0.95


def _completed(dataset: Path, checkpoint: Path, device: str) -> list[npt.NDArray[Any]]:
    name = f"{device.replace(':', '')}.png"
    flags = ["--model", str(checkpoint), "--device", device, "--output", name, "--num-tokens", "12", "--overwrite"]
    run("complete", str(dataset), *flags)
    return [read_depth(dataset / instance / name) for instance in read_index(dataset)]


def test_a_picture_of_the_scenes_is_predicted_alike_twice(scenes: Path, device: torch.device) -> None:
    image = read_image(scenes / "scenes" / read_index(scenes / "scenes")[0] / "image.jpg")
    model = model_that_sees_a_plane("v1").to(device)
    (first,), (second,) = (predict(model, [image], num_tokens=12, precision="bf16") for _ in range(2))
    assert_alike(first, second)


def run(*arguments: str) -> None:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
