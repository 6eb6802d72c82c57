"""A training step as an accelerator gets it: nothing waits for it in between, and no tensor lies elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_accelerator import META, MetaAccelerator, stand_in_accelerate
from tiny_models import CONFIGS as MODELS

from moge_core.models import build_model
from moge_core.training import check_training_inputs, load_train_config
from moge_core.training.devices import on_device
from moge_core.training.flags import resolve_flags
from moge_core.training.trainer import Trainer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "train"
_PATCHES = {"level": 4, "align_resolution": 4, "num_patches": 4}
_POINTS = {
    "global": {"function": "affine_invariant_global_loss", "params": {"align_resolution": 8}},
    "patch_4": {"function": "affine_invariant_local_loss", "params": _PATCHES},
    "normal": {"function": "normal_loss"},
    "edge": {"function": "edge_loss"},
}
LOSSES = {
    "v1": {**_POINTS, "mask": {"function": "mask_l2_loss"}},
    "v2": {
        **_POINTS,
        "mask": {"function": "mask_bce_loss"},
        "normal_map": {"function": "normal_map_loss"},
        "metric": {"function": "metric_scale_loss"},
    },
}


def one_step(config_path: Path, workspace: Path, **flags: Any) -> MetaAccelerator:
    """Count the second step of a training: the first also makes the optimiser's state."""
    config = load_train_config(config_path)
    given = {"config": config_path, "workspace": workspace, "enable_mlflow": False, "hang_timeout_s": 0, **flags}
    with stand_in_accelerate():
        trainer = Trainer(config, resolve_flags(given, config), check_training_inputs(config))
        try:
            batches = on_device(trainer.loader, trainer.device)
            with MetaAccelerator():
                trainer.train_step(0, batches)
            with MetaAccelerator() as counted:
                trainer.train_step(1, batches)
        finally:
            trainer.loader.close()
            trainer.writer.close()
    return counted


@pytest.mark.parametrize(("version", "accumulation", "labels"), [("v1", 1, 1), ("v1", 2, 2), ("v2", 1, 2)])
def test_the_host_waits_at_the_end_of_a_step_only(
    version: str, accumulation: int, labels: int, tiny_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = config_of(version, tiny_config, ("synthetic", "sfm")[:labels])
    counted = one_step(config, tmp_path / "run", gradient_accumulation_steps=accumulation)
    assert not counted.mixed
    # How many instances were valid and who is to stop, then whether the gradient is finite: once a step, not a batch.
    assert sum(counted.waits.values()) == 2
    assert all(re.fullmatch(r"(item|copy) training/trainer.py:\d+", place) for place in counted.waits)


def config_of(version: str, tiny_config: Callable[..., Path], labels: Sequence[str]) -> Path:
    """The tiny configuration with every loss of a version, for as many labels as are named."""
    path = tiny_config()
    values = json.loads(path.read_text())
    values["loss"] = dict.fromkeys(labels, LOSSES[version])
    values["data"]["datasets"] = [
        {"name": label, "path": "scenes", "depth_unit": 1.0, "label_type": label} for label in labels
    ]
    if version == "v2":
        values |= {"model_version": "v2", "model": MODELS["v2"]}
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_prediction_asks_for_values_at_its_ends_only(version: str) -> None:
    """`infer` looks at the range of the image before, and at nothing until its results are read."""
    config = load_train_config(CONFIGS / f"{version}.json")
    with torch.device(META):
        model = build_model(version, **config.model)
    image = torch.empty(2, 3, 480, 640, device=META)
    with torch.no_grad(), MetaAccelerator(0.5) as counted:
        model(image, 1200)
    assert not counted.waits and not counted.mixed
    with MetaAccelerator(0.5) as counted:
        model.infer(image, num_tokens=1200)
    assert not counted.mixed
    assert [place.split(":")[0] for place in counted.waits.elements()] == ["copy models/base.py"]
