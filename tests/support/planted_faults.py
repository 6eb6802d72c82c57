"""Faults as users make them, planted into instances that were good; each with the rule that must find it.

A fault is a function of an instance's folder. `FAULTS` holds those of single instances, by a name of their own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from moge_core.io import (
    read_depth,
    read_image,
    read_meta,
    read_normal,
    write_depth,
    write_image,
    write_meta,
    write_normal,
)
from moge_core.io.png import encode_png

Depth = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Fault:
    """How a fault is planted, which rule must find it, and in which good instances it can show.

    `shows` is asked before the fault is planted; `when` says it in words.
    """

    plant: Callable[[Path], None]
    rule: str
    shows: Callable[[Path], bool] = lambda _: True
    when: str = "always"


def of_depth(change: Callable[[Depth, Path], Depth]) -> Callable[[Path], None]:
    """A fault that changes the values of the depth map."""

    def plant(folder: Path) -> None:
        path = folder / "depth.png"
        write_depth(path, change(read_depth(path), folder).astype(np.float32))

    return plant


def of_camera(change: Callable[[npt.NDArray[np.float64], Path], Any]) -> Callable[[Path], None]:
    """A fault that changes the intrinsics."""

    def plant(folder: Path) -> None:
        meta = read_meta(folder / "meta.json")
        meta["intrinsics"] = np.asarray(change(meta["intrinsics"].astype(np.float64), folder))
        write_meta(folder / "meta.json", meta)

    return plant


def finite(depth: Depth) -> Depth:
    return depth[np.isfinite(depth)]


def near_and_far(depth: Depth) -> tuple[float, float]:
    # A few outliers must not decide what an inverted map looks like.
    low, high = np.quantile(finite(depth), [0.0, 1.0])
    return float(low), float(high)


def rays(depth: Depth, folder: Path) -> npt.NDArray[np.float64]:
    K = read_meta(folder / "meta.json")["intrinsics"]
    height, width = depth.shape
    u = ((np.arange(width) + 0.5) / width - K[0, 2]) / K[0, 0]
    v = ((np.arange(height) + 0.5) / height - K[1, 2]) / K[1, 1]
    return np.sqrt(1 + u[None, :] ** 2 + v[:, None] ** 2)


def cut(name: str, share: float) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return plant


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def text_meta(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "meta.json").write_text(text)


def resize_image(folder: Path) -> None:
    image = read_image(folder / "image.jpg")
    write_image(folder / "image.jpg", cv2.resize(image, None, fx=0.5, fy=0.5))


def plain_png(folder: Path) -> None:
    depth = read_depth(folder / "depth.png")
    millimetres = np.where(np.isfinite(depth), np.clip(depth * 1000, 0, 65535), 0).astype(np.uint16)
    (folder / "depth.png").write_bytes(encode_png(millimetres))


def picture_of_depth(folder: Path) -> None:
    depth = read_depth(folder / "depth.png")
    _, far = near_and_far(depth)
    cv2.imwrite(str(folder / "depth.png"), np.where(np.isfinite(depth), 255 * depth / far, 0).astype(np.uint8))


def shifted(depth: Depth, pixels: float) -> Depth:
    columns = round(pixels * depth.shape[1])
    return np.roll(depth, columns, axis=1)


def bad_range(folder: Path, near: str) -> None:
    depth = read_depth(folder / "depth.png")
    codes = np.where(np.isfinite(depth), 1000, 0).astype(np.uint16)
    (folder / "depth.png").write_bytes(encode_png(codes, text={"near": near, "far": "10.0"}))


def with_sky(depth: Depth, value: float) -> Depth:
    sky = depth.copy()
    rows = max(1, depth.shape[0] // 6)
    sky[:rows] = value
    return np.where(np.isinf(sky), value, sky).astype(np.float32)


def noisy_sky(depth: Depth) -> Depth:
    sky = with_sky(depth, 1e4)
    noise = 1 + 0.001 * np.random.default_rng(0).standard_normal(depth.shape)
    return np.where(sky == np.float32(1e4), sky * noise, sky).astype(np.float32)


def sky_dome(depth: Depth, folder: Path) -> Depth:
    sky = with_sky(depth, 1e4)
    return np.where(sky == np.float32(1e4), 2000 / rays(depth, folder), sky).astype(np.float32)


def disparity_8_bit(depth: Depth) -> Depth:
    near, _ = near_and_far(depth)
    disparity = np.maximum(np.round(200 * near / depth), 1)
    return np.where(np.isfinite(depth), 200 * near / disparity, depth).astype(np.float32)


def cut_and_closed(folder: Path) -> None:
    """A JPEG that a tool cut off and ended properly: decoders fill it up."""
    data = (folder / "image.jpg").read_bytes()
    (folder / "image.jpg").write_bytes(data[: len(data) // 3] + b"\xff\xd9")


def normals(pixels: Callable[[Depth], npt.NDArray[Any]]) -> Callable[[Path], None]:
    return lambda folder: (folder / "normal.png").write_bytes(encode_png(pixels(read_depth(folder / "depth.png"))))


def of_normals(change: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]) -> Callable[[Path], None]:
    """A fault that changes the normals."""

    def plant(folder: Path) -> None:
        path = folder / "normal.png"
        write_normal(path, change(read_normal(path)).astype(np.float32))

    return plant


def blank(folder: Path) -> None:
    write_image(folder / "image.jpg", np.zeros_like(read_image(folder / "image.jpg")))


def sparse(depth: Depth, share: float) -> Depth:
    kept = np.random.default_rng(0).random(depth.shape) < share
    return np.where(kept, np.where(np.isinf(depth), np.nan, depth), np.nan).astype(np.float32)


def label_as(label_type: str, folder: Path) -> None:
    meta = read_meta(folder / "meta.json")
    write_meta(folder / "meta.json", {**meta, "label_type": label_type})


def sparse_synthetic(folder: Path) -> None:
    of_depth(lambda depth, _: sparse(depth, 0.04))(folder)
    label_as("synthetic", folder)


def in_pixels(K: npt.NDArray[np.float64], folder: Path) -> Any:
    height, width = read_image(folder / "image.jpg").shape[:2]
    return np.diag([width, height, 1.0]) @ K


def turned_bits(depth: Depth) -> Depth:
    """SUN RGB-D's integers read as millimetres: all bits of 16 moved up by three, the uppermost come in below."""
    stored = np.where(np.isfinite(depth) & (depth < 65.5), np.rint(np.nan_to_num(depth, posinf=0) * 1000), 0)
    stored = stored.astype(np.uint32)
    turned = ((stored << 3) | (stored >> 13)) & 0xFFFF
    return np.where(turned > 0, turned / 1000, np.nan).astype(np.float32)


