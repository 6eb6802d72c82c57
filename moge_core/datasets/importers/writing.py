"""From records to instances: what every importer shares.

Files are decoded, values become depth along z, and image.jpg, depth.png and meta.json are written, `meta.json` last: an
instance is complete when it is there. It remembers what it was made from, so a second run does only what is new, and a
run that was killed half-way is finished by the next, with the same result as one that was not.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.intrinsics import PixelIntrinsics
from moge_core.datasets.importers.records import Record, Stored, StoredDepth, StoredPoints, finding_of
from moge_core.datasets.layout import (
    DEPTH_NAME,
    IMAGE_NAME,
    MASK_NAME,
    META_NAME,
    NORMAL_NAME,
    SEGMENTATION_NAME,
    STATE_DIR,
    Finding,
    Progress,
    is_instance_path,
)
from moge_core.datasets.parallel import parallel_map
from moge_core.errors import DatasetError, InputError, InstanceError, MoGeError
from moge_core.io.files import atomic_open

LOG_NAME = "import.jsonl"
_VERSION = 2

Resolution: TypeAlias = Literal["smaller", "image", "depth"]

# Shapes of image and depth may differ by so much and still be one picture: 1296x968 and 640x480 of ScanNet do.
_SHAPE_TOLERANCE = 0.015


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        out_dir: the dataset.
        instances: all instances of this source that are now complete, sorted.
        num_written: how many of them were written by this run; the rest was there already.
        skipped: files that did not become instances, and why.
        notes: what a person should know about how the source was read.
        median_depth_m, valid_share, fov_x_deg: medians over the instances written by this run; None when none was.
        log_path: the log that holds all of this.
        label_type: loss set of the configuration entry.
        metric: whether the depth is in metres; None when instances differ.
    """

    out_dir: Path
    instances: list[str]
    num_written: int
    skipped: list[Finding]
    notes: list[str]
    median_depth_m: float | None
    valid_share: float | None
    fov_x_deg: float | None
    log_path: Path
    label_type: str = "sfm"
    metric: bool | None = True


@dataclass(frozen=True)
class ImportSettings:
    """What is asked of every importer; a change of those that alter instances makes them anew.

    Attributes:
        name_prefix: put before the path of every instance, so that several sources fit into one dataset.
        label_type: loss set of the training configuration that the data is for.
        max_depth: depth beyond this, in metres, becomes unknown.
        resolution: where image and depth differ in size, the size of the instance: of the `smaller` of the two, of
            the `image` (depth is repeated, nothing is interpolated) or of the `depth` map.
        flip_y: turn image and depth upside down.
    """

    name_prefix: str = ""
    label_type: str = "sfm"
    max_depth: float | None = None
    resolution: Resolution = "smaller"
    flip_y: bool = False

    def __post_init__(self) -> None:
        """Refuse what no import can do.

        Raises:
            InputError: naming the setting.
        """
        if self.max_depth is not None and not self.max_depth > 0:
            raise InputError("max_depth", "must be positive, in metres", found=self.max_depth)
        if self.resolution not in {"smaller", "image", "depth"}:
            raise InputError("resolution", "must be smaller, image or depth", found=repr(self.resolution))
        path = PurePosixPath(self.name_prefix)
        unsafe = path.is_absolute() or ".." in path.parts or "\\" in self.name_prefix
        if unsafe or path.parts[:1] == (STATE_DIR,):
            raise InputError("name_prefix", "must keep instances inside the dataset", found=repr(self.name_prefix))


@dataclass(frozen=True)
class _Result:
    instance: str
    written: bool = False
    finding: Finding | None = None
    depth_median: float = np.nan
    valid_share: float = np.nan
    fov_x_deg: float = np.nan
    metric: bool = True
    notes: frozenset[str] = field(default_factory=frozenset)


def check_folders(source_dir: str | Path, out_dir: str | Path) -> tuple[Path, Path]:
    """Resolved source (a folder or a file) and target of an import.

    Raises:
        DatasetError: there is no such source.
        InputError: the target is the source, a folder above it, or a file.
    """
    source, out = Path(source_dir).resolve(), Path(out_dir).resolve()
    if not source.exists():
        raise DatasetError(source_dir, "must be the data to import", found="no such file or folder")
    if source.is_relative_to(out):
        raise InputError("out_dir", "must be another folder than the source, and not one above it", found=out)
    if out.exists() and not out.is_dir():
        raise InputError("out_dir", "must be a folder", found=f"a file at {out}")
    return source, out


