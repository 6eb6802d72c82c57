"""Folders of colour images and 16-bit depth maps with one camera: TUM, ICL-NUIM, 3DMatch, NYU, Replica, KITTI and kin.

    report = import_rgbd_folder("rgbd_dataset_freiburg1_desk", "data/desk", intrinsics="517.3,516.5,318.6,255.3",
                                depth_scale=5000)

Each pair of an image and a depth map becomes an instance. Nothing is resampled: JPEG files are copied byte for byte,
other images become JPEG of quality 95, and depth is value / depth_scale in metres. `meta.json` is written last, so an
instance is complete when it is there, and remembers what it was made from, so that a second run does only what is new.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.intrinsics import PixelIntrinsics, parse_intrinsics
from moge_core.datasets.importers.pairing import Pair, pair_by_frame
from moge_core.datasets.importers.source_files import find_sources, read_depth_values
from moge_core.datasets.layout import DEPTH_NAME, IMAGE_NAME, META_NAME, STATE_DIR, Finding, Progress
from moge_core.datasets.parallel import parallel_map
from moge_core.errors import DatasetError, InputError, InstanceError, MoGeError
from moge_core.io.files import atomic_open

IMPORTER = "rgbd-folder"
LOG_NAME = "import.jsonl"


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


@dataclass(frozen=True)
class _Options:
    """How a source is read; a change of any of these makes its instances anew."""

    intrinsics: PixelIntrinsics
    depth_scale: float
    invalid: tuple[int, ...]
    max_depth: float | None
    flip_y: bool
    version: int = 1


@dataclass(frozen=True)
class _Result:
    instance: str
    written: bool = False
    finding: Finding | None = None
    depth_median: float = 0.0
    valid_share: float = 0.0
    fov_x_deg: float = 0.0
    notes: frozenset[str] = field(default_factory=frozenset)


def import_rgbd_folder(
    source_dir: str | Path,
    out_dir: str | Path,
    *,
    intrinsics: str | Path | PixelIntrinsics,
    depth_scale: float,
    image_glob: str | None = None,
    depth_glob: str | None = None,
    intrinsics_size: tuple[int, int] | None = None,
    invalid: Sequence[int] = (0,),
    max_depth: float | None = None,
    name_prefix: str = "",
    flip_y: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Turn a folder of images and depth maps into a dataset, or bring one made earlier up to date.

    Args:
        source_dir: the folder.
        out_dir: the dataset to make or add to.
        intrinsics: of all frames, in pixels: "fx,fy,cx,cy" or a file, see `parse_intrinsics`. A negative fy is taken
            as |fy|: it speaks of y axes that point up, while image and depth are as people see them.
        depth_scale: stored units a metre: depth in metres is value / depth_scale (TUM 5000, millimetres 1000).
        image_glob, depth_glob: which files are images and depth maps, relative to `source_dir`. By default every
            16-bit grey PNG or PGM is a depth map and every other picture an image.
        intrinsics_size: (width, height) that the intrinsics refer to, where that is not the images' size.
        invalid: stored values that mean unknown. 0 always does, because no depth is 0.
        max_depth: metres beyond which depth becomes unknown.
        name_prefix: put before the path of every instance, so that several sources fit into one dataset.
        flip_y: turn image and depth upside down, and the principal point with them.
        progress: called as `progress(done, total)`.

    Raises:
        InputError: an option outside its domain.
        DatasetError: no such folder, no pairs, ambiguous pairs, or no frame that could be imported.
        FormatError: a file of intrinsics that holds none.
    """
    source, out = _check_folders(source_dir, out_dir)
    prefix = _check_prefix(name_prefix)
    options, notes = _check_options(
        source, intrinsics, depth_scale, intrinsics_size, tuple(sorted({0, *invalid})), max_depth, flip_y
    )
    images, depths = find_sources(source, image_glob, depth_glob, exclude=out)
    pairing = pair_by_frame(images, depths)
    pairs = [replace(pair, instance=PurePosixPath(prefix + str(pair.instance))) for pair in pairing.pairs]

    out.mkdir(parents=True, exist_ok=True)
    log_path = out / STATE_DIR / LOG_NAME
    results = list(parallel_map(lambda pair: _import_pair(source, out, pair, options), pairs, progress))

    skipped = [
        Finding(str(path), "paired", "warning", f"no {other} has its frame token", "Add its partner, or ignore it.")
        for lone, other in ((pairing.lone_images, "depth map"), (pairing.lone_depths, "image"))
        for path in lone
    ]
    skipped += [result.finding for result in results if result.finding is not None]
    notes += sorted(frozenset().union(*(result.notes for result in results)))
    written = [result for result in results if result.written]
    median_depth_m = _median([result.depth_median for result in written])
    if median_depth_m is not None and not 0.05 < median_depth_m < 500:
        notes.append(f"A typical depth of {median_depth_m:.3g} m is unlikely; check --depth-scale.")
    report = ImportReport(
        out_dir=out,
        instances=sorted(result.instance for result in results if result.finding is None),
        num_written=len(written),
        skipped=skipped,
        notes=notes,
        median_depth_m=median_depth_m,
        valid_share=_median([result.valid_share for result in written]),
        fov_x_deg=_median([result.fov_x_deg for result in written]),
        log_path=log_path,
    )
    _append_log(report, source, options)
    if not report.instances:
        first = next(result.finding for result in results if result.finding is not None)
        raise DatasetError(
            source,
            "must hold a frame that can be imported",
            found=f"{len(pairs)} pairs, none usable. First: {first.instance}: {first.evidence}",
            fix=first.fix,
        )
    return report