def float16_bits(depth: Depth) -> Depth:
    """The bits of float16 in a 16-bit PNG, read as millimetres."""
    bits = np.where(np.isfinite(depth), depth, 0).astype(np.float16).view(np.uint16)
    return np.where(bits > 0, bits / 1000, np.nan).astype(np.float32)


def unregistered(depth: Depth, folder: Path, *, focal: float = 582.6 / 518.9, aside: float = 0.025) -> Depth:
    """Depth as a depth camera beside the colour camera sees it; by default with the numbers of NYU's Kinect.

    Its focal length is `focal` times as long, it is `aside` metres to the right, and its centre lies elsewhere.
    """
    K = read_meta(folder / "meta.json")["intrinsics"].astype(np.float64)
    height, width = depth.shape
    # Finer than the map, so that no holes open between the points.
    fine = np.repeat(np.repeat(depth, 2, 0), 2, 1)
    u = ((np.arange(2 * width) + 0.5) / (2 * width) - K[0, 2]) / K[0, 0]
    v = ((np.arange(2 * height) + 0.5) / (2 * height) - K[1, 2]) / K[1, 1]
    known = np.isfinite(fine)
    z = fine[known]
    x, y = (u[None, :] * fine)[known] - aside, (v[:, None] * fine)[known]
    longer = max(height, width)
    centre = K[0, 2] - 12.5 / 640 * longer / width, K[1, 2] - 15 / 640 * longer / height
    column = np.floor((x / z * K[0, 0] * focal + centre[0]) * width).astype(int)
    row = np.floor((y / z * K[1, 1] * focal + centre[1]) * height).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    seen = np.full(depth.shape, np.inf)
    np.minimum.at(seen, (row[inside], column[inside]), z[inside])
    return np.where(np.isinf(seen), np.nan, seen).astype(np.float32)


