"""What an importer says of each frame: the contract between the layouts of data and the one writer of instances.

An importer is a generator of records. A record names files and says what their values mean; it decodes nothing, so a
million of them are made in seconds. `writing.run_import` reads what they name and writes the instances.

    camera = PixelIntrinsics(525, 525, 319.5, 239.5)
    yield Record("scene/0001", Stored(image_path), StoredDepth(depth_path, scale=1000), camera)

A frame that cannot become an instance is yielded as a `Finding` instead, so that nothing is passed by in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.pinhole import LATER, PixelIntrinsics
from moge_core.datasets.importers.vocabulary import (
    DEPTH_KINDS,
    NEED_SCALE,
    DepthKind,
    Distortion,
    Encoding,
    GivenValues,
    Orientation,
    ValueOptions,
    no_scale,
)
from moge_core.datasets.layout import STATE_DIR, Finding
from moge_core.datasets.normal_axes import NO_NORMALS, NormalAxes
from moge_core.errors import InputError, MoGeError

Resolution: TypeAlias = Literal["smaller", "image", "depth"]

UNKNOWN_CAMERA = PixelIntrinsics(float("nan"), float("nan"), float("nan"), float("nan"))
"""For dry runs, which show what there is where no camera was given yet."""

Read: TypeAlias = Callable[[Path], npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture or an array in a file.

    Attributes:
        path: the file.
        read: how to read it; by default as a picture (for images) or as its suffix says (for arrays).
        part: which part of a file that holds many, for people and for telling records apart.
    """

    path: Path
    read: Read | None = field(default=None, repr=False, compare=False)
    part: str = ""


