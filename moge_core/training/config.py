"""Training and finetuning configurations, checked whole before any process is launched. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from moge_core.configuration import StrictModel, deep_merge, load_json, parse_as
from moge_core.errors import ConfigError
from moge_core.loading.config import DataConfig
from moge_core.losses.registry import LOSS_PARAMETERS, announced_losses
from moge_core.models.config import parse_model_config
from moge_core.training.expressions import check_expression
from moge_core.training.torch_names import (
    LAMBDA_SCHEDULERS,
    NESTED_SCHEDULERS,
    OPTIMIZER_PARAMETERS,
    REQUIRED_SCHEDULER_PARAMETERS,
    SCHEDULER_PARAMETERS,
)

LOSS_OUTPUTS: Mapping[str, str] = {
    "affine_invariant_global_loss": "points",
    "affine_invariant_local_loss": "points",
    "normal_loss": "points",
    "edge_loss": "points",
    "mask_l2_loss": "mask",
    "mask_bce_loss": "mask",
    "metric_scale_loss": "metric_scale",
    "normal_map_loss": "normal",
}
"""The model output that each loss reads."""

_LOSS_PATH = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"

INVALID_LABEL = "invalid"
"""Label of an instance that could not be loaded; published configurations give it an empty loss set."""


class RunFlags(StrictModel):
    """Flags that a person changes from run to run. Those left out keep the configuration's or the published default."""

    num_iterations: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Absolute number of optimiser steps at which training ends (default 1000000)."
    )
    batch_size_forward: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Images per process and micro-batch (default 8). Halve it when memory runs out."
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Micro-batches per optimiser step (default 1). Raise it to keep the batch when halving the above.",
    )
    num_processes: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Processes that accelerate starts, usually one per GPU (default 1)."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = Field(
        None,
        description="Precision of the network's forward pass (default: that of accelerate, else bf16 on GPUs that have "
        "it and no elsewhere).",
    )
    checkpoint: str | None = Field(
        None, description="`latest`, a step number of this workspace, or the path of a `.pt` file to start from."
    )
    checkpoint_strict: bool | None = Field(
        None,
        description="Require that a checkpoint has exactly the model's weights (default true). False takes what fits, "
        "names the rest and trains it from new weights, e.g. a head that the checkpoint lacks.",
    )
    init: str | None = Field(
        None,
        description="Backbone weights of a new model: `hub` (the published DINOv2, default), `random`, a local file, "
        "or a repository such as `facebook/dinov2-large`.",
    )
    save_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps between checkpoints (default 10000); the last step is always saved."
    )
    keep_last: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Checkpoints to keep besides those of keep_every and the best one; 0 keeps all (default 0)."
    )
    keep_every: Annotated[int, Field(ge=0)] | None = Field(
        None, description="With keep_last: keep the checkpoints of multiples of this step, too (default 0: none)."
    )
    eval_every: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Steps between scores on held-out instances, of the model and its average; 0 makes none "
        "(default 0).",
    )
    eval_instances: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Held-out instances to score of each dataset, evenly spaced over its list (default 32)."
    )
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Share of the instances to hold out from datasets without a .val.txt when eval_every is set "
        "(default 0).",
    )
    max_failure_share: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Most of the last 10,000 drawn instances that may be unusable (default 0.01)."
    )
    max_skipped: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps in a row whose losses or gradients may be non-finite (default 20)."
    )
    hang_timeout_s: Annotated[float, Field(ge=0, le=86_400)] | None = Field(
        None,
        description="Seconds without a finished step, or a finished part of one, after which the training is taken for "
        "hung: stacks are written, and it ends and can be resumed. Saving, scoring, drawing and compiling may take an "
        "hour more; 0 watches nothing (default 600).",
    )
    compile: bool | None = Field(
        None, description="Compile the backbone's blocks with torch.compile: slow start, faster steps (default false)."
    )
    deterministic: bool | None = Field(
        None,
        description="Repeat to the bit on the same machine, GPUs included: ordered algorithms alone, which are slower; "
        "an operation that has none ends the training (default false).",
    )
    log_every: Annotated[int, Field(ge=1)] | None = Field(None, description="Steps between log lines (default 1000).")
    vis_every: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Steps between pictures and point clouds of the predictions; 0 makes none (default 0)."
    )
    num_vis_images: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Images shown by vis_every, rounded down to whole batches (default 32)."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="Seed of data order, views, augmentations, patches and new weights (default 0)."
    )
    enable_ema: bool | None = Field(
        None, description="Keep an exponential moving average of the weights (default true)."
    )
    enable_gradient_checkpointing: bool | None = Field(
        None, description="Recompute activations in the backward pass to save memory (default true)."
    )
    num_workers: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Loader processes of each training process; 0 loads in the training itself (default: by cores).",
    )
    accept_index_change: bool | None = Field(
        None, description="Resume although a dataset's index is not the one that the checkpoint was trained on."
    )

    def as_argv(self) -> list[str]:
        """The flags that are set, for the training command; `num_processes` belongs to `accelerate launch`."""
        values = self.model_dump(exclude_none=True, exclude={"num_processes"})
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]


