"""Predictions as files, for one image or a whole folder."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError, MoGeError
from moge_core.inference.meshes import point_map_to_mesh, without_edges
from moge_core.inference.panorama import is_panorama, predict_panorama
from moge_core.inference.prediction import Prediction, predict
from moge_core.io import read_image, read_image_size, write_depth, write_glb, write_image, write_mask, write_normal
from moge_core.io.files import write_bytes
from moge_core.models import MoGeModel
from moge_core.visualization import colorize_depth, colorize_normal, write_viewer_ply

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"})
# A texture larger than this only makes a file that few viewers open.
_MAX_TEXTURE_SIDE = 4096


@dataclass
class InferenceReport:
    """What became of a folder's images.

    Attributes:
        written: folders of the images that were done, in order.
        failures: (image, reason) of those that were not.
    """

    written: list[Path] = field(default_factory=list)
    failures: list[tuple[Path, str]] = field(default_factory=list)


def infer_path(
    model: MoGeModel,
    path: str | Path,
    out: str | Path,
    *,
    batch_size: int = 1,
    panorama: bool = False,
    resize: int | None = None,
    maps: bool = False,
    ply: bool = False,
    glb: bool = False,
    threshold: float | None = 0.04,
    progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> InferenceReport:
    """Predict an image, or every image below a folder, into folders of their own below `out`.

    Images of one size share batches. One that cannot be read or written is told in the report; the others go on.

    Args:
        model: either version.
        path: an image, or a folder whose images are searched for at any depth.
        out: folder of the results; a folder's structure is mirrored.
        batch_size: images at once.
        panorama: images are equirectangular panoramas.
        resize: longest side in pixels that images are reduced to first; None keeps them.
        maps, ply, glb, threshold: see `write_prediction`.
        progress: called with (done, total).
        **how: passed on to `predict`.

    Raises:
        InputError: there is no image, or an argument is outside its domain.
    """
    path, out = Path(path), Path(out)
    if batch_size < 1 or (resize is not None and resize < 1):
        raise InputError("batch_size and resize", "must be at least 1", found=f"{batch_size} and {resize}")
    targets = _targets(path, out)
    report = InferenceReport()
    for batch in _batches(targets, 1 if panorama else batch_size, resize, report):
        images = [image for _, image in batch]
        if panorama and not is_panorama(images[0]):
            report.failures.append((batch[0][0], "is no panorama: it must be twice as wide as high"))
            continue
        predictions = [predict_panorama(model, images[0], **how)] if panorama else predict(model, images, **how)
        for (source, _), prediction in zip(batch, predictions, strict=True):
            try:
                write_prediction(targets[source], prediction, maps=maps, ply=ply, glb=glb, threshold=threshold)
                report.written.append(targets[source])
            except (MoGeError, OSError) as error:
                report.failures.append((source, str(error)))
        if progress:
            progress(len(report.written) + len(report.failures), len(targets))
    return report


def write_prediction(
    folder: str | Path,
    prediction: Prediction,
    *,
    maps: bool = False,
    ply: bool = False,
    glb: bool = False,
    threshold: float | None = 0.04,
) -> None:
    """Write `image.jpg`, `depth_vis.png`, `mask.png`, `normal_vis.png` where there are normals, and `fov.json`.

    Args:
        folder: made if absent.
        prediction: what to write.
        maps: also `maps.npz` (points, depth, mask and, where there are, normal and intrinsics), `depth.png` in the
            format of MoGe datasets and, where there are normals, `normal.png`.
        ply: also `pointcloud.ply`, coloured, for viewers with y up.
        glb: also `mesh.glb`, textured.
        threshold: relative change of depth that is an edge: points and faces there are left out. None keeps them.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = without_edges(prediction.depth, prediction.mask, threshold)
    write_image(folder / "image.jpg", prediction.image)
    write_image(folder / "depth_vis.png", colorize_depth(prediction.depth, prediction.mask))
    write_mask(folder / "mask.png", prediction.mask)
    if prediction.normal is not None:
        write_image(folder / "normal_vis.png", colorize_normal(prediction.normal, prediction.mask))
    fov_x, fov_y = prediction.fov_deg
    camera: dict[str, Any] = {"fov_x": round(fov_x, 4), "fov_y": round(fov_y, 4), "metric": prediction.metric}
    if prediction.intrinsics is not None:
        camera["intrinsics"] = prediction.intrinsics.tolist()
    write_bytes(folder / "fov.json", (json.dumps(camera, indent=2) + "\n").encode())
    if maps:
        _write_maps(folder, prediction)
    if ply:
        normals = None if prediction.normal is None else prediction.normal[kept]
        path = folder / "pointcloud.ply"
        points, colors = prediction.points[kept], prediction.image[kept]
        write_viewer_ply(path, points, colors, normals, metric=prediction.metric)
    if glb:
        mesh = point_map_to_mesh(
            prediction.points,
            prediction.depth,
            prediction.mask,
            threshold=threshold,
            wrap=prediction.intrinsics is None,
        )
        texture = _reduced(prediction.image, _MAX_TEXTURE_SIDE)
        if len(mesh.faces):  # a file format without a word for an empty mesh
            vertices = mesh.vertices * np.array([1, -1, -1], np.float32)
            write_glb(folder / "mesh.glb", vertices, mesh.faces, uv=mesh.uv, texture=texture)


