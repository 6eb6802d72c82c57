"""What a training looks like in Dagster: its loss over time and its newest predictions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from moge_core.training import Workspace
from moge_core.training.tracking import read_lines
from moge_pipeline.defs.quality.thumbnails import markdown_picture

_NUM_VIEWS = 4
_CURVES = {"loss": "loss", "eval.rel": "held-out rel", "eval_ema.rel": "held-out rel of the average"}


def training_pictures(workspace: Workspace) -> dict[str, Any]:
    """Metadata with the pictures that a workspace has the material for."""
    pictures: dict[str, Any] = {}
    curves = _loss_curves(workspace)
    if curves is not None:
        pictures["loss_over_time"] = markdown_picture(curves, "Loss over the steps of the training")
    predictions = _newest_predictions(workspace.path / "vis")
    if predictions is not None:
        pictures["predictions"] = markdown_picture(predictions, "Image, true depth and predicted depth")
    return pictures


def _loss_curves(workspace: Workspace) -> bytes | None:
    from moge_core.visualization import plot_lines

    lines = read_lines(workspace.metrics_path)
    curves = {}
    for name, label in _CURVES.items():
        points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), float)]
        if points:
            curves[label] = ([float(step) for step, _ in points], [value for _, value in points])
    if not curves:
        return None
    title = f"{workspace.path.parent.name}, run {workspace.path.name}"
    return plot_lines(curves, title=title, x_label="step", log=True)


def _newest_predictions(folder: Path) -> bytes | None:
    """A row for each of the first views: image, true depth, predicted depth."""
    steps = sorted(folder.glob("step_*"))
    views = sorted(steps[-1].iterdir())[:_NUM_VIEWS] if steps else []
    if not views:
        return None
    from moge_core.io import read_image
    from moge_core.visualization import contact_sheet

    rows = []
    for view in views:
        files = [view / "image.jpg", folder / "gt" / view.name / "depth_vis.png", view / "depth_vis.png"]
        if not all(path.is_file() for path in files):
            return None
        rows.append([read_image(path) for path in files])
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(contact_sheet(rows)).save(buffer, "PNG")
    return buffer.getvalue()
