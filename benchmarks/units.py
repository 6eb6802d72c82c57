"""The units in which costs are told, so that figures of different machines compare.

D: decoding one training image by plain means: `cv2.imdecode` of its JPEG, Pillow's decode of its depth PNG, and
   near ** (1 - t) * far ** t for each pixel in float32.
U: `torch.sort` of a random (1024, 3072) float32 tensor.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image


def median_seconds(work: Callable[[], object], repeats: int = 7, *, cpu: bool = False) -> float:
    """Median time of `work` after a warm-up call; `cpu` counts the processor time of all threads."""
    clock = time.process_time if cpu else time.perf_counter
    work()
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)


def unit_d(instance: Path) -> float:
    """CPU seconds of one D for the files of an instance."""
    jpeg, png = (instance / "image.jpg").read_bytes(), (instance / "depth.png").read_bytes()

    def decode() -> None:
        cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        with Image.open(io.BytesIO(png)) as file:
            near, far = float(file.info["near"]), float(file.info["far"])
            codes = np.asarray(file).astype(np.float32)
        t = (codes - 1) / np.float32(65533)
        np.float32(near) ** (1 - t) * np.float32(far) ** t

    return median_seconds(decode, cpu=True)


def unit_u() -> float:
    """Seconds of one U."""
    values = torch.rand(1024, 3072)
    return median_seconds(lambda: torch.sort(values), 5)