def no_return(where: str) -> Callable[[Depth, Path], Depth]:
    """+Inf where a sensor had no return: in single pixels, in blobs, in a hole, or down the left side."""

    def change(depth: Depth, _: Path) -> Depth:
        rng = np.random.default_rng(0)
        height, width = depth.shape
        lost = np.zeros(depth.shape, bool)
        if where == "pixels":
            lost = rng.random(depth.shape) < 0.04
        elif where == "blobs":
            noise = cv2.GaussianBlur(rng.standard_normal(depth.shape).astype(np.float32), (0, 0), width / 100)
            lost = noise > np.quantile(noise, 0.96)
        elif where == "hole":
            lost[int(0.6 * height) : int(0.85 * height), int(0.25 * width) : int(0.6 * width)] = True
        else:
            lost[:, : width // 12] = True
        return np.where(lost, np.float32(np.inf), depth)

    return change


def share_nearer(depth: Depth, metres: float) -> float:
    return float(np.mean(finite(depth) < metres)) if finite(depth).size else 0.0


def known_share(folder: Path) -> float:
    return float(np.isfinite(read_depth(folder / "depth.png")).mean())


def is_dense(folder: Path) -> bool:
    return known_share(folder) >= 0.01


DENSE = "1 % of the pixels known"


def votes_of(folder: Path) -> Any:
    """What pixel triples of an instance say about how its depth is stored; no votes below 1 % of known pixels."""
    from moge_core.datasets.validation.geometry import Votes, count_votes, grid_of, normalised_grid
    from moge_core.io.depth import read_depth_codes

    if known_share(folder) < 0.01:
        return Votes(0, 0, 0, 0, 0, 0)
    with np.errstate(all="ignore"):
        grid, _ = normalised_grid(grid_of(read_depth_codes(folder / "depth.png")))
        return count_votes(grid, read_meta(folder / "meta.json")["intrinsics"].astype(np.float64))


def shows_planes(folder: Path) -> bool:
    return bool(votes_of(folder).z >= 120)


def shows_lens(folder: Path) -> bool:
    return bool(votes_of(folder).along_axis >= 160)


PLANES = "120 pixel triples on slanted planes, 1 % of the pixels known"


def edges_agree(folder: Path) -> bool:
    """A quarter of the pixels known, depth has edges, and they correlate with the image's by 0.2 where they belong."""
    from moge_core.datasets.validation.geometry import grid_of
    from moge_core.datasets.validation.registration import register
    from moge_core.io.depth import read_depth_codes

    grey = cv2.cvtColor(read_image(folder / "image.jpg"), cv2.COLOR_RGB2GRAY)
    with np.errstate(all="ignore"):
        found = register(grey, grid_of(read_depth_codes(folder / "depth.png")))
    return found is not None and found.here >= 0.2 and found.edges >= 0.01 and known_share(folder) >= 0.25


EDGES = "edges of depth lie on the image's (correlation 0.2), a quarter of the pixels known"


def shows_room_height(folder: Path) -> bool:
    from moge_core.datasets.validation.geometry import find_level_planes, grid_of, normalised_grid
    from moge_core.io.depth import read_depth_codes

    with np.errstate(all="ignore"):
        grid, median = normalised_grid(grid_of(read_depth_codes(folder / "depth.png")))
        planes = find_level_planes(grid, read_meta(folder / "meta.json")["intrinsics"].astype(np.float64))
    return planes.room_height is not None and planes.room_height * median < 5


FAULTS: Mapping[str, Fault] = {
    "image missing": Fault(without("image.jpg"), "files-present"),
    "depth missing": Fault(without("depth.png"), "files-present"),
    "meta missing": Fault(without("meta.json"), "files-present"),
    "foreign file": Fault(lambda folder: (folder / "Thumbs.db").write_bytes(b"x"), "files-known"),
    "image truncated": Fault(cut("image.jpg", 0.6), "image-decodable"),
    "depth truncated": Fault(cut("depth.png", 0.6), "depth-decodable"),
    "image is text": Fault(lambda folder: (folder / "image.jpg").write_text("404 Not Found"), "image-decodable"),
    "sizes differ": Fault(resize_image, "sizes-agree"),
    "meta damaged": Fault(text_meta('{"intrinsics": [[1, 0'), "meta-readable"),
    "meta without intrinsics": Fault(text_meta('{"fx": 500}'), "meta-readable"),
    "intrinsics in pixels": Fault(of_camera(in_pixels), "intrinsics-normalised"),
    "almost a camera": Fault(
        of_camera(lambda K, _: K + 1e-7 * np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0]])), "intrinsics-row-major"
    ),
    "negative fy": Fault(of_camera(lambda K, _: np.diag([1, -1, 1]) @ K), "focal-positive"),
    "transposed": Fault(of_camera(lambda K, _: K.T), "intrinsics-row-major"),
    "half the resolution": Fault(of_camera(lambda K, _: np.diag([0.5, 0.5, 1]) @ K), "intrinsics-of-this-size"),
    "twice the resolution": Fault(
        of_camera(lambda K, _: np.diag([2, 2, 1]) @ K),
        "principal-point-inside",
        lambda folder: bool((read_meta(folder / "meta.json")["intrinsics"][:2, 2] >= 0.5).any()),
        "the principal point is in the middle or beyond",
    ),
    "sides swapped": Fault(
        of_camera(lambda K, _: K * np.array([[0.75, 1, 1], [1, 1 / 0.75, 1], [1, 1, 1]])), "pixels-square"
    ),
    "absurd field of view": Fault(
        of_camera(lambda K, _: K * np.array([[0.05, 1, 1], [1, 0.05, 1], [1, 1, 1]])), "fov-plausible"
    ),
    "plain 16-bit png": Fault(plain_png, "depth-has-range"),
    "8-bit picture": Fault(picture_of_depth, "depth-16-bit"),
    "near is nan": Fault(lambda folder: bad_range(folder, "nan"), "depth-decodable"),
    "constant": Fault(of_depth(lambda depth, _: np.where(np.isfinite(depth), np.float32(2.5), depth)), "depth-varies"),
    "all unknown": Fault(of_depth(lambda depth, _: np.full_like(depth, np.nan)), "depth-known"),
    "few known": Fault(of_depth(lambda depth, _: sparse(depth, 0.0002)), "depth-mostly-known"),
    "saturated": Fault(
        of_depth(
            lambda depth, _: np.minimum(np.where(np.isinf(depth), np.nan, depth), np.quantile(finite(depth), 0.8))
        ),
        "depth-unsaturated",
    ),
    "sky huge": Fault(of_depth(lambda depth, _: with_sky(depth, 1e4)), "sky-infinite"),
    "sky at a maximum": Fault(of_depth(lambda depth, _: with_sky(depth, 3 * near_and_far(depth)[1])), "sky-infinite"),
    "sky with noise": Fault(of_depth(lambda depth, _: noisy_sky(depth)), "sky-infinite", is_dense, DENSE),
    "sky as a dome": Fault(of_depth(sky_dome), "sky-infinite", is_dense, DENSE),
    "65535 as depth": Fault(of_depth(lambda depth, _: with_sky(depth, 65.535)), "marker-not-depth"),
    "8-bit source": Fault(
        of_depth(
            lambda depth, _: (
                np.maximum(np.round(depth / near_and_far(depth)[1] * 255), 1) * near_and_far(depth)[1] / 255
            )
        ),
        "depth-levels",
    ),
    "8-bit disparity source": Fault(of_depth(lambda depth, _: disparity_8_bit(depth)), "depth-levels"),
    "whole metres": Fault(of_depth(lambda depth, _: np.maximum(np.round(depth), 1)), "depth-levels"),
    "disparity": Fault(
        of_depth(
            lambda depth, _: np.where(np.isinf(depth), np.nan, near_and_far(depth)[0] * near_and_far(depth)[1] / depth)
        ),
        "depth-not-disparity",
        shows_planes,
        PLANES,
    ),
    "inverted": Fault(
        of_depth(lambda depth, _: np.where(np.isinf(depth), np.nan, sum(near_and_far(depth)) - depth)),
        "depth-not-inverted",
        shows_planes,
        PLANES,
    ),
    "ray lengths": Fault(
        of_depth(lambda depth, folder: depth * rays(depth, folder)),
        "depth-along-axis",
        shows_lens,
        "160 pixel triples on planes where the lens tells, 1 % of the pixels known",
    ),
    "millimetres": Fault(of_depth(lambda depth, _: depth * 1000), "unit-plausible"),
    "depth shifted": Fault(of_depth(lambda depth, _: shifted(depth, 0.06)), "registered", edges_agree, EDGES),
    "image cut and closed": Fault(cut_and_closed, "image-varies"),
    "8-bit normals": Fault(normals(lambda depth: np.zeros((*depth.shape, 3), np.uint8)), "maps-decodable"),
    "normals of another size": Fault(normals(lambda _: np.zeros((5, 7, 3), np.uint16)), "sizes-agree"),
    "normals are text": Fault(lambda folder: (folder / "normal.png").write_text("404"), "maps-decodable"),
    "opengl normals": Fault(of_normals(lambda normal: normal * [1, -1, -1]), "normals-fit-depth"),
    "normals that look away": Fault(of_normals(lambda normal: -normal), "normals-fit-depth"),
    "normals left in 0 to 1": Fault(of_normals(lambda normal: (normal + 1) / 2), "normals-fit-depth"),
    "normals shifted": Fault(of_normals(lambda normal: np.roll(normal, normal.shape[1] // 16, 1)), "normals-fit-depth"),
    "blank image": Fault(blank, "image-varies"),
    "turned bits": Fault(
        of_depth(lambda depth, _: turned_bits(depth)),
        "depth-bits-in-order",
        lambda folder: share_nearer(read_depth(folder / "depth.png"), 8.19) >= 0.93,
        "93 % of the known pixels nearer than 8.19 m (SUN RGB-D has 97 %)",
    ),
    "bits of float16": Fault(
        of_depth(lambda depth, _: float16_bits(depth)),
        "depth-not-float16-bits",
        shows_planes,
        PLANES,
    ),
    "raw depth camera": Fault(
        of_depth(unregistered),
        "registered",
        edges_agree,
        EDGES,
    ),
    "raw depth, Azure": Fault(
        of_depth(lambda depth, folder: unregistered(depth, folder, focal=505 / 610, aside=0.032)),
        "registered",
        edges_agree,
        EDGES,
    ),
    "no return in pixels": Fault(of_depth(no_return("pixels")), "infinity-is-sky"),
    "no return in blobs": Fault(of_depth(no_return("blobs")), "infinity-is-sky"),
    "no return in a hole": Fault(
        of_depth(no_return("hole")),
        "infinity-is-sky",
        lambda folder: known_share(folder) >= 0.3,
        "a third of the pixels known: the picture is not all sky",
    ),
    "no return down a side": Fault(of_depth(no_return("side")), "infinity-is-sky"),
    "a fifth": Fault(
        of_depth(lambda depth, _: depth / 5),
        "unit-plausible",
        shows_room_height,
        "floor and ceiling are seen, less than 5 m apart",
    ),
    "sparse but synthetic": Fault(sparse_synthetic, "density-fits-label"),
}


def copy_instance(folder: Path, name: str) -> Path:
    """A second instance with the same files."""
    return Path(shutil.copytree(folder, folder.parent / name))


def meta_text(folder: Path) -> Any:
    return json.loads((folder / "meta.json").read_text())
