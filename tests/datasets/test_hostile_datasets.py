"""Hostile files and lists are refused with a typed error or a finding: flat memory, nothing outside the dataset."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moge_core.datasets import index_dataset, read_index, validate_dataset
from moge_core.errors import DatasetError, MoGeError
from moge_core.io.png import encode_png

Write = Callable[..., Path]

# Enough for the interpreter with NumPy, OpenCV and pyarrow, and nothing like the sizes that hostile headers announce.
MEMORY = 3 << 30


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(width: int, height: int, *, zeros: int) -> bytes:
    """A small PNG file that announces `width` x `height` and unfolds to `zeros` bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    text = chunk(b"tEXt", b"near\x001.0") + chunk(b"tEXt", b"far\x0010.0")
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(1 << 20)) for _ in range(zeros >> 20)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def run_limited(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`moge` in a process that cannot have more than `MEMORY`."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    return subprocess.run(
        [sys.executable, "-m", "moge_core.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )


def plant(folder: Path, fault: str) -> None:
    if fault == "50,000 x 50,000 header":
        (folder / "depth.png").write_bytes(png_bomb(50_000, 50_000, zeros=1 << 20))
    elif fault == "bomb":
        (folder / "depth.png").write_bytes(png_bomb(16, 12, zeros=1 << 30))
    elif fault == "bomb of an allowed size":
        (folder / "depth.png").write_bytes(png_bomb(16_384, 16_384, zeros=1 << 20))
    elif fault == "near is nan":
        codes = np.full((12, 16), 1000, np.uint16)
        (folder / "depth.png").write_bytes(encode_png(codes, text={"near": "nan", "far": "1.0"}))
    elif fault == "huge image header":
        (folder / "image.jpg").write_bytes(png_bomb(50_000, 50_000, zeros=1 << 20))
    elif fault == "2 GB meta.json":
        with (folder / "meta.json").open("r+b") as file:
            file.truncate(2 << 30)
    elif fault == "deep meta.json":
        (folder / "meta.json").write_text('{"intrinsics": ' + "[" * 100_000 + "}")
    else:
        raise AssertionError(fault)


RULES = {
    "50,000 x 50,000 header": {"depth-decodable", "sizes-agree"},
    # The decoder takes as many bytes as the header needs; what is left of the bomb is never unfolded.
    "bomb": {"depth-decodable", "depth-known"},
    "bomb of an allowed size": {"depth-decodable", "sizes-agree"},
    "near is nan": {"depth-decodable"},
    "huge image header": {"image-decodable", "sizes-agree", "pixels-square"},
    "2 GB meta.json": {"meta-readable"},
    "deep meta.json": {"meta-readable"},
}


@pytest.mark.parametrize("fault", RULES)
def test_a_hostile_file_is_a_finding_in_flat_memory(data: Path, write_instance: Write, fault: str) -> None:
    write_instance("good")
    plant(write_instance("hostile"), fault)
    result = run_limited("validate", str(data), "--json")
    assert result.returncode == 1, result.stderr
    document = json.loads(result.stdout)
    found = {finding["rule"] for finding in document["findings"] if finding["instance"] == "hostile"}
    assert found
    assert found <= RULES[fault]
    assert {finding["instance"] for finding in document["findings"]} == {"hostile"}
    result = run_limited("index", str(data))
    assert result.returncode == 0, result.stderr
    assert read_index(data) == ["good"]


@pytest.mark.parametrize("line", ["../../etc/passwd", "/etc/passwd", "good/../../other", "out", "out/inner"])
def test_a_list_cannot_lead_out_of_the_dataset(data: Path, write_instance: Write, tmp_path: Path, line: str) -> None:
    write_instance("good")
    outside = tmp_path / "outside" / "inner"
    outside.mkdir(parents=True)
    for name in ("image.jpg", "depth.png", "meta.json"):
        (outside / name).write_bytes((data / "good" / name).read_bytes())
    (data / "out").symlink_to(tmp_path / "outside", target_is_directory=True)
    (data / ".index.txt").write_text(f"good\n{line}\n")
    with pytest.raises(DatasetError):
        index_dataset(data)
    assert {finding.rule for finding in validate_dataset(data)} == {"list-entry"}


@pytest.mark.parametrize("name", ["image.jpg", "depth.png", "meta.json", "normal.png"])
def test_a_linked_file_outside_is_neither_read_nor_listed(
    data: Path, write_instance: Write, tmp_path: Path, name: str
) -> None:
    write_instance("good")
    folder = write_instance("linked")
    secret = tmp_path / "secret"
    secret.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    report = index_dataset(data)
    assert report.instances == ["good"]
    assert [(finding.instance, finding.rule) for finding in report.findings] == [("linked", "inside-root")]


def test_a_list_that_is_no_text_is_a_typed_error(data: Path, write_instance: Write) -> None:
    write_instance("good")
    (data / ".index.txt").write_bytes(b"\xff\xfe\x00good")
    for use in (index_dataset, validate_dataset):
        with pytest.raises(MoGeError, match="UTF-8"):
            use(data)
