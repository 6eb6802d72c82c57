"""Importing arrays, NPZ, HDF5 and Zarr: shapes, conventions, and files that mean harm."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from click.testing import CliRunner
from plane_frames import check_camera, check_is_plane, picture, plane_z, ray_distance

from moge_core.cli.importing_scenes import arrays_command
from moge_core.datasets.importers import array_sources
from moge_core.datasets.importers.array_files import import_arrays
from moge_core.datasets.importers.array_sources import Slabs, open_arrays
from moge_core.errors import DatasetError, FormatError, InputError
from moge_core.io import limits, read_depth, read_image, read_normal

Array = npt.NDArray[Any]

W, H, N = 40, 30, 5
CAMERA = (36.0, 35.0, 20.25, 13.5)
K = np.array([[36.0, 0, 20.25], [0, 35.0, 13.5], [0, 0, 1]])


def frames(count: int = N) -> dict[str, Array]:
    """Frames of the plane with images that differ."""
    image, z = picture(W, H), plane_z(W, H, CAMERA)
    images = np.stack([np.roll(image, i, axis=1) for i in range(count)])
    return {"images": images, "depths": np.stack([z] * count).astype(np.float32), "intrinsics": K}


def save(path: Path, arrays: dict[str, Array]) -> Path:
    """Write arrays in the format that the name says: a.npz, a.packed.npz, a.h5, a.2.zarr, a.3.zarr, a.sharded.zarr."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        (np.savez_compressed if ".packed" in path.name else np.savez)(path, **arrays)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for key, values in arrays.items():
                file.create_dataset(key, data=values, compression="gzip", chunks=(2, *values.shape[1:]))
    else:
        group = zarr.open_group(path, mode="w", zarr_format=2 if ".2." in path.name else 3)
        for key, values in arrays.items():
            together = (1, *values.shape[1:])
            shards = (2, *values.shape[1:]) if "sharded" in path.name else None
            group.create_array(key, data=values, chunks=together, shards=shards)
    return path


FORMATS = ["a.npz", "a.packed.npz", "a.h5", "a.2.zarr", "a.3.zarr", "a.sharded.zarr"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_exactly_frame_by_frame(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, frames())
    report = import_arrays(path, tmp_path / "out")
    stem = name.rpartition(".")[0]
    assert report.instances == [f"{stem}/{i:06d}" for i in range(N)]
    assert report.skipped == []
    for i, instance in enumerate(report.instances):
        folder = report.out_dir / instance
        check_is_plane(folder)
        check_camera(folder, CAMERA, W, H)
        assert np.abs(read_image(folder / "image.jpg").astype(int) - frames()["images"][i]).mean() < 4
    assert (report.label_type, report.metric) == ("sfm", True)
    assert import_arrays(path, tmp_path / "out").num_written == 0


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_one_frame_need_no_leading_dimension_and_a_folder_may_mix_them(tmp_path: Path, name: str) -> None:
    single = {"rgb": picture(W, H), "depth": plane_z(W, H, CAMERA), "K": K}
    save(tmp_path / "source" / "x" / name, single)
    save(tmp_path / "source" / "y.npz", single)
    report = import_arrays(tmp_path / "source", tmp_path / "out")
    assert report.instances == ["x/" + name.rpartition(".")[0], "y"]
    for instance in report.instances:
        check_is_plane(report.out_dir / instance)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {**a, "images": np.moveaxis(a["images"], 3, 1)},
        lambda a: {**a, "images": (a["images"] / 255).astype(np.float32)},
        lambda a: {**a, "images": a["images"].astype(np.uint16) * 257},
        lambda a: {**a, "images": np.concatenate([a["images"], a["images"][..., :1]], axis=3)},
        lambda a: {**a, "depths": a["depths"][..., None]},
        lambda a: {**a, "depths": a["depths"][:, None]},
        lambda a: {**a, "depths": a["depths"].astype(">f8")},
    ],
)
def test_images_and_depth_may_have_any_usual_shape_and_type(
    tmp_path: Path, change: Callable[[dict[str, Array]], dict[str, Array]]
) -> None:
    report = import_arrays(save(tmp_path / "a.npz", change(frames())), tmp_path / "out")
    assert len(report.instances) == N
    check_is_plane(report.out_dir / "a/000001")
    image = read_image(report.out_dir / "a/000001/image.jpg").astype(int)
    assert np.abs(image - frames()["images"][1]).mean() < 4


