"""Pictures of geometry for people: colour maps, contact sheets and plots. Arrays in, uint8 RGB or PNG bytes out.

colors        colorize_depth, colorize_normal, colorize_mask
sheets        contact_sheet
plots         plot_histogram, plot_lines
point_clouds  write_viewer_ply
pages         one-file web pages: render_page, render_template, image_data_uri
charts        histogram_svg, shares_svg, for such pages
viewer        pack_point_cloud, viewer_script: point clouds that turn in them
"""

from moge_core.visualization.colors import colorize_depth, colorize_mask, colorize_normal
from moge_core.visualization.plots import plot_histogram, plot_lines
from moge_core.visualization.point_clouds import write_viewer_ply
from moge_core.visualization.sheets import contact_sheet

__all__ = [
    "colorize_depth",
    "colorize_mask",
    "colorize_normal",
    "contact_sheet",
    "plot_histogram",
    "plot_lines",
    "write_viewer_ply",
]
