"""Model files: `{"model_config", "model"}`, the published form, readable there and here.

Files are read as tensors and plain values only (`weights_only=True`): code hidden in a pickle is refused, never run.
They appear under their name complete or not at all.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from pydantic import BaseModel
from torch import Tensor

from moge_core.errors import CheckpointError, ConfigError
from moge_core.io.files import atomic_open, file_digest
from moge_core.models.base import MoGeModel
from moge_core.models.build import model_of
from moge_core.models.config import MODEL_CONFIGS, PATCH_SIZE, ModelConfig, parse_model_config, version_of
from moge_core.models.weights import REPO_ID, check_weights, fetch_from_hub, load_weights, read_tensors

HUB_FILE = "model.pt"


class ModelFile(NamedTuple):
    """What a model file holds; `model_config` as it stands there, not yet validated."""

    model_config: dict[str, Any]
    weights: dict[str, Tensor]


def save_model(path: str | Path, model: MoGeModel, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write `{"model_config", "model"}` atomically; a name ending in `.safetensors` is written in that format.

    Args:
        path: file to write.
        model: the model whose configuration, and unless `weights` are given, weights are written.
        weights: other weights for the same model, e.g. an exponential moving average.

    Raises:
        CheckpointError: the file could not be written, e.g. because the disk is full; an older file stays as it was.
        InputError: the folder does not exist.
    """
    state = model.state_dict() if weights is None else weights
    _write(Path(path), model.model_config, state)


