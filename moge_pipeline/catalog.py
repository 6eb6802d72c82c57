"""Names every dataset, training and finetuning that `configs/` describes, once. Imports no torch.

A file that cannot be used keeps its place in the catalog with the error that it raised: its asset exists, says what
is wrong and fails with that error, and everything else stays usable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moge_core.errors import ConfigError, MoGeError
from moge_core.training import FinetuneConfig, TrainConfig, load_finetune_config, load_train_config


@dataclass(frozen=True)
class DatasetVariant:
    """One way in which configurations read a dataset: which list of instances, which depth images."""

    index: str
    depth: str


@dataclass(frozen=True)
class DatasetUse:
    """What a configuration takes the data of a list for: which label type, and how many metres a unit of depth is."""

    variant: DatasetVariant
    label_type: str
    depth_unit: float | None


@dataclass
class DatasetEntry:
    """One dataset: the same name and the same resolved path, in however many configurations."""

    name: str
    slug: str
    path: Path
    named_in: Path
    variants: list[DatasetVariant] = field(default_factory=list)
    uses: list[DatasetUse] = field(default_factory=list)
    used_by: list[str] = field(default_factory=list)


@dataclass
class TrainingEntry:
    """One file of `configs/train`. `config` is None where `error` says why the file cannot be read."""

    asset_name: str
    source: Path
    config: TrainConfig | None = None
    datasets: list[str] = field(default_factory=list)
    error: MoGeError | None = None


@dataclass
class FinetuneEntry:
    """One file of `configs/finetune`. `base_asset` names the asset that trains the base, where one does."""

    asset_name: str
    source: Path
    config: FinetuneConfig | None = None
    train_config: TrainConfig | None = None
    base_asset: str | None = None
    datasets: list[str] = field(default_factory=list)
    error: MoGeError | None = None

    @property
    def base_slug(self) -> str | None:
        """Last part of the external asset that stands for a base given as a file or repository."""
        return slug_of(self.config.base) if self.config is not None and self.base_asset is None else None


@dataclass
class Catalog:
    """Everything that the configurations name, keyed by slug or asset name, in the order of the files' names."""

    root: Path
    datasets: dict[str, DatasetEntry] = field(default_factory=dict)
    trainings: dict[str, TrainingEntry] = field(default_factory=dict)
    finetunes: dict[str, FinetuneEntry] = field(default_factory=dict)

    @property
    def trained(self) -> list[TrainingEntry | FinetuneEntry]:
        """Everything that is trained, each once."""
        return [*self.trainings.values(), *self.finetunes.values()]

    @property
    def workspace_dir(self) -> Path:
        """Folder of everything that trainings and reports leave behind."""
        return self.root / "workspace"


def project_root() -> Path:
    """The folder that holds `configs/`: `MOGE_PROJECT_ROOT`, the working directory, or the parent of this package."""
    named = os.environ.get("MOGE_PROJECT_ROOT")
    if named:
        return Path(named).resolve()
    beside_package = Path(__file__).resolve().parents[1]
    return next((root for root in (Path.cwd(), beside_package) if (root / "configs").is_dir()), Path.cwd())


def read_catalog(root: Path) -> Catalog:
    """Read `root/configs`; problems of a file become the `error` of its entry."""
    catalog = Catalog(root)
    for source, asset_name, error in _files(root / "configs" / "train", "train"):
        training = TrainingEntry(asset_name, source, error=error)
        catalog.trainings[asset_name] = training
        if error is None:
            _read_training(training, catalog)
    for source, asset_name, error in _files(root / "configs" / "finetune", "finetune"):
        finetune = FinetuneEntry(asset_name, source, error=error)
        catalog.finetunes[asset_name] = finetune
        if error is None:
            _read_finetune(finetune, catalog)
    _link_bases(catalog)
    return catalog


def slug_of(name: str) -> str:
    """`name` as an identifier: letters, digits and underscores, everything else becomes an underscore."""
    slug = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    return slug or "unnamed"


def evaluation_name(asset_name: str) -> str:
    """The asset with the scores of a training or finetuning."""
    return f"evaluation_{asset_name}"


def _files(folder: Path, stage: str) -> Iterator[tuple[Path, str, MoGeError | None]]:
    """Configuration files with their asset names; a name that is taken gets a number and an error."""
    taken: dict[str, Path] = {}
    for source in sorted(folder.glob("*.json")):
        wanted = f"{stage}_{slug_of(source.stem)}"
        asset_name, number = wanted, 2
        while asset_name in taken:
            asset_name, number = f"{wanted}_{number}", number + 1
        error = None
        if asset_name != wanted:
            error = ConfigError(
                source,
                f"needs an asset name of its own, {wanted} is that of {taken[wanted]}",
                fix="Rename one of the two files.",
            )
        taken[asset_name] = source
        yield source, asset_name, error


