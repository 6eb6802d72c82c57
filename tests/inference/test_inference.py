"""Geometry of photos: predictions, meshes, panoramas and the `moge infer` command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moge_core.cli import cli
from moge_core.errors import InputError
from moge_core.inference import Prediction, infer_path, point_map_to_mesh, predict, predict_panorama
from moge_core.inference.panorama import panorama_directions, panorama_views, view_of_panorama
from moge_core.io import read_depth, read_mask, read_ply
from moge_core.models import MoGeModel, build_model, save_model

V2 = {
    "encoder": {"backbone": "dinov2_vitt14", "intermediate_layers": [2, 5], "dim_out": 16},
    "neck": {
        "dim_in": [18, 2, 2, 2, 2],
        "dim_out": [8, 8, 8, 8, 8],
        "dim_res_blocks": [16, 16, 8, 8, 8],
        "num_res_blocks": 1,
        "resamplers": "bilinear",
    },
    "remap_output": "exp",
    "num_tokens_range": [20, 60],
}
HEAD = {"dim_in": [8] * 5, "dim_res_blocks": [8] * 5, "num_res_blocks": 0, "resamplers": "bilinear"}


def tiny_v2() -> MoGeModel:
    torch.manual_seed(0)
    heads = {f"{name}_head": {**HEAD, "dim_out": [None] * 4 + [dim]} for name, dim in (("points", 3), ("normal", 3))}
    return build_model("v2", **V2, **heads, scale_head={"dims": [192, 8, 1]}).eval()


class Boxes(MoGeModel):
    """Stands for a trained model: it sees a near box before a far wall, whatever the image."""

    version = "v2"
    forward = dinov2 = None  # type: ignore[assignment]

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def infer(self, image: torch.Tensor, fov_x: float | None = None, **_: Any) -> dict[str, torch.Tensor]:
        batch, _, height, width = image.shape
        depth = torch.full((batch, height, width), 5.0)
        depth[:, height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 2
        f = 0.5 / math.tan(math.radians(fov_x or 60) / 2)
        intrinsics = torch.tensor([[f, 0, 0.5], [0, f * width / height, 0.5], [0, 0, 1]]).expand(batch, 3, 3)
        v, u = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        ray = torch.stack([(u - 0.5) / f, (v - 0.5) / (f * width / height), torch.ones_like(u)], -1)
        mask = torch.ones(batch, height, width, dtype=torch.bool)
        mask[:, 0] = False
        points = (ray * depth[..., None]).where(mask[..., None], torch.inf)
        normal = torch.tensor([0.0, 0.0, -1.0]).expand(batch, height, width, 3).where(mask[..., None], 0)
        depth = depth.where(mask, torch.inf)
        scale = torch.ones(batch)
        return {
            "points": points,
            "depth": depth,
            "mask": mask,
            "intrinsics": intrinsics,
            "normal": normal,
            "metric_scale": scale,
        }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of many kinds: sizes, orientation by EXIF, grey, transparent, equal names; one file is no image."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (64, 48)), ("b.png", (48, 64)), ("deep/a.jpg", (64, 48)), ("long.jpg", (120, 40))):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(folder / name)
    Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 255, (40, 50, 4), dtype=np.uint8)).save(folder / "a.png")
    turned = Image.fromarray(rng.integers(0, 255, (30, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_a_folder_of_photos_becomes_a_folder_of_results(photos: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    out = tmp_path / "out"
    report = infer_path(
        Boxes(), photos, out, batch_size=2, maps=True, ply=True, glb=True, progress=lambda *at: heard.append(at)
    )
    names = {path.relative_to(out).as_posix() for path in report.written}
    assert names == {"a.jpg", "a.png", "b", "deep/a", "long", "grey", "turned"}
    assert [path.name for path, _ in report.failures] == ["broken.jpg"]
    assert heard[-1] == (8, 8)
    with Image.open(out / "turned" / "depth_vis.png") as picture:
        assert picture.size == (30, 60)  # as people see it
    camera = json.loads((out / "b" / "fov.json").read_text())
    assert camera["fov_x"] == pytest.approx(60)
    assert camera["metric"]
    depth, mask = read_depth(out / "b" / "depth.png"), read_mask(out / "b" / "mask.png")
    assert depth[mask] == pytest.approx(np.where(depth[mask] < 3, 2, 5), rel=1e-3)
    assert np.isnan(depth[~mask]).all()
    with np.load(out / "b" / "maps.npz") as arrays:
        assert set(arrays) == {"points", "depth", "mask", "normal", "intrinsics"}
        assert arrays["points"].shape == (64, 48, 3)
    cloud = read_ply(out / "b" / "pointcloud.ply")
    assert cloud.points[:, 2].max() < 0  # viewers look along -z


def test_a_mesh_is_textured_and_has_no_face_across_an_edge(photos: Path, tmp_path: Path) -> None:
    report = infer_path(Boxes(), photos / "b.png", tmp_path / "out", glb=True)
    scene = trimesh.load(report.written[0] / "mesh.glb")
    mesh = scene.to_geometry() if hasattr(scene, "to_geometry") else scene.dump(concatenate=True)
    assert mesh.visual.material.baseColorTexture is not None
    depth = -mesh.vertices[mesh.faces][..., 2]
    assert len(depth) > 1000
    assert (depth.max(1) / depth.min(1)).max() <= 1.04
    # Faces look at the camera, which is at the origin.
    towards = -mesh.triangles_center
    assert (np.einsum("ij,ij->i", mesh.face_normals, towards) > 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31), st.sampled_from([0.01, 0.1, 1.0]))
def test_no_face_of_any_mesh_spans_an_edge(height: int, width: int, seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    depth = (1 + rng.random((height, width)) * rng.choice([0.01, 0.3, 5])).astype(np.float32)
    mask = rng.random((height, width)) < 0.9
    points = np.stack([depth, depth, depth], -1)
    mesh = point_map_to_mesh(points, depth, mask, threshold=threshold)
    assert len(mesh.vertices) == len(mesh.uv)
    if len(mesh.faces):
        corners = mesh.vertices[mesh.faces][..., 2]
        assert ((corners.max(1) - corners.min(1)) / corners.min(1)).max() <= threshold * (1 + 1e-5)


def test_a_large_mesh_is_thinned() -> None:
    depth = np.ones((200, 300), np.float32)
    mesh = point_map_to_mesh(np.ones((200, 300, 3), np.float32), depth, depth > 0, max_vertices=1000)
    assert 200 < len(mesh.vertices) <= 1000


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_prediction_holds_what_the_model_has(precision: Any) -> None:
    images = [np.full((30, 40, 3), value, np.uint8) for value in (0, 255)]
    first, second = predict(tiny_v2(), images, num_tokens=20, precision=precision)
    assert isinstance(first, Prediction)
    assert first.metric
    assert first.normal is not None
    assert first.points.shape == (30, 40, 3)
    assert first.points.dtype == np.float32
    assert second.image is images[1]


@pytest.mark.parametrize(
    ("images", "how", "named"),
    [
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], {}, "images"),
        ([np.zeros((4, 4, 3), np.float32)], {}, "images"),
        ([np.zeros((4, 4, 3), np.uint8)], {"precision": "fp8"}, "precision"),
        ([np.zeros((4, 4, 3), np.uint8)], {"fov_x": 190.0}, "fov_x"),
    ],
)
def test_images_and_options_outside_their_domain_are_named(images: Any, how: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}"):
        predict(tiny_v2(), images, **how)


# Panoramas.


class Room(Boxes):
    """Sees the box-shaped room that a panorama of distances shows, each view at a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def infer(self, image: torch.Tensor, fov_x: float | None = None, **_: Any) -> dict[str, torch.Tensor]:
        assert fov_x == 90
        self.calls += 1
        side = image.shape[-1]
        distance = image[:, 0] * 255 / 40 * (0.5 + self.calls / 7)
        grid = (torch.arange(side) + 0.5) / side * 2 - 1
        ray = torch.stack([grid.expand(side, side), grid[:, None].expand(side, side), torch.ones(side, side)], -1)
        points = ray / ray.norm(dim=-1, keepdim=True) * distance[..., None]
        mask = torch.ones_like(distance, dtype=torch.bool)
        intrinsics = torch.tensor([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]])[None]
        return {"points": points, "depth": points[..., 2], "mask": mask, "intrinsics": intrinsics}


