"""Scenes in the layout of DGP: DDAD and its kin, many cameras and a long-range LiDAR on a car.

    SCENE/
    ├── scene_<hash>.json                 data (files with poses), samples (what belongs together)
    ├── calibration/<key>.json            names, intrinsics (pixels) and extrinsics, in one order
    ├── rgb/CAMERA_01/<time>.png          or .jpg
    └── point_cloud/LIDAR/<time>.npz      `data`: rows of x, y, z in metres and intensity, in the sensor's axes

Sweep and image have poses of their own, because the car moves between them: a point x of the sweep is at
inverse(camera pose) * LiDAR pose * x in the camera's axes. Neither pose is the mount in `extrinsics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy.typing as npt

from moge_core.datasets.importers.arrays import npz_shapes, read_npy, read_npz
from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.lidar import (
    Transform,
    chosen,
    entry,
    file_below,
    folders_with,
    inverse,
    read_json,
    stored_sweep,
    text,
    transform,
    with_stated_size,
)
from moge_core.datasets.importers.pinhole import PixelIntrinsics, intrinsics_from_matrix
from moge_core.datasets.importers.records import ImportOptions, ImportSettings, Record, Stored, finding_of
from moge_core.datasets.importers.writing import ImportReport, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress
from moge_core.errors import DatasetError, FormatError, InputError, MoGeError

IMPORTER = "dgp"

_PINHOLE_KEYS = frozenset({"fx", "fy", "cx", "cy", "skew", "fov"})


@repeatable(IMPORTER)
def import_dgp(
    source_dir: str | Path,
    out_dir: str | Path,
    *,
    cameras: Sequence[str] | None = None,
    lidar: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Make a dataset of scenes in DGP's layout, or bring one made earlier up to date.

    Args:
        source_dir: a scene, or a folder of scenes, up to two folders down.
        out_dir: the dataset to make or add to.
        cameras: by their names; by default all that have images here.
        lidar: by its name; by default the only one.
        progress: called as `progress(done, total)`.
        options: what every importer takes, see `ImportOptions`.

    Raises:
        InputError: an option outside its domain, a camera or LiDAR that no scene has, or several LiDARs and no choice.
        DatasetError: no scene, or no frame that could be imported.
    """
    source, out = check_folders(source_dir, out_dir)
    settings = ImportSettings.of(options, label_type="lidar")
    paths = folders_with(source, "scene_*.json")
    if not paths:
        raise DatasetError(source, "must hold a scene_*.json, or folders that do", found="none")
    scenes: list[_Scene] = []
    broken: list[Finding] = []
    for path in paths:
        folder = path.parent
        name = folder.name if folder == source else folder.relative_to(source).as_posix()
        try:
            scenes.append(_Scene.read(path, name))
        except (MoGeError, OSError) as error:
            broken.append(finding_of(name, error))
    all_cameras = sorted({datum.sensor for scene in scenes for datum in scene.data.values() if datum.is_image})
    there = [name for name in all_cameras if any(scene.has_images(name) for scene in scenes)]
    kept = chosen(cameras, all_cameras, "cameras") if cameras and scenes else there
    if scenes:
        lidar = _lidar(scenes, lidar)
    absent = sorted(set(all_cameras) - set(there))
    notes = [f"No image of {', '.join(absent)} is here; nothing was made of these cameras."] if absent else []

    def records() -> Iterator[Record | Finding]:
        yield from broken
        for scene in scenes:
            yield from _records(scene, kept, lidar)

    how = {"cameras": kept, "lidar": lidar}
    return run_import(IMPORTER, source, out, records(), settings, options=how, notes=notes, progress=progress)


@dataclass(frozen=True)
class _Datum:
    """One image or sweep as the scene's file has it; its parts are looked at when a frame needs them."""

    sensor: str
    is_image: bool
    content: Mapping[str, Any]

    def file(self, scene: _Scene) -> Path:
        return file_below(scene.folder, entry(self.content, "filename", where=scene.path), scene.path)

    def pose(self, scene: _Scene) -> Transform:
        """From the sensor to the world."""
        pose = entry(self.content, "pose", where=scene.path)
        quaternion = [entry(pose, "rotation", key, where=scene.path) for key in ("qw", "qx", "qy", "qz")]
        place = [entry(pose, "translation", key, where=scene.path) for key in "xyz"]
        return transform(quaternion, place, f"{scene.path}: pose of {self.sensor}")