NOT_OF_THE_MODEL = ("run", "owners", "automation")
"""Sections of a training configuration that say nothing of what a checkpoint is; they may change from run to run."""

Owner = Annotated[str, Field(pattern=r"^(team:[\w.\-]+|[^@\s]+@[^@\s]+)$")]


class LossTerm(StrictModel):
    """One entry of a label's loss set."""

    function: str
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    params: dict[str, Any] = Field(default_factory=dict)

    @field_validator("function")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in LOSS_PARAMETERS and name not in announced_losses() and not re.fullmatch(_LOSS_PATH, name):
            known = sorted({*LOSS_PARAMETERS, *announced_losses()})
            raise ValueError(f"must be one of {', '.join(known)}, or a path `module:function`")
        return name


class OptimizerConfig(StrictModel):
    """`type` of torch.optim and its parameter groups by include / exclude patterns."""

    type: str
    params: Annotated[list[dict[str, Any]], Field(min_length=1)]


class SchedulerConfig(StrictModel):
    """`type` of torch.optim.lr_scheduler and its keywords; SequentialLR nests further schedulers."""

    type: str
    params: dict[str, Any] = Field(default_factory=dict)


class TrainConfig(StrictModel):
    """A training configuration with the sections of the published ones, plus our own `freeze`, `loss_modules`, `run`.

    `freeze` lists patterns (fnmatch) of parameters that are not trained, `loss_modules` the modules that losses may be
    imported from by their path. For the pipeline: `owners` (e-mail addresses or `team:NAME`) whom its asset names, and
    `automation`, which is `none`, or `new_data` for a training that starts by itself when its data has changed.
    """

    data: DataConfig
    model_version: Literal["v1", "v2"]
    model: dict[str, Any]
    optimizer: OptimizerConfig
    lr_scheduler: SchedulerConfig
    low_resolution_training_steps: Annotated[int, Field(ge=0)] = 0
    freeze: list[str] = Field(default_factory=list)
    loss: dict[str, dict[str, LossTerm]]
    loss_modules: list[str] = Field(default_factory=list)
    run: RunFlags = Field(default_factory=RunFlags)
    owners: list[Owner] = Field(default_factory=list)
    automation: Literal["none", "new_data"] = "none"

    _source: Path = PrivateAttr(default=Path("configuration"))
    _raw: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Two configurations are equal when their sections are, whatever files they come from."""
        return isinstance(other, TrainConfig) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    @property
    def source(self) -> Path:
        """File that the configuration was read from."""
        return self._source

    @property
    def raw(self) -> dict[str, Any]:
        """The configuration as it was read, comments gone, overrides laid over it."""
        return self._raw

    def identity(self) -> dict[str, Any]:
        """What a checkpoint was trained with: everything but the per-run flags and what only the pipeline reads."""
        return _identity(self._raw)

    def digest(self) -> str:
        """See `config_digest`."""
        return config_digest(self._raw)


def config_digest(raw: Mapping[str, Any]) -> str:
    """SHA-256 of what a configuration says of a checkpoint (see `TrainConfig.identity`), independent of its layout."""
    canonical = json.dumps(_identity(raw), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _identity(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in NOT_OF_THE_MODEL}


class ScheduleConfig(StrictModel):
    """When a finetuning starts by itself."""

    cron: str
    timezone: str = "UTC"
    enabled: bool = False

    @field_validator("cron")
    @classmethod
    def _has_five_fields(cls, cron: str) -> str:
        if len(cron.split()) != 5 or not re.fullmatch(r"[\w\s*,/\-]+", cron):
            raise ValueError("must be a cron expression of five fields, e.g. `0 3 * * *`")
        return cron

    @field_validator("timezone")
    @classmethod
    def _exists(cls, name: str) -> str:
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("must be a time zone such as `UTC` or `Europe/Berlin`") from error
        return name


class FinetuneConfig(StrictModel):
    """A finetuning: a base checkpoint, a training configuration, and what differs from it."""

    base: Annotated[str, Field(min_length=1)]
    config: Annotated[str, Field(min_length=1)]
    overrides: dict[str, Any] = Field(default_factory=dict)
    run: RunFlags = Field(default_factory=RunFlags)
    schedule: ScheduleConfig | None = None

    _source: Path = PrivateAttr(default=Path("configuration"))

    @property
    def source(self) -> Path:
        """File that the configuration was read from."""
        return self._source

    @property
    def name(self) -> str:
        """The file's stem."""
        return self._source.stem

    @property
    def base_asset(self) -> str | None:
        """Name of the training or finetuning asset that `base` refers to; None for a checkpoint file or repository."""
        return self.base if re.fullmatch(r"(train|finetune)_\w+", self.base) else None

    def train_config(self) -> TrainConfig:
        """The training configuration with `overrides` laid over it and `run` over its `run`.

        Raises:
            ConfigError: the training configuration, or what the overrides make of it, is wrong.
        """
        path = project_root_of(self._source) / self.config
        merged = deep_merge(load_json(path), self.overrides)
        below = merged.get("run", {})
        if isinstance(below, dict):  # else the check of the whole tells
            merged["run"] = {**below, **self.run.model_dump(exclude_none=True)}
        where = f"{self._source} over {path}" if self.overrides else path
        return parse_train_config(merged, self._source, where)