def _write(path: Path, model_config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    try:
        with atomic_open(path) as file:
            if path.suffix == ".safetensors":
                from safetensors.torch import save

                file.write(save(state, metadata={"model_config": json.dumps(model_config)}))
            else:
                torch.save({"model_config": dict(model_config), "model": state}, file)
    except (OSError, RuntimeError) as error:  # torch's archive writer hides the operating system's error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(path, "must be writable", found=reason, fix="Is there room on the disk?") from error


def load_model(
    path_or_repo_id: str | Path, *, strict: bool = True, model_config: Mapping[str, Any] | None = None
) -> MoGeModel:
    """Load a model on the CPU, in evaluation mode, from a file or a Hugging Face repository.

    Args:
        path_or_repo_id: a `.pt` or `.safetensors` file, or e.g. "Ruicheng/moge-vitl", whose `model.pt` is fetched.
        strict: False is for surgery: weights that the file lacks keep random values, others are left out, and a warning
            lists both.
        model_config: build this model of the same version instead of the file's own, e.g. with one more head.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind or version, or its weights are not those that the
            configuration describes.
        ConfigError: `model_config` is wrong.
        WeightsError: the repository cannot be reached.
    """
    path = _locate(path_or_repo_id)
    own_config, weights = read_model_file(path)
    if model_config is None:
        config = config_of_checkpoint(own_config, path)
    else:
        version = version_of(model_config)
        check_version(own_config, version, where=path)
        config = parse_model_config(version, model_config)
    if not strict:
        model = model_of(config)
        load_weights(model, weights, where=path, strict=False)
        return model.eval()
    # Without memory first: a hostile configuration is refused before anything of its size is allocated.
    with torch.device("meta"):
        model = model_of(config)
    load_weights(model, weights, where=path)
    return model.eval()


def read_model_file(path: str | Path) -> ModelFile:
    """Read a model file without building the model.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    path = Path(path)
    payload = read_tensors(path)
    if not isinstance(payload, dict):
        raise CheckpointError(path, 'must hold {"model_config", "model"}', found=type(payload).__name__)
    model_config, weights = payload.get("model_config"), payload.get("model")
    if not isinstance(model_config, dict) or not isinstance(weights, dict):
        names = sorted(str(name) for name in payload)
        found = f"the keys {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "nothing"
        raise CheckpointError(path, 'must hold {"model_config", "model"}', found=found, fix=_advice(payload))
    return ModelFile(model_config, weights)


def describe_model_file(path: str | Path) -> dict[str, Any]:
    """What a model file is: path, version, model_config, num_parameters, dtypes, step and sha256.

    The step is what the file itself, its manifest or its name (`00012000.pt`, `00012000_ema.pt`) says, or None.

    Raises:
        CheckpointError: as `load_model`; the weights are compared with the configuration.
    """
    path = Path(path)
    model_config, weights = read_model_file(path)
    config = config_of_checkpoint(model_config, path)
    with torch.device("meta"):
        model = model_of(config)
    check_weights(model, weights, where=path)
    named = re.match(r"(\d{8})(_ema)?$", path.stem)
    own = read_tensors(path).get("step")
    return {
        "path": str(path),
        "version": model.version,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtypes": ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()})),
        "step": own if isinstance(own, int) else int(named[1]) if named else None,
        "sha256": file_digest(path),
        "model_config": model_config,
    }


def convert_model_file(source: str | Path, target: str | Path) -> None:
    """Write a model file in the other form, by the target's suffix (.pt or .safetensors); weights stay bit-equal.

    Raises:
        CheckpointError: the source is no model file whose weights fit its configuration, the target has another suffix
            or exists already, or cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix not in {".pt", ".safetensors"}:
        raise CheckpointError(target, "must end in .pt or .safetensors", found=target.suffix or "no suffix")
    if target.exists():
        raise CheckpointError(target, "must not exist yet", fix="Remove it, or choose another name.")
    model_config, weights = read_model_file(source)
    with torch.device("meta"):
        model = model_of(config_of_checkpoint(model_config, source))
    check_weights(model, weights, where=source)
    _write(target, model_config, weights)


def check_version(model_config: Mapping[str, Any], version: str, where: object) -> None:
    """Require that a checkpoint's `model_config` is of a version.

    Raises:
        CheckpointError: it is of the other one.
    """
    found = version_of(model_config)
    if found != version:
        raise CheckpointError(
            where, f"must be a {version} checkpoint", found=f"a {found} one", fix=f'Set "model_version": "{found}".'
        )


def config_of_checkpoint(model_config: Mapping[str, Any], where: object) -> ModelConfig:
    """Validate a checkpoint's `model_config`, whatever age it has: unknown keys are dropped with a warning.

    Raises:
        CheckpointError: a known key is missing or has a value that no model can have.
    """
    version = version_of(model_config)
    values = dict(model_config)
    area = values.pop("trained_area_range", None)
    if area is not None and "num_tokens_range" not in values:
        if not (isinstance(area, list | tuple) and all(map(_is_finite_number, area))):
            raise CheckpointError(f"{where}: model_config.trained_area_range", "must be two numbers", found=repr(area))
        # Older files gave the range in pixels of the resized image.
        values["num_tokens_range"] = [int(pixels // PATCH_SIZE**2) for pixels in area]
    dropped: list[str] = []
    values = _known_keys(MODEL_CONFIGS[version], values, "", dropped)
    if dropped:
        warnings.warn(f"{where}: unknown keys of model_config are ignored: {', '.join(dropped)}", stacklevel=3)
    try:
        return parse_model_config(version, values, where=f"{where}: model_config")
    except ConfigError as error:
        raise CheckpointError(error.where, error.rule, found=error.found, fix=error.fix) from error


def _locate(path_or_repo_id: str | Path) -> Path:
    path = Path(path_or_repo_id).expanduser()
    name = str(path_or_repo_id)
    if path.exists() or isinstance(path_or_repo_id, Path) or not REPO_ID.fullmatch(name) or path.suffix == ".pt":
        return path
    if path.suffix == ".safetensors" or name.startswith("."):
        return path
    return fetch_from_hub(name, HUB_FILE)


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _advice(payload: Mapping[Any, Any]) -> str | None:
    """What a file that is no model file probably is."""
    if "optimizer" in payload:
        return "This is an optimiser's state; the model's file has the same name without `_optimizer`."
    if set(payload) == {"model_config", "step"} and isinstance(payload["step"], int):
        return f"This only points to the newest step; load `{payload['step']:08d}.pt` beside it."
    if payload and all(isinstance(value, Tensor) for value in payload.values()):
        return "These are weights without a configuration; DINOv2 weights are given with `--init`."
    return None


def _known_keys(model: type[BaseModel], values: Mapping[str, Any], prefix: str, dropped: list[str]) -> dict[str, Any]:
    """`values` without the keys that `model` does not have, at every depth; their names go to `dropped`."""
    known = {}
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            dropped.append(f"{prefix}{key}")
            continue
        candidates = (field.annotation, *get_args(field.annotation))
        section = next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if section is not None and isinstance(value, Mapping):
            value = _known_keys(section, value, f"{prefix}{key}.", dropped)  # noqa: PLW2901 - the pruned section
        known[key] = value
    return known