@pytest.mark.parametrize("white", [np.uint8(255), np.uint16(65535), np.float32(1), np.float64(1)])
def test_white_is_white_in_every_type(tmp_path: Path, white: Any) -> None:
    path = save(tmp_path / "a.npz", {**frames(1), "images": np.full((1, H, W, 3), white)})
    assert (read_image(import_arrays(path, tmp_path / "out").out_dir / "a/000000/image.jpg") == 255).all()


@pytest.mark.parametrize(
    ("intrinsics", "told"),
    [
        (K, "pixels"),
        (np.array([[36 / W, 0, 20.75 / W], [0, 35 / H, 14 / H], [0, 0, 1]]), "normalised"),
        (np.stack([K] * N), "pixels"),
        (K[None], "pixels"),
        (np.block([[K, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]), "pixels"),
        (np.array(CAMERA), "pixels"),
        (np.stack([CAMERA] * N), "pixels"),
        (K.T, "pixels"),
        (np.array([[36 / W, 0, 0], [0, 35 / H, 0], [20.75 / W, 14 / H, 1]]), "normalised"),
    ],
)
def test_intrinsics_may_be_pixels_or_normalised_and_which_was_taken_is_told(
    tmp_path: Path, intrinsics: Array, told: str
) -> None:
    report = import_arrays(save(tmp_path / "a.npz", {**frames(), "intrinsics": intrinsics}), tmp_path / "out")
    assert any(told in note for note in report.notes)
    for instance in report.instances:
        check_camera(report.out_dir / instance, CAMERA, W, H)


def test_each_frame_has_its_own_camera_where_there_are_many(tmp_path: Path) -> None:
    many = np.stack([K + i * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]]) for i in range(N)])
    out = import_arrays(save(tmp_path / "a.npz", {**frames(), "intrinsics": many}), tmp_path / "out").out_dir
    for i in range(N):
        check_camera(out / f"a/{i:06d}", (36.0 + i, 35.0 + i, 20.25, 13.5), W, H)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_rows_of_fx_fy_cx_cy_are_one_camera_a_frame_even_of_four_frames(tmp_path: Path, count: int) -> None:
    rows = np.array([(36.0 + i, 35.0 + i, 20.25, 13.5) for i in range(count)])
    out = import_arrays(save(tmp_path / "a.npz", {**frames(count), "intrinsics": rows}), tmp_path / "out").out_dir
    for i in range(count):
        check_camera(out / f"a/{i:06d}", (36.0 + i, 35.0 + i, 20.25, 13.5), W, H)


@pytest.mark.parametrize("transposed", [False, True])
def test_one_matrix_of_four_rows_stays_the_camera_of_four_frames(tmp_path: Path, transposed: bool) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = K.T if transposed else K
    out = import_arrays(save(tmp_path / "a.npz", {**frames(4), "intrinsics": matrix}), tmp_path / "out").out_dir
    for i in range(4):
        check_camera(out / f"a/{i:06d}", CAMERA, W, H)


def test_names_and_meanings_can_be_said(tmp_path: Path) -> None:
    z = plane_z(W, H, CAMERA)
    distance = np.round(ray_distance(z, CAMERA) * 5000).astype(np.uint16)
    distance[0, 0] = 65535
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["obs/camera/rgb"] = picture(W, H)
        file["obs/camera/d"] = distance
    options = {"image_key": "obs/camera/rgb", "depth_key": "obs/camera/d", "kind": "ray", "scale": 5000}
    report = import_arrays(
        tmp_path / "a.h5", tmp_path / "out", intrinsics="36,35,20.25,13.5", invalid=[65535], depth_unit=None, **options
    )
    depth = check_is_plane(report.out_dir / "a", unit=None, tolerance=1e-3)
    assert np.argwhere(np.isnan(depth)).tolist() == [[0, 0]]
    assert report.metric is False
    inverse = import_arrays(
        save(tmp_path / "b.npz", {"rgb": picture(W, H), "depth": 1 / z, "K": K}),
        tmp_path / "o",
        kind="inverse",
        scale=1,
    )
    check_is_plane(inverse.out_dir / "b")