def load_train_config(path: str | Path) -> TrainConfig:
    """Read and check a training configuration (JSON, comments allowed).

    Raises:
        ConfigError: names the file, the key, the rule and, for a misspelt key, the nearest known one.
    """
    return parse_train_config(load_json(path), Path(path), path)


def load_finetune_config(path: str | Path) -> FinetuneConfig:
    """Read and check a finetuning configuration. The training configuration it builds on is read by `train_config()`.

    Raises:
        ConfigError: names the file, the key and the rule.
    """
    config = parse_as(FinetuneConfig, load_json(path), path)
    config._source = Path(path)
    return config


def load_any_config(path: str | Path) -> tuple[TrainConfig, str | None]:
    """A training configuration, or what a finetuning configuration makes of one and the checkpoint file it starts from.

    The base of a finetuning that is another asset is no file yet: None.

    Raises:
        ConfigError: as the other two.
    """
    if "base" not in load_json(path):
        return load_train_config(path), None
    finetune = load_finetune_config(path)
    return finetune.train_config(), None if finetune.base_asset else finetune.base


def parse_train_config(values: Mapping[str, Any], source: Path, where: object) -> TrainConfig:
    """Check the contents of a training configuration; `where` names it in errors.

    Raises:
        ConfigError: as `load_train_config`.
    """
    config = parse_as(TrainConfig, values, where)
    parse_model_config(config.model_version, config.model, f"{where}: model")
    _check_loss_sets(config, where)
    _check_outputs(config, where)
    _check_optimizer(config.optimizer, f"{where}: optimizer")
    _check_scheduler(config.lr_scheduler, len(config.optimizer.params), f"{where}: lr_scheduler")
    config._source = source
    config._raw = dict(values)
    return config


def project_root_of(path: Path) -> Path:
    """The folder that holds the `configs/` folder which `path` lies in, or else the file's own folder."""
    path = path.resolve()
    holder = next((parent for parent in path.parents if parent.name == "configs"), None)
    return path.parent if holder is None else holder.parent


def _check_loss_sets(config: TrainConfig, where: object) -> None:
    for index, dataset in enumerate(config.data.datasets):
        if dataset.label_type not in config.loss:
            raise ConfigError(
                f"{where}: data.datasets.{index}.label_type",
                f"must have a loss set under `loss`, which has {', '.join(sorted(config.loss)) or 'none'}",
                found=repr(dataset.label_type),
                fix=f"Add `loss.{dataset.label_type}` or correct the label of dataset {dataset.name!r}.",
            )
        if not config.loss[dataset.label_type] and dataset.label_type != INVALID_LABEL:
            raise ConfigError(f"{where}: loss.{dataset.label_type}", "must hold at least one loss")
    for label, terms in config.loss.items():
        for key, term in terms.items():
            module = term.function.partition(":")[0] if ":" in term.function else None
            if module and module not in config.loss_modules:
                raise ConfigError(
                    f"{where}: loss.{label}.{key}.function",
                    "must lie in a module that `loss_modules` allows",
                    found=repr(term.function),
                    fix=f'If you trust that code, add "loss_modules": [{json.dumps(module)}] to the configuration.',
                )
            if term.function not in LOSS_PARAMETERS:
                continue  # known only once it is imported
            unknown = sorted(term.params.keys() - LOSS_PARAMETERS[term.function])
            if unknown:
                raise ConfigError(
                    f"{where}: loss.{label}.{key}.params.{unknown[0]}",
                    f"is not a parameter of {term.function}",
                    fix=f"Known parameters: {', '.join(sorted(LOSS_PARAMETERS[term.function])) or 'none'}.",
                )


