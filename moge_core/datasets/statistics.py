"""Numbers of a whole list, and whether they have drifted since they were taken before.

before = depth_statistics(root)
...
for drift in compare_statistics(before, depth_statistics(root)):
    print(drift)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from moge_core.configuration import StrictModel
from moge_core.datasets.layout import DEPTH_NAME, INDEX_NAME, lines_of_index, resolve_dataset
from moge_core.datasets.manifest import load_rows

# Beyond the first a change is a warning, beyond the second no dataset changes so by itself.
_SHRUNK_SHARE = (0.1, 0.5)
_DEPTH_RATIO = (1.5, 8.0)
_KNOWN_FALL = (0.1, 0.4)
_FOCAL_RATIO = (1.25, 3.0)
# A difference counts once it is so many standard errors wide: the median of three scenes moves with any fourth.
_SIGMAS = 3.0
# A few instances tell little of their own spread: as if so many more had been seen, with deviations as they are usual.
_PRIOR_COUNT = 5
_USUAL_LOG_DEPTH, _USUAL_LOG_FOCAL, _USUAL_SHARE = 1.0, 0.3, 0.2
# Of a normal distribution: standard deviations between its quartiles, and standard errors of a median.
_IQR_SIGMAS, _MEDIAN_SIGMAS = 1.349, 1.2533

Severity = Literal["warning", "error"]
Figure = Literal["instances", "median depth", "share of known pixels", "focal length"]


class Spread(StrictModel):
    """How a number is distributed over instances.

    Attributes:
        count: instances that have it.
        mean, std: over these.
        q05, q25, q50, q75, q95: quantiles.
    """

    count: int = Field(ge=1)
    mean: float
    std: float
    q05: float
    q25: float
    q50: float
    q75: float
    q95: float


class DatasetStatistics(StrictModel):
    """Numbers of a list; `model_dump()` is plain, and `model_validate` takes it back.

    Attributes:
        instances: what the list names, each once.
        measured: of these, the ones that the manifest knows.
        depth_median: of the instances' median depths, in the dataset's unit; None where nothing is known.
        valid_share: of their shares of pixels with a finite depth.
        fov_x: of their horizontal fields of view, in degrees.
    """

    instances: int = Field(ge=0)
    measured: int = Field(ge=0)
    depth_median: Spread | None = None
    valid_share: Spread | None = None
    fov_x: Spread | None = None


@dataclass(frozen=True)
class Drift:
    """One number that is no longer what it was.

    Attributes:
        what: the number: "instances", "median depth", "share of known pixels" (mean) or "focal length" (relative to the
            width).
        before, now: its values.
        severity: `warning` for a change to look at, `error` for one that good data does not make, such as another unit.
    """

    what: Figure
    before: float
    now: float
    severity: Severity

    def __str__(self) -> str:
        return f"{self.what}: {self.before:.4g} before, {self.now:.4g} now"


def depth_statistics(
    dataset_dir: str | Path, index_name: str = INDEX_NAME, depth_name: str = DEPTH_NAME
) -> DatasetStatistics:
    """Numbers of what a list names, as the manifest recorded them; no instance is read.

    Raises:
        MissingIndexError: the list does not exist.
        DatasetError: it is empty or no text, or the manifest is damaged.
    """
    root = resolve_dataset(dataset_dir)
    names = list(dict.fromkeys(lines_of_index(root, index_name)))
    known = load_rows(root, names, depth_name, ("depth_median", "valid_share", "fov_x"))
    spreads = {name: _spread(known[name].to_numpy(zero_copy_only=False)) for name in known.column_names}
    return DatasetStatistics(instances=len(names), measured=known.num_rows, **spreads)


def compare_statistics(before: DatasetStatistics, now: DatasetStatistics) -> list[Drift]:
    """What drifted: the list shrank, depth or focal lengths changed their scale, or fewer pixels are known.

    Growing is no drift. Differences that so few instances show by chance are not told.

    Args:
        before: of an earlier time.
        now: of the same list and depth maps.
    """
    drifts = [
        _shrunk(before.instances, now.instances),
        _rescaled("median depth", before.depth_median, now.depth_median, _DEPTH_RATIO, _USUAL_LOG_DEPTH),
        _fallen(before.valid_share, now.valid_share),
        _rescaled("focal length", _focal(before.fov_x), _focal(now.fov_x), _FOCAL_RATIO, _USUAL_LOG_FOCAL),
    ]
    return [drift for drift in drifts if drift is not None]


def _spread(values: npt.NDArray[Any]) -> Spread | None:
    numbers = np.asarray(values, np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return None
    quantiles = np.quantile(numbers, [0.05, 0.25, 0.5, 0.75, 0.95])
    q05, q25, q50, q75, q95 = (float(value) for value in quantiles)
    return Spread(
        count=numbers.size,
        mean=float(numbers.mean()),
        std=float(numbers.std()),
        q05=q05,
        q25=q25,
        q50=q50,
        q75=q75,
        q95=q95,
    )


def _focal(fov: Spread | None) -> Spread | None:
    """Quantiles of the focal length relative to the width; its mean and deviation are not made."""
    if fov is None:
        return None
    # A wider view has a shorter focal length, so the quantiles change places.
    values = {
        name: 0.5 / math.tan(math.radians(getattr(fov, other)) / 2)
        for name, other in (("q05", "q95"), ("q25", "q75"), ("q50", "q50"), ("q75", "q25"), ("q95", "q05"))
    }
    return fov.model_copy(update=values)


def _shrunk(before: int, now: int) -> Drift | None:
    lost = before - now
    # Of a handful of instances one may go.
    if lost <= max(1, _SHRUNK_SHARE[0] * before):
        return None
    return Drift("instances", before, now, "error" if lost > _SHRUNK_SHARE[1] * before else "warning")


def _rescaled(
    what: Figure, before: Spread | None, now: Spread | None, limits: tuple[float, float], usual: float
) -> Drift | None:
    if before is None or now is None or before.q25 <= 0 or now.q25 <= 0:
        return None
    change = abs(math.log(now.q50 / before.q50))
    sigmas = [(math.log(spread.q75) - math.log(spread.q25)) / _IQR_SIGMAS for spread in (before, now)]
    severity = _severity(
        change, [math.log(limit) for limit in limits], _MEDIAN_SIGMAS * _error(before, now, sigmas, usual)
    )
    return None if severity is None else Drift(what, before.q50, now.q50, severity)


def _fallen(before: Spread | None, now: Spread | None) -> Drift | None:
    if before is None or now is None:
        return None
    error = _error(before, now, [before.std, now.std], _USUAL_SHARE)
    severity = _severity(before.mean - now.mean, _KNOWN_FALL, error)
    return None if severity is None else Drift("share of known pixels", before.mean, now.mean, severity)


def _error(before: Spread, now: Spread, sigmas: Sequence[float], usual: float) -> float:
    """Standard error of the difference of two means, where both are of instances of one kind."""
    counts = (before.count, now.count)
    seen = sum(count * sigma**2 for count, sigma in zip(counts, sigmas, strict=True))
    variance = (seen + _PRIOR_COUNT * usual**2) / (sum(counts) + _PRIOR_COUNT)
    return math.sqrt(variance * sum(1 / count for count in counts))


def _severity(change: float, limits: Sequence[float], error: float) -> Severity | None:
    if change <= max(limits[0], _SIGMAS * error):
        return None
    return "error" if change > max(limits[1], _SIGMAS * error) else "warning"
