"""Training and finetuning configurations: the published ones load, and every mistake is told before anything starts."""

from __future__ import annotations

import copy
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moge_core.configuration import load_json
from moge_core.errors import ConfigError
from moge_core.losses.registry import LOSS_PARAMETERS
from moge_core.training import RunFlags, load_finetune_config, load_train_config
from moge_core.training.config import LOSS_OUTPUTS
from moge_core.training.flags import OPTIONS, TrainFlags, resolve_flags
from moge_core.training.torch_names import (
    OPTIMIZER_PARAMETERS,
    REQUIRED_SCHEDULER_PARAMETERS,
    SCHEDULER_PARAMETERS,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DOCUMENTED = Path(__file__).parent / "documented_example.json"

Edit = Callable[[dict[str, Any]], Any]


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("name", sorted(path.name for path in (CONFIGS / "train").glob("*.json")))
def test_every_shipped_training_configuration_loads(name: str) -> None:
    config = load_train_config(CONFIGS / "train" / name)
    assert config.data.datasets
    assert len(config.digest()) == 64


def test_the_documented_example_with_comments_equals_the_v1_configuration() -> None:
    commented = load_train_config(DOCUMENTED)
    plain = load_train_config(CONFIGS / "train" / "v1.json")
    assert "#" in DOCUMENTED.read_text()
    assert commented == plain
    assert commented.digest() == plain.digest()


def test_every_shipped_finetuning_configuration_builds_on_a_training_configuration() -> None:
    for path in (CONFIGS / "finetune").glob("*.json"):
        config = load_finetune_config(path)
        merged = config.train_config()
        assert merged.run.num_iterations == config.run.num_iterations
        assert config.base_asset is None or config.base_asset.startswith(("train_", "finetune_"))


def _edit_data(config: dict[str, Any]) -> None:
    config["data"]["fov_range_absolut"] = config["data"].pop("fov_range_absolute")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(optimiser=c.pop("optimizer")), r"optimiser: is not a known key.*`optimizer`"),
        (_edit_data, r"data\.fov_range_absolut: is not a known key.*`fov_range_absolute`"),
        (lambda c: c["data"]["datasets"][0].update(lable_type="x"), r"datasets\.0\.lable_type: is not a known key"),
        (lambda c: c["data"]["datasets"][0].update(label_type="stereo"), r"datasets\.0\.label_type.*'stereo'"),
        (lambda c: c["model"].update(encodr="x"), r"model.*encodr: is not a known key.*`encoder`"),
        (
            lambda c: c["loss"]["sfm"]["mask"].update(function="mask_l3_loss"),
            r"loss\.sfm\.mask\.function.*mask_l2_loss",
        ),
        (
            lambda c: c["loss"]["sfm"]["global"]["params"].update(align_res=3),
            r"loss\.sfm\.global\.params\.align_res: is not a parameter of affine_invariant_global_loss",
        ),
        (lambda c: c["optimizer"].update(type="Adamw"), r"optimizer\.type: must be one of .*AdamW"),
        (lambda c: c["optimizer"]["params"][0].update(learning_rate=1), r"optimizer\.params\.0\.learning_rate"),
        (lambda c: c["lr_scheduler"]["params"].update(milestones=[]), r"lr_scheduler\.params\.milestones"),
        (
            lambda c: c["lr_scheduler"]["params"]["schedulers"][1]["params"].update(step=1),
            r"lr_scheduler\.params\.schedulers\.1\.params\.step: is not a parameter of StepLR",
        ),
        (
            lambda c: c["lr_scheduler"]["params"]["schedulers"][0]["params"].update(
                lr_lambda=["1.0", "__import__('os').system('true')"]
            ),
            r"schedulers\.0\.params\.lr_lambda\.1: the call of .*is not allowed",
        ),
        (
            lambda c: c["lr_scheduler"]["params"]["schedulers"][0]["params"].update(lr_lambda=["1.0"]),
            r"lr_lambda: must hold one expression for each of the 2 optimizer groups",
        ),
        (lambda c: c["optimizer"]["params"][0]["params"].update(exclude="*backbone.*"), r"params\.0\.params\.exclude"),
        (lambda c: c["optimizer"]["params"][0]["params"].update(exclude=None), r"params\.0\.params\.exclude"),
        (lambda c: c["optimizer"]["params"][0].update(lr="1e-4"), r"optimizer\.params\.0\.lr: must be a number"),
        (
            lambda c: c["lr_scheduler"]["params"]["schedulers"][1]["params"].pop("step_size"),
            r"schedulers\.1\.params\.step_size: is required by StepLR",
        ),
        (
            lambda c: c["loss"]["sfm"]["patch_4"]["params"].pop("level"),
            r"loss\.sfm\.patch_4\.params\.level: is required",
        ),
        (
            lambda c: c["loss"]["sfm"].update(normal_map={"function": "normal_map_loss"}),
            r"loss\.sfm\.normal_map\.function: needs a model that predicts `normal`",
        ),
        (lambda c: c.update(run=[]), r"run: "),
        (lambda c: c["data"]["datasets"][0].update(index="../other.txt"), r"datasets\.0\.index"),
        (lambda c: c["data"].update(area_range=[9, 4]), r"data.*area_range"),
    ],
)
def test_a_mistake_is_one_error_that_names_file_and_key(tmp_path: Path, edit: Edit, message: str) -> None:
    values = copy.deepcopy(load_json(CONFIGS / "train" / "v1.json"))
    edit(values)
    with pytest.raises(ConfigError, match=r"bad\.json: .*" + message):
        load_train_config(write(tmp_path / "bad.json", values))


