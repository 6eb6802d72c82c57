"""Thresholds of the rules. A dataset keeps its own in `.moge/validation.json`, where they differ from these."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from moge_core.configuration import StrictModel, load_json, parse_as
from moge_core.datasets.layout import STATE_DIR
from moge_core.datasets.validation.catalogue import RULES

SETTINGS_NAME = "validation.json"

# Raised when rules judge the same files otherwise: instances are then read again.
_RULES_VERSION = 2


class ValidationSettings(StrictModel):
    """What counts as a fault; every value can be set in `.moge/validation.json`.

    Shares are of all pixels unless said otherwise; angles are in degrees, lengths in metres.
    """

    off: tuple[str, ...] = ()
    """Rules that are not looked at."""
    severities: dict[str, Literal["error", "warning"]] = Field(default_factory=dict)
    """Other severities than the catalogue's, by rule."""

    min_fov_deg: float = 4.5
    """Narrowest plausible field of view, in either direction."""
    max_fov_deg: float = 150.0
    """Widest plausible field of view, in either direction."""
    max_pixel_aspect: float = 1.08
    """Greatest ratio between fx W and fy H."""
    scaled_centre: float = 0.12
    """How far both coordinates of a principal point may be off the centre by the same share."""

    min_pixels: int = 256
    """Known pixels below which the rules about values stay silent."""
    min_known_share: float = 0.0005
    """Least share of known or infinite pixels."""
    min_level_ratio: float = 1.0005
    """Greatest over least depth that still counts as constant."""
    saturated_share: float = 0.004
    """Of the known pixels, at exactly the greatest value."""
    sky_gap: float = 1.5
    """Ratio between what is taken for sky and what lies before it."""
    sky_from_m: float = 300.0
    """Metres beyond which what lies behind such a gap is taken for sky, whatever its shape."""
    misplaced_infinity: float = 0.2
    """Of the infinite pixels, below the horizon or in holes, as no sky is ..."""
    misplaced_pixels: float = 0.01
    """... or of all pixels."""
    marker_share: float = 0.0005
    """Of the known pixels, at exactly the depth of a marker."""
    max_levels: int = 256
    """Most different depths, evenly spaced, that a source of 8 bits has."""
    max_step: float = 0.03
    """Relative step between neighbouring depths that is coarse, where half of the pixels have it."""
    min_votes: int = 40
    """Pixel triples on planes before the shape of depth is judged."""
    min_shape_density: float = 0.01
    """Share of known pixels below which the shape of depth is not judged: single returns of LiDAR show none."""
    min_registration_density: float = 0.25
    """Share of known pixels below which edges of depth are not looked for."""
    registration_shift: float = 0.015
    """Share of the image's longer side by which depth may be shifted."""
    min_registration: float = 0.0
    """Correlation of the edges of image and depth below which they seem to show different things."""
    min_depth_m: float = 0.03
    """Least plausible median depth of metric data."""
    max_depth_m: float = 400.0
    """Greatest plausible median depth of metric data."""
    min_camera_height_m: float = 0.08
    """Least plausible height over the floor or road, where one is seen."""
    max_camera_height_m: float = 12.0
    """Greatest plausible height over the floor or road, where one is seen."""
    min_typical_height_m: float = 0.12
    """Least plausible typical height in a dataset: cameras also stand on tables and small robots."""
    max_typical_height_m: float = 3.0
    """Greatest plausible typical height: cameras are held, driven or mounted no higher than that."""
    min_room_height_m: float = 1.2
    """Least plausible distance between floor and ceiling, where both are seen."""
    min_dense_share: float = 0.5
    """Known or sky pixels that a label type for dense depth needs."""
    dense_labels: tuple[str, ...] = ("synthetic", "A")
    """Label types whose losses need dense depth."""

    outlier_factor: float = 3.0
    """Ratio to the dataset's typical value that makes an instance an outlier of unit."""
    min_siblings: int = 5
    """Instances to compare with before an outlier is told."""
    focal_tolerance: float = 0.2
    """How far a focal length may be off those of the same scene and size."""
    density_outlier: float = 0.1
    """Share of the dataset's typical known share below which an instance is an outlier."""
    reprojection_error: float = 0.1
    """Median relative error of reprojected depth."""

    @field_validator("off", "severities")
    @classmethod
    def _names_rules(cls, value: Any) -> Any:
        for name in value:
            if name not in RULES:
                near = difflib.get_close_matches(name, RULES, 1)
                raise ValueError(f"no rule is called {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return value

    def digest(self) -> str:
        """Changes with a value, and with the rules themselves: what was judged otherwise is judged again."""
        return hashlib.sha256(f"{_RULES_VERSION} {self.model_dump_json()}".encode()).hexdigest()[:16]


def load_settings(root: Path, path: str | Path | None = None) -> ValidationSettings:
    """The settings of a dataset: of `path`, else of its `.moge/validation.json`, else the default ones.

    Raises:
        ConfigError: no such file, an unknown key, or a value of the wrong kind.
    """
    own = root / STATE_DIR / SETTINGS_NAME
    if path is None and not own.is_file():
        return ValidationSettings()
    chosen = own if path is None else Path(path)
    return parse_as(ValidationSettings, load_json(chosen), chosen)
