"""`python -m moge_core.cli`, the same as `moge`."""

from moge_core.cli import main

main()
