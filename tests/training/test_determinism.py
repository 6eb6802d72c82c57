"""`--deterministic`: what a training computes that a GPU does not order by itself, and what becomes of it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from played_accelerator import played_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from moge_core.models import build_model
from moge_core.training import ExitCode, main
from moge_core.training.determinism import deterministic_algorithms

Config = Callable[..., Path]
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "training.md"

# What torch names in the documentation of `use_deterministic_algorithms`, and the operations behind it, by the names
# that they have below autograd. In-place ones end in an underscore, which is left out here.
LISTED: dict[str, set[str]] = {
    "Conv": {"convolution", "convolution_backward"},
    "ConvTranspose": {"convolution", "convolution_backward"},
    "ReplicationPad": {"replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward"},
    "bmm": set(),  # of sparse matrices
    "Tensor.__getitem__": {"index_put", "_index_put_impl"},
    "Tensor.index_put": {"index_put", "_index_put_impl"},
    "Tensor.put_": {"put"},
    "Tensor.scatter_add_": {"scatter_add"},
    "gather": {"gather"},
    "index_add": {"index_add"},
    "index_select": {"index_select"},
    "repeat_interleave": {"repeat_interleave"},
    "Tensor.index_copy": {"index_copy"},
    "Tensor.scatter": {"scatter"},
    "Tensor.scatter_reduce": {"scatter_reduce"},
    "MaxPool": {"max_pool3d_with_indices_backward"},
    "AvgPool": {"avg_pool3d_backward"},
    "AdaptiveAvgPool": {"_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"},
    "AdaptiveMaxPool": {"adaptive_max_pool2d_backward"},
    "FractionalMaxPool": {"fractional_max_pool2d_backward", "fractional_max_pool3d_backward"},
    "MaxUnpool": {"max_unpool2d", "max_unpool3d"},
    "functional.interpolate": {
        "upsample_linear1d_backward",
        "upsample_bilinear2d_backward",
        "_upsample_bilinear2d_aa_backward",
        "upsample_bicubic2d_backward",
        "_upsample_bicubic2d_aa_backward",
        "upsample_trilinear3d_backward",
    },
    "ReflectionPad": {"reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"},
    "NLLLoss": {"nll_loss_forward", "nll_loss2d_forward", "nll_loss2d_backward"},
    "CTCLoss": {"_ctc_loss_backward"},
    "EmbeddingBag": {"_embedding_bag_dense_backward"},
    "histc": {"histc"},
    "bincount": {"bincount"},
    "median": {"median", "nanmedian"},
    "functional.grid_sample": {"grid_sampler_2d_backward", "grid_sampler_3d_backward"},
    "cumsum": {"cumsum"},
    "Tensor.resize_": set(),  # of quantised tensors
}
V2 = {
    "encoder": {"backbone": "dinov2_vitt14", "intermediate_layers": [2, 5], "dim_out": 16},
    **{
        head: {
            "dim_in": [18, 2, 2, 2, 2] if head == "neck" else [16, 8, 8, 8, 8],
            "dim_out": [None, None, None, None, dim_out],
            "dim_res_blocks": [16, 8, 8, 8, 8],
            "num_res_blocks": [0, 1, 0, 0, 0],
            "res_block_in_norm": "none",
            "res_block_hidden_norm": "none",
            "resamplers": ["conv_transpose", "conv_transpose", "conv_transpose", "bilinear"],
        }
        for head, dim_out in (("neck", None), ("points_head", 3), ("mask_head", 1), ("normal_head", 3))
    },
    "scale_head": {"dims": [192, 8, 1]},
    "remap_output": "exp",
    "num_tokens_range": [12, 20],
}
MORE_LOSSES = {
    "v1": {"normal": "normal_loss", "edge": "edge_loss"},
    # Only masks of v2 are probabilities.
    "v2": {"normal_map": "normal_map_loss", "metric_scale": "metric_scale_loss", "bce": "mask_bce_loss"},
}


class Started(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[function.overloadpacket._qualified_op_name.split("::")[1].rstrip("_")] += 1
        return function(*args, **(kwargs or {}))


def arguments(config: Path, workspace: Path, *flags: str) -> list[str]:
    return ["--config", str(config), "--workspace", str(workspace), "--enable_mlflow", "False", *flags]


def told_in_the_guide() -> set[str]:
    """Operations of the table in docs/training.md."""
    section = GUIDE.read_text().split("## To the bit on a GPU")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_list_is_that_of_this_torch() -> None:
    """Another torch may order more, or less: the table in the guide is then to be looked at again."""
    text = str(torch.use_deterministic_algorithms.__doc__)
    named = re.findall(r"\* :(?:func|class):`torch\.(?:nn\.)?([\w.]+?)(?:\dd)?`", text)
    assert set(named) == set(LISTED)


@pytest.mark.slow
def test_the_guide_names_every_such_operation_of_a_training(tiny_config: Config, tmp_path: Path) -> None:
    found: set[str] = set()
    for version in ("v1", "v2"):
        losses = {key: {"function": function} for key, function in MORE_LOSSES[version].items()}
        path = tiny_config(loss={"synthetic": losses})
        if version == "v2":
            values = json.loads(path.read_text())
            path.write_text(json.dumps({**values, "model_version": "v2", "model": V2}))
        flags = ["--num_iterations", "2", "--eval_every", "1", "--eval_fraction", "0.3", "--vis_every", "1"]
        with Started() as started:
            assert main(arguments(path, tmp_path / version, *flags, "--num_vis_images", "2")) == 0
        found |= started.names.keys()
    assert {"convolution_backward", "_fused_adamw", "sort"} <= found, "a whole step was seen"
    listed = set.union(*LISTED.values())
    assert found & listed == told_in_the_guide() & listed


def test_gradients_that_torch_cannot_order_are_computed_another_way() -> None:
    torch.manual_seed(0)
    model = build_model("v2", **V2)
    image = torch.rand(1, 3, 42, 56)
    gradients = []
    for wanted in (False, True):
        model.zero_grad()
        with played_accelerator() as played, deterministic_algorithms(wanted):
            there = build_model("v2", **V2)
            there.load_state_dict(model.state_dict())
            there = there.to(played.device)
            sum(value.sum() for value in there(image.to(played.device), 15).values()).backward()
            embedding = there.dinov2.pos_embed
            gradients.append(embedding.grad.to("cpu"))
        refused = {
            name for name in played.started if re.fullmatch(r"_?upsample_\w+linear\w+_backward|.*bicubic.*", name)
        }
        if wanted:
            assert not {name for name in refused if name.endswith("_backward")}
        else:
            assert {"upsample_bilinear2d_backward", "upsample_bicubic2d_backward"} <= refused
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def settings() -> tuple[Any, ...]:
    from torch.backends import cudnn

    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        cudnn.deterministic,
        cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


LOOKING = """
import torch
from test_determinism import settings

