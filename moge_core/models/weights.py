"""Tensors from files into modules: strict comparison, and initial weights for the encoder."""

from __future__ import annotations

import pickle
import re
import urllib.request
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moge_core.errors import CheckpointError, WeightsError
from moge_core.models.base import MoGeModel

HUB_URL = "https://dl.fbaipublicfiles.com/dinov2/{name}/{name}_pretrain.pth"
HUB_ENCODERS = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14")
HUB_TIMEOUT_S = 20
HUB_BACKBONE_FILE = "model.safetensors"
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
MAX_NAMES_SHOWN = 3


def init_backbone(model: MoGeModel, init: str | Path) -> None:
    """Give the model's encoder its initial weights; the rest of the model is left alone.

    Args:
        model: a model as `build_model` returns it.
        init: "hub" for the published DINOv2 weights (downloaded once to torch's hub folder; with several processes
            let the first one do it), "random" for new random ones, a repository of the Hugging Face Hub such as
            "facebook/dinov2-large", or a `.pth`, `.pt` or `.safetensors` file. Both DINOv2's own key names and those
            of the `transformers` package are understood.

    Raises:
        WeightsError: the weights cannot be had: offline, no such file, or none are published for this encoder.
        CheckpointError: the file is damaged or holds other weights than this encoder's.
    """
    if str(init) == "random":
        model.dinov2.begin_from_scratch()
        return
    name = model.dinov2.name
    path = _fetch(name) if str(init) == "hub" else Path(init).expanduser()
    if not path.is_file() and not isinstance(init, Path) and REPO_ID.fullmatch(str(init)) and not path.suffix:
        path = fetch_from_hub(str(init), HUB_BACKBONE_FILE)
    if not path.is_file():
        fix = "Give `hub`, `random` or the path of a file with DINOv2 weights, or a repository of the Hugging Face Hub."
        raise WeightsError("--init", f"must name weights for {name}", found=f"no file {path}", fix=fix)
    weights = read_tensors(path)
    if not isinstance(weights, dict) or "model" in weights:
        found = "a whole model" if isinstance(weights, dict) else f"a {type(weights).__name__}"
        raise CheckpointError(
            path,
            f"must hold the weights of {name} alone",
            found=found,
            fix="Go on from a whole model with `--checkpoint`.",
        )
    load_weights(model.dinov2, _with_our_names(weights), where=path)


class LoadReport(NamedTuple):
    """What a load that was not strict left out.

    Attributes:
        missing: parameters that the file does not have; they keep their values.
        unexpected: entries of the file that the model does not have.
        misfits: entries of another shape or kind, with the reason; the parameters keep their values.
    """

    missing: list[str]
    unexpected: list[str]
    misfits: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether file and model have the same entries."""
        return not (self.missing or self.unexpected or self.misfits)

    def __str__(self) -> str:
        titled = (("missing", self.missing), ("unexpected", self.unexpected), ("mis-shaped", self.misfits))
        return "".join(f"\n  {title}: {_grouped(names, self.misfits)}" for title, names in titled if names)


def load_weights(module: nn.Module, weights: Mapping[str, Any], where: object, *, strict: bool = True) -> LoadReport:
    """Copy `weights` into `module`; a module on the meta device gets memory on the CPU.

    Args:
        module: a model, or a part of one.
        weights: key -> tensor.
        where: the file, for messages.
        strict: take all or nothing. False is for surgery, such as a head that the file lacks: what fits is taken, the
            rest is warned of and returned; the module must have memory.

    Returns:
        What was left out, nothing if strict.

    Raises:
        CheckpointError: strict, and keys are missing, unexpected or of another shape, listed by module; or nothing at
            all fits. Nothing was copied then.
    """
    if strict:
        check_weights(module, weights, where)
        if any(tensor.is_meta for tensor in module.state_dict().values()):
            module.to_empty(device="cpu")
        module.load_state_dict(weights, strict=True)
        return LoadReport([], [], {})
    report = _compare(module, weights)
    left_out = {*report.unexpected, *report.misfits}
    fitting = {name: tensor for name, tensor in weights.items() if name not in left_out}
    if not fitting:
        raise CheckpointError(where, "must hold some weights of the model", found=str(report))
    module.load_state_dict(fitting, strict=False)
    if not report.complete:
        warnings.warn(f"{where}: not everything was loaded:{report}", stacklevel=2)
    return report


def check_weights(module: nn.Module, weights: Mapping[str, Any], where: object) -> None:
    """Require exactly the weights of the module.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape, listed by module.
    """
    report = _compare(module, weights)
    if not report.complete:
        raise CheckpointError(
            where,
            "must hold exactly the weights of the model",
            found=str(report),
            fix="\nWas the file written for another model version, encoder or configuration?",
        )


def _compare(module: nn.Module, weights: Mapping[str, Any]) -> LoadReport:
    own = module.state_dict()
    misfits = {}
    for name, expected in own.items():
        given = weights.get(name)
        if given is not None and (problem := _misfit(given, expected)):
            misfits[name] = problem
    missing = [name for name in own if name not in weights]
    return LoadReport(missing, [str(name) for name in weights if name not in own], misfits)


def read_tensors(path: Path) -> Any:
    """Contents of a `.pt`, `.pth` or `.safetensors` file on the CPU; code in a pickle is refused, never run.

    The file is mapped: its bytes are read when a tensor is used, and processes of one machine share the memory that
    they take. Writing to a tensor changes this process's copy of the page, never the file; a file that is replaced or
    removed stays readable, one that is overwritten in place does not. So copy what is to be kept for long.

    Returns:
        What `torch.save` was given. A safetensors file's tensors; with a `model_config` (JSON) in its metadata,
        `{"model_config", "model"}`.

    Raises:
        CheckpointError: the file is missing, empty, truncated, of another kind, or holds more than plain data.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(2)
    except OSError as error:
        raise CheckpointError(path, "must be a readable file", found=error.strerror or str(error)) from error
    if not magic:
        raise CheckpointError(path, "must hold weights", found="an empty file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        # Files of torch before 1.6 are no archives and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=magic == b"PK")
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        if name:
            fix = "Such a file could run any program; ask its author for a plain one."
            raise CheckpointError(path, "must hold tensors and plain values only", found=name[1], fix=fix) from error
        raise CheckpointError(path, "must be a file written by torch.save", found="other contents") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged pickles and archives fail in every way there is
        reason = str(error).strip().partition("\n")[0][:160]
        found = "an archive that is truncated, damaged" if magic == b"PK" else "contents that are damaged"
        # torch advises to switch its protection off here, which nobody should.
        found += " or of another kind" + ("" if "weights_only" in reason else f" ({reason})")
        raise CheckpointError(path, "must be a file written by torch.save", found=found) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    import json

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            metadata = file.metadata() or {}
        if "model_config" not in metadata:
            return weights
        return {"model_config": json.loads(metadata["model_config"]), "model": weights}
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(path, "must be a safetensors file", found=reason) from error


def _fetch(name: str) -> Path:
    """Local path of the published weights of an encoder, downloaded at first use."""
    if name not in HUB_ENCODERS:
        fix = "Train it with `--init random`."
        raise WeightsError("--init hub", f"needs one of {', '.join(HUB_ENCODERS)}", found=name, fix=fix)
    url = HUB_URL.format(name=name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        # torch.hub would wait for ever on a network that drops packets.
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_TIMEOUT_S):  # noqa: S310
            pass
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            "--init hub",
            f"needs to download {url}",
            found=str(error),
            fix="Offline: fetch that file elsewhere and give `--init PATH`, or start with `--init random`.",
        ) from error
    return path


