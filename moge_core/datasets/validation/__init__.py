"""Validation: what is wrong with a dataset, in plain words, before a GPU is spent on it.

`catalogue` names the rules, `settings` their thresholds. `examine_instance` reads one instance in two passes, cheap
(headers and meta.json) and full (decoding); `validate_dataset` checks a list, its instances, and these against each
other.
"""

from moge_core.datasets.validation.catalogue import RULES, Rule
from moge_core.datasets.validation.dataset import find_repeated, validate_dataset
from moge_core.datasets.validation.instance import (
    examine_instance,
    finding_of,
    instance_fingerprint,
    instance_stamp,
)
from moge_core.datasets.validation.relations import compare_instances
from moge_core.datasets.validation.settings import ValidationSettings, load_settings

__all__ = [
    "RULES",
    "Rule",
    "ValidationSettings",
    "compare_instances",
    "examine_instance",
    "find_repeated",
    "finding_of",
    "instance_fingerprint",
    "instance_stamp",
    "load_settings",
    "validate_dataset",
]
