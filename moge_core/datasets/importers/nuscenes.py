"""Drives in the layout of nuScenes: six cameras and a LiDAR on a car, tied together by tables of tokens.

    SOURCE/
    ├── v1.0-*/                       sample, sample_data, calibrated_sensor, ego_pose, sensor, scene: .json
    ├── samples/CAM_FRONT/*.jpg       and the other cameras
    └── samples/LIDAR_TOP/*.pcd.bin   float32 rows of x, y, z in metres, intensity and ring, in the sensor's axes

Sweep and image are taken at different times, and the car moves between them. A point goes from the LiDAR to the car at
the sweep's time, to the world, to the car at the image's time and to the camera. Key frames only: a camera and a sweep
of one sample. Rotations are quaternions w x y z.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, Unpack

from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.lidar import (
    Transform,
    chosen,
    entry,
    file_below,
    inverse,
    read_float_rows,
    read_json,
    stored_sweep,
    transform,
    with_stated_size,
)
from moge_core.datasets.importers.pinhole import PixelIntrinsics, intrinsics_from_matrix
from moge_core.datasets.importers.records import ImportOptions, ImportSettings, Record, Stored, finding_of
from moge_core.datasets.importers.writing import ImportReport, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress
from moge_core.errors import DatasetError, FormatError, MoGeError

IMPORTER = "nuscenes"

Row: TypeAlias = Mapping[str, Any]

_LIDAR = "LIDAR_TOP"
# Returns of the car's own roof.
_OWN_RADIUS_M = 1.0
_VALUES_PER_POINT = 5


@repeatable(IMPORTER)
def import_nuscenes(
    source_dir: str | Path,
    out_dir: str | Path,
    *,
    version: str | None = None,
    cameras: Sequence[str] | None = None,
    lidar: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Make a dataset of the key frames of nuScenes, or bring one made earlier up to date.

    Args:
        source_dir: the folder that holds samples/ and the tables.
        out_dir: the dataset to make or add to.
        version: name of the folder with the tables; by default the only one.
        cameras: by their channels; by default all.
        lidar: by its channel; by default LIDAR_TOP, or the only one.
        progress: called as `progress(done, total)`.
        options: what every importer takes, see `ImportOptions`.

    Raises:
        InputError: an option outside its domain, or a channel that is not there.
        DatasetError: no tables or several versions of them, or no frame that could be imported.
        FormatError: a table that is none.
    """
    source, out = check_folders(source_dir, out_dir)
    settings = ImportSettings.of(options, label_type="lidar")
    tables = _Tables.read(_tables_dir(source, version))
    there = {channel for frames in tables.samples.values() for channel in frames}
    kept = chosen(cameras, sorted(there & tables.cameras), "cameras")
    sweeps = sorted(there - tables.cameras)
    wanted = lidar or (_LIDAR if _LIDAR in sweeps or len(sweeps) != 1 else sweeps[0])
    (sweep,) = chosen([wanted], sweeps, "lidar")
    how = {"tables": tables.folder.name, "cameras": kept, "lidar": sweep}
    records = _records(source, tables, kept, sweep)
    return run_import(IMPORTER, source, out, records, settings, options=how, progress=progress)


def _tables_dir(source: Path, version: str | None) -> Path:
    found = [path.parent for path in sorted([*source.glob("sample_data.json"), *source.glob("*/sample_data.json")])]
    names = [path.name for path in found]
    if version is not None and version in names:
        return found[names.index(version)]
    if version is None and len(found) == 1:
        return found[0]
    raise DatasetError(
        source,
        "must hold one folder of tables, v1.0-*/sample_data.json" if version is None else f"must hold {version}/",
        found=", ".join(names) or "none",
        fix="Choose one with --version." if found else "Name the folder that holds samples/ and v1.0-*/.",
    )


