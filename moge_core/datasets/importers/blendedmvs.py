"""BlendedMVS: photographs blended with renderings of their own reconstruction, so that depth is true to the picture.

    report = import_blendedmvs("BlendedMVS", "data/blendedmvs")

    source/                                    any folders above a scene
    └── SCENE/
        ├── blended_images/00000000.jpg        00000000_masked.jpg beside it is passed by
        ├── cams/00000000_cam.txt              extrinsic (4, 4), intrinsic (3, 3) in pixels, range of depth
        └── rendered_depth_maps/00000000.pfm   z, 0 unknown

A reconstruction from photographs has no scale: depth here is in units that differ from scene to scene, so the entry for
a training configuration has no `depth_unit`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.float_maps import read_pfm
from moge_core.datasets.importers.pinhole import PixelIntrinsics, intrinsics_from_matrix
from moge_core.datasets.importers.records import ImportOptions, ImportSettings, Record, Stored, StoredDepth, finding_of
from moge_core.datasets.importers.source_files import each_once, walk
from moge_core.datasets.importers.writing import ImportReport, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress
from moge_core.errors import DatasetError, FormatError, MoGeError

IMPORTER = "blendedmvs"
_MAX_CAMERA_BYTES = 1 << 16


@repeatable(IMPORTER)
def import_blendedmvs(
    source: str | Path,
    out_dir: str | Path,
    *,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Turn BlendedMVS scenes into a dataset, or bring one made earlier up to date. See the module for the layout.

    Args:
        source: folder of scenes, or one scene.
        out_dir: the dataset to make or add to.
        name_prefix, label_type, resolution: see `ImportSettings`.
        max_depth: depth beyond this, in the units of the scenes, becomes unknown.
        progress: called as `progress(done, total)`.

    Raises:
        DatasetError: no such folder, no scene in it, or no frame that could be imported.
        InputError: an option outside its domain.
    """
    source, out = check_folders(source, out_dir)
    if not source.is_dir():
        raise DatasetError(source, "must be a folder with BlendedMVS scenes", found="a file")
    settings = ImportSettings.of(options)
    return run_import(IMPORTER, source, out, _records(source), settings, progress=progress)


def read_mvs_camera(path: str | Path) -> PixelIntrinsics:
    """The camera of a `*_cam.txt`, as MVSNet and BlendedMVS write it: the 3x3 matrix after the word `intrinsic`.

    Raises:
        FormatError: no such matrix.
    """
    path = Path(path)
    with path.open("rb") as file:
        words = file.read(_MAX_CAMERA_BYTES).decode("utf-8", "replace").split()
    if "intrinsic" not in words:
        raise FormatError(
            path, "must have the word intrinsic before a 3x3 matrix", found=" ".join(words[:3]) or "nothing"
        )
    start = words.index("intrinsic") + 1
    try:
        numbers = [float(word) for word in words[start : start + 9]]
    except ValueError as error:
        raise FormatError(path, "must have nine numbers after the word intrinsic", found=error) from error
    if len(numbers) < 9:
        raise FormatError(path, "must have nine numbers after the word intrinsic", found=len(numbers))
    return intrinsics_from_matrix(numbers, path)


def _records(source: Path) -> Iterator[Record | Finding]:
    found = [folder for folder in walk(source) if folder.path.relative_to(source).match("blended_images")]
    folders = [folder.path for folder in each_once(found, source)]
    if not folders:
        raise DatasetError(source, "must hold BlendedMVS scenes: SCENE/blended_images", found="no such folder")
    for folder in folders:
        scene = folder.parent
        place = scene.name if scene == source else scene.relative_to(source).as_posix()
        images = {
            path.stem: path
            for path in sorted([*folder.glob("*.jpg"), *folder.glob("*.png")])
            if not path.stem.endswith("_masked")
        }
        depths = {path.stem: path for path in sorted((scene / "rendered_depth_maps").glob("*.pfm"))}
        for stem in sorted(images.keys() | depths.keys()):
            name = f"{place}/{stem}"
            camera_path = scene / "cams" / f"{stem}_cam.txt"
            for is_there, what in (
                (stem in images, f"blended_images/{stem}.jpg"),
                (stem in depths, f"rendered_depth_maps/{stem}.pfm"),
                (camera_path.is_file(), f"cams/{stem}_cam.txt"),
            ):
                if not is_there:
                    evidence = f"there is no {what}"
                    yield Finding(name, "paired", "error", evidence, "Add it, or ignore the frame.")
                    break
            else:
                try:
                    camera = read_mvs_camera(camera_path)
                except (MoGeError, OSError) as error:
                    yield finding_of(name, error)
                    continue
                yield Record(
                    name=name,
                    image=Stored(images[stem]),
                    depth=StoredDepth(depths[stem], read_pfm),
                    camera=camera,
                    depth_unit=None,
                    extra_files=(camera_path,),
                )