def run_import(
    importer: str,
    source: Path,
    out: Path,
    records: Iterable[Record | Finding],
    settings: ImportSettings,
    *,
    options: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
    progress: Progress | None = None,
) -> ImportReport:
    """Write the instances of all records that are not there yet.

    Args:
        importer: its name; an instance of another is never overwritten.
        source: what is imported; file names are remembered relative to it.
        out: the dataset.
        records: see `records`; a `Finding` is a frame that cannot be one.
        settings: see `ImportSettings`.
        options: how the source is read, for the log.
        notes: what is to be told besides.
        progress: called as `progress(done, total)`.

    Raises:
        DatasetError: no record, or none that could be imported.
    """
    base = source if source.is_dir() else source.parent
    skipped: list[Finding] = []
    todo: dict[str, Record] = {}
    for record in records:
        if isinstance(record, Finding):
            skipped.append(record)
            continue
        name = settings.name_prefix + record.name
        if not is_instance_path(name):
            evidence = f"{name!r} is no path that a list can name"
            skipped.append(Finding(repr(record.name), "listable-path", "error", evidence, "Rename the frame."))
        elif name in todo:
            evidence = f"a second frame, from {record.image.path}, has this name"
            skipped.append(Finding(name, "listed-once", "error", evidence, "Give each frame a name of its own."))
        else:
            todo[name] = replace(record, name=name)

    out.mkdir(parents=True, exist_ok=True)
    work = _Writer(importer, base, out, settings)
    results = list(parallel_map(work, list(todo.values()), progress)) if todo else []
    skipped += [result.finding for result in results if result.finding is not None]
    complete = [result for result in results if result.finding is None]
    written = [result for result in results if result.written]
    told = [*notes, *sorted(frozenset().union(*(result.notes for result in results)))]
    metric = {todo[result.instance].is_metric for result in complete}
    report = ImportReport(
        out_dir=out,
        instances=sorted(result.instance for result in complete),
        num_written=len(written),
        skipped=skipped,
        notes=told,
        median_depth_m=_median([result.depth_median for result in written]),
        valid_share=_median([result.valid_share for result in written]),
        fov_x_deg=_median([result.fov_x_deg for result in written]),
        log_path=out / STATE_DIR / LOG_NAME,
        label_type=settings.label_type,
        metric=metric.pop() if len(metric) == 1 else None,
    )
    if report.metric and report.median_depth_m is not None and not 0.05 < report.median_depth_m < 500:
        told.append(f"A typical depth of {report.median_depth_m:.3g} m is unlikely; check --depth-scale.")
    _append_log(report, importer, source, settings, options or {})
    if not report.instances:
        first = skipped[0] if skipped else None
        raise DatasetError(
            source,
            "must hold a frame that can be imported",
            found=f"{len(todo)} frames, none usable"
            + (f". First: {first.instance}: {first.evidence}" if first else ""),
            fix=first.fix if first else None,
        )
    return report