def fetch_from_hub(repository: str, file_name: str) -> Path:
    """Local path of a file of a Hugging Face repository, downloaded at first use.

    Raises:
        WeightsError: it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file_name))
    except Exception as error:  # network, authentication and cache errors share no base class
        raise WeightsError(
            repository,
            "is no file here and could not be fetched from the Hugging Face Hub",
            found=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            fix=f"Offline: download {file_name} from https://huggingface.co/{repository} and give its path.",
        ) from error


# Names of the `transformers` package and DINOv2's own, in the order of replacement.
_TRANSFORMERS_NAMES = (
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.", ""),
    ("encoder.layer.", "blocks."),
    ("layernorm.", "norm."),
    (".attention.output.dense.", ".attn.proj."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
    (".mlp.weights_in.", ".mlp.w12."),
    (".mlp.weights_out.", ".mlp.w3."),
)


def _with_our_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder weights with DINOv2's own key names, whichever they had; query, key and value become one matrix."""
    if "embeddings.cls_token" not in weights:
        return dict(weights)
    renamed: dict[str, Any] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)", name):
            parts.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = tensor
            continue
        for theirs, ours in _TRANSFORMERS_NAMES:
            name = name.replace(theirs, ours)  # noqa: PLW2901 - one replacement after another
        renamed[name] = tensor
    for name, own in parts.items():
        if own.keys() == {"query", "key", "value"}:  # else the load tells what is missing
            renamed[name] = torch.cat([own["query"], own["key"], own["value"]])
    return renamed


def _misfit(given: object, expected: Tensor) -> str | None:
    """Why an entry of a file cannot be copied to a parameter, or None if it can."""
    if not isinstance(given, Tensor):
        return f"a {type(given).__name__}"
    if given.shape != expected.shape:
        return f"{list(given.shape)} instead of {list(expected.shape)}"
    if not given.is_floating_point() or given.is_meta or given.layout is not torch.strided:
        return f"{given.dtype}, {given.layout}, on {given.device}"
    return None


def _grouped(names: Iterable[str], details: Mapping[str, str]) -> str:
    """`head.projects (2: 0.weight, 0.bias); ...`: names by the first two parts of their module."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        cut = min(2, len(parts) - 1)
        leaf = ".".join(parts[cut:]) + (f" {details[name]}" if name in details else "")
        groups.setdefault(".".join(parts[:cut]) or "top level", []).append(leaf)
    shown = []
    for group, leaves in groups.items():
        more = ", ..." if len(leaves) > MAX_NAMES_SHOWN else ""
        shown.append(f"{group} ({len(leaves)}: {', '.join(leaves[:MAX_NAMES_SHOWN])}{more})")
    return "; ".join(shown)