def _import_pair(source: Path, out: Path, pair: Pair, options: _Options) -> _Result:
    instance = str(pair.instance)
    try:
        return _write_instance(source, out, pair, options)
    except (MoGeError, OSError) as error:
        rule = "importable"
        if isinstance(error, MoGeError):
            evidence = f"{error.where}: {error.rule}" + (f"; found {error.found}" if error.found else "")
            fix = error.fix or "Mend or remove the file."
        else:
            evidence, fix = str(error), "Mend or remove the file."
        return _Result(instance, finding=Finding(instance, rule, "error", evidence, fix))


def _write_instance(source: Path, out: Path, pair: Pair, options: _Options) -> _Result:
    from moge_core.geometry import intrinsics_to_fov
    from moge_core.io import read_image, write_depth, write_image, write_meta

    folder = out / pair.instance
    origin = _origin(source, pair, options)
    if _is_up_to_date(source, folder, pair, origin):
        return _Result(str(pair.instance))

    image_path = source / pair.image
    image_bytes = image_path.read_bytes()
    image = read_image(_named(image_bytes, image_path))
    depth = _metric_depth(read_depth_values(source / pair.depth), options)
    if image.shape[:2] != depth.shape:
        raise InstanceError(
            pair.image,
            "image and depth map must have the same size",
            found=f"{image.shape[1]}x{image.shape[0]} and {depth.shape[1]}x{depth.shape[0]}",
            fix="Use the depth maps registered to the colour camera, or resize one side beforehand (depth by nearest"
            " neighbour only).",
        )
    height, width = depth.shape
    normalised, notes = _normalised_intrinsics(options, width, height)
    if options.flip_y:
        image, depth = np.ascontiguousarray(image[::-1]), np.ascontiguousarray(depth[::-1])
        normalised[1, 2] = 1 - normalised[1, 2]

    folder.mkdir(parents=True, exist_ok=True)
    # Without meta.json there is no instance: it goes first and comes last.
    (folder / META_NAME).unlink(missing_ok=True)
    if image_bytes.startswith(b"\xff\xd8") and not options.flip_y:
        with atomic_open(folder / IMAGE_NAME) as file:
            file.write(image_bytes)
    else:
        write_image(folder / IMAGE_NAME, image, quality=95)
    write_depth(folder / DEPTH_NAME, depth)
    write_meta(folder / META_NAME, {"intrinsics": normalised, "depth_unit": 1.0, "source": origin})

    known = depth[np.isfinite(depth)]
    if not known.size:
        notes.add("Some depth maps have no known pixel; `moge index` leaves them out.")
    return _Result(
        str(pair.instance),
        written=True,
        depth_median=float(np.median(known)) if known.size else np.nan,
        valid_share=known.size / depth.size,
        fov_x_deg=float(np.degrees(intrinsics_to_fov(normalised)[0])),
        notes=frozenset(notes),
    )


