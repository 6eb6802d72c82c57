"""One instance from its files to the arrays of a training sample."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import IMAGE_NAME, META_NAME, check_instance_links
from moge_core.errors import InstanceError, MoGeError
from moge_core.geometry import depth_map_edge, depth_map_to_normal_map
from moge_core.io import read_depth, read_image, read_image_size, read_meta, read_normal
from moge_core.loading.augmentation import augment
from moge_core.loading.config import DataConfig
from moge_core.loading.view import checked_intrinsics, sample_view
from moge_core.loading.warp import view_transform, warp_depth, warp_image, warp_normal

NORMAL_NAME = "normal.png"

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


def recipes_of(config: DataConfig, normals_for: Collection[str]) -> list[Recipe]:
    """A recipe for each dataset of the section; datasets with a label in `normals_for` come with normals."""
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
        is_metric: whether depth is in metres.
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


def load_sample(recipe: Recipe, instance: str, seed: int, size: tuple[int, int]) -> Sample:
    """Read an instance and cut a random view of `size` (height, width) out of it.

    Raises:
        UnusableInstanceError: the files are not what they should be, or hardly any depth is known in the view.
    """
    files = _read(recipe, instance)
    intrinsics = files.intrinsics
    rng = np.random.default_rng(seed)
    height, width = size

    view = sample_view(
        intrinsics,
        width / height,
        fov_range_absolute=recipe.fov_range_absolute,
        fov_range_relative=recipe.fov_range_relative,
        center_augmentation=recipe.center_augmentation,
        rng=rng,
    )
    transform = view_transform(intrinsics, view)
    finite = np.isfinite(files.depth)
    smooth = finite & ~depth_map_edge(files.depth, ltol=_EDGE_TOLERANCE, kernel_size=_EDGE_KERNEL, mask=finite)

    image = warp_image(files.image, transform, size)
    depth = warp_depth(files.depth, transform, size, smooth)
    normal = None
    if recipe.with_normal:
        source = _normal_map(files.depth, intrinsics, finite) if files.normal is None else files.normal
        normal = warp_normal(source, transform, view.rotation, size)
    share = float(np.isfinite(depth).mean())
    if share < _LEAST_FINITE_SHARE:
        raise UnusableInstanceError(
            recipe.root / instance, "depth-in-view", found=f"{share:.2%} of the view's pixels have a finite depth"
        )

    flip = bool(rng.choice([True, False]))
    target_intrinsics = view.intrinsics
    if flip:
        image, depth = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(depth[:, ::-1])
        target_intrinsics = _mirrored(target_intrinsics)
        if normal is not None:
            normal = normal[:, ::-1] * np.array([-1, 1, 1], dtype=np.float32)
    image = augment(image, depth, recipe.image_augmentation, rng)

    depth_mask_inf = np.isinf(depth)
    depth_mask_fin = np.isfinite(depth) if recipe.finite_depth_mask == "only_known" else ~depth_mask_inf
    if recipe.depth_unit is not None:
        depth *= np.float32(recipe.depth_unit)
    _clamp_far(depth, recipe.clamp_max_depth)
    info = {"dataset": recipe.name, "instance": instance, "seed": seed, "flip": flip}
    return Sample(
        image=image,
        depth=depth,
        depth_mask_fin=depth_mask_fin,
        depth_mask_inf=depth_mask_inf,
        normal=normal,
        intrinsics=target_intrinsics,
        label_type=recipe.label_type,
        is_metric=recipe.depth_unit is not None,
        info=info,
    )


@dataclass
class _Files:
    """What an instance's files hold, all of one size."""

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    normal: npt.NDArray[np.float32] | None
    intrinsics: npt.NDArray[np.float32]


def _read(recipe: Recipe, instance: str) -> _Files:
    folder = recipe.root / instance
    image_path, depth_path, meta_path = folder / IMAGE_NAME, folder / recipe.depth_name, folder / META_NAME
    missing = [path.name for path in (image_path, depth_path, meta_path) if not path.is_file()]
    if missing:
        raise UnusableInstanceError(folder, "files-present", found=f"no {', '.join(missing)}")
    normal_path = folder / NORMAL_NAME
    has_normal = recipe.with_normal and normal_path.is_file()
    with _obeying("inside-root", folder):
        check_instance_links(recipe.root, instance, (IMAGE_NAME, recipe.depth_name, META_NAME, NORMAL_NAME))

    with _obeying("meta-readable", folder):
        intrinsics = read_meta(meta_path)["intrinsics"]
    with _obeying("intrinsics-normalised", folder):
        checked_intrinsics(intrinsics)
    # Sizes come from the headers, before anything is decoded.
    with _obeying("image-decodable", folder):
        sizes = {IMAGE_NAME: read_image_size(image_path)}
    with _obeying("depth-decodable", folder):
        sizes[recipe.depth_name] = read_image_size(depth_path)
    if has_normal:
        with _obeying("normal-decodable", folder):
            sizes[NORMAL_NAME] = read_image_size(normal_path)
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {width} x {height}" for name, (width, height) in sizes.items())
        raise UnusableInstanceError(folder, "sizes-agree", found=found)

    with _obeying("depth-decodable", folder):
        depth = read_depth(depth_path)
    if not np.isfinite(depth).any():
        raise UnusableInstanceError(folder, "depth-known", found="no pixel with a finite depth")
    with _obeying("image-decodable", folder):
        image = read_image(image_path)
    normal = None
    if has_normal:
        with _obeying("normal-decodable", folder):
            normal = read_normal(normal_path)
    return _Files(image, depth, normal, intrinsics)


@contextlib.contextmanager
def _obeying(rule: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except (MoGeError, OSError) as error:
        raise UnusableInstanceError(folder, rule, found=error) from error


def _normal_map(
    depth: npt.NDArray[np.float32], intrinsics: npt.NDArray[np.float32], finite: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Normals (H, W, 3) of the depth map at full resolution, NaN unknown."""
    normal, known = depth_map_to_normal_map(depth, intrinsics, mask=finite, edge_threshold=_NORMAL_EDGE_THRESHOLD)
    normal[~known] = np.nan
    return normal


def _mirrored(intrinsics: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Intrinsics of the image mirrored left to right; the skew changes its sign with x."""
    mirrored = intrinsics.copy()
    mirrored[0, 1] = -intrinsics[0, 1]
    mirrored[0, 2] = 1 - intrinsics[0, 2]
    return mirrored


def _clamp_far(depth: npt.NDArray[np.float32], max_ratio: float) -> None:
    """Bring finite depth, in place, to at most `max_ratio` times the near end of its range."""
    finite = np.isfinite(depth)
    near = float(np.quantile(depth[finite], _NEAR_QUANTILE))
    depth[finite] = np.clip(depth[finite], 0, near * max_ratio)
