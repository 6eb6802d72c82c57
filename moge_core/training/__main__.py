"""`accelerate launch -m moge_core.training --config configs/train/v1.json ...`."""

from __future__ import annotations

import sys

from moge_core.accelerators import configure_allocator
from moge_core.training.command import main

configure_allocator()  # before the command imports torch
sys.exit(main())
