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
    """How a fault is planted, and which rule must find it."""

    plant: Callable[[Path], None]
    rule: str


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
    "twice the resolution": Fault(of_camera(lambda K, _: np.diag([2, 2, 1]) @ K), "principal-point-inside"),
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
    "sky with noise": Fault(of_depth(lambda depth, _: noisy_sky(depth)), "sky-infinite"),
    "sky as a dome": Fault(of_depth(sky_dome), "sky-infinite"),
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
    ),
    "inverted": Fault(
        of_depth(lambda depth, _: np.where(np.isinf(depth), np.nan, sum(near_and_far(depth)) - depth)),
        "depth-not-inverted",
    ),
    "ray lengths": Fault(of_depth(lambda depth, folder: depth * rays(depth, folder)), "depth-along-axis"),
    "millimetres": Fault(of_depth(lambda depth, _: depth * 1000), "unit-plausible"),
    "depth shifted": Fault(of_depth(lambda depth, _: shifted(depth, 0.06)), "registered"),
    "image cut and closed": Fault(cut_and_closed, "image-varies"),
    "8-bit normals": Fault(normals(lambda depth: np.zeros((*depth.shape, 3), np.uint8)), "maps-decodable"),
    "normals of another size": Fault(normals(lambda _: np.zeros((5, 7, 3), np.uint16)), "sizes-agree"),
    "normals are text": Fault(lambda folder: (folder / "normal.png").write_text("404"), "maps-decodable"),
    "opengl normals": Fault(of_normals(lambda normal: normal * [1, -1, -1]), "normals-fit-depth"),
    "normals that look away": Fault(of_normals(lambda normal: -normal), "normals-fit-depth"),
    "normals left in 0 to 1": Fault(of_normals(lambda normal: (normal + 1) / 2), "normals-fit-depth"),
    "normals shifted": Fault(of_normals(lambda normal: np.roll(normal, normal.shape[1] // 16, 1)), "normals-fit-depth"),
    "blank image": Fault(blank, "image-varies"),
    "sparse but synthetic": Fault(sparse_synthetic, "density-fits-label"),
}


def copy_instance(folder: Path, name: str) -> Path:
    """A second instance with the same files."""
    return Path(shutil.copytree(folder, folder.parent / name))


def meta_text(folder: Path) -> Any:
    return json.loads((folder / "meta.json").read_text())
