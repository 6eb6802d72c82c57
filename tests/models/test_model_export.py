"""ONNX graphs: equal to torch at sizes, grids and batches that they were not exported with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from model_golden import filled_model
from test_model_forward import TINY, tiny

from moge_core.cli import cli
from moge_core.errors import InputError, MissingDependencyError, ModelError
from moge_core.models import MoGeModel, export, save_model

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's own


def differences(model: MoGeModel, path: Path, size: tuple[int, int], num_tokens: int, batch: int) -> dict[str, float]:
    """Of each output, relative to its largest value."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    grid = np.zeros(export.export_grid(model.version, *size, num_tokens), np.uint8)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": image.numpy(), "grid": grid}), strict=True))
    with torch.no_grad():
        expected = model(image, num_tokens)
    assert found.keys() == expected.keys()
    return {name: float(np.abs(found[name] - e.numpy()).max() / e.abs().max()) for name, e in expected.items()}


@pytest.mark.parametrize("version", [pytest.param("v1", marks=pytest.mark.slow), "v2"])
def test_a_graph_equals_torch_at_any_size_grid_and_batch(version: str, tmp_path: Path) -> None:
    model = tiny(version).eval()
    assert (export.export_onnx(model, tmp_path / "model.onnx") or 0) < 1e-4
    for size, num_tokens, batch in (((64, 64), 16, 1), ((45, 130), 30, 3), ((150, 40), 50, 1)):
        found = differences(model, tmp_path / "model.onnx", size, num_tokens, batch)
        assert max(found.values()) < 1e-3, (size, found)
    metadata = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_modelmeta().custom_metadata_map
    assert metadata["version"] == version
    assert json.loads(metadata["model_config"]) == TINY[version]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_graph_of_a_reference_model_equals_torch(version: str, tmp_path: Path) -> None:
    model = filled_model(version).eval()
    export.export_onnx(model, tmp_path / "model.onnx", check=False)
    for size, num_tokens in (((98, 140), 100), ((150, 84), 256), ((112, 112), 64)):
        assert max(differences(model, tmp_path / "model.onnx", size, num_tokens, 1).values()) < 1e-3


@pytest.mark.slow
def test_a_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", 1e-12)
    with pytest.raises(ModelError, match="must agree with torch"):
        export.export_onnx(tiny("v2"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"onnx.*export"):
        export.export_onnx(tiny("v2"), tmp_path / "model.onnx")


def test_an_impossible_grid_is_refused() -> None:
    with pytest.raises(InputError):
        export.export_grid("v2", 0, 10, 5)


@pytest.mark.slow
def test_the_command_exports(tmp_path: Path) -> None:
    save_model(tmp_path / "model.pt", tiny("v2"))
    arguments = ["export", str(tmp_path / "model.pt"), "-o", str(tmp_path / "model.onnx")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "within" in result.output
    assert (tmp_path / "model.onnx").stat().st_size > 1000
