"""Commands that import rendered scenes, reconstructions and files of arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moge_core.cli.common import parse_size
from moge_core.cli.import_options import common_import_options, value_options
from moge_core.cli.importing import run_importer

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_ANY = click.Path(exists=True, path_type=Path)


@click.command("hypersim")
@click.argument("source", type=_FOLDER)
@click.option(
    "--camera-parameters",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="metadata_camera_parameters.csv with the camera of every scene. Default: the one in SOURCE, else 60 degrees.",
)
@value_options()
@common_import_options(label_type="synthetic")
def hypersim_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """Hypersim scenes: HDF5 with ray distances.

    SOURCE holds scenes like ai_001_001, or is one. Distances become z; images that there are only in high dynamic range
    are tone-mapped by the published rule.

    \b
    Example:
      moge import hypersim hypersim -o data/hypersim --camera-parameters metadata_camera_parameters.csv
    """
    from moge_core.datasets.importers.hypersim import import_hypersim

    run_importer(import_hypersim, source, out, strict, **options)


@click.command("tartanair")
@click.argument("source", type=_FOLDER)
@value_options({"infinite_from": ("--sky-from",)})
@common_import_options(label_type="synthetic")
def tartanair_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """TartanAir trajectories, version 1 (NPY) or 2 (PNG that hold floats).

    SOURCE holds environments, or is one, or a trajectory. All pinhole cameras that are there are read.

    \b
    Example:
      moge import tartanair tartanair -o data/tartanair
    """
    from moge_core.datasets.importers.tartanair import import_tartanair

    run_importer(import_tartanair, source, out, strict, **options)


@click.command("colmap")
@click.argument("source", type=_FOLDER)
@click.option(
    "--depth-type",
    type=click.Choice(["auto", "geometric", "photometric"]),
    default="auto",
    show_default=True,
    help="Which depth maps: geometric agree between images; auto takes photometric ones where those are missing.",
)
@click.option("--sparse-points", is_flag=True, help="Images without a depth map get the sparse points that they see.")
@value_options()
@common_import_options(label_type="sfm")
def colmap_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """A dense COLMAP workspace: images, sparse, stereo/depth_maps.

    Depth has no unit, and neither has the printed entry. Cameras with distortion are refused: undistort with
    `colmap image_undistorter` first.

    \b
    Example:
      moge import colmap dense -o data/garden
    """
    from moge_core.datasets.importers.colmap import import_colmap

    run_importer(import_colmap, source, out, strict, **options)


@click.command("blendedmvs")
@click.argument("source", type=_FOLDER)
@value_options()
@common_import_options(label_type="sfm")
def blendedmvs_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """BlendedMVS scenes: blended images, cameras, rendered depth.

    SOURCE holds scenes, or is one. Depth has no unit, and neither has the printed entry.

    \b
    Example:
      moge import blendedmvs BlendedMVS -o data/blendedmvs
    """
    from moge_core.datasets.importers.blendedmvs import import_blendedmvs

    run_importer(import_blendedmvs, source, out, strict, **options)


@click.command("nyu-mat")
@click.argument("source", type=_ANY)
@click.option("--raw", is_flag=True, help="Depth as it was measured, with holes, instead of the filled-in map.")
@click.option("--labels", is_flag=True, help="Write the object classes as segmentation.")
@value_options()
@common_import_options(label_type="sfm")
def nyu_mat_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """NYU Depth v2, the labelled frames in one MATLAB file.

    SOURCE is nyu_depth_v2_labeled.mat or its folder. One frame is in memory at a time for each core.

    \b
    Example:
      moge import nyu-mat nyu_depth_v2_labeled.mat -o data/nyu --raw
    """
    from moge_core.datasets.importers.nyu_mat import import_nyu_mat

    run_importer(import_nyu_mat, source, out, strict, **options)


@click.command("arrays")
@click.argument("source", type=_ANY)
@click.option("--image-key", metavar="NAME", help="Array of images. Default: image, images, rgb or color.")
@click.option("--intrinsics-key", metavar="NAME", help="Array of cameras. Default: intrinsics or K.")
@click.option("--normal-key", metavar="NAME", help="Array of normals. Default: normal or normals, where there are any.")
@click.option("--intrinsics", metavar="fx,fy,cx,cy", help="Camera of all frames in pixels, or a file with it.")
@click.option("--intrinsics-size", type=parse_size, metavar="WxH", help="Resolution that --intrinsics refer to.")
@value_options({"depth_array": ("--depth-key",)})
@common_import_options(label_type="sfm")
def arrays_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """Arrays in NPZ, HDF5 or Zarr: images, depth, intrinsics.

    SOURCE is such a file (Zarr: a folder), or a folder of them. A leading dimension makes many instances of one file.

    \b
    Example:
      moge import arrays frames.zarr -o data/frames --depth-key obs/depth --image-key obs/rgb --intrinsics K.txt
    """
    from moge_core.datasets.importers.array_files import import_arrays

    run_importer(import_arrays, source, out, strict, **options)


COMMANDS = (
    hypersim_command,
    tartanair_command,
    colmap_command,
    blendedmvs_command,
    nyu_mat_command,
    arrays_command,
)
"""The commands of this file, for the group that holds all importers."""
