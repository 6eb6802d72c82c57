"""What happens by itself when data changes: folders are looked at, and what is made from them is made anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from moge_pipeline.catalog import Catalog
from moge_pipeline.defs.automation import automation_status
from moge_pipeline.defs.references import beta_features

OBSERVE_CRON = "*/10 * * * *"
"""When automation looks at the folders."""


@dataclass(frozen=True)
class FolderExists(dg.AutomationCondition[Any]):
    """True while a dataset's folder is there; what is named but not downloaded yet is left alone."""

    path: str = ""

    def evaluate(self, context: dg.AutomationContext[Any]) -> dg.AutomationResult[Any]:
        """See `AutomationCondition.evaluate`."""
        subset = context.candidate_subset if Path(self.path).is_dir() else context.get_empty_subset()
        return dg.AutomationResult(context, true_subset=subset)

    @property
    def name(self) -> str:
        """What the user interface calls it."""
        return "folder_exists"


def on_new_data(folder: Path | None = None) -> dg.AutomationCondition[Any]:
    """Made anew when what it is made from has changed and has passed its checks, and only then.

    Args:
        folder: that has to be there, too.
    """
    changed = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    condition = (
        changed.since_last_handled()
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
        & ~dg.AutomationCondition.in_progress()
    )
    return condition if folder is None else condition & FolderExists(path=str(folder))


def automation_sensors(catalog: Catalog) -> list[dg.AutomationConditionSensorDefinition]:
    """`data_automation` for folders, indexes and quality; `training_automation` where a configuration asks for it.

    The first waits to be switched on unless MOGE_AUTOMATION says so; the second runs, as its configurations say.
    """
    sensors = []
    if catalog.datasets:
        sensors.append(
            _sensor(
                "data_automation",
                _data(),
                automation_status(),
                f"Looks at the datasets' folders (`{OBSERVE_CRON}`) and makes index and quality of those anew that have"
                " changed. Missing folders are left alone. MOGE_AUTOMATION=1 switches it on from the start.",
            )
        )
    automated = [
        name for name, entry in catalog.trainings.items() if entry.config and entry.config.automation == "new_data"
    ]
    if automated:
        sensors.append(
            _sensor(
                "training_automation",
                dg.AssetSelection.assets(*automated),
                dg.DefaultSensorStatus.RUNNING,
                "Starts the trainings whose configuration says `automation: new_data` when an index of theirs has"
                " changed and passed its checks.",
            )
        )
    return sensors


def _data() -> dg.AssetSelection:
    with beta_features():
        return dg.AssetSelection.groups("raw", "index", "quality", include_sources=True)


def _sensor(
    name: str, target: dg.AssetSelection, status: dg.DefaultSensorStatus, description: str
) -> dg.AutomationConditionSensorDefinition:
    with beta_features():
        # Conditions of our own are evaluated where their code is.
        return dg.AutomationConditionSensorDefinition(
            name, target=target, default_status=status, use_user_code_server=True, description=description
        )
