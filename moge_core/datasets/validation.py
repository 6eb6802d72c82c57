"""Rules that an instance must keep, and the reading of one instance against them.

`examine_instance` reads an instance once and gives both what the manifest records and what is wrong with it;
`validate_dataset` does so for a whole list. A broken instance is a finding, never an exception.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import (
    DEPTH_NAME,
    IMAGE_NAME,
    INDEX_NAME,
    META_NAME,
    Finding,
    Progress,
    check_instance_links,
    read_index,
    resolve_dataset,
)
from moge_core.datasets.manifest import InstanceRecord
from moge_core.datasets.parallel import parallel_map
from moge_core.errors import MoGeError

RULES: Mapping[str, str] = {
    "files-present": "image, depth map and meta.json are there",
    "inside-root": "no link leads out of the dataset",
    "listable-path": "the instance's path fits on one line of a list",
    "folder-readable": "folders can be opened",
    "listed-once": "a list names each instance once",
    "image-decodable": "the image can be decoded",
    "depth-decodable": "the depth map is a 16-bit PNG with near and far, and can be decoded",
    "sizes-agree": "image and depth map have the same width and height",
    "depth-known": "at least one pixel has a finite depth",
    "meta-readable": "meta.json is a JSON object with a 3x3 matrix `intrinsics`",
    "intrinsics-normalised": "focal lengths and principal point are relative to the image size and possible",
}
"""Every rule id with the sentence that must hold."""


def validate_dataset(
    dataset_dir: str | Path,
    *,
    index_name: str = INDEX_NAME,
    depth_name: str = DEPTH_NAME,
    full: bool = True,
    progress: Progress | None = None,
) -> list[Finding]:
    """Check every instance that a list names, and return what is wrong, in the list's order.

    Args:
        dataset_dir: the dataset's folder.
        index_name: the list to check.
        depth_name: file name of the depth maps.
        full: decode images and depth maps; otherwise only headers and meta.json are read, which is much faster but sees
            neither damaged pixels nor depth maps without a known pixel.
        progress: called as `progress(done, total)`.

    Raises:
        MissingIndexError: the list does not exist.
        DatasetError: the list itself is malformed.
    """
    root = resolve_dataset(dataset_dir)
    instances = read_index(root, index_name)
    findings = find_repeated(instances, index_name)
    unique = list(dict.fromkeys(instances))
    for record in parallel_map(lambda name: examine_instance(root, name, depth_name, full=full), unique, progress):
        findings.extend(record.findings)
    return findings


def find_repeated(instances: list[str], index_name: str) -> list[Finding]:
    """A warning when a list names instances more than once: they are then drawn more often, which may be meant."""
    counts: dict[str, int] = {}
    for instance in instances:
        counts[instance] = counts.get(instance, 0) + 1
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if not repeated:
        return []
    evidence = f"{len(repeated)} instances stand more than once, such as {repeated[0]}"
    return [Finding(index_name, "listed-once", "warning", evidence, "Delete the extra lines unless this is meant.")]


def instance_stamp(folder: Path, depth_name: str) -> str:
    """Names, sizes and modification times of the files that training reads; missing files are named so."""
    parts = []
    for name in (IMAGE_NAME, depth_name, META_NAME):
        try:
            stat = (folder / name).stat()
            parts.append(f"{name}:{stat.st_size}:{stat.st_mtime_ns}")
        except OSError:
            parts.append(f"{name}:missing")
    return "|".join(parts)


def examine_instance(root: Path, instance: str, depth_name: str = DEPTH_NAME, *, full: bool = True) -> InstanceRecord:
    """Read one instance and check it against all rules.

    Args:
        root: the dataset's resolved folder.
        instance: path of the instance relative to it.
        depth_name: file name of the depth map.
        full: decode image and depth; otherwise read headers only, and leave statistics and fingerprint out.
    """
    return _Examination(root, instance, depth_name).run(full=full)


class _Examination:
    """The state of reading one instance: what was found so far."""

    def __init__(self, root: Path, instance: str, depth_name: str) -> None:
        self.root = root
        self.instance = instance
        self.folder = root / instance
        self.depth_name = depth_name
        self.findings: list[Finding] = []
        self.digest = hashlib.sha256()

    def run(self, *, full: bool) -> InstanceRecord:
        stamp = instance_stamp(self.folder, self.depth_name)
        values: dict[str, Any] = {}
        if self._files_are_there():
            values |= self._check_meta()
            values |= self._check_sizes()
            if full:
                self._check_image()
                values |= self._check_depth()
        return InstanceRecord(
            path=self.instance,
            depth_name=self.depth_name,
            stamp=stamp,
            fingerprint=self.digest.hexdigest() if full else "",
            findings=tuple(self.findings),
            **values,
        )

    def _found(self, rule: str, evidence: object, fix: str, severity: Literal["error", "warning"] = "error") -> None:
        self.findings.append(Finding(self.instance, rule, severity, str(evidence).rstrip("."), fix))

    def _files_are_there(self) -> bool:
        names = (IMAGE_NAME, self.depth_name, META_NAME)
        if not self.folder.is_dir():
            fix = f"Delete the line, or run `moge index {self.root} --rebuild`."
            self._found("files-present", f"there is no folder {self.folder}", fix)
            return False
        try:
            check_instance_links(self.root, self.instance, names)
        except MoGeError as error:
            self._found("inside-root", f"{error.where} is {error.found}", error.fix or "")
            return False
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            others = sorted(path.name for path in self.folder.iterdir() if path.is_file() and path.name not in names)
            beside = f"; beside them lie {', '.join(others[:6])}" if others else ""
            fix = "Add what is missing, or remove the instance."
            if self.depth_name in missing and any(name.startswith("depth") for name in others):
                fix = "Name the depth file with --depth, or as `depth` in the training configuration."
            self._found("files-present", f"{' and '.join(missing)} missing{beside}", fix)
        return not missing

    def _check_meta(self) -> dict[str, Any]:
        from moge_core.geometry import intrinsics_to_fov
        from moge_core.io import read_meta

        try:
            intrinsics = read_meta(self._open(META_NAME))["intrinsics"].astype(np.float64)
        except (MoGeError, OSError) as error:
            fix = 'Write {"intrinsics": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]} with values relative to the image size.'
            self._found("meta-readable", _reason(error), fix)
            return {}
        problem = _intrinsics_problem(intrinsics)
        if problem is not None:
            self._found("intrinsics-normalised", *problem)
            return {}
        fov_x, _ = intrinsics_to_fov(intrinsics)
        return {"fov_x": float(np.degrees(fov_x))}

    def _check_sizes(self) -> dict[str, Any]:
        from moge_core.io import read_image_size

        sizes = {}
        for rule, name in (("image-decodable", IMAGE_NAME), ("depth-decodable", self.depth_name)):
            try:
                sizes[name] = read_image_size(self.folder / name)
            except (MoGeError, OSError) as error:
                self._found(rule, _reason(error), _fix(error, "Convert or export the file again."))
        if len(set(sizes.values())) > 1:
            (width, height), (depth_width, depth_height) = sizes[IMAGE_NAME], sizes[self.depth_name]
            self._found(
                "sizes-agree",
                f"the image is {width}x{height}, the depth map {depth_width}x{depth_height}",
                "Bring both to one size; resize depth by nearest neighbour only.",
            )
        return dict(zip(("width", "height"), sizes.get(IMAGE_NAME, ()), strict=False))

    def _check_image(self) -> None:
        from moge_core.io import read_image

        try:
            read_image(self._open(IMAGE_NAME))
        except (MoGeError, OSError) as error:
            self._found_once("image-decodable", error)

    def _check_depth(self) -> dict[str, Any]:
        from moge_core.io import read_depth

        try:
            depth = read_depth(self._open(self.depth_name))
        except (MoGeError, OSError) as error:
            self._found_once("depth-decodable", error)
            return {}
        statistics = depth_statistics(depth)
        if statistics["valid_share"] == 0:
            evidence = f"all pixels are unknown or infinitely far ({statistics['inf_share']:.0%} infinite)"
            self._found("depth-known", evidence, "Check the import's scale and invalid values, or remove the instance.")
        return statistics

    def _open(self, name: str) -> io.BytesIO:
        data = (self.folder / name).read_bytes()
        self.digest.update(f"\0{name}\0{len(data)}\0".encode())
        self.digest.update(data)
        return _NamedBytes(data, str(self.folder / name))

    def _found_once(self, rule: str, error: Exception) -> None:
        if all(finding.rule != rule for finding in self.findings):
            self._found(rule, _reason(error), _fix(error, "Convert or export the file again."))


class _NamedBytes(io.BytesIO):
    """Bytes in memory that error messages can call by the name of the file they came from."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def depth_statistics(depth: npt.NDArray[np.float32]) -> dict[str, float | None]:
    """Least, middle and greatest finite depth and the shares of finite and infinite pixels of a map (H, W)."""
    finite = depth[np.isfinite(depth)]
    known = finite.size > 0
    return {
        "depth_min": float(finite.min()) if known else None,
        "depth_median": float(np.median(finite)) if known else None,
        "depth_max": float(finite.max()) if known else None,
        "valid_share": finite.size / depth.size,
        "inf_share": float(np.count_nonzero(np.isposinf(depth))) / depth.size,
    }


