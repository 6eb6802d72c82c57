"""How a training's processes are started, watched and ended: one protocol, `Launcher`, and what implements it.

ConfiguredLauncher          picks one of these at each launch, as `configs/launchers.json` says
├── LocalLauncher           processes of this machine
├── SlurmLauncher           a batch job of one or several nodes
├── RayLauncher             a job of a Ray cluster (extra `ray`)
└── KubernetesLauncher      a pod (extra `k8s`)
"""

from moge_pipeline.defs.resources.launchers.configured import ConfiguredLauncher, end_abandoned_launch
from moge_pipeline.defs.resources.launchers.jobs import LAUNCH_TAG
from moge_pipeline.defs.resources.launchers.local import LocalLauncher
from moge_pipeline.defs.resources.launchers.protocol import Launcher, LaunchResources, LaunchResult

__all__ = [
    "LAUNCH_TAG",
    "ConfiguredLauncher",
    "LaunchResources",
    "LaunchResult",
    "Launcher",
    "LocalLauncher",
    "end_abandoned_launch",
]