def test_the_name_of_an_array_tells_its_kind_and_what_it_cannot_tell_is_said(tmp_path: Path) -> None:
    z = frames()["depths"][0]
    rays = z * np.linalg.norm(
        np.stack(
            [*np.meshgrid((np.arange(W) - K[0, 2]) / K[0, 0], (np.arange(H) - K[1, 2]) / K[1, 1]), np.ones((H, W))]
        ),
        axis=0,
    )
    named = {"rgb": picture(W, H), "K": K, "ray_distance": rays.astype(np.float32), "obs_disparity": 30 / z}
    source = save(tmp_path / "a.npz", named)
    report = import_arrays(source, tmp_path / "ray", depth_key="ray_distance")
    check_is_plane(report.out_dir / "a")
    assert any("kind ray" in note for note in report.notes)
    as_z = import_arrays(source, tmp_path / "z", depth_key="obs_disparity")
    assert any("--kind disparity --baseline METRES" in note for note in as_z.notes)
    said = import_arrays(source, tmp_path / "said", depth_key="ray_distance", kind="z")
    assert not any("named" in note for note in said.notes)


def test_integers_are_millimetres_unless_told_and_that_is_said(tmp_path: Path) -> None:
    arrays = {**frames(), "depths": np.round(1000 * frames()["depths"]).astype(np.uint16)}
    report = import_arrays(save(tmp_path / "a.npz", arrays), tmp_path / "out")
    check_is_plane(report.out_dir / "a/000000", tolerance=1e-3)
    assert any("millimetres" in note for note in report.notes)