def _write_maps(folder: Path, prediction: Prediction) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {
        "points": prediction.points,
        "depth": prediction.depth,
        "mask": prediction.mask,
    }
    if prediction.normal is not None:
        arrays["normal"] = prediction.normal
        unknown = np.where(prediction.mask[..., None], prediction.normal, np.nan)
        write_normal(folder / "normal.png", unknown)
    if prediction.intrinsics is not None:
        arrays["intrinsics"] = prediction.intrinsics
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(folder / "maps.npz", buffer.getvalue())
    # A wild prediction may span more than a depth map of the usual range; it is written as it is all the same.
    write_depth(folder / "depth.png", np.where(prediction.mask, prediction.depth, np.nan), max_range=1e30)


def _targets(path: Path, out: Path) -> dict[Path, Path]:
    """Image -> folder of its results."""
    if path.is_file():
        return {path: out / path.stem}
    if not path.is_dir():
        raise InputError("input", "must be an image or a folder", found=f"no {path}")
    # What an earlier run left below the folder is no input.
    inside = out.resolve()
    images = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not file.resolve().is_relative_to(inside)
    )
    if not images:
        raise InputError("input", f"must hold images ({', '.join(sorted(IMAGE_SUFFIXES))})", found=f"none in {path}")
    names = defaultdict(list)
    for image in images:
        names[image.with_suffix("")].append(image)
    targets = {}
    for stem, same in names.items():
        for image in same:  # a.jpg and a.png must not share a folder
            relative = (stem if len(same) == 1 else image).relative_to(path)
            targets[image] = out / relative
    return targets


def _batches(
    targets: dict[Path, Path], batch_size: int, resize: int | None, report: InferenceReport
) -> Iterator[list[tuple[Path, npt.NDArray[np.uint8]]]]:
    """Images in batches of one size; what cannot be read goes to the report."""
    sizes = defaultdict(list)
    for source in targets:
        try:
            sizes[read_image_size(source)].append(source)
        except (MoGeError, OSError) as error:
            report.failures.append((source, str(error)))
    for same in sizes.values():
        for first in range(0, len(same), batch_size):
            batch = []
            for source in same[first : first + batch_size]:
                try:
                    image = read_image(source)
                    batch.append((source, image if resize is None else _reduced(image, resize)))
                except (MoGeError, OSError) as error:
                    report.failures.append((source, str(error)))
            if batch:
                yield batch


def _reduced(image: npt.NDArray[np.uint8], longest: int) -> npt.NDArray[np.uint8]:
    height, width = image.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    reduced: npt.NDArray[Any] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return reduced
