"""Measures of a prediction against the truth. Names are resolved on first use, so importing the package is cheap."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moge_core.evaluation.conditions import ScoringConditions as ScoringConditions
    from moge_core.evaluation.conditions import are_comparable as are_comparable
    from moge_core.evaluation.conditions import digest_instances as digest_instances
    from moge_core.evaluation.heldout import HeldOutInstance as HeldOutInstance
    from moge_core.evaluation.heldout import mean_scores as mean_scores
    from moge_core.evaluation.heldout import score_constant as score_constant
    from moge_core.evaluation.heldout import score_instances as score_instances
    from moge_core.evaluation.heldout import score_model as score_model
    from moge_core.evaluation.metrics import compute_metrics as compute_metrics

_MODULES = {
    "HeldOutInstance": "moge_core.evaluation.heldout",
    "ScoringConditions": "moge_core.evaluation.conditions",
    "are_comparable": "moge_core.evaluation.conditions",
    "compute_metrics": "moge_core.evaluation.metrics",
    "digest_instances": "moge_core.evaluation.conditions",
    "mean_scores": "moge_core.evaluation.heldout",
    "score_constant": "moge_core.evaluation.heldout",
    "score_instances": "moge_core.evaluation.heldout",
    "score_model": "moge_core.evaluation.heldout",
}

__all__ = [
    "HeldOutInstance",
    "ScoringConditions",
    "are_comparable",
    "compute_metrics",
    "digest_instances",
    "mean_scores",
    "score_constant",
    "score_instances",
    "score_model",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
