"""How a training's processes are started, watched and ended: one protocol, `Launcher`, and what implements it."""

from moge_pipeline.defs.resources.launchers.local import LocalLauncher
from moge_pipeline.defs.resources.launchers.protocol import Launcher, LaunchResources, LaunchResult

__all__ = ["LaunchResources", "LaunchResult", "Launcher", "LocalLauncher"]
