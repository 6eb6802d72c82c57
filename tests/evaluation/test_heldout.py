"""Held-out scores: exact where the answer is known, and fair to a model that ignores the image."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_models import tiny_model

from moge_core.cli import cli
from moge_core.datasets import index_dataset, read_index, render_sample_scenes
from moge_core.datasets.inspection import load_instance
from moge_core.errors import DatasetError, InputError, MoGeError
from moge_core.evaluation import HeldOutInstance, are_comparable, mean_scores, score_constant, score_instances
from moge_core.evaluation import score_model as score
from moge_core.geometry import depth_map_to_point_map
from moge_core.models import MoGeModel, save_model

TOKENS = 16


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes: 48 x 64 and 64 x 48."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    render_sample_scenes(folder, 5, 3, size=(64, 48))
    index_dataset(folder)
    return folder


def instances_of(dataset: Path) -> list[HeldOutInstance]:
    return [HeldOutInstance(dataset / name) for name in read_index(dataset)]


def calls_of(model: MoGeModel) -> list[tuple[int, ...]]:
    """Shapes of the images that the model will be called with."""
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    return seen


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
    scores = score(Oracle(scenes), scenes)  # type: ignore[arg-type]
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


# --- batches ---


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_size_of_batches_changes_neither_scores_nor_their_order(scenes: Path, version: str) -> None:
    model = tiny_model(version)
    instances = instances_of(scenes)
    seen = calls_of(model)
    one_by_one = score_instances(model, instances, num_tokens=TOKENS)
    assert [shape[0] for shape in seen] == [1] * 5
    heard: list[tuple[int, int]] = []
    for batch_size in (2, 4):
        seen.clear()
        batched = score_instances(
            model, instances, num_tokens=TOKENS, batch_size=batch_size, progress=lambda *at: heard.append(at)
        )
        sizes = [sum(shape[0] for shape in seen if shape[2:] == size) for size in ((48, 64), (64, 48))]
        assert sum(sizes) == 5 and 0 not in sizes, "each image once, in a batch of its size"
        assert len(seen) == sum(-(-number // batch_size) for number in sizes)
        for ours, alone in zip(batched, one_by_one, strict=True):
            assert ours == pytest.approx(alone, abs=1e-6)
        assert heard[-1] == (5, 5)
    assert len({each["rel"] for each in one_by_one}) == 5


def test_a_broken_instance_costs_only_itself(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "scenes")
    instances = instances_of(tmp_path / "scenes")
    model = tiny_model("v1")
    whole = score_instances(model, instances, num_tokens=TOKENS)
    (instances[1].folder / "image.jpg").write_bytes(b"no image")
    (instances[4].folder / "depth.png").write_bytes(b"no depth")
    told: dict[int, str] = {}
    found = score_instances(
        model, instances, num_tokens=TOKENS, batch_size=3, on_failure=lambda at, error: told.update({at: str(error)})
    )
    assert sorted(told) == [1, 4] and "image.jpg" in told[1] and "depth.png" in told[4]
    assert all(math.isnan(value) for at in told for value in found[at].values())
    left = [at for at in range(5) if at not in told]
    assert [found[at] for at in left] == [pytest.approx(whole[at], abs=1e-6) for at in left]
    assert mean_scores(found) == pytest.approx(mean_scores([whole[at] for at in left]), abs=1e-6)
    with pytest.raises(MoGeError, match=r"image\.jpg"):
        score_instances(model, instances[:2], num_tokens=TOKENS)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_model_that_is_spread_over_processes_is_called_as_often_as_they_agree(scenes: Path, version: str) -> None:
    """Also by a process whose instances are broken, or that has none."""
    model = tiny_model(version)
    seen = calls_of(model)
    heard: list[int] = []

    def agree(own: int) -> int:
        heard.append(own)
        return 4

    broken = HeldOutInstance(scenes / "not there")
    errors: list[Exception] = []
    for instances in ([], [broken], instances_of(scenes)[:2], [*instances_of(scenes)[:2], broken]):
        seen.clear()
        score_instances(
            model,
            instances,
            num_tokens=TOKENS,
            on_failure=lambda _, error: errors.append(error),
            agree_on_forwards=agree,
        )
        assert len(seen) == 4
    assert heard == [0, 1, 2, 3] and len(errors) == 2


# --- precision ---


def test_a_score_in_float32_is_that_whatever_autocast_is_around(scenes: Path) -> None:
    model = tiny_model("v1")
    plain = score(model, scenes, num_tokens=TOKENS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert score(model, scenes, num_tokens=TOKENS) == plain
    rounded = score(model, scenes, num_tokens=TOKENS, precision="bf16")
    assert rounded != plain and rounded == pytest.approx(plain, rel=0.05)
    with pytest.raises(InputError, match="fp8"):
        score(model, scenes, num_tokens=TOKENS, precision="fp8")  # type: ignore[arg-type]


def test_the_command_tells_in_which_precision_and_on_what_it_scored(scenes: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "model.pt", tiny_model("v1"))

    def evaluate(*options: str) -> dict[str, Any]:
        arguments = [
            "evaluate",
            str(tmp_path / "model.pt"),
            "--data",
            str(scenes),
            "--json",
            str(tmp_path / "out.json"),
        ]
        result = CliRunner().invoke(cli, [*arguments, "--num-tokens", str(TOKENS), *options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        record: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())["checkpoints"][
            str(tmp_path / "model.pt")
        ]
        return record

    plain, batched, rounded = evaluate(), evaluate("--batch-size", "3"), evaluate("--precision", "bf16")
    assert (plain["precision"], plain["num_tokens"], rounded["precision"]) == ("fp32", TOKENS, "bf16")
    assert are_comparable(plain, batched) and batched["rel"] == pytest.approx(plain["rel"], abs=1e-6)
    assert not are_comparable(plain, rounded)
    (scenes / "fewer.txt").write_text("\n".join(read_index(scenes)[:3]) + "\n")
    assert not are_comparable(plain, evaluate("--index", "fewer.txt"))
    assert not are_comparable(plain, {**plain, "num_tokens": 17})
    unknown = {"rel": 0.1}
    assert not are_comparable(unknown, unknown), "what does not tell how it was scored is like nothing"
