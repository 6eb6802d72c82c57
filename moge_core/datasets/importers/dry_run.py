"""What an import would understand of its source, told before a byte is written into the dataset.

All records are counted, and a few that are spread evenly over them are decoded. What is not known yet, such as the
camera or the scale, is no error here: what the files tell of it is shown.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moge_core.datasets.import_log import import_log_path
from moge_core.datasets.importers.calls import current_call
from moge_core.datasets.importers.frames import Frame, Parts, normalised_intrinsics, read_frame, read_parts
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportSettings, Record, StoredDepth, finding_of
from moge_core.datasets.importers.reports import ImportReport, Result, Tally
from moge_core.datasets.importers.shared_cameras import check_one_size
from moge_core.datasets.importers.stored_values import StoredValues, sampled
from moge_core.datasets.layout import Finding
from moge_core.errors import DatasetError, InputError, MoGeError

NUM_LOOKED_AT = 12
"""So many frames are decoded, however many there are."""
_NUM_SHOWN = 4
_TILE_HEIGHT = 420
# Units a metre that depth is published in: metres, centimetres, KITTI, millimetres, Azure's quarter of one, TUM,
# Replica, and 16 bits over ten metres.
_USUAL_SCALES = (1, 100, 256, 1000, 4000, 5000, 6553.5)
# Metres from which on the middle of a scene is that of such a place.
_PLACES_FROM_M = ((0.25, "a table top"), (0.7, "a room"), (6.0, "a hall or a street"), (60.0, None))
# A camera that nobody named is drawn as one of 60 degrees.
_FOCAL_OF_60_DEGREES = 0.5 / math.tan(math.radians(30))
# Depth jumps by this share of itself within three pixels, or it is no edge worth drawing.
_EDGE = 0.06
# Where fewer pixels are known, each is drawn, because points have no edges.
_SPARSE = 0.15
_NO_CAMERA = "unknown"
_EDGE_COLOUR = (255, 0, 170)


@dataclass(frozen=True)
class Understood:
    """What a dry run found.

    Attributes:
        num_frames: pairs of an image and depth.
        num_looked_at: how many of them were decoded.
        lines: all of it for people.
        picture: where the picture with depth's edges over the images is; None where no frame could be decoded.
        values: stored values of the depth maps that were decoded; None where depth is of points.
        command: the command line of the import; None where it cannot be typed, or there is nothing to import.
        missing: options that it should have besides, because nobody can know what they say.
    """

    num_frames: int
    num_looked_at: int
    lines: list[str]
    picture: Path | None
    values: StoredValues | None
    command: str | None
    missing: tuple[str, ...] = ()


@dataclass
class _Looks:
    """What was seen of the frames that were decoded."""

    maps: list[npt.NDArray[np.generic]] = field(default_factory=list)
    meaning: StoredDepth | None = None
    tally: Tally = field(default_factory=Tally)
    sizes: dict[str, Counter[tuple[int, int]]] = field(default_factory=dict)
    cameras: Counter[str] = field(default_factory=Counter)
    pictures: list[tuple[str, npt.NDArray[np.uint8]]] = field(default_factory=list)

    def count_size(self, what: str, pixels: npt.NDArray[np.generic]) -> None:
        """Count one more part (H, W, ...) of such a kind, as it is stored."""
        self.sizes.setdefault(what, Counter())[pixels.shape[1], pixels.shape[0]] += 1


def understand(
    source: Path,
    out: Path,
    records: Iterable[Record],
    settings: ImportSettings,
    notes: Iterable[str],
    skipped: list[Finding],
) -> ImportReport:
    """Count all records, decode some, and tell what they are; nothing is written but a picture outside of the dataset.

    Args:
        source: what is imported.
        out: the dataset that it would become.
        records: all records.
        settings: see `ImportSettings`.
        notes: what the importer has to tell.
        skipped: frames that cannot be imported, as far as `records` found them by now; others are added.

    Raises:
        InputError: the picture would lie in the dataset, or its name is no picture's.
    """
    from moge_core.io import write_image

    target = _picture_path(settings, out)
    num_frames, chosen = _evenly(records)
    looks = _Looks()
    show = {int(place) for place in np.linspace(0, len(chosen) - 1, min(_NUM_SHOWN, len(chosen)))}
    for place, record in enumerate(chosen):
        try:
            _look(record, settings, looks, show=place in show)
        except Exception as error:  # as when it is written
            skipped.append(finding_of(record.name, error))
    values = StoredValues.of(looks.maps) if looks.maps else None
    picture = None
    if looks.pictures:
        picture = target or _temporary(out)
        write_image(picture, _mosaic(looks.pictures))
    call = current_call()
    command = None if call is None or not num_frames else call.command()
    lines = [
        f"Frames: {num_frames} pairs of an image and depth; {len(chosen)} of them, evenly spread, were looked at.",
        *(f"  {_pair(record, source)}" for record in chosen[:: max(1, len(chosen) // 3)][:3]),
        *_lines_of(looks, values),
    ]
    if picture is not None:
        lines.append(f"Picture: {picture}: depth's edges must lie on those of the image.")
    told = [*notes, *looks.tally.told.lines()]
    try:
        check_one_size(chosen)
    except DatasetError as error:
        told.append(f"This import would be refused: {error}")
    return ImportReport(
        out_dir=out,
        instances=[],
        num_written=0,
        skipped=skipped,
        notes=told,
        log_path=import_log_path(out),
        label_type=settings.label_type,
        **looks.tally.measures(),
        command=command,
        understood=Understood(num_frames, len(chosen), lines, picture, values, command, _missing(looks)),
    )


def _missing(looks: _Looks) -> tuple[str, ...]:
    """Options without which the import has no camera, or takes integers for millimetres for want of better."""
    meaning = looks.meaning
    is_linear = meaning is not None and meaning.kind in {"z", "ray"} and meaning.encoding in {None, "linear"}
    has_integers = any(values.dtype.kind in "iu" for values in looks.maps)
    needs_scale = is_linear and has_integers and meaning is not None and meaning.scale is None
    has_camera = not any(text.startswith(_NO_CAMERA) for text in looks.cameras)
    return (*(() if has_camera else ("--intrinsics",)), *(("--scale",) if needs_scale else ()))


def _picture_path(settings: ImportSettings, out: Path) -> Path | None:
    """Where the user wants the picture.

    Raises:
        InputError: in the dataset, or with the suffix of no picture.
    """
    if settings.dry_run_picture is None:
        return None
    path = Path(settings.dry_run_picture)
    if path.resolve().is_relative_to(out):
        raise InputError("dry_run_picture", "must lie outside of the dataset", found=path)
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise InputError("dry_run_picture", "must end with .png or .jpg", found=path)
    return path


def _temporary(out: Path) -> Path:
    # A name of its own: nobody else's file is written over.
    folder = tempfile.mkdtemp(prefix="moge-dry-run-")
    return Path(folder) / f"{out.name or 'dataset'}.png"


def _evenly(records: Iterable[Record]) -> tuple[int, list[Record]]:
    """How many there are, and some that are spread evenly over them; only these are held."""
    kept: list[Record] = []
    every, count = 1, 0
    for record in records:
        if count % every == 0:
            kept.append(record)
            if len(kept) == 4 * NUM_LOOKED_AT:
                kept, every = kept[::2], 2 * every
        count += 1
    places = np.linspace(0, len(kept) - 1, min(NUM_LOOKED_AT, len(kept))).astype(int)
    return count, [kept[place] for place in places]


def _pair(record: Record, source: Path) -> str:
    base = source if source.is_dir() else source.parent
    files = [
        (part.path.relative_to(base).as_posix() if part.path.is_relative_to(base) else str(part.path))
        + (f"#{part.part}" if part.part else "")
        for part in (record.image, record.depth)
    ]
    return f"{files[0]} with {files[1]} becomes {record.name}"


def _look(record: Record, settings: ImportSettings, looks: _Looks, *, show: bool) -> None:
    """Decode one record.

    Raises:
        Exception: what makes the import leave it out.
    """
    parts = read_parts(record)
    looks.count_size("images", parts.image)
    if parts.stored is not None and parts.meaning is not None:
        looks.count_size("depth maps", parts.stored)
        looks.maps.append(sampled(parts.stored))
        looks.meaning = parts.meaning
    looks.cameras[_camera_text(parts)] += 1
    is_known = math.isfinite(record.camera.fx)
    frame = read_frame(record if is_known else replace(record, camera=_stand_in(parts)), settings)
    result = Result.of_frame(record, frame)
    looks.tally.add(result if is_known else replace(result, fov_x_deg=math.nan), [])
    if show:
        looks.pictures.append((record.name, _overlay(frame)))


def _stand_in(parts: Parts) -> PixelIntrinsics:
    height, width = parts.image.shape[:2]
    focal = _FOCAL_OF_60_DEGREES * max(width, height)
    return PixelIntrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2)


def _camera_text(parts: Parts) -> str:
    from moge_core.geometry import intrinsics_to_fov

    camera = parts.camera
    if not math.isfinite(camera.fx):
        return f"{_NO_CAMERA}; say it with --intrinsics fx,fy,cx,cy in pixels, or a file"
    text = f"fx {camera.fx:.6g}, fy {camera.fy:.6g}, cx {camera.cx:.6g}, cy {camera.cy:.6g} pixels"
    if camera.size is not None:
        text += f" of {camera.size[0]}x{camera.size[1]}"
    try:
        normalised, _ = normalised_intrinsics(camera, parts.image.shape[1], parts.image.shape[0])
    except MoGeError as error:
        return f"{text}; {error}"
    across, down = (float(np.degrees(angle)) for angle in intrinsics_to_fov(normalised))
    text += f", field of view {across:.1f} x {down:.1f} degrees"
    return text if camera.distortion is None else f"{text} but for its distortion, {camera.distortion}"


def _lines_of(looks: _Looks, values: StoredValues | None) -> list[str]:
    lines = []
    for what, sizes in looks.sizes.items():
        counted = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes.most_common(5))
        lines.append(f"Sizes of {what}: {counted}")
    for text, count in looks.cameras.most_common(3):
        lines.append(f"Camera: {text}" + (f" ({count} frames)" if len(looks.cameras) > 1 else ""))
    if values is not None and looks.meaning is not None:
        lines.append(f"Stored values: {_meaning_text(looks.meaning)}")
        lines += [f"  {line}" for line in values.lines(looks.meaning)]
        lines += _scales(values, looks.meaning)
    measures = looks.tally.measures()
    known = measures["valid_share"]
    if values is None and known is not None:
        lines.append(f"Depth: of points; {known:.1%} of the pixels have one")
    if measures["median_depth_m"] is not None:
        unit = " without unit" if None in looks.tally.depth_units else " m"
        stand_in = ", if the camera sees 60 degrees" if measures["fov_x_deg"] is None else ""
        lines.append(
            f"Depth as it would be written: median {measures['median_depth_m']:.3g}{unit}, {known:.1%} known{stand_in}"
        )
    return lines


def _meaning_text(meaning: StoredDepth) -> str:
    """What would be taken for granted of values."""
    told = [f"kind {meaning.kind}", "no scale given" if meaning.scale is None else f"scale {meaning.scale:g}"]
    told += [f"offset {meaning.offset:g}"] if meaning.offset else []
    told += [f"encoding {meaning.encoding}"] if meaning.encoding not in {None, "linear"} else []
    for name, several in (("invalid", meaning.invalid), ("infinite", meaning.infinite)):
        told += [f"{name} {' '.join(f'{value:g}' for value in several)}"] if several else []
    told += [f"baseline {meaning.baseline:g} m"] if meaning.baseline is not None else []
    return ", ".join(told)


def _scales(values: StoredValues, meaning: StoredDepth) -> list[str]:
    """The median depth at the scales that are usual, for values that are proportional to z or to the ray."""
    if (
        meaning.kind not in {"z", "ray"}
        or meaning.encoding not in {None, "linear"}
        or not math.isfinite(values.typical)
    ):
        return []
    scales = sorted({float(scale) for scale in _USUAL_SCALES} | ({meaning.scale} if meaning.scale else set()))
    lines = ["Median depth at usual scales (--scale):"]
    for scale in scales:
        depth = (values.typical - meaning.offset) / scale
        place = next((name for least, name in reversed(_PLACES_FROM_M) if depth >= least), None)
        marks = [] if place is None else [f"plausible for {place}"]
        marks += ["given"] if scale == meaning.scale else []
        lines.append(f"  {scale:>8g}  {depth:>10.4g} m  {', '.join(marks)}".rstrip())
    return lines


def _overlay(frame: Frame) -> npt.NDArray[np.uint8]:
    """The image, darkened, with depth's edges on it, or with its points where depth is sparse."""
    from moge_core.geometry.edges import depth_map_edge
    from moge_core.io.opencv import cv2
    from moge_core.visualization import colorize_depth

    height, width = frame.depth.shape
    times = max(1, round(_TILE_HEIGHT / height)) if height < _TILE_HEIGHT else 1
    size = (width * times, height * times)
    picture = cv2.resize(frame.image, size, interpolation=cv2.INTER_NEAREST)
    picture = (picture * np.float32(0.75)).astype(np.uint8)
    known = np.isfinite(frame.depth)
    if known.mean() < _SPARSE:
        marks, colours = known, colorize_depth(frame.depth)
        wide = max(2, round(height / _TILE_HEIGHT))
    else:
        # Infinity has no relative step; far beyond everything it has one.
        farthest = frame.depth[known].max() if known.any() else np.float32(1)
        depth = np.where(np.isposinf(frame.depth), 10 * farthest, frame.depth)
        marks, colours = depth_map_edge(depth, rtol=_EDGE), np.full((height, width, 3), _EDGE_COLOUR, np.uint8)
        wide = max(1, round(height / (2 * _TILE_HEIGHT)))
    # Big pictures are shrunk into their tiles; thin lines would be lost.
    if wide > 1:
        colours = cv2.dilate(np.where(marks[..., None], colours, np.uint8(0)), np.ones((wide, wide), np.uint8))
        marks = cv2.dilate(marks.astype(np.uint8), np.ones((wide, wide), np.uint8)) > 0
    marks = cv2.resize(marks.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    picture[marks] = cv2.resize(colours, size, interpolation=cv2.INTER_NEAREST)[marks]
    return np.ascontiguousarray(picture)


def _mosaic(pictures: Sequence[tuple[str, npt.NDArray[np.uint8]]]) -> npt.NDArray[np.uint8]:
    from moge_core.visualization import contact_sheet

    rows = [pictures[start : start + 2] for start in range(0, len(pictures), 2)]
    return contact_sheet(
        [[picture for _, picture in row] for row in rows],
        captions=[[name for name, _ in row] for row in rows],
        tile_height=_TILE_HEIGHT,
    )
