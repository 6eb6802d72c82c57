"""The `data` section of a training configuration: which datasets, in which shares, cut into which views."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from moge_core.configuration import StrictModel

Augmentation = Literal["jittering", "dof", "shot_noise", "blurring", "jpeg_loss"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FileName = Annotated[str, Field(min_length=1)]


def data_root() -> Path:
    """Folder that relative dataset paths refer to: `MOGE_DATA_ROOT`, or else the working directory."""
    return Path(os.environ.get("MOGE_DATA_ROOT") or Path.cwd())


class DatasetConfig(StrictModel):
    """One dataset of the mixture. Keys left out fall back to the `data` section's."""

    name: Annotated[str, Field(min_length=1)]
    path: Annotated[str, Field(min_length=1)]
    label_type: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    index: FileName = ".index.txt"
    depth: FileName = "depth.png"
    depth_unit: Positive | None = None
    finite_depth_mask: Literal["only_known"] | None = None
    depth_interpolation: str | None = None
    aspect_ratio_range: tuple[Positive, Positive] | None = None
    center_augmentation: Annotated[float, Field(ge=0, le=1)] | None = None
    fov_range_absolute: tuple[float, float] | None = None
    fov_range_relative: tuple[float, float] | None = None
    image_augmentation: list[Augmentation] | None = None

    @field_validator("index", "depth")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError("must be a file name inside the dataset")
        return name

    @field_validator("depth")
    @classmethod
    def _is_png(cls, name: str) -> str:
        if not name.lower().endswith(".png"):
            raise ValueError(
                "must be the name of depth maps in this format, such as depth.png; `moge import` makes them of arrays"
            )
        return name

    @model_validator(mode="after")
    def _ordered_ranges(self) -> DatasetConfig:
        _check_view_ranges(self)
        return self

    def resolved_path(self) -> Path:
        """Where the dataset lies on this machine: `path`, relative to `data_root()`."""
        return (data_root() / self.path).resolve()


class DepthCacheConfig(StrictModel):
    """Where decoded depth is kept between draws; see `moge_core.loading.depth_cache`."""

    dir: Annotated[str, Field(min_length=1)]
    max_gb: Positive


class DataConfig(StrictModel):
    """The `data` section. Areas are in pixels, fields of view in degrees, aspect ratios are width / height."""

    datasets: Annotated[list[DatasetConfig], Field(min_length=1)]
    aspect_ratio_range: tuple[Positive, Positive] | None = None
    area_range: tuple[Positive, Positive] | None = None
    image_sizes: (
        Annotated[list[tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]], Field(min_length=1)] | None
    ) = None
    clamp_max_depth: Positive = 1000.0
    center_augmentation: Annotated[float, Field(ge=0, le=1)] = 0.0
    fov_range_absolute: tuple[float, float] | None = None
    fov_range_relative: tuple[float, float] | None = None
    image_augmentation: list[Augmentation] = Field(default_factory=list)
    image_interpolation: Literal["cubic", "lanczos"] = "cubic"
    depth_cache: DepthCacheConfig | None = None

    @model_validator(mode="after")
    def _complete(self) -> DataConfig:
        _check_view_ranges(self)
        if self.image_sizes is None:
            if self.area_range is None:
                raise ValueError("needs `area_range` (pixels) or `image_sizes` ([width, height] pairs)")
            _check_order("area_range", self.area_range)
        names = [dataset.name for dataset in self.datasets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"dataset names must differ; {', '.join(twice)} stands more than once")
        if sum(dataset.weight for dataset in self.datasets) <= 0:
            raise ValueError("at least one dataset needs a weight above 0")
        for dataset in self.datasets:
            needed = ["fov_range_absolute", "fov_range_relative"]
            if self.image_sizes is None:
                needed.append("aspect_ratio_range")
            for key in needed:
                if getattr(dataset, key) is None and getattr(self, key) is None:
                    raise ValueError(f"`{key}` is needed here or in dataset {dataset.name!r}")
        return self

    def effective(self, dataset: DatasetConfig, key: str) -> Any:
        """The dataset's own value of `key`, or else the section's."""
        own = getattr(dataset, key)
        return getattr(self, key) if own is None else own


def _check_view_ranges(section: DatasetConfig | DataConfig) -> None:
    for key, low, high in (("fov_range_absolute", 0.0, 180.0), ("fov_range_relative", 0.0, 1.0)):
        span: tuple[float, float] | None = getattr(section, key)
        if span is not None:
            _check_order(key, span)
            if span[0] < low or span[1] > high or span[1] <= 0:
                raise ValueError(f"`{key}` must lie within [{low:g}, {high:g}], found {list(span)}")
    if section.aspect_ratio_range is not None:
        _check_order("aspect_ratio_range", section.aspect_ratio_range)


def _check_order(key: str, span: tuple[float, float]) -> None:
    if not span[0] <= span[1]:
        raise ValueError(f"`{key}` must be [lower, upper], found {list(span)}")