class _Writer:
    """Makes the instance of one record, where it is not there already."""

    def __init__(self, importer: str, base: Path, out: Path, settings: ImportSettings) -> None:
        self.importer = importer
        self.base = base
        self.out = out
        self.settings = settings

    def __call__(self, record: Record) -> _Result:
        try:
            return self._write(record)
        except (MoGeError, OSError) as error:
            return _Result(record.name, finding=finding_of(record.name, error))

    def _write(self, record: Record) -> _Result:
        from moge_core.geometry import intrinsics_to_fov
        from moge_core.io import write_depth, write_image, write_mask, write_meta, write_normal, write_segmentation

        folder = self.out / record.name
        origin = self._origin(record)
        if self._is_up_to_date(record, folder, origin):
            return _Result(record.name)
        frame = _read_frame(record, self.settings)

        folder.mkdir(parents=True, exist_ok=True)
        # Without meta.json there is no instance: it goes first and comes last.
        (folder / META_NAME).unlink(missing_ok=True)
        _remove_leftovers(folder)
        if frame.jpeg is not None:
            with atomic_open(folder / IMAGE_NAME) as file:
                file.write(frame.jpeg)
        else:
            write_image(folder / IMAGE_NAME, frame.image, quality=95)
        write_depth(folder / DEPTH_NAME, frame.depth)
        for name, write, value in (
            (NORMAL_NAME, write_normal, frame.normal),
            (MASK_NAME, write_mask, frame.mask),
        ):
            if value is None:
                (folder / name).unlink(missing_ok=True)
            else:
                write(folder / name, value)
        if frame.segmentation is None:
            (folder / SEGMENTATION_NAME).unlink(missing_ok=True)
        else:
            write_segmentation(folder / SEGMENTATION_NAME, frame.segmentation, dict(record.labels))
        meta: dict[str, Any] = {"intrinsics": frame.intrinsics}
        if record.is_metric:
            meta["depth_unit"] = record.depth_unit
        write_meta(folder / META_NAME, {**meta, "label_type": self.settings.label_type, "source": origin})

        known = frame.depth[np.isfinite(frame.depth)]
        return _Result(
            record.name,
            written=True,
            depth_median=float(np.median(known)) * (record.depth_unit or 1.0) if known.size else np.nan,
            valid_share=known.size / frame.depth.size,
            fov_x_deg=float(np.degrees(intrinsics_to_fov(frame.intrinsics)[0])),
            notes=frozenset(frame.notes),
        )

    def _origin(self, record: Record) -> dict[str, str]:
        """What an instance was made from: names for people, and a digest that changes with settings and sizes.

        Nothing in it depends on the machine, so that equal imports give equal datasets.
        """
        settings = replace(self.settings, name_prefix="")
        described = [repr(settings), repr(record.camera), repr(record.depth_unit), repr(sorted(record.labels.items()))]
        for name, part in record.parts():
            values = {key: value for key, value in vars(part).items() if key not in {"path", "read"}}
            described.append(f"{name} {self._label(part)} {sorted(values.items())!r}")
        described += [f"{self._relative(path)} {path.stat().st_size}" for path in record.files()]
        data = "\0".join([str(_VERSION), *described]).encode("utf-8", "surrogateescape")
        return {
            "importer": self.importer,
            "image": self._label(record.image),
            "depth": self._label(record.depth),
            "digest": hashlib.sha256(data).hexdigest(),
        }

    def _is_up_to_date(self, record: Record, folder: Path, origin: dict[str, str]) -> bool:
        """True when this very import made the instance already and its files did not change since.

        Raises:
            InstanceError: an instance stands there that another import or none made; it is not ours to overwrite.
        """
        from moge_core.io import read_meta

        path = folder / META_NAME
        if not path.exists():
            return False
        existing = read_meta(path).get("source")
        fix = "Import into another folder, or with another --name-prefix."
        if not isinstance(existing, dict) or existing.get("importer") != self.importer:
            found = f"a {META_NAME} that is not from {self.importer}"
            raise InstanceError(folder, "must not hold an instance that was made otherwise", found=found, fix=fix)
        if any(existing.get(name) != origin[name] for name in ("image", "depth")):
            found = f"one made from {existing.get('image')} and {existing.get('depth')}"
            raise InstanceError(folder, "must not hold the instance of other files", found=found, fix=fix)
        # The change time moves whenever a file is written or replaced, even if its modification time is old.
        changed = max(file.stat().st_ctime_ns for file in record.files())
        names = [IMAGE_NAME, DEPTH_NAME]
        names += [
            name
            for name, part in (
                (NORMAL_NAME, record.normal),
                (MASK_NAME, record.mask),
                (SEGMENTATION_NAME, record.segmentation),
            )
            if part is not None
        ]
        complete = all((folder / name).is_file() for name in names)
        return existing == origin and complete and changed <= path.stat().st_mtime_ns

    def _label(self, part: Stored) -> str:
        return self._relative(part.path) + (f"#{part.part}" if part.part else "")

    def _relative(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.base)).as_posix()


@dataclass
class _Frame:
    """A record in memory, all parts of one size."""

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    intrinsics: npt.NDArray[np.float64]
    jpeg: bytes | None
    normal: npt.NDArray[np.float32] | None
    mask: npt.NDArray[np.bool_] | None
    segmentation: npt.NDArray[Any] | None
    notes: set[str]


