"""What the tests of the pipeline share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_project import Project

from moge_pipeline.defs.training import execution

THEIR_OWN_WARNINGS = (
    "ignore:Property `OpDefinition.version` is deprecated:DeprecationWarning",
    "ignore:InitResourceContext.(dagster_run|run_id) is deprecated:DeprecationWarning",
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
)
"""Warnings that Dagster and MLflow cause in their own code, whatever the project does."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let these warnings pass in the tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in THEIR_OWN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """An empty project that relative dataset paths start at."""
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(execution, "RETRY_DELAY_S", 0)
    yield Project(tmp_path)
