"""A dataset at one glance: a page to open in a browser, pictures, point clouds and numbers.

report        write_quality_report, QualityReport
samples       one sampled instance: its pictures, its cloud, its numbers
measures      sharpness of depth edges, directions of surfaces
findings      what validation found, grouped by rule with examples
numbers       report.json, and what changed since the former one
page          the numbers and pictures as report.html
"""

from moge_core.datasets.layout import POINT_CLOUD_DIR
from moge_core.datasets.quality.report import (
    CONTACT_SHEET_NAME,
    HISTOGRAM_NAME,
    QualityReport,
    write_quality_report,
)

__all__ = ["CONTACT_SHEET_NAME", "HISTOGRAM_NAME", "POINT_CLOUD_DIR", "QualityReport", "write_quality_report"]
