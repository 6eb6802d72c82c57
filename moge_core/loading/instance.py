"""One instance from its files to the arrays of a training sample."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import IMAGE_NAME, META_NAME, NORMAL_NAME, check_instance_links
from moge_core.errors import InstanceError, MoGeError
from moge_core.geometry import depth_map_edge, depth_map_to_normal_map
from moge_core.io import limits, read_image, read_image_size, read_meta, read_normal
from moge_core.io.depth import INFINITE_CODE, UNKNOWN_CODE, CodedDepth, read_depth_codes
from moge_core.io.files import NamedBytes, read_bytes
from moge_core.io.meta import says_no_unit
from moge_core.io.opencv import cv2
from moge_core.loading.augmentation import augment
from moge_core.loading.config import DataConfig
from moge_core.loading.depth_cache import DepthCache
from moge_core.loading.stages import StageClock
from moge_core.loading.view import View, checked_intrinsics, sample_view
from moge_core.loading.warp import Interpolation, Region, Warp

# The depth that is interpolated must vary smoothly; a relative Laplacian of disparity tells where it does not.
_EDGE_TOLERANCE, _EDGE_KERNEL = 0.01, 5
# Triangles seen at more than this angle, in degrees, most likely bridge a depth edge.
_NORMAL_EDGE_THRESHOLD = 88.0
_LEAST_FINITE_SHARE = 0.001
_NEAR_QUANTILE = 0.01


@dataclass(frozen=True)
class Recipe:
    """How the instances of one dataset become samples: its configuration with the section's defaults filled in."""

    name: str
    root: Path
    label_type: str
    depth_name: str
    depth_unit: float | None
    finite_depth_mask: Literal["only_known"] | None
    fov_range_absolute: tuple[float, float]
    fov_range_relative: tuple[float, float]
    center_augmentation: float
    image_augmentation: tuple[str, ...]
    clamp_max_depth: float
    with_normal: bool
    image_interpolation: Interpolation
    depth_cache: DepthCache | None


def recipes_of(config: DataConfig, normals_for: Collection[str]) -> list[Recipe]:
    """A recipe for each dataset of the section; datasets with a label in `normals_for` come with normals."""
    section = config.depth_cache
    cache = DepthCache(Path(section.dir).expanduser().resolve(), int(section.max_gb * 1e9)) if section else None
    return [
        Recipe(
            name=dataset.name,
            root=dataset.resolved_path(),
            label_type=dataset.label_type,
            depth_name=dataset.depth,
            depth_unit=dataset.depth_unit,
            finite_depth_mask=dataset.finite_depth_mask,
            fov_range_absolute=config.effective(dataset, "fov_range_absolute"),
            fov_range_relative=config.effective(dataset, "fov_range_relative"),
            center_augmentation=config.effective(dataset, "center_augmentation"),
            image_augmentation=tuple(config.effective(dataset, "image_augmentation")),
            clamp_max_depth=config.clamp_max_depth,
            with_normal=dataset.label_type in normals_for,
            image_interpolation=config.image_interpolation,
            depth_cache=cache,
        )
        for dataset in config.datasets
    ]


@dataclass
class Sample:
    """A training sample of size H x W.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32, NaN unknown, +Inf infinitely far.
        depth_mask_fin: (H, W) bool, what the mask losses take for finitely far; without `only_known` that includes
            unknown depth.
        depth_mask_inf: (H, W) bool, infinitely far.
        normal: (H, W, 3) float32 of unit length, NaN unknown; None where no loss needs it.
        intrinsics: (3, 3) float32, normalised.
        label_type: names the set of losses.
        is_metric: whether depth is in metres: the configuration says a unit, and meta.json does not say that there is
            none.
        info: where the sample comes from and what was drawn for it.
    """

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    depth_mask_fin: npt.NDArray[np.bool_]
    depth_mask_inf: npt.NDArray[np.bool_]
    normal: npt.NDArray[np.float32] | None
    intrinsics: npt.NDArray[np.float32]
    label_type: str
    is_metric: bool
    info: dict[str, Any]


class UnusableInstanceError(InstanceError):
    """An instance that cannot become a sample; `rule` is the id of the rule that it breaks."""


