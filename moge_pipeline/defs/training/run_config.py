"""Run configuration of training and finetuning assets: the flags that a person changes from run to run."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal, Optional, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from moge_core.configuration import parse_as
from moge_core.training import RunFlags


class LaunchConfig(dg.Config):
    """What is asked of the launch itself, beside the flags of the training."""

    resume: str = Field(
        "auto",
        description="`auto` continues an unfinished run of the same configuration and begins a new workspace otherwise;"
        " `never` begins a new one; `must` continues the newest; a path continues that workspace.",
    )
    terminate_grace_s: float = Field(
        120.0, ge=0, description="Seconds that a cancelled training gets to save a checkpoint before it is killed."
    )
    max_runtime_s: Optional[float] = Field(  # noqa: UP045  # Dagster reads no unions
        None, gt=0, description="Seconds after which the training is asked to save and end (default: no limit)."
    )
    max_retries: int = Field(
        2,
        ge=0,
        description="How often a training that was killed, preempted or otherwise ended early, and can go on, is"
        " continued by itself from its latest checkpoint. Other failures are not retried.",
    )
    launcher: Optional[str] = Field(  # noqa: UP045
        None, description="Name of a launcher of `configs/launchers.json` (default: what that says for this asset)."
    )

    def flags(self) -> RunFlags:
        """The flags of the training that are set.

        Raises:
            ConfigError: a value is outside its range.
        """
        values = {name: getattr(self, name, None) for name in RunFlags.model_fields}
        plain = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
        return parse_as(RunFlags, plain, "run config")


def _dagster_type(name: str, annotation: Any) -> Any:
    """The type in which Dagster's configuration holds a flag: plain and optional, a choice as an enumeration."""
    for inner in get_args(annotation) or (annotation,):
        if get_origin(inner) is Literal:
            return Optional[Enum(name, {choice: choice for choice in get_args(inner)})]  # noqa: UP045  # built at run time
        # Bounds live in an Annotated, which Dagster does not read; `flags()` checks them.
        plain = get_args(inner)[0] if hasattr(inner, "__metadata__") else inner
        if plain in (int, float, bool, str):
            return plain | None
    raise AssertionError(f"flag {name} has a type that Dagster's configuration cannot hold: {annotation}")


def _field(name: str, flag: FieldInfo) -> tuple[Any, Any]:
    return _dagster_type(name, flag.annotation), Field(None, description=flag.description)


_FLAG_FIELDS: dict[str, Any] = {name: _field(name, flag) for name, flag in RunFlags.model_fields.items()}

TrainingRunConfig = create_model(
    "TrainingRunConfig",
    __base__=LaunchConfig,
    __doc__="Flags left out keep the configuration file's `run` section, or else the published defaults.",
    **_FLAG_FIELDS,
)