def _intrinsics_problem(K: npt.NDArray[np.float64]) -> tuple[str, str] | None:
    """Evidence and fix where a matrix is no normalised camera."""
    text = f"fx = {K[0, 0]:g}, fy = {K[1, 1]:g}, cx = {K[0, 2]:g}, cy = {K[1, 2]:g}"
    if not np.isfinite(K).all():
        return f"not all values are finite: {K.tolist()}", "Write the true intrinsics."
    if not np.allclose(K[2], (0, 0, 1), atol=1e-6):
        fix = "Transpose it." if np.allclose(K[:, 2], (0, 0, 1), atol=1e-6) else "Write [0, 0, 1] there."
        return f"the last row is {K[2].tolist()}, not [0, 0, 1]", fix
    if max(K[0, 2], K[1, 2]) > 2 and max(abs(K[0, 0]), abs(K[1, 1])) > 2:
        return (
            f"{text}: these are pixels",
            "Divide by the image size: fx / W, fy / H, (cx + 0.5) / W, (cy + 0.5) / H.",
        )
    if K[0, 0] <= 0 or K[1, 1] <= 0:
        return (
            f"{text}: a focal length is not positive",
            "Flip the image and depth instead, or take its absolute value.",
        )
    if not (0 < K[0, 2] < 1 and 0 < K[1, 2] < 1):
        return f"{text}: the principal point is outside the image", "Give the intrinsics of this image, after cropping."
    fov_x, fov_y = (2 * math.degrees(math.atan(0.5 / f)) for f in (K[0, 0], K[1, 1]))
    if min(fov_x, fov_y) < 0.5:
        return f"{text}: a field of view of {min(fov_x, fov_y):.2g} degrees", "Divide focal lengths by the image size."
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, MoGeError):
        return error.rule + (f"; found {error.found}" if error.found is not None else "")
    return str(error)


def _fix(error: Exception, otherwise: str) -> str:
    return (error.fix if isinstance(error, MoGeError) else None) or otherwise
