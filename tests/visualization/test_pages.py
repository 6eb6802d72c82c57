"""Pages are one silent file, charts show their numbers, and clouds arrive in the viewer as they were."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from moge_core.geometry import depth_map_to_point_map
from moge_core.visualization.charts import histogram_svg, shares_svg
from moge_core.visualization.pages import format_number, format_percent, image_data_uri, plain_text, render_page
from moge_core.visualization.plots import count_values
from moge_core.visualization.viewer import pack_point_cloud, viewer_script

K = np.array([[0.8, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]], np.float32)


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the text within scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self._within = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in self.texts:
            self.texts[self._within].append(data)


def test_the_policy_of_a_page_allows_its_own_scripts_and_styles_alone() -> None:
    page = render_page("a", Markup("<main>x</main>"), styles=["p { color: red }"], scripts=["1 < 2 && '&'"]).decode()
    elements = Elements(page)
    policy = next(attrs["content"] for tag, attrs in elements.found if attrs.get("http-equiv"))
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind in ("script", "style"):
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in elements.texts[kind]]
        assert rules[f"{kind}-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert elements.texts["script"] == ["1 < 2 && '&'"]


def test_a_page_without_scripts_allows_none() -> None:
    assert "script-src 'none'" in render_page("a", Markup("x")).decode()


def test_titles_are_escaped_and_invisible_characters_are_written_out() -> None:
    page = render_page("<b>&\"'\udcff\x1b", Markup("x"))
    assert Elements(page.decode("utf-8")).texts["title"] == ["<b>&\"'\\udcff\\x1b"]
    assert b"<b>" not in page


@pytest.mark.parametrize("noise", [0, 255])
def test_pictures_are_data_uris_that_decode(noise: int) -> None:
    image = np.full((300, 400, 3), (200, 40, 40), np.uint8)
    image ^= np.random.default_rng(0).integers(0, noise + 1, image.shape, dtype=np.uint8)
    uri = image_data_uri(image)
    assert uri.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as picture:
        assert picture.size == (400, 300)
        assert np.abs(np.asarray(picture, np.int16) - image).mean() < (20 if noise else 3)


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "–"), (0, "0 %"), (0.0004, "< 0.1 %"), (0.042, "4.2 %"), (0.5, "50 %"), (0.9996, "> 99.9 %"), (1, "100 %")],
)
def test_only_none_is_zero_per_cent_and_only_all_is_a_hundred(share: float | None, text: str) -> None:
    assert format_percent(share) == text


def test_numbers_and_names_are_short_and_printable() -> None:
    assert [format_number(value) for value in (None, 12345, 0.012345, 1234.5)] == ["–", "12,345", "0.0123", "1,234"]
    assert plain_text("a\nb\x00 ü") == "a\\nb\\x00 ü"


def bars_of(svg: str) -> list[float]:
    """Heights of the bars of a histogram."""
    path = re.search(r'class="bars" d="([^"]+)"', svg)
    assert path is not None
    points = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path[1])]
    bottom = points[0][1]
    return [bottom - y for _, y in points[1:-1:2]]


def test_bars_are_as_high_as_their_counts_and_the_marker_stands_at_its_value() -> None:
    counts, edges = np.array([1.0, 4, 2]), np.array([0.0, 1, 2, 3])
    svg = histogram_svg(counts, edges, label='a "b" <c>', x_label="x", marker=1.5)
    heights = np.array(bars_of(svg))
    assert np.allclose(heights, 112 * counts / 4, atol=0.1)
    marker = re.search(r'class="marker" x1="([\d.]+)"', svg)
    assert marker is not None
    assert float(marker[1]) == pytest.approx(180, abs=1)
    assert 'aria-label="a &#34;b&#34; &lt;c&gt;"' in svg
    assert "median 1.5" in svg


@pytest.mark.parametrize(
    ("values", "log"),
    [
        (np.zeros(0), False),
        (np.full(5, 3.0), True),
        (np.full(5, 0.0), False),
        (np.array([1e-3, 1e6]), True),
        (np.array([3.0, 3.1]), True),
        (np.array([-7.0, 1e5]), False),
    ],
)
def test_any_values_make_a_chart_whose_numbers_are_within_it(values: np.ndarray, log: bool) -> None:
    svg = histogram_svg(*count_values(values, log=log), label="l", x_label="x", log=log)
    assert "nan" not in svg
    places = [float(x) for x in re.findall(r'<text class="tick-label" x="([-\d.]+)"', svg)]
    assert places
    assert all(0 <= x <= 360 for x in places)


def test_shares_fill_their_bar_in_order() -> None:
    svg = shares_svg([0.25, 0.5, 0.25], "parts")
    assert re.findall(r'x="([\d.]+)" width="([\d.]+)"', svg) == [
        ("0.000", "25.000"),
        ("25.000", "50.000"),
        ("75.000", "25.000"),
    ]


def unpack(cloud: dict[str, object]) -> tuple[np.ndarray, np.ndarray]:
    """Points and colours as the viewer's script reads them."""
    count = cloud["count"]
    assert isinstance(count, int)
    assert isinstance(cloud["data"], str)
    data = base64.b64decode(cloud["data"])
    assert len(data) == 9 * count
    codes = np.frombuffer(data, "<i2", 3 * count).reshape(count, 3)
    colors = np.frombuffer(data, np.uint8, offset=6 * count).reshape(count, 3)
    return codes * np.array(cloud["scale"]) + np.array(cloud["offset"]), colors


