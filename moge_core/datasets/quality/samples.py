"""One sampled instance: the pictures that the report shows of it, its cloud, and its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.inspection import PLY_NAME, LoadedInstance, load_instance, write_point_cloud
from moge_core.datasets.quality.measures import EdgeMeasure, NormalMeasure, measure_edges, measure_normals
from moge_core.errors import InstanceError

# Enough pixels an instance for a smooth histogram, few enough to keep all of them in memory.
_HISTOGRAM_PIXELS = 1 << 17
_PICTURE_SIDE = 400
# Pictures with a smaller share of known pixels would be black to the eye.
_DENSE = 0.3
_SHARP_COLOR, _BLURRED_COLOR = (64, 200, 255), (255, 150, 40)


@dataclass(frozen=True)
class Sample:
    """What is kept of a sampled instance.

    Attributes:
        instance: its name in the list.
        width, height: in pixels.
        stored_unit: metres a unit of the stored depth; where it is known depths are in metres here, else as stored.
        depth_min, depth_median, depth_max: of the finite depth.
        valid_share, inf_share: of the pixels.
        fov_x, fov_y: in degrees.
        image, depth_picture, normal_picture, edge_picture: uint8 (h, w, 3), small.
        depths: finite depths, or as many of them as a histogram needs.
        edges, normals: their measures, without maps as large as the image.
        cloud: for the viewer; None where there are no points near enough.
        ply_path: the whole cloud.
    """

    instance: str
    width: int
    height: int
    stored_unit: float | None
    depth_min: float
    depth_median: float
    depth_max: float
    valid_share: float
    inf_share: float
    fov_x: float
    fov_y: float
    image: npt.NDArray[np.uint8]
    depth_picture: npt.NDArray[np.uint8]
    normal_picture: npt.NDArray[np.uint8]
    edge_picture: npt.NDArray[np.uint8]
    depths: npt.NDArray[np.float32]
    edges: EdgeMeasure
    normals: NormalMeasure
    cloud: dict[str, Any] | None
    ply_path: Path

    @property
    def metric(self) -> bool:
        """True when depths are in metres."""
        return self.stored_unit is not None

    @property
    def unit(self) -> str:
        """Put after a depth."""
        return " m" if self.metric else ""

    @property
    def caption(self) -> str:
        """One line for the contact sheet."""
        return (
            f"{self.instance}: {self.depth_min:.3g} to {self.depth_max:.3g}{self.unit}, {self.valid_share:.0%} known,"
            f" fov {self.fov_x:.0f}°"
        )

    @property
    def numbers(self) -> dict[str, int | float | None]:
        """What report.json keeps; None where it cannot be told."""
        return {
            "depth_median": self.depth_median,
            "valid_share": self.valid_share,
            "inf_share": self.inf_share,
            "fov_x": self.fov_x,
            "num_edges": self.edges.num_edges,
            "sharp_share": self.edges.sharp_share,
            "edge_width_px": self.edges.width_px,
            "aligned_share": self.edges.aligned_share,
            "aligned_by_chance": self.edges.aligned_by_chance,
            "normals_share": self.normals.known_share,
            "floor_share": self.normals.floor_share,
            "wall_share": self.normals.wall_share,
            "ceiling_share": self.normals.ceiling_share,
        }


def read_sample(
    root: Path,
    instance: str,
    depth_name: str,
    cloud_dir: Path,
    *,
    depth_unit: float | None,
    max_points: int,
    rng: np.random.Generator,
) -> Sample:
    """Read an instance, write its point cloud below `cloud_dir`, and measure it.

    Raises:
        MoGeError: it cannot be shown.
        OSError: a file cannot be read or written.
    """
    from moge_core.geometry import intrinsics_to_fov
    from moge_core.visualization.viewer import pack_point_cloud

    loaded = load_instance(root / instance, depth_name, depth_unit=depth_unit)
    depth = loaded.depth
    finite = depth[np.isfinite(depth)]
    ply_path = _write_cloud(cloud_dir / instance, loaded)
    fov_x, fov_y = np.degrees(intrinsics_to_fov(loaded.intrinsics))
    edges = measure_edges(loaded.image, depth)
    normals = measure_normals(depth, loaded.intrinsics)
    size = _picture_size(depth.shape[0], depth.shape[1])
    cloud = pack_point_cloud(loaded.image, depth, loaded.intrinsics, caption=instance, max_points=max_points)
    return Sample(
        instance=instance,
        width=depth.shape[1],
        height=depth.shape[0],
        stored_unit=loaded.unit,
        depth_min=float(finite.min()),
        depth_median=float(np.median(finite)),
        depth_max=float(finite.max()),
        valid_share=finite.size / depth.size,
        inf_share=float(np.isposinf(depth).mean()),
        fov_x=float(fov_x),
        fov_y=float(fov_y),
        image=small_picture(loaded.image),
        depth_picture=small_depth_picture(depth),
        normal_picture=_normal_picture(normals, size),
        edge_picture=_edge_picture(loaded.image, edges, size),
        depths=finite if finite.size <= _HISTOGRAM_PIXELS else rng.choice(finite, _HISTOGRAM_PIXELS),
        edges=edges.without_maps(),
        normals=normals.without_map(),
        cloud=cloud,
        ply_path=ply_path,
    )


def small_picture(image: npt.NDArray[np.uint8], side: int = _PICTURE_SIDE) -> npt.NDArray[np.uint8]:
    """An image (H, W, 3) whose longer side is at most `side`."""
    import cv2

    height, width = _picture_size(image.shape[0], image.shape[1], side)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def small_depth_picture(depth: npt.NDArray[np.float32], side: int = _PICTURE_SIDE) -> npt.NDArray[np.uint8]:
    """A depth map in colours whose longer side is at most `side`; the points of sparse depth are drawn larger."""
    from moge_core.geometry import masked_nearest_resize
    from moge_core.visualization import colorize_depth

    size = _picture_size(depth.shape[0], depth.shape[1], side)
    for enlargement in (1, 2, 3, 4, 6):
        cells = (max(1, size[0] // enlargement), max(1, size[1] // enlargement))
        small, known = masked_nearest_resize(depth, mask=~np.isnan(depth), size=cells)
        if known.mean() > _DENSE:
            break
    picture = colorize_depth(small, known)
    rows, columns = (np.arange(length) * count // length for length, count in zip(size, cells, strict=True))
    return picture[rows[:, None], columns]


def _normal_picture(normals: NormalMeasure, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    from moge_core.geometry import masked_nearest_resize
    from moge_core.visualization import colorize_normal

    small, known = masked_nearest_resize(normals.normals, mask=np.isfinite(normals.normals[..., 0]), size=size)
    return colorize_normal(small, known)


def _edge_picture(image: npt.NDArray[np.uint8], edges: EdgeMeasure, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The image, grey and dim, with its depth edges in colour."""
    import cv2

    grey = cv2.cvtColor(small_picture(image), cv2.COLOR_RGB2GRAY)
    picture = np.repeat((0.45 * grey).astype(np.uint8)[..., None], 3, axis=2)
    blurred = edges.crossings & ~edges.sharp
    for found, color in ((edges.sharp, _SHARP_COLOR), (blurred, _BLURRED_COLOR)):
        # Lines of one pixel survive the shrinking.
        picture[_shrunk_mask(found, size)] = color
    return picture


def _shrunk_mask(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    from moge_core.geometry import masked_nearest_resize

    (shrunk,) = masked_nearest_resize(mask=mask, size=size)
    return np.asarray(shrunk)


def _picture_size(height: int, width: int, side: int = _PICTURE_SIDE) -> tuple[int, int]:
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _write_cloud(folder: Path, loaded: LoadedInstance) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if not write_point_cloud(folder / PLY_NAME, loaded):
        folder.rmdir()
        raise InstanceError(loaded.folder, "must have a pixel of finite depth", found="none")
    return folder / PLY_NAME