def load_sample(
    recipe: Recipe, instance: str, seed: int, size: tuple[int, int], clock: StageClock | None = None
) -> Sample:
    """Read an instance and cut a random view of `size` (height, width) out of it.

    Args:
        recipe: of the instance's dataset.
        instance: its path within the dataset.
        seed: of everything that is drawn for it.
        size: (height, width) of the view.
        clock: where the time that stages take is added up.

    Raises:
        UnusableInstanceError: the files are not what they should be, or hardly any depth is known in the view.
    """
    clock = StageClock() if clock is None else clock
    with clock.stage("read"):
        files = _open(recipe, instance)
    rng = np.random.default_rng(seed)
    with clock.stage("view"):
        view, flip, warp = _draw_view(recipe, files, size, rng)

    with clock.stage("decode depth"):
        coded = files.decode_depth(recipe.depth_cache, clock)
    with clock.stage("warp depth"):
        part = np.take(coded.depth_of_code, coded.codes[warp.region])
        finite = np.isfinite(part)
        smooth = finite & ~depth_map_edge(part, ltol=_EDGE_TOLERANCE, kernel_size=_EDGE_KERNEL, mask=finite)
        nearest = warp.nearest(coded.codes, coded.codes != UNKNOWN_CODE, outside=UNKNOWN_CODE)
        depth = _flipped(warp.depth(part, smooth, np.take(coded.depth_of_code, nearest)), flip)
    finite_share = float(np.isfinite(depth).mean())
    if finite_share < _LEAST_FINITE_SHARE:
        raise UnusableInstanceError(
            files.folder, "depth-in-view", found=f"{finite_share:.2%} of the view's pixels have a finite depth"
        )
    with clock.stage("decode image"):
        image = files.decode_image()
    with clock.stage("warp image"):
        image = _flipped(warp.image(image, recipe.image_interpolation), flip)
    normal = None
    if recipe.with_normal:
        with clock.stage("decode normals" if files.normal else "normals"):
            source = _normal_map(files, part, finite, warp.region)
        with clock.stage("warp normals"):
            mirror = np.diag([-1.0 if flip else 1.0, 1.0, 1.0])
            normal = _flipped(warp.normal(source, mirror @ view.rotation), flip)
    image = augment(image, depth, recipe.image_augmentation, rng, clock)

    with clock.stage("finish"):
        depth_mask_inf = np.isinf(depth)
        depth_mask_fin = np.isfinite(depth) if recipe.finite_depth_mask == "only_known" else ~depth_mask_inf
        unit = None if files.has_no_unit else recipe.depth_unit
        if unit is not None:
            depth *= np.float32(unit)
        _clamp_far(depth, recipe.clamp_max_depth)
    return Sample(
        image=image,
        depth=depth,
        depth_mask_fin=depth_mask_fin,
        depth_mask_inf=depth_mask_inf,
        normal=normal,
        intrinsics=_mirrored(view.intrinsics) if flip else view.intrinsics,
        label_type=recipe.label_type,
        is_metric=unit is not None,
        info={"dataset": recipe.name, "instance": instance, "seed": seed, "flip": flip},
    )


def _draw_view(
    recipe: Recipe, files: _Files, size: tuple[int, int], rng: np.random.Generator
) -> tuple[View, bool, Warp]:
    """A view, whether it is mirrored, and the warp to it."""
    height, width = size
    view = sample_view(
        files.intrinsics,
        width / height,
        fov_range_absolute=recipe.fov_range_absolute,
        fov_range_relative=recipe.fov_range_relative,
        center_augmentation=recipe.center_augmentation,
        rng=rng,
    )
    flip = bool(rng.choice([True, False]))
    return view, flip, Warp.to_view(files.intrinsics, view, files.size, size)


@dataclass
class _Files:
    """The bytes of an instance's files, whose headers have been found to agree."""

    folder: Path
    size: tuple[int, int]
    intrinsics: npt.NDArray[np.float32]
    image: io.BytesIO
    depth: io.BytesIO | None
    normal: io.BytesIO | None
    depth_path: Path
    cached_depth: CodedDepth | None
    has_no_unit: bool
    """As meta.json says, whatever the configuration says of its dataset."""

    def decode_depth(self, cache: DepthCache | None, clock: StageClock) -> CodedDepth:
        coded = self.cached_depth
        if coded is None:
            assert self.depth is not None
            with _obeying("depth-decodable", self.folder):
                coded = read_depth_codes(self.depth)
            if cache:
                cache.put(self.depth_path, coded)
        if cache:
            clock.count("depth cache hits" if self.cached_depth else "depth cache misses")
        if not ((coded.codes > UNKNOWN_CODE) & (coded.codes < INFINITE_CODE)).any():
            raise UnusableInstanceError(self.folder, "depth-known", found="no pixel with a finite depth")
        return coded

    def decode_image(self) -> npt.NDArray[np.uint8]:
        with _obeying("image-decodable", self.folder):
            return read_image(self.image)

    def decode_normal(self, region: Region) -> npt.NDArray[np.float32]:
        assert self.normal is not None
        with _obeying("normal-decodable", self.folder):
            return read_normal(self.normal, region)