def test_normals_are_read_where_there_are_any(tmp_path: Path) -> None:
    normal = np.tile(np.array([0.6, 0, -0.8], np.float32), (N, H, W, 1))
    out = import_arrays(save(tmp_path / "a.npz", {**frames(), "normals": normal}), tmp_path / "out").out_dir
    np.testing.assert_allclose(read_normal(out / "a/000002/normal.png"), normal[2], atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_file_is_imported_again(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, frames())
    import_arrays(path, tmp_path / "out")
    changed = frames()
    changed["depths"] = changed["depths"] * np.float32(2)
    save(path, changed)
    report = import_arrays(path, tmp_path / "out")
    assert report.num_written == N
    first = read_depth(report.out_dir / report.instances[0] / "depth.png")
    np.testing.assert_allclose(first, changed["depths"][0], rtol=1e-4)


@pytest.mark.parametrize("name", ["a.2.zarr", "a.3.zarr"])
def test_a_frame_of_a_zarr_that_changed_is_imported_again_alone_and_new_ones_are_added(
    tmp_path: Path, name: str
) -> None:
    path = save(tmp_path / name, frames())
    import_arrays(path, tmp_path / "out")
    group = zarr.open_group(path, mode="r+")
    group["depths"][2] = 2 * frames()["depths"][2]
    report = import_arrays(path, tmp_path / "out")
    assert report.num_written == 1
    changed = read_depth(report.out_dir / report.instances[2] / "depth.png")
    np.testing.assert_allclose(changed, 2 * frames()["depths"][2], rtol=1e-4)
    for key in ("images", "depths"):
        group[key].append(frames(2)[key])
    assert len(import_arrays(path, tmp_path / "out").instances) == N + 2


@pytest.mark.parametrize("name", ["a.npz", "a.packed.npz", "a.h5"])
def test_frames_stored_together_are_each_read_once(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 40
    path = save(tmp_path / name, frames(count))
    monkeypatch.setattr(array_sources, "_SLAB_BYTES", 4 * W * H * 4)
    read: list[tuple[int, int]] = []
    with open_arrays(path, Slabs(1 << 20)) as arrays:
        inner = arrays._read

        def count_reading(key: str, start: int, stop: int) -> Array:
            read.append((start, stop))
            return inner(key, start, stop)

        monkeypatch.setattr(arrays, "_read", count_reading)
        for i in (1, 0, 2, 3, 5, 4, *range(6, count)):  # threads ask a little out of order
            np.testing.assert_array_equal(arrays.frame("depths", i), frames(1)["depths"][0])
        with pytest.raises(FormatError, match="frame 40"):
            arrays.frame("depths", count)
    assert read == sorted(set(read))
    assert sum(stop - start for start, stop in read) == count


@pytest.mark.parametrize("name", ["a.npz", "a.packed.npz"])
def test_an_npz_is_read_from_front_to_end_once_and_any_frame_can_be_asked_for(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(40, dtype=np.float32)[:, None, None] + np.zeros((H, W), np.float32)
    path = save(tmp_path / name, {"depths": values})
    monkeypatch.setattr(array_sources, "_SLAB_BYTES", 4 * W * H * 4)
    opened: list[Path] = []
    inner = array_sources.open_npz

    def count_opening(path: Path) -> Any:
        opened.append(path)
        return inner(path)

    monkeypatch.setattr(array_sources, "open_npz", count_opening)
    with open_arrays(path, Slabs(1)) as arrays:
        assert [arrays.frame("depths", i)[0, 0] for i in range(40)] == list(range(40))
        assert len(opened) == 1
        assert [arrays.frame("depths", i)[0, 0] for i in (30, 2, 38, 0)] == [30, 2, 38, 0]


def test_slabs_stay_within_their_limit() -> None:
    slabs = Slabs(1000)
    for i in range(50):
        slabs.keep((Path("a"), "x", i), np.zeros(100, np.uint8))
    kept = [i for i in range(50) if slabs.get((Path("a"), "x", i)) is not None]
    assert kept == list(range(40, 50))


def test_files_that_cannot_be_imported_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    good = {"image": picture(W, H), "depth": plane_z(W, H, CAMERA), "K": K}
    for name in "abcdefghij":
        save(source / f"{name}.npz", good)
    data = (source / "b.npz").read_bytes()
    (source / "b.npz").write_bytes(data[: len(data) // 2])
    save(source / "c.npz", {"image": good["image"], "K": K})
    save(source / "d.npz", {**good, "depth": good["depth"].T})
    save(source / "e.npz", {**good, "image": good["image"].astype(np.float32)})
    save(source / "f.npz", {**good, "K": np.eye(5)})
    np.savez(source / "g.npz", **{**good, "depth": np.array([{}], dtype=object)})
    save(source / "h.npz", {**good, "image": good["depth"]})
    save(source / "i.npz", {**good, "depth": good["depth"].astype(np.complex128)})
    broken = bytearray((source / "j.npz").read_bytes())
    at = broken.index(b"depth.npy") + 400
    broken[at : at + 8] = bytes(8)
    (source / "j.npz").write_bytes(broken)
    (source / "k.h5").write_bytes(b"no HDF5")
    (source / "l.zarr").mkdir()
    report = import_arrays(source, tmp_path / "out")
    found = {finding.instance: finding.evidence for finding in report.skipped}
    assert report.instances == ["a"]
    assert set(found) == set("bcdefghijkl")
    assert "depth" in found["c"]
    assert "0 to 1" in found["e"]
    assert "objects" in found["g"]


def test_lengths_that_disagree_are_refused(tmp_path: Path) -> None:
    for change in ({"depths": frames(4)["depths"]}, {"intrinsics": np.stack([K] * 3)}):
        with pytest.raises(DatasetError, match=r"as many frames|one of 5 frames"):
            import_arrays(save(tmp_path / "a.npz", {**frames(), **change}), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "metres"}, "kind"),
        ({"scale": 0}, "scale"),
        ({"depth_unit": -1}, "depth_unit"),
        ({"intrinsics": "1,2"}, "intrinsics"),
        ({"baseline": 0.1}, "disparity"),
    ],
)
def test_options_of_arrays_outside_their_domain_are_refused_by_name(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        import_arrays(save(tmp_path / "a.npz", frames()), tmp_path / "out", **options)


def test_a_source_without_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "a.txt").write_text("x")
    for source in ("source", "a.txt"):
        with pytest.raises(DatasetError, match="zarr"):
            import_arrays(tmp_path / source, tmp_path / "out")


class Trap:
    """What pickle would run."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("pwned"),))


def test_nothing_in_a_zarr_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "a.2.zarr", frames(1))
    for codec in ({"filters": [{"id": "pickle"}]}, {"compressor": {"id": "pickle", "protocol": 5}}, {"dtype": "|O"}):
        meta = json.loads((path / "depths/.zarray").read_text())
        save(tmp_path / "b.2.zarr", frames(1))
        (tmp_path / "b.2.zarr/depths/.zarray").write_text(json.dumps({**meta, **codec}))
        for chunk in (tmp_path / "b.2.zarr/depths").glob("0*"):
            chunk.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(DatasetError, match=r"codecs of numbers|hold numbers"):
            import_arrays(tmp_path / "b.2.zarr", tmp_path / "out")
    v3 = save(tmp_path / "c.3.zarr", frames(1)) / "depths/zarr.json"
    meta = json.loads(v3.read_text())
    meta["codecs"] = [{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "numcodecs.pickle"}]}}]
    v3.write_text(json.dumps(meta))
    with pytest.raises(DatasetError, match="codecs of numbers"):
        import_arrays(v3.parents[1], tmp_path / "out")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["a.2.zarr", "a.3.zarr"])
@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", "[" * 5000, '{"shape": [-1], "chunks": [1], "dtype": "<f4"}', '{"node_type": "array"}']
)
def test_damaged_zarr_descriptions_are_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    path = save(tmp_path / name, frames(1))
    file = path / "depths" / (".zarray" if ".2." in name else "zarr.json")
    file.write_text(text)
    with pytest.raises(DatasetError, match="depth"):
        import_arrays(path, tmp_path / "out")


def test_damaged_zarr_chunks_cost_only_their_frames(tmp_path: Path) -> None:
    path = save(tmp_path / "a.3.zarr", frames())
    (chunk,) = (path / "depths/c/2").rglob("0/0")
    chunk.write_bytes(chunk.read_bytes()[:9] + b"damaged")
    report = import_arrays(path, tmp_path / "out")
    assert len(report.instances) == N - 1
    assert [finding.instance for finding in report.skipped] == ["a.3/000002"]


def test_zarr_keys_stay_inside_the_group(tmp_path: Path) -> None:
    save(tmp_path / "a.3.zarr", frames(1))
    save(tmp_path / "b.3.zarr", frames(1))
    for key in ("../b.3.zarr/depths", str(tmp_path / "b.3.zarr/depths")):
        with pytest.raises(DatasetError, match="must hold"):
            import_arrays(tmp_path / "a.3.zarr", tmp_path / "out", depth_key=key)


def bomb_shapes(folder: Path) -> None:
    """Small files that announce what no memory holds: in frames, in pixels, in chunks."""
    for name, shape in (("frames", (10**12, H, W)), ("pixels", (1, 10**7, 10**7)), ("count", (10**6, 1, 1))):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_dataset("depth", shape=shape, dtype="f4", chunks=(1, *(min(side, 32) for side in shape[1:])))
            file.create_dataset("image", shape=(*shape, 3), dtype="u1", chunks=(1, 1, 1, 3))
            file["K"] = K
        for version in (2, 3):
            group = zarr.open_group(folder / f"{name}{version}.zarr", mode="w", zarr_format=version)
            group.create_array("depth", shape=shape, dtype="f4", chunks=(1, *(min(side, 32) for side in shape[1:])))
            group.create_array("image", shape=(*shape, 3), dtype="u1", chunks=(1, 1, 1, 3))
            group.create_array("K", data=K)
        with zipfile.ZipFile(folder / f"{name}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for key, dtype, size in (("depth", "<f4", shape), ("image", "|u1", (*shape, 3))):
                with archive.open(f"{key}.npy", "w") as member:
                    header = {"descr": dtype, "fortran_order": False, "shape": size}
                    np.lib.format.write_array_header_1_0(member, header)
                    member.write(bytes(1 << 22))


BOMBS = """
import resource, sys
from pathlib import Path
from moge_core.datasets.importers.array_files import import_arrays
from moge_core.errors import DatasetError
import h5py, zarr
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    import_arrays(sys.argv[1], sys.argv[2], intrinsics="36,35,20.25,13.5")
except DatasetError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_files_that_announce_too_much_are_refused_in_flat_memory(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    bomb_shapes(tmp_path / "source")
    command = [sys.executable, "-c", BOMBS, str(tmp_path / "source"), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "none usable" in result.stdout
    assert int(result.stdout.split()[-1]) < 200
    (event,) = [json.loads(line) for line in (tmp_path / "out/.moge/import.jsonl").read_text().splitlines()]
    named = {entry["file"].partition("/")[0] for entry in event["skipped"]}
    assert named == {path.name.removesuffix(path.suffix) for path in (tmp_path / "source").iterdir()}


def test_the_command_takes_none_as_a_unit_and_prints_an_entry_without_one(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", frames(1))
    arguments = [str(path), "-o", str(tmp_path / "out"), "--depth-unit", "none", "--strict"]
    result = CliRunner().invoke(arrays_command, arguments)
    assert result.exit_code == 0, result.output
    assert "depth_unit" not in result.output
    assert CliRunner().invoke(arrays_command, [*arguments, "--depth-unit", "inch"]).exit_code == 2


def test_arrays_larger_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 1 << 12)
    with pytest.raises(DatasetError, match="at most"):
        import_arrays(save(tmp_path / "a.npz", frames()), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("meta.json"))
