"""Commands on the loader of a training: preview-batches, profile-loader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moge_core.cli.common import verbose

if TYPE_CHECKING:
    from moge_core.training.config import TrainConfig

config_argument = click.argument("config_path", metavar="CONFIG", type=click.Path(path_type=Path))
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the run.")


@click.command("preview-batches")
@config_argument
@click.option(
    "-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Picture to write: .png or .jpg."
)
@click.option("--batches", "num_batches", type=click.IntRange(1), default=2, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True)
@click.option("--tile-height", type=click.IntRange(16), default=200, show_default=True, help="Pixels.")
@seed_option
@verbose
def preview_batches_command(
    config_path: Path, out: Path, num_batches: int, batch_size: int, tile_height: int, seed: int
) -> None:
    """Draw what a training on CONFIG sees first: image, depth, normals and masks of each sample.

    \b
    Example:
      moge preview-batches configs/train/v1.json -o batches.png --batches 3
    """
    from moge_core.loading.preview import preview_batches

    config = _load(config_path)
    infos = preview_batches(
        config.data,
        out,
        num_batches=num_batches,
        batch_size=batch_size,
        seed=seed,
        normals_for=_labels_with_normals(config),
        tile_height=tile_height,
    )
    for row, info in enumerate(infos):
        click.echo(f"row {row}: {info['dataset']}/{info['instance']}")
    click.echo(str(out))


@click.command("profile-loader")
@config_argument
@click.option(
    "--images", "num_images", type=click.IntRange(1), default=64, show_default=True, help="To load each time."
)
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True)
@click.option(
    "--workers",
    "num_workers",
    multiple=True,
    type=click.IntRange(1),
    help="Worker processes to try; may be repeated. Default: 1, and one for each core.",
)
@seed_option
@verbose
def profile_loader_command(
    config_path: Path, num_images: int, batch_size: int, num_workers: tuple[int, ...], seed: int
) -> None:
    """Measure how fast the data of CONFIG can be loaded on this machine, where the time goes, and what would help.

    \b
    Example:
      moge profile-loader configs/train/v1.json --workers 1 --workers 8
    """
    from moge_core.datasets.parallel import num_cores
    from moge_core.loading.profiling import profile_loader

    config = _load(config_path)
    profile = profile_loader(
        config.data,
        num_images=num_images,
        batch_size=batch_size,
        seed=seed,
        normals_for=_labels_with_normals(config),
        num_workers=num_workers or sorted({1, num_cores()}),
    )
    click.echo(profile.report())


def _load(path: Path) -> TrainConfig:
    from moge_core.training import load_train_config

    return load_train_config(path)


def _labels_with_normals(config: TrainConfig) -> tuple[str, ...]:
    from moge_core.training.objective import labels_with_normals

    return labels_with_normals(config.loss)