def test_views_of_a_panorama_are_merged_at_one_scale() -> None:
    directions = panorama_directions(256, 128)
    distance = (np.array([2, 1.3, 3]) / np.maximum(np.abs(directions), 1e-9)).min(-1)
    image = np.repeat(np.round(distance * 40)[..., None], 3, -1).astype(np.uint8)
    found = predict_panorama(Room(), image)
    assert found.mask.all()
    ratio = np.log(found.depth / distance)
    assert np.abs(ratio - np.median(ratio)).mean() < 0.02
    np.testing.assert_allclose(found.points, directions * found.depth[..., None], rtol=1e-5)


def test_views_look_in_every_direction_and_keep_it() -> None:
    directions = panorama_directions(128, 64)
    for view in panorama_views():
        np.testing.assert_allclose(view.rotation @ view.rotation.T, np.eye(3), atol=1e-6)
        seen = view_of_panorama(directions, view, 31)
        middle = seen[15, 15] / np.linalg.norm(seen[15, 15])
        assert middle @ view.rotation[2] > 0.999
        assert seen[15, 30] @ view.rotation[0] > 0  # right is right
        assert seen[30, 15] @ view.rotation[1] > 0  # down is down


def test_what_is_no_panorama_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="twice as wide"):
        predict_panorama(Boxes(), np.zeros((40, 60, 3), np.uint8))
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.png")
    Image.new("RGB", (64, 32), "white").save(tmp_path / "round.png")
    report = infer_path(Room(), tmp_path, tmp_path / "out", panorama=True, glb=True)
    assert [path.name for path in report.written] == ["round"]
    assert [path.name for path, _ in report.failures] == ["photo.png"]


