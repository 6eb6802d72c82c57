"""Sample scenes: true to their own geometry, equal for ever, and complete on disk or not there at all."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.datasets import sample_scenes
from moge_core.datasets.sample_scenes import Scene, draw_world, render_sample_scenes, render_scene
from moge_core.datasets.scenes.materials import PATTERNS, Material
from moge_core.datasets.scenes.rendering import cast_rays, find_surfaces
from moge_core.datasets.scenes.shapes import Ball, Polyhedron, Shape, box, house, prism, room
from moge_core.datasets.scenes.workers import run_workers
from moge_core.datasets.scenes.world import World
from moge_core.errors import DatasetError, InputError
from moge_core.geometry import depth_map_to_normal_map, depth_map_to_point_map
from moge_core.io import read_depth, read_image, read_meta, read_normal

SEED = 5
NUM_SCENES = 24
SIZE = (96, 72)
SOME = range(NUM_SCENES)
GREY = Material("plain", ((0.5, 0.5, 0.5),) * 3)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(SEED, index, SIZE) for index in SOME]


def world_points(world: World, scene: Scene, share: float = 1.0) -> npt.NDArray[Any]:
    """(3, N) world points at a share of the way to the surface, for pixels of finite depth."""
    points = depth_map_to_point_map(scene.depth * np.float32(share), scene.intrinsics)[np.isfinite(scene.depth)]
    rotated = world.camera.rotation() @ points.T.astype(np.float64) + world.camera.position[:, None]
    return np.asarray(rotated, np.float32)


@pytest.mark.parametrize("index", SOME)
def test_every_depth_lies_on_a_surface_and_nothing_stands_before_it(index: int, scenes: list[Scene]) -> None:
    world, scene = draw_world(SEED, index), scenes[index]
    depth = scene.depth[np.isfinite(scene.depth)]
    off = np.min([np.abs(shape.distance(world_points(world, scene))) for shape in world.shapes], axis=0)
    assert (off <= 2e-5 * np.maximum(depth, 10)).all()
    for share in (0.01, 0.3, 0.6, 0.9, 0.99):
        points = world_points(world, scene, share)
        for shape in world.shapes:
            inside = -shape.distance(points)
            is_room = isinstance(shape, Polyhedron) and shape.hollow
            assert (inside > -1e-3).all() if is_room else (inside < 1e-3).all()


@pytest.mark.parametrize("index", SOME)
def test_where_there_is_sky_no_shape_is_on_the_ray(index: int, scenes: list[Scene]) -> None:
    world, scene = draw_world(SEED, index), scenes[index]
    sky = np.isposinf(scene.depth)
    rays = depth_map_to_point_map(np.ones_like(scene.depth), scene.intrinsics)[sky].T
    solids = [shape for shape in world.shapes if not (isinstance(shape, Polyhedron) and shape.hollow)]
    for far in np.geomspace(0.2, 500, 60):
        points = world.camera.rotation() @ rays * far + world.camera.position[:, None]
        assert all((shape.distance(points.astype(np.float32)) > -1e-3).all() for shape in solids)


def test_normals_face_the_camera_and_are_of_unit_length_where_depth_is_finite(scenes: list[Scene]) -> None:
    for scene in scenes:
        known = np.isfinite(scene.depth)
        assert np.isnan(scene.normal[~known]).all()
        rays = depth_map_to_point_map(np.ones_like(scene.depth), scene.intrinsics)
        assert ((scene.normal * rays).sum(-1)[known] < 0).all()
        assert np.allclose(np.linalg.norm(scene.normal[known], axis=-1), 1, atol=1e-5)


def test_normals_agree_with_differences_of_depth_within_each_flat_face(scenes: list[Scene]) -> None:
    compared = 0
    for index, scene in enumerate(scenes):
        height, width = scene.depth.shape
        world = draw_world(SEED, index)
        surfaces = find_surfaces(world, cast_rays(world.camera, width, height))
        flat = np.array([isinstance(shape, Polyhedron) for shape in [*world.shapes, None]])[surfaces.shape]
        face = np.where(flat, surfaces.shape * 100 + surfaces.face, -1).reshape(height, width)
        face[~np.isfinite(scene.depth)] = -1
        middle = face[1:-1, 1:-1]
        around = [face[:-2, 1:-1], face[2:, 1:-1], face[1:-1, :-2], face[1:-1, 2:]]
        inner = np.pad((middle >= 0) & np.all([middle == other for other in around], axis=0), 1)
        normals, valid = depth_map_to_normal_map(scene.depth, scene.intrinsics)
        assert valid[inner].all()
        cosine = (normals[inner] * scene.normal[inner]).sum(-1)
        assert (cosine > math.cos(math.radians(0.5))).all()
        compared += cosine.size
    assert compared > 0.4 * NUM_SCENES * SIZE[0] * SIZE[1]


def test_pixels_further_up_look_higher(scenes: list[Scene]) -> None:
    for index, scene in enumerate(scenes):
        rays = depth_map_to_point_map(np.ones_like(scene.depth), scene.intrinsics)
        world_rays = rays @ draw_world(SEED, index).camera.rotation().T
        elevation = world_rays[..., 2] / np.linalg.norm(world_rays, axis=-1)
        column = scene.depth.shape[1] // 2
        assert (np.diff(elevation[:, column]) < 0).all()


def test_the_image_shows_the_edges_of_its_own_depth(scenes: list[Scene]) -> None:
    def contrast(image: npt.NDArray[np.uint8], scene: Scene) -> float:
        steps = np.abs(np.diff(image.astype(float).mean(-1), axis=1))
        depth = np.nan_to_num(scene.depth, nan=1.0, posinf=1e4)
        edges = np.abs(np.diff(np.log(depth), axis=1)) > 0.2
        return float(steps[edges].mean()) if edges.any() else 0.0

    own = np.mean([contrast(scene.image, scene) for scene in scenes])
    mirrored = np.mean([contrast(scene.image[:, ::-1], scene) for scene in scenes])
    upside_down = np.mean([contrast(scene.image[::-1], scene) for scene in scenes])
    assert own > 2 * max(mirrored, upside_down)


def test_a_set_has_rooms_and_outdoors_portraits_off_centre_cameras_sky_and_unknown(scenes: list[Scene]) -> None:
    kinds = [scene.kind for scene in scenes]
    assert kinds.count("room") == kinds.count("outdoor") == NUM_SCENES // 2
    sizes = {scene.depth.shape for scene in scenes}
    assert sizes == {(SIZE[1], SIZE[0]), SIZE}
    off_centre = [not np.allclose(scene.intrinsics[:2, 2], 0.5) for scene in scenes]
    assert 0 < sum(off_centre) < NUM_SCENES // 2
    assert sum(bool(np.isposinf(scene.depth).any()) for scene in scenes) > NUM_SCENES // 4
    assert sum(bool(np.isnan(scene.depth).any()) for scene in scenes) > 2
    assert all(np.isfinite(scene.depth).mean() > 0.2 for scene in scenes)


def test_fields_of_view_span_40_to_100_degrees_and_pixels_are_square(scenes: list[Scene]) -> None:
    longer = []
    for scene in scenes:
        height, width = scene.depth.shape
        fx, fy = scene.intrinsics[0, 0] * width, scene.intrinsics[1, 1] * height
        assert fx == pytest.approx(fy, rel=1e-5)
        longer.append(math.degrees(2 * math.atan(max(width, height) / (2 * fx))))
    assert min(longer) > 39.9
    assert max(longer) < 100.1
    assert max(longer) - min(longer) > 35


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**63), index=st.integers(0, 10**6), size=st.sampled_from([(24, 18), (31, 7), (1, 1)]))
def test_any_seed_and_index_give_a_valid_scene_twice_the_same(seed: int, index: int, size: tuple[int, int]) -> None:
    scene, again = (render_scene(seed, index, size) for _ in range(2))
    assert scene.image.dtype == np.uint8
    assert scene.image.shape == scene.normal.shape == (*scene.depth.shape, 3)
    assert sorted(scene.depth.shape) == sorted(size)
    assert not (scene.depth <= 0).any()
    for name in ("image", "depth", "normal", "intrinsics"):
        assert np.array_equal(getattr(scene, name), getattr(again, name), equal_nan=name != "image")


def test_every_seed_and_every_index_gives_another_scene() -> None:
    depths = [render_scene(seed, index, (24, 18)).depth.tobytes() for seed in (0, 1, 2) for index in range(6)]
    assert len(set(depths)) == len(depths)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the log of imports, which tells of each run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "import.jsonl"
    }


def test_files_do_not_depend_on_how_many_workers_wrote_them_or_how_many_scenes(tmp_path: Path) -> None:
    render_sample_scenes(tmp_path / "one", 6, SEED, size=SIZE, num_workers=1)
    render_sample_scenes(tmp_path / "many", 9, SEED, size=SIZE, num_workers=3)
    one, many = tree(tmp_path / "one"), tree(tmp_path / "many")
    assert len(one) == 6 * 4
    assert one == {name: many[name] for name in one}


def test_what_is_written_is_the_scene(tmp_path: Path, scenes: list[Scene]) -> None:
    instances = render_sample_scenes(tmp_path, 4, SEED, size=SIZE)
    assert instances == ["outdoor/000001", "outdoor/000003", "room/000000", "room/000002"]
    assert not list(tmp_path.glob(".index*"))
    for instance in instances:
        scene = scenes[int(instance[-6:])]
        depth = read_depth(tmp_path / instance / "depth.png")
        assert np.array_equal(np.isnan(depth), np.isnan(scene.depth))
        assert np.allclose(depth, scene.depth, rtol=1e-4, equal_nan=True)
        normal = read_normal(tmp_path / instance / "normal.png")
        assert np.allclose(normal, scene.normal, atol=1e-4, equal_nan=True)
        image = read_image(tmp_path / instance / "image.jpg")
        assert np.abs(image.astype(int) - scene.image).mean() < 8
        meta = read_meta(tmp_path / instance / "meta.json")
        assert np.array_equal(meta["intrinsics"], scene.intrinsics)
        assert meta["scene"] == scene.metadata


def test_a_second_run_writes_only_what_is_missing(tmp_path: Path) -> None:
    render_sample_scenes(tmp_path, 4, SEED, size=SIZE)
    before = tree(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    lost = tmp_path / "room" / "000002" / "depth.png"
    lost.unlink()
    told: list[tuple[int, int]] = []
    render_sample_scenes(tmp_path, 5, SEED, size=SIZE, progress=lambda done, total: told.append((done, total)))
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith("room/000004")} == before
    kept = [path for path in times if path.parent != lost.parent]
    assert all(path.stat().st_mtime_ns == times[path] for path in kept)
    assert told == [(3, 5), (4, 5), (5, 5)]


def test_another_scene_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    render_sample_scenes(tmp_path, 2, SEED, size=SIZE)
    before = tree(tmp_path)
    for arguments in ({"seed": SEED + 1, "size": SIZE}, {"seed": SEED, "size": (64, 48)}):
        with pytest.raises(DatasetError, match="Choose another folder"):
            render_sample_scenes(tmp_path, 3, **arguments)  # type: ignore[arg-type]
    foreign = tmp_path / "foreign" / "room" / "000000"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"room.000000"):
        render_sample_scenes(tmp_path / "foreign", 1, SEED, size=SIZE)
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith("foreign")} == before


def test_a_failure_while_writing_leaves_no_unfinished_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample_scenes, "write_normal", fail)
    with pytest.raises(OSError, match="No space left"):
        render_sample_scenes(tmp_path, 4, SEED, size=SIZE, num_workers=1)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("order", ["raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)", "take_order()"])
def test_workers_that_die_leave_their_scenes_to_the_caller(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    render_sample_scenes(tmp_path / "whole", 4, SEED, size=SIZE, num_workers=1)
    monkeypatch.setattr(sample_scenes, "__name__", f"moge_core.datasets.scenes.workers import take_order; {order} #")
    render_sample_scenes(tmp_path / "saved", 4, SEED, size=SIZE, num_workers=2)
    assert tree(tmp_path / "saved") == tree(tmp_path / "whole")
    assert "A worker failed" in caplog.text


def test_leaving_early_leaves_no_worker_behind() -> None:
    numbers = run_workers("tests.datasets.no_such_module:serve", [{"indices": [1]}] * 2)
    assert list(numbers) == []
    before = threading.active_count()
    numbers = run_workers("moge_core.datasets.sample_scenes:serve", [{"indices": []}] * 2)
    assert list(numbers) == []
    assert threading.active_count() == before


def test_an_interrupted_run_leaves_whole_scenes_and_neither_workers_nor_scraps(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        render_sample_scenes(tmp_path, 40, SEED, size=SIZE, num_workers=2, progress=interrupt)
    assert threading.active_count() == before
    files = sorted(tree(tmp_path))
    assert 0 < len(files) < 40 * 4
    assert len(files) == 4 * len({Path(name).parent for name in files})
    assert list((tmp_path / ".moge").iterdir()) == []


def test_a_script_without_a_main_guard_can_render(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from moge_core.datasets.sample_scenes import render_sample_scenes\n"
        "print(render_sample_scenes('out', 4, 0, size=(32, 24), num_workers=2))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(sample_scenes.__file__).parents[2])}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "['outdoor/000001', 'outdoor/000003', 'room/000000', 'room/000002']\n"


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("count", lambda out: render_sample_scenes(out, 0, 0)),
        ("seed", lambda out: render_sample_scenes(out, 1, -1)),
        ("size", lambda out: render_sample_scenes(out, 1, 0, size=(0, 5))),
        ("num_workers", lambda out: render_sample_scenes(out, 1, 0, num_workers=0)),
        ("index", lambda _: render_scene(0, -1)),
    ],
)
def test_arguments_out_of_range_are_named(argument: str, call: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=argument):
        call(tmp_path / "out")
    assert not (tmp_path / "out").exists()


SHAPES: dict[str, Shape] = {
    "box": box((1.0, -2.0, 0.5), (1.5, 0.7, 2.0), GREY, yaw=0.6),
    "column": prism((0.0, 1.0, 0.0), 0.8, 2.5, GREY, GREY, num_sides=9),
    "fir": prism((0.5, 0.0, -1.0), 1.2, 2.0, GREY, GREY, num_sides=7, top_radius=0.1),
    "goblet": prism((0.5, 0.0, 0.0), 0.3, 1.0, GREY, GREY, top_radius=0.8),
    "house": house((0.0, 0.0, 0.0), (2.0, 1.4, 1.0), 0.8, GREY, GREY, yaw=-0.4),
    "ball": Ball(np.array([0.3, 0.2, 1.0], np.float32), 1.1, GREY),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_ray_stops_where_the_shape_begins_and_the_sphere_around_it_holds_it(name: str) -> None:
    shape = SHAPES[name]
    rng = np.random.default_rng(0)
    origins = rng.normal(size=(3, 4000)).astype(np.float32)
    origins *= 6 / np.linalg.norm(origins, axis=0)
    directions = (rng.uniform(-2, 2, (3, 4000)) - origins).astype(np.float32)
    t, _ = shape.intersect(origins, directions)
    met = np.isfinite(t)
    assert 100 < met.sum() < 3900
    hits = (origins + directions * np.where(met, t, 0))[:, met]
    assert np.abs(shape.distance(hits)).max() < 1e-4
    assert (np.linalg.norm(hits - shape.centre[:, None], axis=0) <= shape.radius + 1e-4).all()
    for share in np.linspace(0, 2, 200):
        before = share < np.where(met, t, np.inf)
        assert (shape.distance((origins + directions * np.float32(share))[:, before]) > -1e-4).all()


def test_the_attic_of_a_room_slants_down_to_its_low_wall() -> None:
    size, slope = (4.0, 3.0, 2.5), math.radians(40)
    attic = room(size, [GREY] * 4, GREY, GREY, slope)
    ray_up = np.array([[0.0], [0.0], [1.0]], np.float32)
    for x in (0.5, 2.0, 3.9):
        t, _ = attic.intersect(np.array([[x], [1.0], [0.1]], np.float32), ray_up)
        assert t[0] + 0.1 == pytest.approx(min(2.5, 1.0 + (4.0 - x) * math.tan(slope)), abs=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_texture_seen_from_afar_is_calm_and_keeps_its_brightness(pattern: str) -> None:
    rng = np.random.default_rng(1)
    material = Material(pattern, ((0.6, 0.5, 0.4), (0.2, 0.2, 0.3), (0.1, 0.1, 0.1)), variation=0.3)
    u, v = rng.uniform(-0.9 if pattern == "road" else -50, 0.9 if pattern == "road" else 50, (2, 20_000)).astype("f4")
    near = material.albedo(u, v, np.full_like(u, 0.01))
    far = material.albedo(u, v, np.full_like(u, 40.0))
    assert near.std(axis=1).max() > 0.01
    if pattern != "road":  # wider than itself, it is mostly the grass beside it
        assert far.std(axis=1).max() < 0.02
        assert np.allclose(far.mean(axis=1), near.mean(axis=1), atol=0.05)
