"""The real frames of the manifest of samples, imported by the command that is right for each source."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from click.testing import CliRunner

from moge_core.cli import cli

_STEREO = "--left *_left.png --disparity *_disp.npz --baseline 0.193001 --doffs 31.086"

# Source, importer and its options.
COMMANDS: Sequence[tuple[str, str, str]] = (
    ("tum_rgbd/public", "rgbd-folder", "--intrinsics 520.9,521.0,325.1,249.7 --depth-scale 5000"),
    ("icl_nuim_living_room/public", "rgbd-folder", "--intrinsics 481.2,-480.0,319.5,239.5 --depth-scale 5000"),
    ("icl_livingroom1_clean/public", "rgbd-folder", "--intrinsics 525,525,319.5,239.5 --depth-scale 1000"),
    ("open3d_livingroom1_simkinect/public", "rgbd-folder", "--intrinsics camera_primesense.json --depth-scale 1000"),
    (
        "3dmatch_kinect/public",
        "rgbd-folder",
        "--intrinsics camera-intrinsics.txt --depth-scale 1000 --invalid 0 --invalid 65535",
    ),
    (
        "nyu_v2/public/nyu_demo",
        "rgbd-folder",
        "--intrinsics 518.8579,519.46961,325.58245,253.73617 --depth-scale 1000",
    ),
    (
        "nyu_v2/public/ch5",
        "rgbd-folder",
        "--intrinsics 518,519,325.5,253.5 --depth-scale 1000 --depth rgbd/depth/*.pgm",
    ),
    ("replica_office0/public", "rgbd-folder", "--intrinsics cam_params.json --depth-scale 6553.5"),
    (
        "kitti_depth_png/public",
        "rgbd-folder",
        "--intrinsics 707.0493,707.0493,604.0814,180.5066 --depth-scale 256 --label-type lidar",
    ),
    ("kitti_object_velodyne/public", "kitti", ""),
    ("dgp_ddad_style/public", "dgp", ""),
    ("middlebury2014_motorcycle/public", "stereo", f"{_STEREO} --intrinsics 994.978,994.978,311.193,254.877"),
)
NUM_FRAMES = 21


def import_real_frames(samples_dir: Path, out: Path) -> list[Path]:
    """Import every source into a dataset of its own below `out`; the folders of those datasets.

    Raises:
        RuntimeError: an import failed.
    """
    datasets = []
    for source, importer, options in COMMANDS:
        target = out / source.replace("/public", "").replace("/", "_")
        arguments = ["import", importer, str(samples_dir / source), "-o", str(target), *options.split()]
        with contextlib.redirect_stderr(io.StringIO()):
            result = CliRunner().invoke(cli, arguments)
        if result.exit_code:
            raise RuntimeError(f"moge {' '.join(arguments)}\n{result.output}")
        datasets.append(target)
    return datasets


def instances_below(*roots: Path) -> list[Path]:
    """Folders of all instances below the roots, sorted."""
    return sorted(path.parent for root in roots for path in root.rglob("meta.json"))