def test_a_mistake_in_overrides_names_the_finetuning_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "f.json", {"base": "b.pt", "config": str(CONFIGS / "train" / "v1.json"), "overrides": {"x": 1}}
    )
    with pytest.raises(ConfigError, match=r"f\.json over .*v1\.json: x: is not a known key"):
        load_finetune_config(path).train_config()


@pytest.mark.parametrize(("key", "value"), [("cron", "every day"), ("cron", "0 3 * *"), ("timezone", "Mars/Base")])
def test_a_schedule_that_cannot_tick_is_refused(tmp_path: Path, key: str, value: str) -> None:
    schedule = {"cron": "0 3 * * *", key: value}
    with pytest.raises(ConfigError, match=rf"schedule\.{key}"):
        load_finetune_config(write(tmp_path / "f.json", {"base": "b.pt", "config": "c.json", "schedule": schedule}))


def test_configurations_are_checked_without_torch() -> None:
    code = (
        "import sys; from moge_core.training import load_train_config, check_training_inputs, choose_workspace;"
        f"load_train_config({str(CONFIGS / 'train' / 'v2.json')!r});"
        "assert not {'torch', 'sympy', 'mlflow', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_digest_ignores_per_run_flags_and_sees_everything_else(tmp_path: Path) -> None:
    values = load_json(CONFIGS / "train" / "v1.json")
    plain = load_train_config(write(tmp_path / "a.json", values))
    with_run = load_train_config(write(tmp_path / "b.json", {**values, "run": {"num_iterations": 3}}))
    other = load_train_config(write(tmp_path / "c.json", {**values, "low_resolution_training_steps": 1}))
    assert plain.digest() == with_run.digest() != other.digest()


def test_command_line_flags_win_over_the_run_section_over_the_published_defaults(tmp_path: Path) -> None:
    values = load_json(CONFIGS / "train" / "v1.json")
    config = load_train_config(write(tmp_path / "a.json", {**values, "run": {"seed": 3, "save_every": 5}}))
    flags = resolve_flags({"config": tmp_path / "a.json", "seed": 4, "save_every": None}, config)
    assert (flags.seed, flags.save_every, flags.log_every) == (4, 5, 1000)
    half = resolve_flags({"config": tmp_path / "a.json", "enable_mixed_precision": True}, config)
    assert half.mixed_precision == "fp16"


def test_contradicting_precisions_are_refused() -> None:
    config = load_train_config(CONFIGS / "train" / "v1.json")
    with pytest.raises(ConfigError, match="enable_mixed_precision"):
        resolve_flags({"config": config.source, "enable_mixed_precision": True, "mixed_precision": "bf16"}, config)


def test_flags_of_the_run_section_survive_the_trip_through_the_command_line() -> None:
    flags = RunFlags(num_iterations=5, enable_ema=False, init="random", num_processes=2)
    assert flags.as_argv() == ["--num_iterations", "5", "--init", "random", "--enable_ema", "False"]


def test_every_run_flag_is_a_flag_of_the_command_and_described() -> None:
    assert RunFlags.model_fields.keys() - {"num_processes"} <= set(TrainFlags.__dataclass_fields__)
    assert all(field.description for field in RunFlags.model_fields.values())
    assert len(OPTIONS) == len(TrainFlags.__dataclass_fields__) + 1  # enable_mixed_precision is another word for one


def test_the_precision_of_accelerate_holds_unless_ours_is_given(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_train_config(CONFIGS / "train" / "v1.json")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert resolve_flags({"config": config.source}, config).mixed_precision == "bf16"
    assert not caplog.records
    assert resolve_flags({"config": config.source, "mixed_precision": "no"}, config).mixed_precision == "no"
    assert "wins over" in caplog.text


def test_every_loss_names_the_output_that_it_reads() -> None:
    assert LOSS_OUTPUTS.keys() == LOSS_PARAMETERS.keys()


@pytest.mark.parametrize("table", [OPTIMIZER_PARAMETERS, SCHEDULER_PARAMETERS])
def test_the_tables_of_torch_names_agree_with_torch(table: dict[str, frozenset[str]]) -> None:
    for name, keys in table.items():
        home = torch.optim if hasattr(torch.optim, name) else torch.optim.lr_scheduler
        accepted = inspect.signature(getattr(home, name).__init__).parameters
        assert keys <= accepted.keys(), name
        required = {key for key in keys if accepted[key].default is inspect.Parameter.empty}
        assert required == REQUIRED_SCHEDULER_PARAMETERS.get(name, set()), name