def _check_outputs(config: TrainConfig, where: object) -> None:
    """A loss of an output that the model lacks, or of a scale that nothing finds, would fail at the first step."""
    outputs = {"points"} | ({"mask"} if config.model_version == "v1" else set())
    heads = {"mask_head": "mask", "normal_head": "normal", "scale_head": "metric_scale"}
    outputs |= {output for head, output in heads.items() if config.model.get(head) is not None}
    for label, terms in config.loss.items():
        functions = {term.function for term in terms.values()}
        for key, term in terms.items():
            at = f"{where}: loss.{label}.{key}.function"
            needed = LOSS_OUTPUTS.get(term.function)
            if needed is not None and needed not in outputs:
                found = f"a {config.model_version} model with {', '.join(sorted(outputs))}"
                raise ConfigError(at, f"needs a model that predicts `{needed}`", found=found)
            if term.function == "metric_scale_loss" and "affine_invariant_global_loss" not in functions:
                fix = "Add an affine_invariant_global_loss to this label."
                raise ConfigError(at, "needs the scale that the global loss finds", fix=fix)
            if term.function == "affine_invariant_local_loss" and "level" not in term.params:
                raise ConfigError(f"{where}: loss.{label}.{key}.params.level", "is required")


def _check_optimizer(config: OptimizerConfig, where: str) -> None:
    known = OPTIMIZER_PARAMETERS.get(config.type)
    if known is None:
        raise ConfigError(
            f"{where}.type", f"must be one of {', '.join(sorted(OPTIMIZER_PARAMETERS))}", found=repr(config.type)
        )
    for index, group in enumerate(config.params):
        at = f"{where}.params.{index}"
        patterns = group.get("params")
        if not isinstance(patterns, dict) or not isinstance(patterns.get("include"), list):
            raise ConfigError(f"{at}.params", 'must be {"include": [patterns], "exclude": [patterns]}', found=patterns)
        for key, value in patterns.items():
            is_list = isinstance(value, list) and all(isinstance(pattern, str) for pattern in value)
            if key not in ("include", "exclude") or not is_list:
                raise ConfigError(f"{at}.params.{key}", "must be `include` or `exclude` with a list of patterns")
        rate = group.get("lr")
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
            raise ConfigError(f"{at}.lr", "must be a number", found=repr(rate))
        for key in group.keys() - {"params"}:
            if key not in known:
                raise ConfigError(
                    f"{at}.{key}", f"is not a parameter of {config.type}", fix=f"Known: {', '.join(sorted(known))}."
                )


def _check_scheduler(config: SchedulerConfig, num_groups: int, where: str) -> None:
    known = SCHEDULER_PARAMETERS.get(config.type)
    if known is None:
        raise ConfigError(
            f"{where}.type", f"must be one of {', '.join(sorted(SCHEDULER_PARAMETERS))}", found=repr(config.type)
        )
    for key in config.params:
        if key not in known:
            raise ConfigError(
                f"{where}.params.{key}",
                f"is not a parameter of {config.type}",
                fix=f"Known: {', '.join(sorted(known))}.",
            )
    for key in sorted(REQUIRED_SCHEDULER_PARAMETERS.get(config.type, frozenset()) - config.params.keys()):
        raise ConfigError(f"{where}.params.{key}", f"is required by {config.type}")
    if config.type in LAMBDA_SCHEDULERS:
        lambdas = config.params.get("lr_lambda")
        texts = [lambdas] if isinstance(lambdas, str) else lambdas
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                f"{where}.params.lr_lambda", "must be an expression or a list of expressions", found=lambdas
            )
        if isinstance(lambdas, list) and len(texts) != num_groups:
            raise ConfigError(
                f"{where}.params.lr_lambda",
                f"must hold one expression for each of the {num_groups} optimizer groups",
                found=f"{len(texts)} expressions",
            )
        for index, text in enumerate(texts):
            at = f"{where}.params.lr_lambda" + (f".{index}" if isinstance(lambdas, list) else "")
            check_expression(text, at)
    if config.type in NESTED_SCHEDULERS:
        nested = config.params.get("schedulers")
        if not isinstance(nested, list) or not nested:
            raise ConfigError(f"{where}.params.schedulers", "must be a list of schedulers", found=nested)
        for index, values in enumerate(nested):
            at = f"{where}.params.schedulers.{index}"
            inner = parse_as(SchedulerConfig, values if isinstance(values, dict) else {}, at)
            _check_scheduler(inner, num_groups, at)
        milestones = config.params.get("milestones")
        if config.type == "SequentialLR" and (not isinstance(milestones, list) or len(milestones) != len(nested) - 1):
            raise ConfigError(
                f"{where}.params.milestones",
                f"must hold the {len(nested) - 1} steps at which the next scheduler takes over",
                found=milestones,
            )
