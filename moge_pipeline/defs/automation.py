"""Whether what starts work by itself does so from the beginning, or waits to be switched on in the user interface."""

from __future__ import annotations

import os

import dagster as dg

AUTOMATION_VARIABLE = "MOGE_AUTOMATION"


def automation_status() -> dg.DefaultSensorStatus:
    """RUNNING where the environment variable MOGE_AUTOMATION is `1` or `on`, else STOPPED."""
    wanted = os.environ.get(AUTOMATION_VARIABLE, "").strip().lower() in ("1", "on", "true", "yes")
    return dg.DefaultSensorStatus.RUNNING if wanted else dg.DefaultSensorStatus.STOPPED