def _read_frame(record: Record, settings: ImportSettings) -> _Frame:
    """Decode a record and bring its parts to one size.

    Raises:
        MoGeError: a file that cannot be read, parts of different shapes, impossible intrinsics.
    """
    image, jpeg = _read_image(record.image)
    stored = None if isinstance(record.depth, StoredPoints) else _read_stored(record.depth)
    image_size = (image.shape[1], image.shape[0])
    depth_size = image_size if stored is None else (stored.shape[1], stored.shape[0])
    size = _instance_size(record, image_size, depth_size, settings.resolution)
    intrinsics, notes = normalised_intrinsics(record.camera, *image_size)
    notes.update(record.notes)

    if isinstance(record.depth, StoredPoints):
        depth = _project(record.depth, intrinsics, *size)
    else:
        from moge_core.datasets.importers.projection import metric_z

        assert stored is not None
        depth = _resized(metric_z(stored, record.depth, intrinsics), size)
        if record.depth.scale is None and record.depth.kind in {"z", "ray"} and stored.dtype.kind in "iu":
            notes.add("No scale was given for depth stored as integers; it was read as millimetres.")
    if image_size != size:
        from moge_core.io.opencv import cv2

        image, jpeg = cv2.resize(image, size, interpolation=cv2.INTER_AREA), None
        notes.add(f"Images of {image_size[0]}x{image_size[1]} were made {size[0]}x{size[1]}, the size of their depth.")
    if depth_size != size:
        notes.add(f"Depth of {depth_size[0]}x{depth_size[1]} was made {size[0]}x{size[1]} by nearest neighbour.")
    normal = None if record.normal is None else _resized(_of_size(record.normal, (3,), "normal map"), size)
    mask = None if record.mask is None else _resized(_of_size(record.mask, (), "mask"), size) > 0
    segmentation = None if record.segmentation is None else _resized(_of_size(record.segmentation, (), "ids"), size)
    if mask is not None:
        depth = np.where(mask, depth, np.float32(np.nan))
    if settings.max_depth is not None:
        depth[(depth * (record.depth_unit or 1.0) > settings.max_depth) & np.isfinite(depth)] = np.nan
    if settings.flip_y:
        jpeg = None
        image, depth = np.ascontiguousarray(image[::-1]), np.ascontiguousarray(depth[::-1])
        intrinsics[1, 2] = 1 - intrinsics[1, 2]
        mask = None if mask is None else np.ascontiguousarray(mask[::-1])
        segmentation = None if segmentation is None else np.ascontiguousarray(segmentation[::-1])
        normal = None if normal is None else np.ascontiguousarray(normal[::-1] * np.array([1, -1, 1], normal.dtype))
    if not np.isfinite(depth).any():
        notes.add("Some depth maps have no known pixel; `moge index` leaves them out.")
    return _Frame(image, depth, intrinsics, jpeg, normal, mask, segmentation, notes)


def normalised_intrinsics(camera: PixelIntrinsics, width: int, height: int) -> tuple[npt.NDArray[np.float64], set[str]]:
    """Normalised matrix (3, 3) for an image of this size, and what is remarkable about it.

    Raises:
        InstanceError: the intrinsics refer to an image of another shape, or their principal point is outside of it.
    """
    from moge_core.geometry import normalize_intrinsics

    notes: set[str] = set()
    size = camera.size or (width, height)
    if size != (width, height):
        if abs((width * size[1]) / (height * size[0]) - 1) > _SHAPE_TOLERANCE:
            raise InstanceError(
                "intrinsics",
                f"must refer to images of the shape of these, {width}x{height}",
                found=f"intrinsics for {size[0]}x{size[1]}",
                fix="Give the intrinsics of the images as they are, after cropping.",
            )
        notes.add(f"The intrinsics refer to {size[0]}x{size[1]}; they were scaled to images of {width}x{height}.")
    normalised: npt.NDArray[np.float64] = normalize_intrinsics(camera.matrix(), *size)
    cx, cy = normalised[0, 2], normalised[1, 2]
    if not (0 < cx < 1 and 0 < cy < 1):
        raise InstanceError(
            "intrinsics",
            f"the principal point must be inside the {size[0]}x{size[1]} image",
            found=f"cx = {camera.cx:g}, cy = {camera.cy:g}",
            fix="Say with --intrinsics-size which resolution they refer to.",
        )
    if max(abs(cx - 0.5), abs(cy - 0.5)) > 0.15:
        notes.add(
            f"The principal point is at ({cx:.2f}, {cy:.2f}) of the image, far from its centre. If the intrinsics refer"
            " to another resolution, say so with --intrinsics-size."
        )
    return normalised, notes


