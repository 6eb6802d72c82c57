"""Completion of a dataset: a completed depth map beside each original, and a sheet to judge them by.

`depth_completed.json` beside the map says what it was made from. It is written after the map, so a map that a killed
run left without it, or with an older one, is simply made again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moge_core.completion.completing import complete_depth
from moge_core.completion.filtering import filter_depth
from moge_core.datasets.inspection import LoadedInstance, load_instance
from moge_core.datasets.layout import (
    DEPTH_NAME,
    IMAGE_NAME,
    INDEX_NAME,
    MASK_NAME,
    META_NAME,
    NORMAL_NAME,
    SEGMENTATION_NAME,
    check_instance_links,
    read_index,
    resolve_dataset,
)
from moge_core.errors import InputError, InstanceError, MoGeError
from moge_core.io import file_digest, write_depth, write_image
from moge_core.io.files import write_bytes

if TYPE_CHECKING:
    from moge_core.models import MoGeModel
    from moge_core.models.precision import Precision

OUTPUT_NAME = "depth_completed.png"
_RULES_VERSION = 1
"""Raised when a change of the method makes maps of before out of date."""
_RESERVED = frozenset({IMAGE_NAME, META_NAME, NORMAL_NAME, MASK_NAME, SEGMENTATION_NAME})
_TILE_HEIGHT = 150
# Completion may reach beyond the known depths, by a bounded factor only; 16 bits are then still fine steps.
_MAX_RANGE = 1e9


@dataclass
class CompletionReport:
    """What became of a dataset's instances.

    Attributes:
        written: instances that were completed, in the list's order.
        skipped: instances whose result was up to date.
        failures: (instance, reason) of those that could not be completed.
        sheet_path: the before/after sheet; None when none was asked for or no instance could be shown.
        num_known, num_dropped, num_filled: pixels of the written instances: known before, of these dropped by the
            filter, and finite afterwards that were not before.
    """

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    sheet_path: Path | None = None
    num_known: int = 0
    num_dropped: int = 0
    num_filled: int = 0


@dataclass(frozen=True)
class _Completed:
    loaded: LoadedInstance
    prediction: npt.NDArray[np.float32]
    filtered: npt.NDArray[np.float32]
    depth: npt.NDArray[np.float32]


def complete_dataset(
    dataset_dir: str | Path,
    model: MoGeModel,
    *,
    index_name: str = INDEX_NAME,
    depth_name: str = DEPTH_NAME,
    output_name: str = OUTPUT_NAME,
    resolution_level: int = 9,
    num_tokens: int | None = None,
    tolerance: float = 0.15,
    precision: Precision = "fp32",
    sheet: str | Path | None = None,
    num_samples: int = 6,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CompletionReport:
    """Write a filtered and completed depth map beside the depth of every instance of a list.

    An instance is skipped when its result was made from the same files by the same weights and options. One that
    cannot be completed (damaged, or without any finite depth) is told in the report; the others go on.

    Args:
        dataset_dir: a dataset with an index.
        model: either version; `load_model` gives one.
        index_name: the list of instances.
        depth_name: file name of the depth maps to complete.
        output_name: file name of the completed maps.
        resolution_level: of the prediction, 0 (fast) to 9 (detailed).
        num_tokens: replaces the resolution level.
        tolerance: see `filter_depth`.
        precision: of the network's encoder.
        sheet: PNG to write: image, depth before, what was dropped, depth after and prediction of some instances.
        num_samples: instances on the sheet, spread evenly over the list.
        overwrite: make results again that are up to date.
        progress: called with (done, total).

    Raises:
        InputError: an argument is outside its domain.
        DatasetError: no dataset, or no list.
    """
    from moge_core.models.precision import check_precision

    root = resolve_dataset(dataset_dir)
    _check_names(depth_name, output_name)
    if num_samples < 1:
        raise InputError("num_samples", "must be at least 1", found=num_samples)
    if not tolerance > 0:
        raise InputError("tolerance", "must be positive", found=tolerance)
    check_precision(model.device.type, precision)
    instances = read_index(root, index_name)
    how = {"resolution_level": resolution_level, "num_tokens": num_tokens, "precision": precision}
    options = {**how, "tolerance": tolerance, "rules": _RULES_VERSION, "model": _weights_digest(model)}
    places = np.linspace(0, len(instances) - 1, min(num_samples, len(instances))).astype(int)
    shown = {instances[place] for place in places} if sheet is not None else set()
    report, rows = CompletionReport(), []
    for done, instance in enumerate(instances, start=1):
        folder = root / instance
        try:
            check_instance_links(root, instance, (IMAGE_NAME, META_NAME, depth_name, output_name))
            origin = {**_origin(folder, depth_name), **options}
            current = not overwrite and _is_current(folder, output_name, origin)
            if not current or instance in shown:
                completed = _complete_instance(folder, depth_name, model, tolerance, how)
                if not current:
                    _write(folder, output_name, completed.depth, origin)
                    _count(report, completed)
                if instance in shown:
                    rows.append((instance, completed))
            (report.skipped if current else report.written).append(instance)
        except (MoGeError, OSError) as error:
            report.failures.append((instance, str(error)))
        if progress:
            progress(done, len(instances))
    if sheet is not None and rows:
        write_image(sheet, _sheet_of(rows), format="png")
        report.sheet_path = Path(sheet)
    return report


def _complete_instance(
    folder: Path, depth_name: str, model: MoGeModel, tolerance: float, how: dict[str, Any]
) -> _Completed:
    # Depth in the file's own unit: a scale does not matter here, and the result has the same meaning as the original.
    loaded = load_instance(folder, depth_name, depth_unit=1.0)
    finite = np.isfinite(loaded.depth)
    if not finite.any() and np.isnan(loaded.depth).any():
        raise InstanceError(folder / depth_name, "must have a pixel of finite depth to complete from", found="none")
    prediction, mask = _predict(model, loaded, how)
    filtered = filter_depth(loaded.depth, prediction, image=loaded.image, tolerance=tolerance)
    # What had a finite depth, right or wrong, is no sky.
    depth = complete_depth(filtered, prediction, image=loaded.image, mask=mask | finite)
    return _Completed(loaded, prediction, filtered, depth)


def _predict(
    model: MoGeModel, loaded: LoadedInstance, how: dict[str, Any]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    import torch

    from moge_core.models.precision import network_precision

    image = torch.from_numpy(loaded.image).to(model.device).permute(2, 0, 1).float() / 255
    fov_x = math.degrees(2 * math.atan(0.5 / float(loaded.intrinsics[0, 0])))
    resolution = {name: how[name] for name in ("resolution_level", "num_tokens")}
    with network_precision(model.device.type, how["precision"]):
        # Without the mask, since its borders are judged against the known depth.
        result = model.infer(image, fov_x=fov_x, apply_mask=False, **resolution)
    depth: npt.NDArray[np.float32] = result["depth"].float().cpu().numpy()
    mask: npt.NDArray[np.bool_] = result["mask"].cpu().numpy()
    return depth, mask


def _count(report: CompletionReport, completed: _Completed) -> None:
    known = np.isfinite(completed.loaded.depth)
    report.num_known += int(np.count_nonzero(known))
    report.num_dropped += int(np.count_nonzero(known & np.isnan(completed.filtered)))
    report.num_filled += int(np.count_nonzero(~known & np.isfinite(completed.depth)))


def _check_names(depth_name: str, output_name: str) -> None:
    for what, name in (("depth_name", depth_name), ("output_name", output_name)):
        if not name or PurePosixPath(name).name != name or name in {".", ".."} or "\\" in name:
            raise InputError(what, "must be a file name", found=repr(name))
    if not output_name.endswith(".png"):
        raise InputError("output_name", "must end with .png", found=repr(output_name))
    if output_name == depth_name or output_name in _RESERVED:
        raise InputError("output_name", "must not be a file of the original data", found=repr(output_name))


def _weights_digest(model: MoGeModel) -> str:
    """SHA-256 of all weights: the file they came from may be gone or replaced."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _origin(folder: Path, depth_name: str) -> dict[str, Any]:
    for name in (IMAGE_NAME, depth_name, META_NAME):
        if not (folder / name).is_file():
            raise InstanceError(folder, f"must hold {name}", found="no such file")
    return {
        "depth": depth_name,
        "files": {name: file_digest(folder / name) for name in (IMAGE_NAME, depth_name, META_NAME)},
    }