@dataclass(frozen=True)
class _Tables:
    """The tables that frames need, by token.

    Attributes:
        cameras: the channels that are cameras.
        samples: the key frames of each sample, by channel: rows of sample_data.
        scene_of: name of each sample's scene.
    """

    folder: Path
    cameras: frozenset[str]
    samples: Mapping[str, Mapping[str, Row]]
    scene_of: Mapping[str, str]
    mounts: Mapping[str, Row]
    poses: Mapping[str, Row]

    @classmethod
    def read(cls, folder: Path) -> _Tables:
        sensors = {row["token"]: row for row in _rows(folder, "sensor")}
        channels = {token: str(row.get("channel")) for token, row in sensors.items()}
        cameras = frozenset(str(row.get("channel")) for row in sensors.values() if _is_camera(row))
        mounts = {row["token"]: row for row in _rows(folder, "calibrated_sensor", "sensor_token")}
        scenes = {row["token"]: str(row.get("name")) for row in _rows(folder, "scene")}
        scene_of = {
            row["token"]: scenes.get(row.get("scene_token"), "scene") for row in _rows(folder, "sample", "scene_token")
        }
        samples: dict[str, dict[str, Row]] = {token: {} for token in scene_of}
        tokens = ("calibrated_sensor_token", "sample_token", "ego_pose_token")
        for row in _rows(folder, "sample_data", *tokens):
            # Radar and what lies between the key frames are most of this table.
            channel = channels.get(mounts.get(row.get("calibrated_sensor_token"), {}).get("sensor_token"), "")
            if row.get("is_key_frame", True) and row.get("sample_token") in samples and not channel.startswith("RADAR"):
                samples[row["sample_token"]][channel] = row
        needed = {row.get("ego_pose_token") for frames in samples.values() for row in frames.values()}
        poses = {row["token"]: row for row in _rows(folder, "ego_pose") if row["token"] in needed}
        return cls(folder, cameras, samples, scene_of, mounts, poses)

    def sensor_to_world(self, row: Row) -> Transform:
        return self._motion("ego_pose", row) @ self._motion("calibrated_sensor", row)

    def camera(self, row: Row) -> PixelIntrinsics:
        where = self.folder / "calibrated_sensor.json"
        mount = self.mounts[row["calibrated_sensor_token"]]
        camera = intrinsics_from_matrix(entry(mount, "camera_intrinsic", where=where), f"{where}: {mount['token']}")
        return with_stated_size(camera, row)

    def _motion(self, table: str, row: Row) -> Transform:
        where = self.folder / f"{table}.json"
        rows = self.poses if table == "ego_pose" else self.mounts
        found = entry(rows, str(row.get(f"{table}_token")), where=where)
        rotation, translation = (entry(found, key, where=where) for key in ("rotation", "translation"))
        return transform(rotation, translation, f"{where}: {found['token']}")


def _rows(folder: Path, table: str, *tokens: str) -> list[Any]:
    """The rows of a table. Each has a token, and strings for those of others where it has them."""
    path = folder / f"{table}.json"
    rows = read_json(path)
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("token"), str) for row in rows
    ):
        raise FormatError(path, "must be a list of rows with tokens", found=type(rows).__name__)
    for row in rows:
        for key in tokens:
            if not isinstance(row.get(key, ""), str):
                rule = f"{key} must be a string in each row"
                raise FormatError(path, rule, found=f"{row[key]!r:.80} in the row {row['token']}")
    return rows


def _records(source: Path, tables: _Tables, cameras: Sequence[str], lidar: str) -> Iterator[Record | Finding]:
    calibration = tuple(tables.folder / f"{table}.json" for table in ("calibrated_sensor", "ego_pose"))
    where = tables.folder / "sample_data.json"
    for token, frames in tables.samples.items():
        scene = tables.scene_of[token]
        for channel in cameras:
            row = frames.get(channel)
            if row is None:
                yield Finding(f"{scene}/{channel}", "paired", "error", f"sample {token} has no image", "Ignore it.")
                continue
            name = f"{scene}/{channel}/{PurePosixPath(str(row.get('filename'))).stem}"
            sweep = frames.get(lidar)
            if sweep is None:
                evidence = f"sample {token} has no sweep of {lidar}"
                yield Finding(name, "paired", "error", evidence, "Choose another --lidar, or ignore it.")
                continue
            try:
                to_camera = inverse(tables.sensor_to_world(row)) @ tables.sensor_to_world(sweep)
                image, points = (file_below(source, frame.get("filename"), where) for frame in (row, sweep))
                rows = partial(read_float_rows, num_columns=_VALUES_PER_POINT)
                stored = stored_sweep(points, rows, to_camera, own_radius=_OWN_RADIUS_M)
                yield Record(name, Stored(image), stored, tables.camera(row), extra_files=calibration)
            except (MoGeError, OSError) as error:
                yield finding_of(name, error)


def _is_camera(sensor: Row) -> bool:
    return bool(sensor.get("modality") == "camera" or str(sensor.get("channel")).startswith("CAM"))
