"""The report's page in a real browser: silent, offline, and its clouds turn."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Page, open_browser

from moge_core.datasets import QualityReport, index_dataset, render_sample_scenes, write_quality_report
from moge_core.io import write_depth, write_image, write_meta

pytestmark = pytest.mark.services

# Colours of the canvas and the share of it that is drawn upon.
CANVAS = """(() => {
  const canvas = document.querySelector('canvas');
  const copy = document.createElement('canvas');
  copy.width = canvas.width; copy.height = canvas.height;
  const context = copy.getContext('2d', {willReadFrequently: true});
  context.drawImage(canvas, 0, 0);
  const pixels = new Uint32Array(context.getImageData(0, 0, copy.width, copy.height).data.buffer);
  return {colors: new Set(pixels).size, drawn: pixels.filter((pixel) => pixel).length / pixels.length,
    picture: canvas.toDataURL(), state: canvas.dataset.state};
})()"""
HOSTILE_NAME = "<img src=x onerror=alert(1)> & \"q\" 'q' {{7*7}} <!--<script> ünï 数"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> QualityReport:
    """Of a dataset with rendered scenes, a hostile name, a broken instance, and one without normals."""
    folder = tmp_path_factory.mktemp("page")
    root = folder / f"data {HOSTILE_NAME}"
    render_sample_scenes(root, 4, 1, size=(96, 72))
    scene = min(root.rglob("meta.json")).parent
    shutil.copytree(scene, root / f"broken {HOSTILE_NAME}")
    scene.rename(root / HOSTILE_NAME)
    (root / f"broken {HOSTILE_NAME}" / "image.jpg").write_bytes(b"<b>no")
    lidar = np.full((72, 96), np.nan, np.float32)
    lidar[::6, ::6] = np.linspace(3, 60, 16)
    (root / "lidar").mkdir()
    write_depth(root / "lidar" / "depth.png", lidar)
    write_image(root / "lidar" / "image.jpg", np.full((72, 96, 3), 90, np.uint8))
    write_meta(root / "lidar" / "meta.json", {"intrinsics": [[0.8, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]]})
    index_dataset(root)
    write_quality_report(root, folder / "out", seed=1)
    return write_quality_report(root, folder / "out")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def canvas_of(page: Page) -> dict[str, Any]:
    canvas: dict[str, Any] = page.evaluate(CANVAS)
    # A short name for the picture: failures print it.
    return canvas | {"picture": hashlib.sha256(canvas["picture"].encode()).hexdigest()[:12]}


def assert_silent(page: Page, report: QualityReport) -> None:
    assert page.complaints == []
    assert page.requests == [report.html_path.as_uri()]


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_asks_the_network_for_nothing_and_the_console_stays_empty(
    page: Page, report: QualityReport, dark: bool
) -> None:
    page.open(report.html_path, dark=dark)
    for number in range(len(report.instances)):
        page.click(f".clouds [data-show-cloud='{number}']")
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    page.settle()
    assert_silent(page, report)
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert "data <img src=x" in page.evaluate("document.title")
    assert page.evaluate("document.querySelectorAll('img:not([src^=\"data:image/\"])').length") == 0


def test_the_first_cloud_is_drawn_at_once_and_each_other_when_it_is_chosen(page: Page, report: QualityReport) -> None:
    page.open(report.html_path)
    pictures = []
    for number, instance in enumerate(report.instances):
        if number:
            page.click(f".clouds [data-show-cloud='{number}']")
        canvas = canvas_of(page)
        assert canvas["state"] == "ready"
        # LiDAR is a few grey points.
        assert canvas["drawn"] > (0.001 if instance == "lidar" else 0.05)
        assert canvas["colors"] > (1 if instance == "lidar" else 100)
        pictures.append(canvas["picture"])
        assert page.evaluate("document.querySelector('[data-viewer-caption]').textContent").startswith(instance)
        pressed = page.evaluate(
            "[...document.querySelectorAll('.clouds [aria-pressed=true]')].map((button) => button.dataset.showCloud)"
        )
        assert pressed == [str(number)]
    assert len(set(pictures)) == len(pictures)
    assert_silent(page, report)


def test_the_cloud_turns_with_the_mouse_with_keys_and_comes_back(page: Page, report: QualityReport) -> None:
    page.open(report.html_path)
    first = canvas_of(page)["picture"]
    page.drag("canvas", (120, 30))
    page.settle(1)
    dragged = canvas_of(page)["picture"]
    assert dragged != first
    page.send("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    page.settle(1)
    assert canvas_of(page)["picture"] not in {first, dragged}
    page.click("[data-viewer-action=reset]")
    page.settle(1)
    assert canvas_of(page)["picture"] == first
    assert_silent(page, report)


def test_the_wheel_scrolls_the_page_until_the_cloud_was_clicked(page: Page, report: QualityReport) -> None:
    page.open(report.html_path)
    page.click("#clouds h2")
    first = canvas_of(page)["picture"]
    assert wheel_over_the_canvas(page)["scrolled"]
    assert canvas_of(page)["picture"] == first
    page.click("canvas")
    assert not wheel_over_the_canvas(page)["scrolled"]
    assert canvas_of(page)["picture"] != first


def wheel_over_the_canvas(page: Page) -> dict[str, Any]:
    page.evaluate("document.querySelector('canvas').scrollIntoView({block: 'center', behavior: 'instant'})")
    before = page.evaluate("scrollY")
    box = page.evaluate("(({left, top}) => [left, top])(document.querySelector('canvas').getBoundingClientRect())")
    page.send("Input.dispatchMouseEvent", type="mouseWheel", x=box[0] + 99, y=box[1] + 99, deltaX=0, deltaY=-90)
    page.settle(1)
    return {"scrolled": page.evaluate("scrollY") != before}


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_the_page_without_sideways_scrolling_and_turns_the_cloud_by_touch(
    page: Page, report: QualityReport, dark: bool
) -> None:
    page.open(report.html_path, 390, 844, phone=True, dark=dark)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("innerWidth") == 390
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() &&"
        " [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) && e.closest('svg') === null"
        " && e.tagName !== 'SCRIPT').map((e) => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 10.5
    first = canvas_of(page)
    assert first["drawn"] > 0.05
    page.swipe("canvas", (80, 10))
    page.settle(1)
    assert canvas_of(page)["picture"] != first["picture"]
    assert_silent(page, report)


def test_without_webgl_the_page_says_so_and_stays_silent(report: QualityReport, tmp_path: Path) -> None:
    with open_browser(tmp_path / "browser", webgl=False) as page:
        page.open(report.html_path)
        assert page.evaluate("document.querySelector('canvas').dataset.state") == "unavailable"
        message = page.evaluate(
            "(({hidden, textContent}) => [hidden, textContent])(document.querySelector('.viewer-message'))"
        )
        assert message[0] is False
        assert "WebGL" in message[1]
        assert_silent(page, report)
