"""Model files and initial weights: exact when they are right, clear when they are wrong."""

from __future__ import annotations

import json
import os
import pickle
import re
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from model_golden import published_state_dicts
from test_model_forward import TINY, TINY_V1, tiny

from moge_core.errors import CheckpointError, WeightsError
from moge_core.models import MoGeModel, build_model, init_backbone, load_model, load_weights, save_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    save_model(path, tiny("v1"))
    return path


def rewrite(path: Path, **changes: Any) -> Path:
    content = torch.load(path, weights_only=True)
    content |= changes
    torch.save(content, path)
    return path


def equal_weights(a: MoGeModel, b: MoGeModel) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_saved_model_loads_bit_equal(version: str, name: str, tmp_path: Path) -> None:
    model = tiny(version)
    save_model(tmp_path / name, model)
    loaded = load_model(tmp_path / name)
    assert equal_weights(model, loaded)
    assert type(loaded) is type(model)
    assert loaded.model_config == model.model_config == TINY[version]
    assert not loaded.training
    image = torch.rand(1, 3, 20, 30)
    with torch.no_grad():
        ours, theirs = model(image, 6), loaded(image, 6)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_model_file_has_exactly_the_published_contents(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    assert content.keys() == {"model_config", "model"}
    assert content["model_config"] == TINY_V1
    assert [path.name for path in saved.parent.iterdir()] == ["model.pt"]


def test_other_weights_of_the_same_model_can_be_saved(tmp_path: Path) -> None:
    model = tiny("v1")
    halved = {name: tensor / 2 for name, tensor in model.state_dict().items()}
    save_model(tmp_path / "ema.pt", model, weights=halved)
    assert torch.equal(load_model(tmp_path / "ema.pt").dinov2.norm.weight, model.dinov2.norm.weight / 2)


def test_a_half_precision_file_loads_in_float32(saved: Path) -> None:
    weights = {name: tensor.half() for name, tensor in tiny("v1").state_dict().items()}
    loaded = load_model(rewrite(saved, model=weights))
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_what_a_checkpoint_carries_beside_the_model_does_not_disturb(saved: Path) -> None:
    assert equal_weights(load_model(rewrite(saved, step=3, optimizer={"state": {}})), tiny("v1"))


def test_a_failed_save_leaves_the_older_file_and_nothing_else(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(saved, tiny("v1"))
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["model.pt"]


# --- files that are wrong ---


def test_missing_unexpected_and_misshaped_keys_are_listed_by_module(saved: Path) -> None:
    weights = torch.load(saved, weights_only=True)["model"]
    del weights["head.projects.0.weight"], weights["head.projects.1.bias"]
    weights["head.extra.weight"] = torch.zeros(1)
    weights["backbone.norm.weight"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as caught:
        load_model(rewrite(saved, model=weights))
    text = str(caught.value)
    assert "missing: head.projects (2: 0.weight, 1.bias)" in text
    assert "unexpected: head.extra (1: weight)" in text
    assert "mis-shaped: backbone.norm (1: weight [7] instead of [192])" in text


def test_a_v2_checkpoint_does_not_load_into_a_v1_model(tmp_path: Path) -> None:
    model = tiny("v1")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"missing(.|\n)*unexpected"):
        load_weights(model, tiny("v2").state_dict(), where="v2.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploited",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_refused_and_not_run(legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    content = {"model_config": TINY_V1, "model": {"x": Exploit()}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"plain values only; found (posix|nt)\.system"):
        load_model(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError):
        load_model(path)
    assert not (tmp_path / "exploited").exists()


@pytest.mark.parametrize("share", [0, 1, 10, 500, 900, 999])
def test_a_truncated_file_is_refused(share: int, saved: Path) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: len(data) * share // 1000])
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        load_model(saved)


@pytest.mark.parametrize("data", [b"PK\x03\x04 not a zip", b"\x80\x02nonsense", b"<html></html>", b"\x89PNG\r\n", b"0"])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_foreign_files_are_refused(data: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="must be a"):
        load_model(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "found list"),
        ({}, "found nothing"),
        ({"a.weight": torch.zeros(2)}, "--init"),
        ({"model_config": TINY_V1, "step": 7}, "00000007.pt"),
        ({"model_config": TINY_V1, "step": 7, "optimizer": {}, "lr_scheduler": {}}, "optimiser"),
        ({"model_config": TINY_V1, "step": "x"}, "model_config"),
        ({"model_config": "vitl", "model": {}}, "model_config"),
        ({"model_config": {**TINY_V1, "encoder": "resnet50"}, "model": {}}, "model_config: encoder"),
        ({"model_config": {**TINY_V1, "dim_proj": 10**9}, "model": {}}, "model_config: dim_proj"),
        ({"model_config": {**TINY_V1, "trained_area_range": "large"}, "model": {}}, "trained_area_range"),
        ({"model_config": {**TINY_V1, "trained_area_range": [1.0, float("nan")]}, "model": {}}, "trained_area_range"),
        ({"model_config": {"encoder": {"backbone": "dinov2_vits14"}}, "model": {}}, "model_config"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_its_reason(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "x.pt")
    assert says in str(caught.value)


@pytest.mark.parametrize("value", ["text", torch.zeros(192, dtype=torch.int64), torch.zeros(192, device="meta")])
def test_weights_that_are_no_weights_are_refused(value: object, saved: Path) -> None:
    weights = torch.load(saved, weights_only=True)["model"]
    with pytest.raises(CheckpointError, match=r"backbone\.norm"):
        load_model(rewrite(saved, model={**weights, "backbone.norm.weight": value}))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_model(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="directory"):
        load_model(tmp_path)


# --- files of other ages ---


def test_unknown_keys_of_a_checkpoints_configuration_warn(saved: Path) -> None:
    with pytest.warns(UserWarning, match="split_head"):
        loaded = load_model(rewrite(saved, model_config={**TINY_V1, "split_head": True}))
    assert loaded.model_config == TINY_V1


def test_unknown_keys_warn_at_every_depth_of_a_v2_configuration(tmp_path: Path) -> None:
    model = tiny("v2")
    save_model(tmp_path / "v2.pt", model)
    config = {**model.model_config, "neck": {**model.model_config["neck"], "activation": "relu"}}
    with pytest.warns(UserWarning, match=r"neck\.activation"):
        assert equal_weights(load_model(rewrite(tmp_path / "v2.pt", model_config=config)), model)


def test_an_old_range_of_areas_becomes_a_range_of_tokens(saved: Path) -> None:
    loaded = load_model(rewrite(saved, model_config={**TINY_V1, "trained_area_range": [250000, 500000]}))
    assert tuple(loaded.num_tokens_range) == (250000 // 196, 500000 // 196)
    assert "trained_area_range" not in loaded.model_config


# --- the hub ---


def test_a_repository_is_fetched_by_its_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or str(saved))
    assert equal_weights(load_model("Ruicheng/moge-vitl"), tiny("v1"))
    assert asked == [("Ruicheng/moge-vitl", "model.pt")]


def test_an_unreachable_repository_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(WeightsError, match=r"download model\.pt from https://huggingface\.co/Ruicheng/moge-vitl"):
        load_model("Ruicheng/moge-vitl")


# --- initial weights ---


def test_random_weights_have_the_spread_that_trains_from_scratch() -> None:
    model = build_model("v1", encoder="dinov2_vitt14", remap_output="exp")
    before = model.head.projects[0].weight.clone()
    torch.manual_seed(3)
    init_backbone(model, "random")
    block = model.dinov2.blocks[0]
    for weights in (block.attn.qkv.weight, block.mlp.fc2.weight, model.dinov2.patch_embed.proj.weight):
        assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.03)
    # Blocks begin near the identity, and neighbouring positions alike.
    assert (block.ls1.gamma == 0.2).all()
    table = model.dinov2.pos_embed.detach()[0, 1:].reshape(37, 37, -1)
    near, far = (table[18, 18] - table[18, 19]).norm(), (table[18, 18] - table[2, 30]).norm()
    assert 0 < float(near) < 0.5 * float(far)
    assert torch.equal(model.head.projects[0].weight, before)
    with torch.no_grad():
        z = model(torch.rand(1, 3, 42, 56), 100)["points"][..., 2]
    assert 0.3 < float(z.min()) <= float(z.max()) < 3


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_encoder_weights_come_from_a_local_file(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(5)
    source = build_model("v1", **TINY_V1).dinov2.state_dict()
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(source, path)
    else:
        save_file(source, path)
    for version in ("v1", "v2"):
        model = tiny(version)
        init_backbone(model, path)
        assert all(torch.equal(tensor, source[key]) for key, tensor in model.dinov2.state_dict().items())


def transformers_names(weights: dict[str, Any]) -> dict[str, Any]:
    """DINOv2 weights as the `transformers` package names and splits them."""
    named = {}
    for key, tensor in weights.items():
        name = key.replace("patch_embed.proj", "patch_embeddings.projection").replace(
            ".attn.proj", ".attention.output.dense"
        )
        name = re.sub(r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1", name).replace("pos_embed", "position_embeddings")
        if name.startswith(("cls_token", "mask_token", "position", "patch")):
            name = f"embeddings.{name}"
        name = re.sub(r"^blocks", "encoder.layer", re.sub(r"^norm", "layernorm", name))
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                named[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece.clone()
        else:
            named[name] = tensor
    return named


@pytest.mark.parametrize("by_name", [True, False])
def test_encoder_weights_come_from_a_repository_or_file_of_the_hub(
    by_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from safetensors.torch import save_file

    torch.manual_seed(5)
    source = build_model("v1", **TINY_V1).dinov2.state_dict()
    path = tmp_path / "model.safetensors"
    save_file(transformers_names(source), path)
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or str(path))
    model = tiny("v2")
    init_backbone(model, "facebook/dinov2-tiny" if by_name else path)
    assert all(torch.equal(tensor, source[key]) for key, tensor in model.dinov2.state_dict().items())
    assert asked == ([("facebook/dinov2-tiny", "model.safetensors")] if by_name else [])


def test_encoder_weights_of_another_size_are_refused_by_module(tmp_path: Path) -> None:
    published = published_state_dicts()["v1_vits14"]["state_dict"]
    shapes = {key.removeprefix("backbone."): shape for key, shape in published.items() if key.startswith("backbone.")}
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "dinov2_vits14_pretrain.pth")
    with pytest.raises(CheckpointError, match=r"unexpected: blocks\.6(.|\n)*mis-shaped(.|\n)*384"):
        init_backbone(tiny("v1"), tmp_path / "dinov2_vits14_pretrain.pth")


def test_a_whole_model_is_no_encoder_weights(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="--checkpoint"):
        init_backbone(tiny("v1"), saved)


def test_published_weights_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = build_model("v1", **{**TINY_V1, "encoder": "dinov2_vits14"})
    torch.manual_seed(5)
    source = build_model("v1", **{**TINY_V1, "encoder": "dinov2_vits14"}).dinov2.state_dict()
    cached = tmp_path / "hub" / "checkpoints" / "dinov2_vits14_pretrain.pth"
    cached.parent.mkdir(parents=True)
    torch.save(source, cached)
    init_backbone(model, "hub")
    assert torch.equal(model.dinov2.pos_embed, source["pos_embed"])


def test_without_a_network_the_hub_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(WeightsError) as caught:
        init_backbone(build_model("v1", **{**TINY_V1, "encoder": "dinov2_vits14"}), "hub")
    text = str(caught.value)
    assert "dinov2_vits14_pretrain.pth" in text
    assert "--init PATH" in text
    assert "--init random" in text


def test_our_tiny_encoder_has_no_published_weights() -> None:
    with pytest.raises(WeightsError, match="--init random"):
        init_backbone(tiny("v1"), "hub")


def test_a_misspelt_init_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="`hub`, `random` or the path"):
        init_backbone(tiny("v1"), str(tmp_path / "randon"))


def test_a_safetensors_file_with_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"model_config": "{"})
    with pytest.raises(CheckpointError):
        load_model(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"model_config": json.dumps(TINY_V1)})
    with pytest.raises(CheckpointError, match="missing"):
        load_model(path)


# Surgery.


@pytest.fixture
def headless(tmp_path: Path) -> Path:
    """A v2 model without a mask head."""
    path = tmp_path / "headless.pt"
    config = {key: value for key, value in TINY["v2"].items() if key != "mask_head"}
    save_model(path, build_model("v2", **config))
    return path


def test_a_head_that_a_checkpoint_lacks_is_added_and_told(headless: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing: mask_head"):
        load_model(headless, model_config=TINY["v2"])
    with pytest.warns(UserWarning, match=r"headless.pt: not everything was loaded:\n  missing: mask_head"):
        grown = load_model(headless, model_config=TINY["v2"], strict=False)
    own, given = grown.state_dict(), load_model(headless).state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in given.items())
    assert {name.partition(".")[0] for name in own.keys() - given.keys()} == {"mask_head"}


def test_what_does_not_fit_is_left_as_it_was_and_returned(saved: Path) -> None:
    model = tiny("v1")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = torch.load(saved, weights_only=True)["model"]
    name = next(iter(weights))
    weights = {**weights, name: torch.zeros(3), "extra.weight": torch.zeros(1)}
    with pytest.warns(UserWarning, match=r"mis-shaped(.|\n)*instead of"):
        report = load_weights(model, weights, where=saved, strict=False)
    assert (report.missing, report.unexpected, list(report.misfits)) == ([], ["extra.weight"], [name])
    assert not report.complete
    assert torch.equal(model.state_dict()[name], before[name])


def test_a_complete_file_is_loaded_without_a_warning_however_strict(saved: Path) -> None:
    assert load_weights(tiny("v1"), torch.load(saved, weights_only=True)["model"], saved, strict=False).complete


def test_nothing_that_fits_is_an_error_even_if_not_strict() -> None:
    with pytest.raises(CheckpointError, match="must hold some weights"):
        load_weights(tiny("v1"), {"other.weight": torch.zeros(1)}, where="file", strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_of_the_other_version_is_named_as_such(saved: Path, strict: bool) -> None:
    with pytest.raises(CheckpointError, match="must be a v2 checkpoint; found a v1 one"):
        load_model(saved, model_config=TINY["v2"], strict=strict)