def _read_training(entry: TrainingEntry, catalog: Catalog) -> None:
    try:
        entry.config = load_train_config(entry.source)
        entry.datasets = _register_datasets(entry.asset_name, entry.source, entry.config, catalog)
    except Exception as error:
        entry.error = _as_entry_error(error, entry.source)


def _read_finetune(entry: FinetuneEntry, catalog: Catalog) -> None:
    try:
        entry.config = load_finetune_config(entry.source)
        _check_schedule(entry.config)
        entry.train_config = entry.config.train_config()
        entry.datasets = _register_datasets(entry.asset_name, entry.source, entry.train_config, catalog)
    except Exception as error:
        entry.error = _as_entry_error(error, entry.source)


def _as_entry_error(error: Exception, source: Path) -> MoGeError:
    """Whatever one file does to its reader, the rest of the project stays usable."""
    if isinstance(error, MoGeError):
        return error
    return ConfigError(source, "must be a configuration that can be read", found=f"{type(error).__name__}: {error}")


def _check_schedule(config: FinetuneConfig) -> None:
    """Let Dagster read the cron expression here, where its refusal touches one asset and not the code location."""
    if config.schedule is None:
        return
    import dagster as dg

    try:
        dg.ScheduleDefinition(
            job_name="unused", cron_schedule=config.schedule.cron, execution_timezone=config.schedule.timezone
        )
    except dg.DagsterInvalidDefinitionError as error:
        rule = "must be a cron expression that Dagster can follow, e.g. `0 3 * * *`"
        raise ConfigError(f"{config.source}: schedule.cron", rule, found=repr(config.schedule.cron)) from error


def _register_datasets(asset_name: str, source: Path, config: TrainConfig, catalog: Catalog) -> list[str]:
    """Slugs of the configuration's datasets, after entering them into the catalog; enters none if one is in conflict.

    Raises:
        ConfigError: a dataset's name already stands for another folder or for another name's asset.
    """
    entries = []
    for dataset in config.data.datasets:
        slug, path = slug_of(dataset.name), dataset.resolved_path()
        entry = catalog.datasets.get(slug) or DatasetEntry(dataset.name, slug, path, source)
        key = f"{source}: data.datasets ({dataset.name})"
        if entry.name != dataset.name:
            raise ConfigError(
                key,
                f"needs an asset name of its own, {slug} is that of dataset {entry.name!r} in {entry.named_in}",
                fix="Rename one of the two datasets.",
            )
        if entry.path != path:
            raise ConfigError(
                key,
                f"must lie at {entry.path}, as in {entry.named_in}",
                found=path,
                fix="Give one of the two datasets another name, or both the same path.",
            )
        variant = DatasetVariant(dataset.index, dataset.depth)
        entries.append((entry, DatasetUse(variant, dataset.label_type, dataset.depth_unit)))
    for entry, use in entries:
        catalog.datasets[entry.slug] = entry
        if use.variant not in entry.variants:
            entry.variants.append(use.variant)
        if use not in entry.uses:
            entry.uses.append(use)
        entry.used_by.append(asset_name)
    return [entry.slug for entry, _ in entries]


def _link_bases(catalog: Catalog) -> None:
    """Find the asset that trains each finetuning's base; a base that no file describes, or a circle, is an error."""
    known = {**catalog.trainings, **catalog.finetunes}
    for entry in catalog.finetunes.values():
        if entry.config is None or entry.config.base_asset is None:
            continue
        if entry.config.base_asset in known:
            entry.base_asset = entry.config.base_asset
        else:
            entry.error = entry.error or ConfigError(
                f"{entry.source}: base",
                "must name a training or finetuning of configs/, or the path of a checkpoint",
                found=repr(entry.config.base),
                fix=f"Known: {', '.join(sorted(known.keys() - {entry.asset_name})) or 'none'}.",
            )
            entry.config = None
    circular = [entry for entry in catalog.finetunes.values() if _descends_from_itself(entry, catalog)]
    for entry in circular:
        entry.error = ConfigError(
            f"{entry.source}: base", "must not descend from the finetuning itself", found=entry.base_asset
        )
        entry.base_asset, entry.config = None, None


def _descends_from_itself(entry: FinetuneEntry, catalog: Catalog) -> bool:
    seen: set[str] = set()
    base = entry.base_asset
    while base is not None and base not in seen:
        seen.add(base)
        above = catalog.finetunes.get(base)
        base = above.base_asset if above is not None else None
    return entry.asset_name in seen