def _origin(source: Path, pair: Pair, options: _Options) -> dict[str, str]:
    """What an instance was made from: file names for people, and a digest that changes with options and sizes.

    Nothing in it depends on the machine, so that equal imports give equal datasets.
    """
    digest = hashlib.sha256(repr(options).encode())
    for name in (pair.image, pair.depth):
        digest.update(f"\0{name}\0{(source / name).stat().st_size}".encode("utf-8", "surrogateescape"))
    return {"importer": IMPORTER, "image": str(pair.image), "depth": str(pair.depth), "digest": digest.hexdigest()}


def _is_up_to_date(source: Path, folder: Path, pair: Pair, origin: dict[str, str]) -> bool:
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
    if not isinstance(existing, dict) or existing.get("importer") != IMPORTER:
        found = f"a {META_NAME} that is not from {IMPORTER}"
        raise InstanceError(folder, "must not hold an instance that was made otherwise", found=found, fix=fix)
    if any(existing.get(name) != origin[name] for name in ("image", "depth")):
        found = f"one made from {existing.get('image')} and {existing.get('depth')}"
        raise InstanceError(folder, "must not hold the instance of other files", found=found, fix=fix)
    # The change time moves whenever a file is written or put in another's place, even if its modification time is old.
    changed = max((source / name).stat().st_ctime_ns for name in (pair.image, pair.depth))
    complete = (folder / IMAGE_NAME).is_file() and (folder / DEPTH_NAME).is_file()
    return existing == origin and complete and changed <= path.stat().st_mtime_ns


def _metric_depth(values: npt.NDArray[np.uint16], options: _Options) -> npt.NDArray[np.float32]:
    depth = (values / options.depth_scale).astype(np.float32)
    unknown = np.isin(values, options.invalid)
    if options.max_depth is not None:
        unknown |= depth > options.max_depth
    depth[unknown] = np.nan
    return depth


def _normalised_intrinsics(options: _Options, width: int, height: int) -> tuple[npt.NDArray[np.float64], set[str]]:
    """Normalised matrix for an image of this size, and what is remarkable about it."""
    from moge_core.geometry import normalize_intrinsics

    notes: set[str] = set()
    size = options.intrinsics.size or (width, height)
    if size != (width, height):
        if abs((width * size[1]) / (height * size[0]) - 1) > 0.01:
            raise InstanceError(
                "intrinsics",
                f"must refer to images of the shape of these, {width}x{height}",
                found=f"intrinsics for {size[0]}x{size[1]}",
                fix="Give the intrinsics of the images as they are, after cropping.",
            )
        notes.add(f"The intrinsics refer to {size[0]}x{size[1]}; they were scaled to images of {width}x{height}.")
    normalised: npt.NDArray[np.float64] = normalize_intrinsics(options.intrinsics.matrix(), *size)
    cx, cy = normalised[0, 2], normalised[1, 2]
    if not (0 < cx < 1 and 0 < cy < 1):
        raise InstanceError(
            "intrinsics",
            f"the principal point must be inside the {size[0]}x{size[1]} image",
            found=f"cx = {options.intrinsics.cx:g}, cy = {options.intrinsics.cy:g}",
            fix="Say with --intrinsics-size which resolution they refer to.",
        )
    if max(abs(cx - 0.5), abs(cy - 0.5)) > 0.15:
        notes.add(
            f"The principal point is at ({cx:.2f}, {cy:.2f}) of the image, far from its centre. If the intrinsics refer"
            " to another resolution, say so with --intrinsics-size."
        )
    return normalised, notes