def _record_path(folder: Path, output_name: str) -> Path:
    return folder / Path(output_name).with_suffix(".json")


def _is_current(folder: Path, output_name: str, origin: dict[str, Any]) -> bool:
    output = folder / output_name
    try:
        record = json.loads(_record_path(folder, output_name).read_text(encoding="utf-8"))
        # Records of before do not say it: they were made in fp32.
        return bool({"precision": "fp32", **record} == {**origin, "output": file_digest(output)})
    except (OSError, ValueError):
        return False


def _write(folder: Path, output_name: str, depth: npt.NDArray[np.float32], origin: dict[str, Any]) -> None:
    output = folder / output_name
    write_depth(output, depth, max_range=_MAX_RANGE)
    record = {**origin, "output": file_digest(output)}
    write_bytes(_record_path(folder, output_name), (json.dumps(record, indent=2) + "\n").encode())


def _sheet_of(rows: list[tuple[str, _Completed]]) -> npt.NDArray[np.uint8]:
    from moge_core.visualization import contact_sheet

    captions: list[str | list[str]] = []
    pictures = []
    for instance, completed in rows:
        pictures.append(_pictures_of(completed))
        known = np.isfinite(completed.loaded.depth)
        num_dropped, num_known = np.count_nonzero(known & np.isnan(completed.filtered)), np.count_nonzero(known)
        share = 100 * num_dropped / max(1, int(num_known))
        captions.append([instance, "before", f"dropped {share:.1f} %", "completed", "prediction"])
    return contact_sheet(pictures, captions=captions, tile_height=_TILE_HEIGHT)


def _pictures_of(completed: _Completed) -> list[npt.NDArray[np.uint8]]:
    """Image, depth before, dropped pixels in red, depth after, prediction; both depths in the same colours."""
    from moge_core.visualization import colorize_depth

    loaded = completed.loaded
    finite = completed.depth[np.isfinite(completed.depth)]
    near, far = (float(v) for v in np.quantile(finite, [0.01, 0.99])) if finite.size else (1.0, 2.0)
    bounds: dict[str, Any] = {"near": near, "far": far} if near < far else {}
    dropped = loaded.image // 2
    dropped[np.isfinite(loaded.depth) & np.isnan(completed.filtered)] = (255, 40, 40)
    return [
        loaded.image,
        colorize_depth(loaded.depth, **bounds),
        dropped,
        colorize_depth(completed.depth, **bounds),
        colorize_depth(completed.prediction),
    ]
