"""Data, models, losses, training and evaluation for MoGe monocular geometry (arXiv 2410.19115 and 2507.02546)."""

__version__ = "0.1.0"
