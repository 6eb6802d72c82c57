"""Held-out scores: exact where the answer is known, and fair to a model that ignores the image."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from moge_core.datasets import index_dataset, render_sample_scenes
from moge_core.datasets.inspection import load_instance
from moge_core.errors import DatasetError
from moge_core.evaluation import score_constant, score_model
from moge_core.geometry import depth_map_to_point_map


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    render_sample_scenes(folder, 4, 3, size=(64, 48))
    index_dataset(folder)
    return folder


class Oracle:
    """Knows the truth by the image, up to a scale and a shift, and NaN where there is none."""

    device = torch.device("cpu")

    def __init__(self, dataset: Path) -> None:
        self.answers = {}
        for meta in dataset.rglob("meta.json"):
            loaded = load_instance(meta.parent)
            points = depth_map_to_point_map(loaded.depth, loaded.intrinsics)
            self.answers[loaded.image.tobytes()] = np.nan_to_num(0.5 * points + 3.0, nan=0.0, posinf=0.0, neginf=0.0)

    def __call__(self, image: torch.Tensor, num_tokens: int) -> dict[str, torch.Tensor]:
        pixels = (image.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        return {"points": torch.from_numpy(np.stack([self.answers[each.tobytes()] for each in pixels]))}

    def num_tokens_at(self, resolution_level: float) -> int:
        return 1


def test_a_model_that_knows_the_truth_up_to_scale_and_shift_scores_zero_error(scenes: Path) -> None:
    scores = score_model(Oracle(scenes), scenes)  # type: ignore[arg-type]
    assert scores["rel"] < 1e-3
    assert scores["delta1"] == pytest.approx(1.0)


def test_a_constant_map_is_perfect_where_all_scenes_are_one_and_poor_where_they_differ(
    scenes: Path, tmp_path: Path
) -> None:
    one = next(meta.parent for meta in sorted(scenes.rglob("meta.json")))
    for number in range(3):
        shutil.copytree(one, tmp_path / "same" / str(number))
    index_dataset(tmp_path / "same")
    same = score_constant(tmp_path / "same", tmp_path / "same")
    different = score_constant(scenes, scenes)
    # Not zero: the mean map has a resolution of its own.
    assert same["rel"] < 0.05
    assert different["rel"] > 0.1


def test_a_dataset_without_instances_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".index.txt").write_text("")
    with pytest.raises(DatasetError):
        score_constant(tmp_path, tmp_path)