# The command.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "00000007.pt"
    save_model(path, tiny_v2())
    return path


def test_the_command_predicts_and_tells_failures(photos: Path, tmp_path: Path, checkpoint: Path) -> None:
    arguments = ["infer", "-i", str(photos), "-o", str(tmp_path / "out"), "--model", str(checkpoint)]
    result = CliRunner().invoke(cli, [*arguments, "--num-tokens", "20", "--maps", "--device", "cpu", "--resize", "40"])
    assert result.exit_code == 1
    assert "7 images done" in result.output
    assert "broken.jpg" in result.output
    picture = cv2.imread(str(tmp_path / "out" / "long" / "normal_vis.png"))
    assert picture.shape == (13, 40, 3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--device", "cuda:77"], "--device"),
        (["--threshold", "0"], "--threshold"),
        (["--fov-x", "200"], "fov_x"),
    ],
)
def test_the_command_names_what_is_wrong_in_one_line(
    photos: Path, tmp_path: Path, checkpoint: Path, arguments: list[str], named: str
) -> None:
    base = ["infer", "-i", str(photos / "b.png"), "-o", str(tmp_path / "out"), "--model", str(checkpoint)]
    result = CliRunner().invoke(cli, [*base, *arguments])
    assert result.exit_code == 2
    assert named in result.output
    assert len(result.output.removeprefix("device cpu, precision fp32\n").strip().splitlines()) == 1


def test_results_of_an_earlier_run_are_no_input(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    for _ in range(2):
        assert len(infer_path(Boxes(), tmp_path, tmp_path / "out").written) == 1


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must hold images"):
        infer_path(Boxes(), tmp_path, tmp_path / "out")


def test_checkpoint_show_and_convert(checkpoint: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    shown = run(cli, ["checkpoint", "show", str(checkpoint)]).output
    assert all(word in shown for word in ("v2", "step:", "7", "float32", '"num_tokens_range"'))
    described = json.loads(run(cli, ["checkpoint", "show", "--json", str(checkpoint)]).output)
    assert described["num_parameters"] == sum(parameter.numel() for parameter in tiny_v2().parameters())

    there, back = tmp_path / "a.safetensors", tmp_path / "b.pt"
    for source, target in ((checkpoint, there), (there, back)):
        assert run(cli, ["checkpoint", "convert", str(source), str(target)]).exit_code == 0
    first, second = (torch.load(path, weights_only=True) for path in (checkpoint, back))
    assert first["model_config"] == second["model_config"]
    assert all(torch.equal(first["model"][key], second["model"][key]) for key in first["model"])
    again = run(cli, ["checkpoint", "convert", str(checkpoint), str(back)])
    assert again.exit_code == 2
    assert "must not exist" in again.output
