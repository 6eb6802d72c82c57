"""Every error that a user can cause, as one tree.

    MoGeError
    ├── InputError              an argument of a public function is outside its domain (also a ValueError)
    ├── FormatError             a file does not hold what its kind requires
    │   └── ImageTooLargeError  more pixels than the reader accepts, seen in the header before decoding
    ├── PrecisionError          writing would lose information that nobody asked to lose
    ├── ConfigError             a configuration file, key, flag or expression
    ├── DatasetError            a dataset on disk
    │   ├── MissingIndexError   no index where the configuration says one is
    │   └── InstanceError       one instance that cannot be used
    ├── ModelError              a model configuration that cannot be built
    │   ├── CheckpointError     a checkpoint file that cannot be loaded as asked
    │   └── WeightsError        pretrained weights that cannot be had (offline, unknown name)
    ├── TrainingError           a training run that cannot start or go on
    │   ├── WorkspaceError      a workspace that is locked or belongs to another run
    │   └── NonFiniteError      too many non-finite losses or gradients in a row
    └── MissingDependencyError  a package or system library that is not installed

Catch `MoGeError` to catch them all. Each names where the problem is, the rule that is broken, what was found and what
to do.
"""

from __future__ import annotations


class MoGeError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        where: file, key, flag or argument that is wrong.
        rule: what must hold there.
        found: what was there instead.
        fix: what to do about it.
    """

    def __init__(self, where: object, rule: str, *, found: object = None, fix: str | None = None) -> None:
        self.where = str(where)
        self.rule = rule
        self.found = None if found is None else str(found)
        self.fix = fix
        super().__init__(where, rule, found, fix)

    def __str__(self) -> str:
        text = f"{self.where}: {self.rule}"
        if self.found is not None:
            text += f"; found {self.found}"
        text += "" if text.endswith((".", "!", "?")) else "."
        if self.fix:
            text += f" {self.fix}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes hand errors back pickled; keyword arguments would be lost by the default.
        return (_rebuild, (type(self), self.where, self.rule, self.found, self.fix))


def _rebuild(kind: type[MoGeError], where: str, rule: str, found: str | None, fix: str | None) -> MoGeError:
    return kind(where, rule, found=found, fix=fix)


class InputError(MoGeError, ValueError):
    """An argument of a public function is outside its domain."""


class FormatError(MoGeError):
    """A file does not hold what its kind requires."""


class ImageTooLargeError(FormatError):
    """An image header announces more pixels than the reader accepts."""


class PrecisionError(MoGeError):
    """Writing would lose information that nobody asked to lose."""


class ConfigError(MoGeError):
    """A configuration file, key, flag or expression is wrong."""


class DatasetError(MoGeError):
    """A dataset on disk cannot be used as it is."""


class MissingIndexError(DatasetError):
    """There is no index where the configuration says one is."""


class InstanceError(DatasetError):
    """One instance of a dataset cannot be used."""


class ModelError(MoGeError):
    """A model configuration cannot be built."""


class CheckpointError(ModelError):
    """A checkpoint file cannot be loaded as asked."""


class WeightsError(ModelError):
    """Pretrained weights cannot be had: offline, or an unknown name."""


class TrainingError(MoGeError):
    """A training run cannot start or go on."""


class WorkspaceError(TrainingError):
    """A workspace is locked or belongs to another run."""


class NonFiniteError(TrainingError):
    """Too many non-finite losses or gradients in a row."""


class MissingDependencyError(MoGeError):
    """A package or system library is not installed."""