def _read_image(stored: Stored) -> tuple[npt.NDArray[np.uint8], bytes | None]:
    """The picture, and the file's bytes where it is a JPEG that can be copied."""
    from moge_core.io import limits, read_image
    from moge_core.io.files import read_bytes

    if stored.read is not None:
        image = np.asarray(stored.read(stored.path))
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InstanceError(
                stored.path, "must hold an RGB image of 8 bits", found=f"{image.dtype} of shape {image.shape}"
            )
        return np.ascontiguousarray(image), None
    data = read_bytes(stored.path, limit=limits.MAX_FILE_BYTES)
    file = io.BytesIO(data)
    file.name = str(stored.path)
    return read_image(file), data if data.startswith(b"\xff\xd8") else None


def _read_stored(depth: StoredDepth) -> npt.NDArray[Any]:
    from moge_core.datasets.importers.arrays import read_array
    from moge_core.datasets.importers.source_files import not_16_bit

    stored = np.squeeze((depth.read or read_array)(depth.path))
    if stored.ndim != 2 or not stored.size or stored.dtype.kind not in "iuf":
        raise InstanceError(
            depth.path, "must hold a depth map (H, W) of numbers", found=f"{stored.dtype} of shape {stored.shape}"
        )
    if stored.dtype.itemsize == 1 and depth.kind != "disparity":
        raise not_16_bit(depth.path, "an 8-bit grey file")
    return stored


def _project(points: StoredPoints, intrinsics: npt.NDArray[np.float64], width: int, height: int) -> Any:
    from moge_core.datasets.importers.projection import project_points

    assert points.read is not None
    cloud = np.asarray(points.read(points.path))
    if cloud.ndim != 2 or cloud.shape[1] != 3:
        raise InstanceError(points.path, "must hold points (N, 3)", found=f"shape {cloud.shape}")
    return project_points(cloud, intrinsics, width, height, drop_hidden=points.drop_hidden, sensor=points.sensor)


def _of_size(stored: Stored, channels: tuple[int, ...], what: str) -> npt.NDArray[Any]:
    from moge_core.datasets.importers.arrays import read_array

    values = np.asarray((stored.read or read_array)(stored.path))
    if values.ndim != 2 + len(channels) or values.shape[2:] != channels:
        raise InstanceError(stored.path, f"must hold a {what} {('H', 'W', *channels)}", found=f"shape {values.shape}")
    return values


def _instance_size(
    record: Record, image_size: tuple[int, int], depth_size: tuple[int, int], resolution: Resolution
) -> tuple[int, int]:
    if image_size == depth_size:
        return image_size
    (width, height), (depth_width, depth_height) = image_size, depth_size
    if abs((width * depth_height) / (height * depth_width) - 1) > _SHAPE_TOLERANCE:
        raise InstanceError(
            record.image.path,
            "image and depth map must have the same size, or at least the same shape",
            found=f"{width}x{height} and {depth_width}x{depth_height}",
            fix="Use the depth maps registered to the colour camera, cropped like the images.",
        )
    if resolution == "smaller":
        return min(image_size, depth_size)
    return image_size if resolution == "image" else depth_size


def _resized(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Nearest neighbour: measured values are picked, never mixed."""
    width, height = size
    if values.shape[:2] == (height, width):
        return values
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(np.int64)
    return np.ascontiguousarray(values[rows[:, None], columns])


def _remove_leftovers(folder: Path) -> None:
    """Temporary files of a run that was killed while it wrote into this folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _append_log(
    report: ImportReport, importer: str, source: Path, settings: ImportSettings, options: Mapping[str, Any]
) -> None:
    event: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "importer": importer,
        "source": str(source),
        "options": {**options, **vars(settings)},
        "instances": len(report.instances),
        "written": report.num_written,
        "notes": report.notes,
        "skipped": [
            {"file": finding.instance, "why": finding.evidence, "fix": finding.fix} for finding in report.skipped
        ],
    }
    report.log_path.parent.mkdir(parents=True, exist_ok=True)
    with report.log_path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(json.dumps(event, default=str) + "\n")


def _median(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else None