def test_a_cloud_holds_the_points_upright_with_their_colours() -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 5, (12, 16)).astype(np.float32)
    depth[0, 0], depth[0, 1] = np.nan, np.inf
    image = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    cloud = pack_point_cloud(image, depth, K, caption="c", max_points=1000)
    assert cloud is not None
    json.dumps(cloud, allow_nan=False)
    points, colors = unpack(cloud)
    known = np.isfinite(depth)
    assert np.allclose(points, depth_map_to_point_map(depth, K)[known] * (1, -1, -1), atol=2e-4)
    assert (colors == image[known]).all()
    assert cloud["pivot"] == pytest.approx(np.median(depth[known]))


@pytest.mark.parametrize("share", [1.0, 0.05])
def test_a_cloud_is_thinned_to_its_number_of_points_all_over_the_picture(share: float) -> None:
    rng = np.random.default_rng(0)
    depth = np.where(rng.uniform(size=(300, 400)) < share, 2.0, np.nan).astype(np.float32)
    cloud = pack_point_cloud(np.zeros((300, 400, 3), np.uint8), depth, K, caption="c", max_points=3000)
    assert cloud is not None
    points, _ = unpack(cloud)
    assert 2000 <= len(points) <= 3000
    quarters = np.histogram2d(points[:, 0], points[:, 1], bins=2, range=[[-1.25, 1.25], [-1, 1]])[0] / len(points)
    assert np.abs(quarters - 0.25).max() < 0.04


def test_points_far_beyond_the_rest_do_not_coarsen_the_cloud() -> None:
    depth = np.full((20, 20), 2.0, np.float32)
    depth[3, 3] = 50_000
    cloud = pack_point_cloud(np.zeros((20, 20, 3), np.uint8), depth, K, caption="c", max_points=1000)
    assert cloud is not None
    assert cloud["count"] == 399
    assert max(cloud["scale"]) < 1e-3


def test_there_is_no_cloud_without_points() -> None:
    nothing = np.full((4, 4), np.nan, np.float32)
    assert pack_point_cloud(np.zeros((4, 4, 3), np.uint8), nothing, K, caption="c", max_points=10) is None


def test_the_viewer_is_packaged_with_its_licence_and_can_stand_inside_a_page() -> None:
    script = viewer_script()
    assert re.search(r"<!--|</?script", script, re.IGNORECASE) is None
    assert "sourceMappingURL" not in script
    # The name of a markup language, which is never asked for.
    assert set(re.findall(r"https?://[\w./-]+", script)) == {"http://www.w3.org/1999/xhtml"}
    files = importlib.resources.files("moge_core.visualization.viewer")
    version = json.loads((files / "package.json").read_text())["devDependencies"]["three"]
    assert f"three.js {version}" in script[:200]
    assert "MIT License" in (files / "THREE_LICENSE.txt").read_text()
