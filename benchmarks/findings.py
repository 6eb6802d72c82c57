"""`python -m benchmarks.findings [--count N] [--samples FOLDER]`: what validation finds of planted faults.

Each fault is planted alone into sample scenes and, where the samples are there, real frames that meet its condition.
The table says in how many its rule found it; the last lines what is told of the same data without a fault.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "support"))

from planted_faults import FAULTS, Fault  # noqa: E402
from real_frames import import_real_frames, instances_below  # noqa: E402
from walks import change_walk, write_walk  # noqa: E402

from moge_core.datasets import render_sample_scenes, validate_dataset  # noqa: E402
from moge_core.datasets.validation import examine_instance  # noqa: E402

SIZES = ((320, 240), (160, 120), (640, 480), (414, 125))
SEED = 2024
# Factors of depth and of focal length, told by `reprojects`; how far the points must move for it to show at all.
WALKS = {
    "depth twice as large": {"scale": 2.0},
    "depth half as large": {"scale": 0.5},
    "focal length 30 % too long": {"focal": 1.3},
    "focal length 30 % too short": {"focal": 0.7},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=64, help="sample scenes")
    parser.add_argument("--walks", type=int, default=24, help="sample scenes of several frames with poses")
    parser.add_argument("--only", nargs="*", help="names of faults; by default all")
    parser.add_argument("--samples", type=Path, default=REPOSITORY.parent / "shared" / "samples")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, size in enumerate(SIZES):
            root = folder / "scenes" / str(number)
            render_sample_scenes(root, arguments.count // len(SIZES), SEED + number, size=size)
        scenes = instances_below(folder / "scenes")
        real = []
        if arguments.samples.is_dir():
            real = instances_below(*import_real_frames(arguments.samples, folder / "real"))
        print("| fault | rule | can show | sample scenes | real frames |")
        print("|---|---|---|---|---|")
        for fault_name, fault in FAULTS.items():
            if arguments.only is not None and fault_name not in arguments.only:
                continue
            cells = [_found(fault, group, folder / "planted") for group in (scenes, real)]
            print(f"| {fault_name} | `{fault.rule}` | {fault.when} | {cells[0]} | {cells[1]} |", flush=True)
        if arguments.walks:
            _walks(arguments.walks, folder / "walks")
        for what, group in (("sample scenes", scenes), ("real frames", real)):
            told = [finding for one in group for finding in examine_instance(one.parent, one.name).findings]
            print(f"\n{len(group)} {what} without a fault: {len(told)} findings {sorted({one.rule for one in told})}")


def _found(fault: Fault, group: Iterable[Path], folder: Path) -> str:
    """ "A of B" where the fault can show."""
    num_shown = num_found = 0
    for instance in group:
        if not fault.shows(instance):
            continue
        planted = Path(shutil.copytree(instance, folder / "x"))
        fault.plant(planted)
        num_shown += 1
        num_found += any(finding.rule == fault.rule for finding in examine_instance(folder, "x").findings)
        shutil.rmtree(folder)
    return f"{num_found} of {num_shown}"


def _walks(count: int, folder: Path) -> None:
    """Rows about frames that overlap, and how many walks without a fault are told."""
    names = [f"{index:03d}" for index in range(count)]
    for index, name in enumerate(names):
        write_walk(folder / "good" / name, SEED, index)
    for fault, factors in WALKS.items():
        data = Path(shutil.copytree(folder / "good", folder / "changed"))
        change_walk(data, **factors)
        found = _reprojecting(data)
        print(f"| {fault} | `reprojects` | frames with poses overlap | {len(found)} of {count} | |", flush=True)
        shutil.rmtree(data)
    print(f"| (walks without a fault) | `reprojects` | | {len(_reprojecting(folder / 'good'))} of {count} | |")


def _reprojecting(root: Path) -> set[str]:
    findings = validate_dataset(root)
    return {finding.instance.partition("/")[0] for finding in findings if finding.rule == "reprojects"}


if __name__ == "__main__":
    main()