@dataclass(frozen=True)
class _Scene:
    path: Path
    name: str
    data: Mapping[str, _Datum]
    samples: Sequence[Mapping[str, Any]]

    @property
    def folder(self) -> Path:
        return self.path.parent

    @classmethod
    def read(cls, path: Path, name: str) -> _Scene:
        content = read_json(path)
        data = {}
        items = entry(content, "data", where=path)
        for item in items if isinstance(items, list) else []:
            datum = entry(item, "datum", where=path)
            sensor, key = text(item, "id", "name", where=path), text(item, "key", where=path)
            for kind in ("image", "point_cloud"):
                if isinstance(datum, Mapping) and isinstance(datum.get(kind), Mapping):
                    data[key] = _Datum(sensor, kind == "image", datum[kind])
        samples = entry(content, "samples", where=path)
        if not isinstance(samples, list) or not all(isinstance(sample, Mapping) for sample in samples):
            raise FormatError(path, "must hold a list of samples", found=type(samples).__name__)
        for sample in samples:
            keys = sample.get("datum_keys") or []
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                raise FormatError(path, "datum_keys must be a list of strings", found=f"{keys!r:.80}")
        return cls(path, name, data, samples)

    def has_images(self, camera: str) -> bool:
        names = (datum.content.get("filename") for datum in self.data.values() if datum.sensor == camera)
        return any(isinstance(name, str) and (self.folder / name).is_file() for name in names)


def _lidar(scenes: Sequence[_Scene], wanted: str | None) -> str:
    there = sorted({datum.sensor for scene in scenes for datum in scene.data.values() if not datum.is_image})
    if wanted is None and len(there) > 1:
        raise InputError("lidar", f"must be one of {', '.join(there)}", found="none chosen")
    names = chosen(None if wanted is None else [wanted], there, "lidar")
    if not names:
        raise DatasetError(scenes[0].path, "must list point clouds", found="none in any scene")
    return names[0]


def _records(scene: _Scene, cameras: Sequence[str], lidar: str | None) -> Iterator[Record | Finding]:
    calibrations: dict[str, dict[str, PixelIntrinsics | MoGeError | OSError]] = {}
    for sample in scene.samples:
        data = [scene.data[key] for key in sample.get("datum_keys") or () if key in scene.data]
        sweep = next((datum for datum in data if datum.sensor == lidar and not datum.is_image), None)
        for image in data:
            if not image.is_image or image.sensor not in cameras:
                continue
            name = f"{scene.name}/{image.sensor}/{Path(str(image.content.get('filename', 'image'))).stem}"
            if sweep is None:
                evidence = f"its sample has no sweep of {lidar}"
                yield Finding(name, "paired", "error", evidence, "Choose another --lidar, or ignore it.")
                continue
            try:
                key = text(sample, "calibration_key", where=scene.path)
                path = file_below(scene.folder, f"calibration/{key}.json", scene.path)
                if key not in calibrations:
                    calibrations[key] = _cameras(path)
                camera = calibrations[key].get(image.sensor)
                if camera is None:
                    raise FormatError(path, f"must hold the intrinsics of {image.sensor}", found="none")
                if not isinstance(camera, PixelIntrinsics):
                    raise camera
                to_camera = inverse(image.pose(scene)) @ sweep.pose(scene)
                points = stored_sweep(sweep.file(scene), _read_points, to_camera)
                camera = with_stated_size(camera, image.content)
                yield Record(name, Stored(image.file(scene)), points, camera, extra_files=(scene.path, path))
            except (MoGeError, OSError) as error:
                yield finding_of(name, error)


def _cameras(path: Path) -> dict[str, PixelIntrinsics | MoGeError | OSError]:
    """Each sensor's camera, or why it is none."""
    content = read_json(path)
    names = entry(content, "names", where=path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(path, "names must be a list of strings", found=f"{names!r:.80}")
    cameras: dict[str, PixelIntrinsics | MoGeError | OSError] = {}
    for i, name in enumerate(names):
        where = f"{path}: {name}"
        try:
            values = entry(content, "intrinsics", i, where=path)
            fx, fy, cx, cy = (entry(values, key, where=where) for key in ("fx", "fy", "cx", "cy"))
            bent = [key for key, value in values.items() if key not in _PINHOLE_KEYS and value]
            if bent:
                raise FormatError(
                    where,
                    "must be a pinhole camera; instances are",
                    found=f"distortion in {', '.join(sorted(bent))}",
                    fix="Undistort the images first, or choose other --camera names.",
                )
            cameras[name] = intrinsics_from_matrix([[fx, values.get("skew", 0), cx], [0, fy, cy], [0, 0, 1]], where)
        except MoGeError as error:
            cameras[name] = error
    return cameras


def _read_points(path: Path) -> npt.NDArray[Any]:
    if path.suffix.lower() == ".npy":
        return read_npy(path)
    return read_npz(path, "data" if "data" in npz_shapes(path) else None)