@dataclass(frozen=True, slots=True)
class StoredDepth(Stored):
    """A depth map (H, W) in a file, and what its values mean.

    Attributes:
        kind: `z` along the optical axis, `ray` distance from the camera, `disparity` in pixels of this map, or
            `inverse` of z.
        scale: stored units a metre (z, ray), a pixel (disparity) or 1 / metre (inverse): the value meant is
            stored / scale. None is 1000 (millimetres) for integers of z and ray, and else 1.
        invalid: stored values that mean unknown, besides 0, which no depth is.
        far_from: stored z or ray values from here on are infinitely far; None where the file says so by +Inf.
        baseline: metres between the cameras of a disparity. Without it the depth has no unit.
        doffs: pixels between the principal points, added to a disparity (Middlebury's name).
        offset: subtracted from a value before it is divided by the scale.
        encoding: how numbers are stored, see `vocabulary.WORDS`; None is linear, but for MoGe's own PNG.
        infinite: stored values that mean infinitely far.
        infinite_from: metres from which depth is infinitely far: of the distance for rays, else of z.
        depth_array: name of the array or channel, in files that hold several.
    """

    kind: DepthKind = "z"
    scale: float | None = None
    invalid: tuple[float, ...] = ()
    far_from: float | None = None
    baseline: float | None = None
    doffs: float = 0.0
    offset: float = field(default=0.0, metadata=LATER)
    encoding: Encoding | None = field(default=None, metadata=LATER)
    infinite: tuple[float, ...] = field(default=(), metadata=LATER)
    infinite_from: float | None = field(default=None, metadata=LATER)
    depth_array: str | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        """Refuse what no depth map can be.

        Raises:
            InputError: naming the attribute.
        """
        if self.kind not in DEPTH_KINDS:
            raise InputError("kind", f"must be one of {', '.join(DEPTH_KINDS)}", found=repr(self.kind))
        for name in ("scale", "far_from", "baseline", "infinite_from"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(name, "must be a positive number", found=value)
        for name in ("doffs", "offset"):
            if not np.isfinite(getattr(self, name)):
                raise InputError(name, "must be a finite number", found=getattr(self, name))
        if self.scale is None and self.encoding in NEED_SCALE and self.kind in {"z", "ray"}:
            raise no_scale(self.encoding)
        if self.kind != "disparity" and (self.baseline is not None or self.doffs):
            raise InputError("baseline and doffs", "belong to the kind disparity", found=f"kind {self.kind}")


@dataclass(frozen=True, slots=True)
class StoredPoints(Stored):
    """A LiDAR sweep. `read` gives its points (N, 3) in metres in this camera's axes (x right, y down, z forward).

    Attributes:
        drop_hidden: leave out points behind nearer ones, which the sensor saw past the edge of what hides them from
            the camera; see `projection.project_points`.
        sensor: where the sensor stood, in the camera's axes; without it only few of the hidden points can be told.
    """

    drop_hidden: bool = True
    sensor: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One frame, as a layout has it.

    Attributes:
        name: path of the instance that it becomes, relative to the dataset.
        image: the picture.
        depth: the depth map or the points.
        camera: pixel intrinsics, of the image unless they name another size.
        normal: (H, W, 3) unit vectors towards the camera, in OpenCV axes unless `normal_axes` says others, NaN unknown;
            see `map_files` for how they may be stored.
        mask: (H, W), true where the depth can be trusted; elsewhere it becomes unknown.
        segmentation: (H, W) integer ids.
        labels: names of the segmentation's ids, {name: id}.
        depth_unit: metres a unit of the written depth; None where nobody knows (scale-free reconstructions).
        unit_is_said: whether the unit is what a user said, and not what is usual.
        values_are_said: whether a user said offset or encoding, so that 8 bits can be more than a picture of depth.
        extra_files: other files that the record was made from, such as calibrations.
        notes: what a person should know about how this frame was read.
        pose: camera-to-world (4, 4) in OpenCV axes and metres, row by row, where the source tells it.
        orientation: which picture depth and camera belong to where the layout knows, see `ImportSettings`.
        size_is_said_by: by which option or columns a user says what size the intrinsics refer to; empty where none can.
    """

    name: str
    image: Stored
    depth: StoredDepth | StoredPoints
    camera: PixelIntrinsics
    normal: Stored | None = None
    mask: Stored | None = None
    segmentation: Stored | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    depth_unit: float | None = 1.0
    extra_files: tuple[Path, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)
    unit_is_said: bool = field(default=False, repr=False)
    values_are_said: bool = field(default=False, repr=False)
    pose: tuple[float, ...] | None = field(default=None, repr=False)
    orientation: Orientation = field(default="auto", repr=False)
    size_is_said_by: str = field(default="", repr=False)

    @property
    def is_metric(self) -> bool:
        """Whether the written depth has a unit.

        A disparity without a baseline has none, nor has inverse depth without a scale, unless its user says so.
        """
        if self.depth_unit is None or self.unit_is_said or not isinstance(self.depth, StoredDepth):
            return self.depth_unit is not None
        unknown = {"disparity": self.depth.baseline, "inverse": self.depth.scale}
        return unknown.get(self.depth.kind, 1.0) is not None

    def parts(self) -> Iterator[tuple[str, Stored]]:
        """Every stored part with its name."""
        for name in ("image", "depth", "normal", "mask", "segmentation"):
            part = getattr(self, name)
            if part is not None:
                yield name, part

    def files(self) -> list[Path]:
        """Every file that the record was made from, each once."""
        return list(dict.fromkeys([*(part.path for _, part in self.parts()), *self.extra_files]))


class ImportOptions(ValueOptions, total=False):
    """Keyword arguments of every importer; see `ImportSettings` and `vocabulary.WORDS`."""

    name_prefix: str
    label_type: str
    max_depth: float | None
    resolution: Resolution
    normal_axes: str
    invert_mask: bool
    orientation: Orientation
    distortion: Distortion
    depth_at: tuple[int, int] | None
    prune: bool
    dry_run: bool
    dry_run_picture: str | Path | None


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
        normal_axes: axes of normal maps: `opencv` (x right, y down, z forward), `opengl` (x right, y up, z backward) or
            a code such as RUF, all of the camera, or of the world (`world`, `world-opengl`), which needs poses; see
            `normal_axes`. `none` leaves normal maps out.
        invert_mask: masks are true where depth cannot be trusted.
        orientation: which picture depth and camera belong to where the image carries an EXIF orientation: the `stored`
            pixels, the `upright` picture, or the one that fits (`auto`).
        distortion: `undistort` pictures whose camera has distortion, or `ignore` it, as for pictures that were
            undistorted already.
        depth_at: where the first pixel of the depth map lies in the image, (column, row), if depth is a crop of it;
            negative if the image is a crop of depth.
        values: what the user says of stored values.
        prune: remove the instances that an earlier import of this source left and this one does not make.
        dry_run: write nothing into the dataset; tell what was understood instead, see `dry_run.understand`.
        dry_run_picture: where the picture of a dry run goes; by default into the system's folder of temporary files.
    """

    name_prefix: str = ""
    label_type: str = "sfm"
    max_depth: float | None = None
    resolution: Resolution = "smaller"
    flip_y: bool = False
    normal_axes: str = field(default="opencv", metadata=LATER)
    invert_mask: bool = field(default=False, metadata=LATER)
    orientation: Orientation = field(default="auto", metadata=LATER)
    distortion: Distortion = field(default="undistort", metadata=LATER)
    depth_at: tuple[int, int] | None = field(default=None, metadata=LATER)
    values: GivenValues = field(default_factory=GivenValues, metadata=LATER)
    # What these ask for alters no instance, so they are shown in no digest and kept in no log.
    prune: bool = field(default=False, repr=False)
    dry_run: bool = field(default=False, repr=False)
    dry_run_picture: str | Path | None = field(default=None, repr=False)

    @classmethod
    def of(cls, options: Mapping[str, Any], *, label_type: str = "sfm", flip_y: bool = False) -> ImportSettings:
        """From the keyword arguments of an importer, `ImportOptions`.

        Args:
            options: the keyword arguments.
            label_type: where they say none.
            flip_y: see the attribute.

        Raises:
            InputError: naming the option.
        """
        own = {name: value for name, value in options.items() if name not in ValueOptions.__annotations__}
        unknown = sorted(own.keys() - ImportOptions.__annotations__.keys())
        if unknown:
            raise InputError(unknown[0], "is no option of this importer", found=repr(options[unknown[0]]))
        return cls(**{"label_type": label_type, "flip_y": flip_y, **own, "values": GivenValues.of(options)})

    def __post_init__(self) -> None:
        """Refuse what no import can do.

        Raises:
            InputError: naming the setting.
        """
        if self.max_depth is not None and not self.max_depth > 0:
            raise InputError("max_depth", "must be positive, in metres", found=self.max_depth)
        for name, choices in (
            ("resolution", Resolution),
            ("orientation", Orientation),
            ("distortion", Distortion),
        ):
            known, value = get_args(choices), getattr(self, name)
            if value not in known:
                raise InputError(name, f"must be one of {', '.join(known)}", found=repr(value))
        if self.dry_run_picture is not None and not self.dry_run:
            raise InputError("dry_run_picture", "is for a dry run, --dry-run", found=self.dry_run_picture)
        if self.normal_axes != NO_NORMALS:
            NormalAxes.of(self.normal_axes)
        path = PurePosixPath(self.name_prefix)
        unsafe = path.is_absolute() or ".." in path.parts or "\\" in self.name_prefix
        if unsafe or path.parts[:1] == (STATE_DIR,):
            raise InputError("name_prefix", "must keep instances inside the dataset", found=repr(self.name_prefix))


def described(value: Any) -> str:
    """As a dataclass shows itself, without what came later and is at its default: equal settings look as they did."""
    kept = [one.name for one in fields(value) if one.repr and not _is_later_default(value, one)]
    shown = [f"{name}={getattr(value, name)!r}" for name in kept]
    return f"{type(value).__name__}({', '.join(shown)})"


def described_items(part: Stored) -> list[tuple[str, Any]]:
    """What values of a part mean, by name, without files and without what came later and is at its default."""
    named = sorted((one for one in fields(part) if one.name not in {"path", "read"}), key=lambda one: one.name)
    return [(one.name, getattr(part, one.name)) for one in named if not _is_later_default(part, one)]


def _is_later_default(value: Any, one: Field[Any]) -> bool:
    default = one.default if one.default_factory is MISSING else one.default_factory()
    return bool(one.metadata.get("later")) and getattr(value, one.name) == default


def finding_of(name: str, error: Exception, consequence: str = "") -> Finding:
    """A frame that cannot be imported, from the error that says why.

    Args:
        name: the frame.
        error: what was raised; another one than of this package or of the system is a reader's own.
        consequence: what else is left out for it.
    """
    if not isinstance(error, MoGeError | OSError):
        evidence = f"could not be read: {type(error).__name__}: {error}{consequence}"
        fix = "Mend or remove the file. If it is sound, this is a defect of the importer; please tell."
        return Finding(name, "importable", "error", evidence, fix)
    if not isinstance(error, MoGeError):
        return Finding(name, "importable", "error", f"{error}{consequence}", "Mend or remove the file.")
    evidence = f"{error.where}: {error.rule}" + (f"; found {error.found}" if error.found else "")
    return Finding(name, "importable", "error", evidence + consequence, error.fix or "Mend or remove the file.")