seen = []


def looking_loss(output, truth, refused=False):
    seen.append(settings())
    if refused:
        raise RuntimeError("put_ does not have a deterministic implementation, but you set ...")
    return output["points"].flatten(1).abs().mean(dim=1) * 0.01, {}
"""


@pytest.fixture
def looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Config) -> Callable[..., Path]:
    """Writes a configuration with a loss that notes the settings it is computed under."""
    (tmp_path / "looking_losses.py").write_text(LOOKING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setitem(sys.modules, "test_determinism", sys.modules[__name__])
    monkeypatch.delitem(sys.modules, "looking_losses", raising=False)

    def write(**params: Any) -> Path:
        term = {"function": "looking_losses:looking_loss", "params": params}
        return tiny_config(loss={"synthetic": {"extra": term}}, loss_modules=["looking_losses"])

    return write


def test_the_settings_hold_in_a_training_are_told_and_end_with_it(
    looking: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = settings()
    for flag in ("True", "False"):
        flags = ["--num_iterations", "1", "--deterministic", flag]
        with caplog.at_level("INFO"):
            assert main(arguments(looking(), tmp_path / flag, *flags)) == 0
        assert settings() == before
    assert sys.modules["looking_losses"].seen == [(True, False, False, True, False, ":4096:8"), before]
    assert (
        caplog.text.count("deterministic: torch takes ordered algorithms alone, CUBLAS_WORKSPACE_CONFIG=:4096:8") == 1
    )


@pytest.mark.parametrize("more", [[], ["--dry_run"]])
def test_an_operation_that_torch_cannot_order_is_named(
    looking: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    before = settings()
    flags = ["--num_iterations", "2", "--deterministic", "True", *more]
    code = main(arguments(looking(refused=True), tmp_path / "w", *flags))
    assert code == (ExitCode.REFUSED if more else ExitCode.FAILED)
    assert (
        "--deterministic: needs operations that torch can order on this device; found put_." in capsys.readouterr().err
    )
    assert settings() == before