def _open(recipe: Recipe, instance: str) -> _Files:
    """Read the files of an instance; sizes come from their headers, before anything is decoded."""
    folder = recipe.root / instance
    names = {"image": IMAGE_NAME, "depth": recipe.depth_name, "meta": META_NAME}
    missing = [name for name in names.values() if not (folder / name).is_file()]
    if missing:
        raise UnusableInstanceError(folder, "files-present", found=f"no {', '.join(missing)}")
    with _obeying("inside-root", folder):
        check_instance_links(recipe.root, instance, (*names.values(), NORMAL_NAME))
    if recipe.with_normal and (folder / NORMAL_NAME).is_file():
        names["normal"] = NORMAL_NAME

    with _obeying("meta-readable", folder):
        meta = read_meta(folder / META_NAME)
    intrinsics = meta["intrinsics"]
    with _obeying("intrinsics-normalised", folder):
        checked_intrinsics(intrinsics)
    depth_path = folder / recipe.depth_name
    contents: dict[str, NamedBytes] = {}
    sizes: dict[str, tuple[int, int]] = {}
    cached_depth = recipe.depth_cache.get(depth_path) if recipe.depth_cache else None
    if cached_depth is not None:
        height, width = cached_depth.codes.shape
        sizes[names.pop("depth")] = width, height
    for kind in sorted(names.keys() - {"meta"}):
        with _obeying(f"{kind}-decodable", folder):
            path = folder / names[kind]
            contents[kind] = NamedBytes(path, read_bytes(path, limit=limits.MAX_FILE_BYTES))
            sizes[names[kind]] = read_image_size(contents[kind])
            contents[kind].seek(0)
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {width} x {height}" for name, (width, height) in sorted(sizes.items()))
        raise UnusableInstanceError(folder, "sizes-agree", found=found)
    width, height = sizes[IMAGE_NAME]
    return _Files(
        folder,
        (height, width),
        intrinsics,
        contents["image"],
        contents.get("depth"),
        contents.get("normal"),
        depth_path,
        cached_depth,
        says_no_unit(meta),
    )


@contextlib.contextmanager
def _obeying(rule: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except (MoGeError, OSError) as error:
        raise UnusableInstanceError(folder, rule, found=error) from error


def _normal_map(
    files: _Files, depth: npt.NDArray[np.float32], finite: npt.NDArray[np.bool_], region: Region
) -> npt.NDArray[np.float32]:
    """Normals of a part of the source, NaN unknown: the file's, or else those of the depth there."""
    if files.normal is not None:
        return files.decode_normal(region)
    normal, known = depth_map_to_normal_map(
        depth, _of_region(files.intrinsics, files.size, region), mask=finite, edge_threshold=_NORMAL_EDGE_THRESHOLD
    )
    normal[~known] = np.nan
    return normal


def _of_region(intrinsics: npt.NDArray[Any], size: tuple[int, int], region: Region) -> npt.NDArray[np.float32]:
    """Normalised intrinsics of a part of an image."""
    height, width = (part.stop - part.start for part in region)
    crop = np.array(
        [
            [size[1] / width, 0, -region[1].start / width],
            [0, size[0] / height, -region[0].start / height],
            [0, 0, 1],
        ]
    )
    result: npt.NDArray[np.float32] = (crop @ intrinsics).astype(np.float32)
    return result


def _flipped(array: npt.NDArray[Any], flip: bool) -> npt.NDArray[Any]:
    return np.asarray(cv2.flip(array, 1)) if flip else array


def _mirrored(intrinsics: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Intrinsics of the image mirrored left to right; the skew changes its sign with x."""
    mirrored = intrinsics.copy()
    mirrored[0, 1] = -intrinsics[0, 1]
    mirrored[0, 2] = 1 - intrinsics[0, 2]
    return mirrored


def _clamp_far(depth: npt.NDArray[np.float32], max_ratio: float) -> None:
    """Bring finite depth, in place, to at most `max_ratio` times the near end of its range."""
    finite = depth[np.isfinite(depth)]
    # The near end is no less than the least depth: mostly nothing is far enough to look closer.
    if float(finite.max()) > float(finite.min()) * max_ratio:
        near = float(np.quantile(finite, _NEAR_QUANTILE))
        np.minimum(depth, np.float32(near * max_ratio), out=depth, where=np.isfinite(depth))
