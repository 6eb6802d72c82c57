"""Reading one instance against the rules.

`examine_instance` reads an instance once and gives both what the manifest records and what is wrong with it. A broken
instance is a finding, never an exception.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import (
    DEPTH_NAME,
    IMAGE_NAME,
    INSPECTION_NAMES,
    MASK_NAME,
    META_NAME,
    NORMAL_NAME,
    SEGMENTATION_NAME,
    Finding,
    check_instance_links,
)
from moge_core.datasets.manifest import InstanceRecord
from moge_core.datasets.validation.cameras import camera_problem, judge_camera, judge_pixels
from moge_core.datasets.validation.catalogue import RULES
from moge_core.datasets.validation.settings import ValidationSettings
from moge_core.datasets.validation.usage import DepthNumbers, judge_density, judge_unit
from moge_core.errors import MoGeError
from moge_core.io.files import NamedBytes, read_bytes

if TYPE_CHECKING:
    from moge_core.datasets.validation.depth_map import DepthVerdict
    from moge_core.io.depth import CodedDepth

_MAP_NAMES = (NORMAL_NAME, MASK_NAME, SEGMENTATION_NAME)
_KNOWN_NAMES = frozenset({IMAGE_NAME, META_NAME, *_MAP_NAMES, *INSPECTION_NAMES})
_DECODER_ERRORS = (MoGeError, OSError, ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
# Rights and links can be mended without a file's size or time changing: such instances are read again each time.
_NOT_OF_CONTENTS = frozenset({"files-readable", "folder-readable", "inside-root"})
_PNG_HEAD = 1 << 16


def instance_stamp(folder: str | Path, depth_name: str) -> str:
    """Names, sizes and modification times of the files that training reads, and the time of their folder."""
    parts = []
    prefix = os.fspath(folder) + "/"
    for name in (IMAGE_NAME, depth_name, META_NAME):
        try:
            stat = os.stat(prefix + name)  # noqa: PTH116 - a Path for each of a million files takes longer than the call
            parts.append(f"{name}:{stat.st_size}:{stat.st_mtime_ns}")
        except OSError:
            parts.append(f"{name}:missing")
    # Further maps are few, so they are asked for before they are looked at; files that come or go change the folder.
    for name in _MAP_NAMES:
        if os.access(prefix + name, os.F_OK):
            stat = os.stat(prefix + name)  # noqa: PTH116
            parts.append(f"{name}:{stat.st_size}:{stat.st_mtime_ns}")
    with contextlib.suppress(OSError):
        parts.append(str(os.stat(prefix).st_mtime_ns))  # noqa: PTH116
    return "|".join(parts)


def examine_instance(
    root: Path,
    instance: str,
    depth_name: str = DEPTH_NAME,
    *,
    full: bool = True,
    settings: ValidationSettings | None = None,
    label_type: str | None = None,
    depth_unit: float | None = None,
) -> InstanceRecord:
    """Read one instance and check it against the rules of the cheap and, with `full`, of the full pass.

    Args:
        root: the dataset's resolved folder.
        instance: path of the instance relative to it.
        depth_name: file name of the depth map.
        full: decode image and depth; otherwise read headers only, and leave statistics and fingerprint out.
        settings: thresholds; the default ones when not given.
        label_type, depth_unit: of the training configuration; by default what meta.json says.
    """
    examination = _Examination(root, instance, depth_name, settings or ValidationSettings(), label_type, depth_unit)
    return examination.run(full=full)


def instance_fingerprint(root: Path, instance: str, depth_name: str = DEPTH_NAME) -> str:
    """The fingerprint that `examine_instance` gives, without decoding what is read."""
    names = (META_NAME, IMAGE_NAME, depth_name)
    digest = hashlib.sha256()
    try:
        check_instance_links(root, instance, names)
        for name in names:
            _read_and_count(root / instance, name, digest)
    except (MoGeError, OSError):  # of an instance that cannot be read whole, the examination knows what counts
        return examine_instance(root, instance, depth_name).fingerprint
    return digest.hexdigest()


def finding_of(
    rule: str, instance: str, evidence: object, settings: ValidationSettings, fix: str | None = None
) -> Finding | None:
    """A finding with the severity that the settings give its rule; None where they turn the rule off."""
    if rule in settings.off:
        return None
    severity = settings.severities.get(rule, RULES[rule].severity)
    return Finding(instance, rule, severity, str(evidence).rstrip("."), fix or RULES[rule].fix)


class _Examination:
    """The state of reading one instance: what was found so far."""

    def __init__(
        self,
        root: Path,
        instance: str,
        depth_name: str,
        settings: ValidationSettings,
        label_type: str | None,
        depth_unit: float | None,
    ) -> None:
        self.root = root
        self.instance = instance
        self.folder = root / instance
        self.depth_name = depth_name
        self.settings = settings
        self.label_type = label_type
        self.depth_unit = depth_unit
        self.scale_free = False
        self.intrinsics: npt.NDArray[np.float64] | None = None
        self.findings: list[Finding] = []
        self.digest = hashlib.sha256()
        self.values: dict[str, Any] = {}
        self.contents: dict[str, bytes] = {}

    def run(self, *, full: bool) -> InstanceRecord:
        stamp = instance_stamp(self.folder, self.depth_name)
        try:
            if self._files_are_there():
                self._check_meta()
                self._check_sizes(full=full)
                if full:
                    grey = self._check_image()
                    coded = self._check_depth(grey)
                    self._check_maps()
                    if coded is not None:
                        self._compare_maps(coded, grey)
        except _DECODER_ERRORS as error:
            # One instance that a decoder chokes on must not end the check of a million.
            self._found("files-readable", f"{type(error).__name__}: {error}")
        if any(finding.rule in _NOT_OF_CONTENTS for finding in self.findings):
            stamp = ""
        return InstanceRecord(
            path=self.instance,
            depth_name=self.depth_name,
            stamp=stamp,
            fingerprint=self.digest.hexdigest() if full else "",
            findings=tuple(self.findings),
            **self.values,
        )

    def _found(self, rule: str, evidence: object, fix: str | None = None) -> None:
        finding = finding_of(rule, self.instance, evidence, self.settings, fix)
        if finding is not None:
            self.findings.append(finding)

    def _found_unreadable(self, error: OSError) -> None:
        if all(finding.rule != "files-readable" for finding in self.findings):
            self._found("files-readable", error)

    def _found_once(self, rule: str, error: Exception) -> None:
        if all(finding.rule != rule for finding in self.findings):
            self._found(rule, _reason(error), _fix(error))

    def _files_are_there(self) -> bool:
        names = (IMAGE_NAME, self.depth_name, META_NAME)
        try:
            entries = {entry.name: entry for entry in os.scandir(self.folder)}
        except (NotADirectoryError, FileNotFoundError):
            entries = None
        except OSError as error:
            self._found("folder-readable", error)
            return False
        if entries is None:
            gone = f"Delete the line, or run `moge index {self.root} --rebuild`."
            self._found("files-present", f"there is no folder {self.folder}", gone)
            return False
        if not self._stays_inside(names, entries):
            return False
        missing = [name for name in names if name not in entries or not entries[name].is_file()]
        others = sorted(
            name for name, entry in entries.items() if name not in names and not entry.is_dir(follow_symlinks=False)
        )
        if missing:
            beside = f"; beside them lie {', '.join(others[:6])}" if others else ""
            fix: str | None = None
            if self.depth_name in missing and any(name.startswith("depth") for name in others):
                fix = "Name the depth file with --depth, or as `depth` in the training configuration."
            self._found("files-present", f"{' and '.join(missing)} missing{beside}", fix)
        foreign = [
            name
            for name in others
            if not entries[name].is_file() or (name not in _KNOWN_NAMES and not _is_another_depth(name))
        ]
        if foreign:
            more = f" and {len(foreign) - 6} more" if len(foreign) > 6 else ""
            self._found("files-known", f"{', '.join(map(repr, foreign[:6]))}{more}")
        self.present = frozenset(name for name, entry in entries.items() if entry.is_file())
        return not missing

    def _stays_inside(self, names: tuple[str, ...], entries: dict[str, os.DirEntry[str]]) -> bool:
        # Resolving costs more than all the rest of the cheap pass, and only a link can lead out.
        linked = any(entries[name].is_symlink() for name in (*names, *_MAP_NAMES) if name in entries)
        folder = self.root
        for part in Path(self.instance).parts:
            folder = folder / part
            linked = linked or folder.is_symlink()
        if not linked:
            return True
        try:
            check_instance_links(self.root, self.instance, (*names, *_MAP_NAMES))
        except MoGeError as error:
            self._found("inside-root", f"{error.where} is {error.found}", error.fix)
            return False
        return True

    def _check_meta(self) -> None:
        from moge_core.geometry import intrinsics_to_fov
        from moge_core.io.meta import read_meta, says_no_unit

        try:
            meta = read_meta(self._open(META_NAME))
        except MoGeError as error:
            self._found("meta-readable", _reason(error))
            return
        except OSError as error:
            self._found_unreadable(error)
            return
        unit = meta.get("depth_unit")
        if self.depth_unit is None and isinstance(unit, int | float) and not isinstance(unit, bool) and unit > 0:
            self.depth_unit = float(unit)
        if self.label_type is None and isinstance(meta.get("label_type"), str):
            self.label_type = meta["label_type"]
        self.scale_free = self.depth_unit is None and says_no_unit(meta)
        self.values |= {"depth_unit": self.depth_unit, "scale_free": self.scale_free}
        intrinsics = meta["intrinsics"].astype(np.float64)
        problem = camera_problem(intrinsics)
        if problem is not None:
            self._found(*problem)
            return
        self.intrinsics = intrinsics
        fov_x, fov_y = (float(np.degrees(fov)) for fov in intrinsics_to_fov(intrinsics))
        self.values |= {"fov_x": fov_x, "fov_y": fov_y}
        for rule, evidence in judge_camera(intrinsics, (fov_x, fov_y), self.settings):
            self._found(rule, evidence)

    def _check_sizes(self, *, full: bool) -> None:
        from moge_core.io import read_image_size

        sizes: dict[str, tuple[int, int]] = {}
        maps = [name for name in _MAP_NAMES if name in self.present]
        for name in (IMAGE_NAME, self.depth_name, *maps):
            try:
                # What is decoded later is read once, and its size taken from that.
                whole = full and name not in maps
                sizes[name] = read_image_size(self._open(name) if whole else self.folder / name)
            except OSError as error:
                self._found_unreadable(error)
            except MoGeError as error:
                if name in maps:
                    self._found("maps-decodable", f"{name}: {_reason(error)}", _fix(error))
                else:
                    rule = "image-decodable" if name == IMAGE_NAME else _depth_rule(error)
                    self._found(rule, _reason(error), _fix(error))
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} is {width}x{height}" for name, (width, height) in sizes.items())
            self._found("sizes-agree", told)
        if IMAGE_NAME in sizes:
            self.values["width"], self.values["height"] = sizes[IMAGE_NAME]
            if self.intrinsics is not None:
                for rule, evidence in judge_pixels(self.intrinsics, *sizes[IMAGE_NAME], self.settings):
                    self._found(rule, evidence)

    def _check_image(self) -> npt.NDArray[np.uint8] | None:
        """Decode the image, and return it grey and no larger than edges need; None where it cannot be compared."""
        from moge_core.datasets.validation.pictures import decode_grey, judge_picture
        from moge_core.io.headers import parse_image_header
        from moge_core.io.limits import check_pixel_count

        name = str(self.folder / IMAGE_NAME)
        try:
            data = self._read(IMAGE_NAME)
            header = parse_image_header(data, name)
            check_pixel_count(name, header.width, header.height)
            grey = decode_grey(data, header, name)
        except OSError as error:
            self._found_unreadable(error)
            return None
        except MoGeError as error:
            self._found_once("image-decodable", error)
            return None
        self.values["image_digest"] = hashlib.sha256(data).hexdigest()[:32]
        for rule, evidence in judge_picture(grey, header.width * header.height, self.settings):
            self._found(rule, evidence)
        return grey if header.orientation == 1 else None

    def _check_depth(self, grey: npt.NDArray[np.uint8] | None) -> CodedDepth | None:
        """Decode the depth, and return it where it could be."""
        from moge_core.datasets.validation.depth_map import judge_depth_map
        from moge_core.io.depth import read_depth_codes

        try:
            data = self._read(self.depth_name)
            coded = read_depth_codes(NamedBytes(self.folder / self.depth_name, data))
        except OSError as error:
            self._found_unreadable(error)
            return None
        except MoGeError as error:
            self._found_once(_depth_rule(error), error)
            return None
        self.values["depth_digest"] = hashlib.sha256(data).hexdigest()[:32]
        unit = None if self.scale_free else self.depth_unit or 1.0
        verdict = judge_depth_map(coded, grey, self.intrinsics, self.settings, unit)
        self.values |= verdict.values.statistics()
        for rule, evidence, fix in verdict.broken:
            self._found(rule, evidence, fix)
        if verdict.planes is not None:
            self.values["camera_height"] = verdict.planes.floor
        self._check_use(verdict)
        return coded

    def _check_maps(self) -> None:
        """Beginning and end of the further maps."""
        from moge_core.io import limits
        from moge_core.io.png import END, RGB, parse_png

        for name in _MAP_NAMES:
            if name not in self.present or any(finding.rule == "maps-decodable" for finding in self.findings):
                continue
            path = self.folder / name
            try:
                with path.open("rb") as file:
                    header = parse_png(file.read(_PNG_HEAD), str(path), header_only=True)
                    file.seek(-min(len(END), file.seek(0, os.SEEK_END)), os.SEEK_END)
                    is_whole = file.read() == END
                limits.check_pixel_count(str(path), header.width, header.height)
            except OSError as error:
                self._found_unreadable(error)
                continue
            except MoGeError as error:
                self._found("maps-decodable", f"{name}: {_reason(error)}", _fix(error))
                continue
            if not is_whole:
                self._found("maps-decodable", f"{name} does not end as a PNG does: it was cut off")
            elif name == NORMAL_NAME and (header.bit_depth, header.color_type) != (16, RGB):
                self._found("maps-decodable", f"{name} is {header.pixel_format}, not 16-bit RGB")

    def _compare_maps(self, coded: CodedDepth, grey: npt.NDArray[np.uint8] | None) -> None:
        """The further maps against the depth, where all of them are whole and of one size."""
        if any(finding.rule in {"maps-decodable", "sizes-agree"} for finding in self.findings):
            return
        names = [name for name in _MAP_NAMES if name in self.present]
        if not names:
            return
        from moge_core.datasets.validation.maps import FurtherMaps

        further = FurtherMaps(coded, grey, self.intrinsics, self._pose)
        for name in names:
            try:
                for rule, evidence, mend in further.judge(self.folder / name):
                    self._found(rule, evidence, mend)
            except OSError as error:
                self._found_unreadable(error)
            except MoGeError as error:
                self._found("maps-decodable", f"{name}: {_reason(error)}", _fix(error))

    def _pose(self) -> list[float] | None:
        from moge_core.datasets.validation.reprojection import pose_of

        pose = pose_of(self.root, self.instance)
        return None if pose is None else pose.ravel().tolist()

    def _check_use(self, verdict: DepthVerdict) -> None:
        values, planes = verdict.values, verdict.planes
        known, infinite = (count / values.num_pixels for count in (values.num_known, values.num_infinite))
        evidence = judge_density(self.label_type, known, infinite, self.settings)
        if evidence is not None:
            self._found("density-fits-label", evidence)
        if self.scale_free or not verdict.is_length:
            return
        numbers = DepthNumbers(
            self.values["depth_median"],
            self.values["depth_max"],
            None if planes is None else planes.floor,
            verdict.telling,
            None if planes is None else planes.room_height,
        )
        evidence = judge_unit(numbers, self.depth_unit, self.settings)
        if evidence is not None:
            self._found("unit-plausible", evidence)

    def _open(self, name: str) -> NamedBytes:
        return NamedBytes(self.folder / name, self._read(name))

    def _read(self, name: str) -> bytes:
        """A file, read once and counted into the fingerprint."""
        if name not in self.contents:
            self.contents[name] = _read_and_count(self.folder, name, self.digest)
        return self.contents[name]


def _read_and_count(folder: Path, name: str, digest: hashlib._Hash) -> bytes:
    from moge_core.io import limits

    limit = limits.MAX_META_BYTES if name == META_NAME else limits.MAX_FILE_BYTES
    data = read_bytes(folder / name, limit=limit)
    digest.update(f"\0{name}\0{len(data)}\0".encode())
    digest.update(data)
    return data


def _is_another_depth(name: str) -> bool:
    return name.startswith("depth") and name.endswith((".png", ".json"))


def _depth_rule(error: Exception) -> str:
    rule = error.rule if isinstance(error, MoGeError) else ""
    if "16-bit grey" in rule:
        return "depth-16-bit"
    return "depth-has-range" if "near and far" in rule and "text fields" in rule else "depth-decodable"


def _reason(error: Exception) -> str:
    if isinstance(error, MoGeError):
        return error.rule + (f"; found {error.found}" if error.found is not None else "")
    return str(error)


def _fix(error: Exception) -> str | None:
    return error.fix if isinstance(error, MoGeError) else None