def _check_folders(source_dir: str | Path, out_dir: str | Path) -> tuple[Path, Path]:
    source, out = Path(source_dir).resolve(), Path(out_dir).resolve()
    if not source.is_dir():
        raise DatasetError(source_dir, "must be a folder with images and depth maps", found="no such folder")
    if source.is_relative_to(out):
        raise InputError("out_dir", "must be another folder than the source, and not one above it", found=out)
    if out.exists() and not out.is_dir():
        raise InputError("out_dir", "must be a folder", found=f"a file at {out}")
    return source, out


def _check_prefix(prefix: str) -> str:
    path = PurePosixPath(prefix)
    if path.is_absolute() or ".." in path.parts or "\\" in prefix or path.parts[:1] == (STATE_DIR,):
        raise InputError("name_prefix", "must keep instances inside the dataset", found=repr(prefix))
    return prefix


def _check_options(
    source: Path,
    intrinsics: str | Path | PixelIntrinsics,
    depth_scale: float,
    intrinsics_size: tuple[int, int] | None,
    invalid: tuple[int, ...],
    max_depth: float | None,
    flip_y: bool,
) -> tuple[_Options, list[str]]:
    notes = []
    if not (np.isfinite(depth_scale) and depth_scale > 0):
        raise InputError("depth_scale", "must be positive: depth in metres is value / depth_scale", found=depth_scale)
    if max_depth is not None and not max_depth > 0:
        raise InputError("max_depth", "must be positive, in metres", found=max_depth)
    if any(not 0 <= value <= 65535 for value in invalid):
        raise InputError("invalid", "must be stored values of 16 bits, 0 to 65535", found=list(invalid))
    if intrinsics_size is not None and min(intrinsics_size) < 1:
        raise InputError("intrinsics_size", "must be a width and a height in pixels", found=intrinsics_size)
    camera = intrinsics if isinstance(intrinsics, PixelIntrinsics) else parse_intrinsics(intrinsics, search_dir=source)
    if camera.fy < 0:
        done = (
            "were turned upside down (--flip-y)" if flip_y else "were left as they are; use --flip-y if they look wrong"
        )
        notes.append(f"fy = {camera.fy:g} is negative and was taken as {-camera.fy:g}; image and depth {done}.")
    if camera.depth_scale is not None and not np.isclose(camera.depth_scale, depth_scale, rtol=1e-3):
        notes.append(
            f"The file of intrinsics says {camera.depth_scale:g} units a metre; --depth-scale {depth_scale:g} was used."
        )
    # The scale that a file names was compared; it is no part of how the frames are read.
    camera = replace(camera, fy=abs(camera.fy), size=intrinsics_size or camera.size, depth_scale=None)
    return _Options(camera, float(depth_scale), invalid, max_depth, flip_y), notes


def _append_log(report: ImportReport, source: Path, options: _Options) -> None:
    report.log_path.parent.mkdir(parents=True, exist_ok=True)
    event: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "importer": IMPORTER,
        "source": str(source),
        "options": {
            "intrinsics_px": [
                options.intrinsics.fx,
                options.intrinsics.fy,
                options.intrinsics.cx,
                options.intrinsics.cy,
            ],
            "intrinsics_size": options.intrinsics.size,
            "depth_scale": options.depth_scale,
            "invalid": options.invalid,
            "max_depth": options.max_depth,
            "flip_y": options.flip_y,
        },
        "instances": len(report.instances),
        "written": report.num_written,
        "notes": report.notes,
        "skipped": [
            {"file": finding.instance, "why": finding.evidence, "fix": finding.fix} for finding in report.skipped
        ],
    }
    with report.log_path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def _median(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else None


def _named(data: bytes, path: Path) -> io.BytesIO:
    file = io.BytesIO(data)
    file.name = str(path)
    return file
