"""The quality report shows what was sampled and says what could not be shown."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from moge_core.cli import cli
from moge_core.datasets import Finding, QualityReport, index_dataset, write_quality_report
from moge_core.datasets.quality.measures import measure_edges, measure_normals
from moge_core.errors import DatasetError, InputError, MissingIndexError
from moge_core.io import read_image, read_ply

Write = Callable[..., Path]


def test_every_sampled_instance_has_its_point_cloud_and_its_row(
    data: Path, write_instance: Write, tmp_path: Path
) -> None:
    for scene in "ab":
        for i in range(4):
            write_instance(f"{scene}/{i}")
    index_dataset(data)
    report = write_quality_report(data, tmp_path / "out", num_samples=5)
    assert len(set(report.instances)) == 5
    assert list(report.ply_paths) == report.instances
    assert len(set(report.ply_paths.values())) == 5
    assert all(len(read_ply(path).points) == 12 * 16 for path in report.ply_paths.values())
    few = write_quality_report(data, tmp_path / "few", num_samples=1)
    assert read_image(report.contact_sheet).shape[0] > 4 * read_image(few.contact_sheet).shape[0]
    assert report.depth_histogram.read_bytes().startswith(b"\x89PNG")
    assert report.statistics["num_instances"] == report.statistics["num_measured"] == 8
    assert 1 <= report.statistics["depth_min"] < report.statistics["depth_max"] <= 5.01
    assert report.statistics["valid_share"] == 1
    assert report.problems == {}


def test_the_sample_depends_on_the_seed_alone(data: Path, write_instance: Write, tmp_path: Path) -> None:
    for i in range(9):
        write_instance(str(i))
    index_dataset(data)
    drawn = [write_quality_report(data, tmp_path / "out", num_samples=3, seed=seed).instances for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_cannot_be_shown_is_replaced_and_named(data: Path, write_instance: Write, tmp_path: Path) -> None:
    for i in range(3):
        write_instance(f"good{i}")
    (write_instance("bad") / "image.jpg").write_bytes(b"no")
    write_instance("empty", depth=np.full((12, 16), np.nan, np.float32))
    (data / ".index.txt").write_text("good0\ngood1\ngood2\nbad\nempty\ngone\n")
    report = write_quality_report(data, tmp_path / "out", num_samples=6)
    assert sorted(report.instances) == ["good0", "good1", "good2"]
    assert set(report.problems) == {"bad", "empty", "gone"}
    assert not (tmp_path / "out" / "pointclouds" / "empty").exists()


def test_a_list_with_nothing_to_show_is_refused(data: Path, write_instance: Write, tmp_path: Path) -> None:
    with pytest.raises(MissingIndexError):
        write_quality_report(data, tmp_path / "out")
    (data / ".index.txt").write_text("gone\n")
    with pytest.raises(DatasetError, match="gone"):
        write_quality_report(data, tmp_path / "out")
    with pytest.raises(InputError, match="num_samples"):
        write_quality_report(data, tmp_path / "out", num_samples=0)


def page_of(report: QualityReport) -> str:
    return report.html_path.read_text("utf-8")


def test_the_page_is_one_file_without_addresses_beside_its_pictures_and_clouds(
    data: Path, write_instance: Write, tmp_path: Path
) -> None:
    write_instance("a")
    write_instance("b")
    index_dataset(data)
    report = write_quality_report(data, tmp_path / "out")
    page = page_of(report)
    sources = re.findall(r'\s(?:src|srcset|action|data|poster)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    links = re.findall(r'\shref="([^"]*)"', page)
    files = [link for link in links if not link.startswith(("#", "data:"))]
    assert sorted(unquote(link) for link in files) == ["pointclouds/a/pointcloud.ply", "pointclouds/b/pointcloud.ply"]
    assert all((report.html_path.parent / unquote(link)).is_file() for link in files)
    assert len(re.findall(r"<script type=\"application/json\" data-cloud=", page)) == 2
    assert report.verdict == "2 instances, none broken, no warnings."
    assert report.verdict in page


def test_names_are_shown_as_they_are_and_never_run(data: Path, write_instance: Write, tmp_path: Path) -> None:
    names = ["<script>alert(1)<", "a & b", "\"x\" 'y'", "ünï 数据", "{{ 7 * 7 }}", "<!--"]
    for name in names:
        write_instance(name)
    index_dataset(data)
    told = [Finding(names[0], "<i>rule", "warning", "<i>evidence", "<i>mend")]
    page = page_of(write_quality_report(data, tmp_path / "out", findings=told))
    assert "<script>alert" not in page
    assert "<!--" not in page
    assert "<i>rule" not in page
    assert "<i>evidence" not in page
    assert "<i>mend" not in page
    for name in names:
        assert f"<bdi>{html.escape(name).replace('&quot;', '&#34;').replace('&#x27;', '&#39;')}</bdi>" in page


def test_findings_come_with_errors_first_and_the_worst_instances_as_examples(
    data: Path, write_instance: Write, tmp_path: Path
) -> None:
    for i in range(8):
        write_instance(f"{i}")
    index_dataset(data)
    told = [Finding(f"{i}", "often", "warning", f"often {i}", "mend") for i in range(8)]
    told += [Finding("6", "sizes-agree", "error", "sizes 6", "mend"), Finding("5", "rare", "warning", "rare 5", "mend")]
    report = write_quality_report(data, tmp_path / "out", findings=told)
    page = page_of(report).split('<section id="findings"')[1].split("</section>")[0]
    assert re.findall(r'id="finding-\d+">.*?<h3>(.*?)</h3>', page, re.DOTALL) == ["sizes-agree", "often", "rare"]
    often = page.split('id="finding-2"')[1].split('id="finding-3"')[0]
    assert re.findall(r"<td data-label=\"evidence\">(.*?)</td>", often) == ["often 6", "often 5", "often 0", "often 1"]
    assert re.findall(r"</bdi>: (often \d)", often) == ["often 2", "often 3", "often 4", "often 7"]
    assert report.verdict == "8 instances, 1 broken, 2 kinds of warning."
    assert often.count("<img") == 8


def test_broken_instances_that_the_list_leaves_out_are_told_with_what_can_be_seen_of_them(
    data: Path, write_instance: Write, tmp_path: Path
) -> None:
    write_instance("good")
    (write_instance("bad") / "image.jpg").write_bytes(b"no")
    index_dataset(data)
    report = write_quality_report(data, tmp_path / "out")
    assert report.verdict == "1 instance, 1 broken and left out of the list, no warnings."
    assert report.statistics["num_left_out"] == 1
    findings = page_of(report).split('<section id="findings"')[1].split("</section>")[0]
    assert "not in the list" in findings
    assert "no image to decode" in findings
    assert findings.count("<img") == 1


def test_a_list_that_nobody_checked_is_not_called_flawless(data: Path, write_instance: Write, tmp_path: Path) -> None:
    write_instance("a")
    (data / ".index.txt").write_text("a\n")
    report = write_quality_report(data, tmp_path / "out")
    assert report.verdict == "1 instance, not checked yet: run `moge index`."
    assert "Nothing is wrong" not in page_of(report)


def test_findings_about_paths_outside_the_dataset_show_nothing_from_there(
    data: Path, write_instance: Write, tmp_path: Path
) -> None:
    write_instance("a")
    index_dataset(data)
    outside = tmp_path / "outside"
    shutil.copytree(data / "a", outside)
    (data / "link").symlink_to(outside)
    told = [
        Finding(name, "inside-root", "error", "e", "f") for name in ("../outside", "link", str(outside), "a\0b", "")
    ]
    findings = page_of(write_quality_report(data, tmp_path / "out", findings=told)).split('<section id="findings"')[1]
    assert "<img" not in findings.split("</section>")[0]


def test_the_next_report_tells_what_changed(data: Path, write_instance: Write, tmp_path: Path) -> None:
    for i in range(3):
        write_instance(f"{i}")
    index_dataset(data)
    first = write_quality_report(data, tmp_path / "out")
    assert "This is the first report" in page_of(first)
    assert not (tmp_path / "out" / "report.previous.json").exists()
    before = first.json_path.read_bytes()

    assert "Nothing changed." in page_of(write_quality_report(data, tmp_path / "out"))
    first.json_path.write_bytes(before)
    write_instance("3", depth=np.full((12, 16), 40, np.float32))
    (data / "0" / "image.jpg").write_bytes(b"no")
    index_dataset(data)
    second = write_quality_report(data, tmp_path / "out")
    assert (tmp_path / "out" / "report.previous.json").read_bytes() == before
    text = page_of(second).split('<section id="comparison"')[1].split("</section>")[0]
    rows = {
        re.sub("<.*?>", "", cells[0]).strip(): [re.sub("<.*?>", "", cell).strip() for cell in cells[1:]]
        for row in re.findall(r"<tr.*?</tr>", text, re.DOTALL)
        if len(cells := re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)) == 4
    }
    assert rows["instances in the list"] == ["3", "3", "="]
    assert rows["broken and left out of the list"] == ["0", "1", "▲ 1"]
    assert rows["error image-decodable"] == ["0", "1", "▲ 1"]
    assert rows["greatest depth"][1:] == ["40", f"▲ {40 - first.statistics['depth_max']:.3g}"]
    assert rows["pixels of known depth"] == ["100 %", "100 %", "="]
    assert "The list names other instances than then." in text
    assert second.statistics == json.loads(second.json_path.read_text())["list_numbers"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"version": 2}',
        b"[" * 100_000,
        b'{"version": 1, "dataset": "data", "list_numbers": {"depth_max": NaN}}',
    ],
)
def test_a_damaged_former_report_is_said_and_kept(
    content: bytes, data: Path, write_instance: Write, tmp_path: Path
) -> None:
    write_instance("a")
    index_dataset(data)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_bytes(content)
    report = write_quality_report(data, tmp_path / "out")
    assert "The former report.json is damaged" in page_of(report)
    assert (tmp_path / "out" / "report.previous.json").read_bytes() == content
    assert "Compared with" in page_of(write_quality_report(data, tmp_path / "out"))


def test_a_former_report_of_another_dataset_is_not_compared_with(
    data: Path, write_instance: Write, tmp_path: Path
) -> None:
    write_instance("a")
    index_dataset(data)
    write_quality_report(data, tmp_path / "out")
    other = data.rename(tmp_path / "other")
    assert "is of another dataset, data" in page_of(write_quality_report(other, tmp_path / "out"))


def test_what_cannot_be_computed_is_said(data: Path, write_instance: Write, tmp_path: Path) -> None:
    lidar = np.full((12, 16), np.nan, np.float32)
    lidar[::3, ::3] = 7
    write_instance("lidar", depth=lidar)
    index_dataset(data)
    page = page_of(write_quality_report(data, tmp_path / "out"))
    assert "no three neighbouring pixels are known" in page
    assert "No normals: in no sample" in page
    assert "Cannot be told: no sample has enough depth edges" in page
    assert "depth, unit unknown" in page


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (6, 5)])
@pytest.mark.parametrize(("focal", "center"), [(0.8, 0.5), (0.0, 0.5), (1e-30, 0.5), (0.8, 1e38)])
def test_tiny_images_and_impossible_cameras_end_in_a_report_or_a_reason(
    size: tuple[int, int], focal: float, center: float, data: Path, write_instance: Write, tmp_path: Path
) -> None:
    camera = [[focal, 0, center], [0, focal, center], [0, 0, 1]]
    write_instance("good")
    write_instance("odd", image=np.zeros((*size, 3), np.uint8), depth=np.full(size, 2, np.float32), intrinsics=camera)
    (data / ".index.txt").write_text("good\nodd\n")
    report = write_quality_report(data, tmp_path / "out")
    assert {"odd"} == set(report.problems) ^ (set(report.instances) - {"good"})


def test_depth_is_told_in_metres_where_its_unit_is_known(data: Path, write_instance: Write, tmp_path: Path) -> None:
    write_instance("a", depth=np.full((12, 16), 4000, np.float32), meta={"depth_unit": 0.001})
    write_instance("b", depth=np.full((12, 16), 4000, np.float32), meta={"depth_unit": 0.001})
    index_dataset(data)
    page = page_of(write_quality_report(data, tmp_path / "out"))
    assert re.search(r"<dt>median depth</dt>\s*<dd>4 <small>m</small>", page)
    assert "4 – 4 m" in page
    assert "depth in metres" in page


@pytest.mark.parametrize(("sigma", "least", "most"), [(0, 0.99, 1), (1.0, 0, 0.05)])
def test_clean_steps_are_sharp_edges_and_smoothed_ones_are_not(sigma: float, least: float, most: float) -> None:
    depth = np.full((80, 80), 5, np.float32)
    depth[20:60, 20:60] = 2
    image = np.repeat((depth * 40).astype(np.uint8)[..., None], 3, axis=2)
    measured = measure_edges(image, cv2.GaussianBlur(depth, (0, 0), sigma) if sigma else depth)
    assert measured.sharp_share is not None
    assert least <= measured.sharp_share <= most
    # Four sides of 40 pixels; corners are within the blur.
    assert 140 <= measured.num_edges <= 170
    assert measured.aligned_share == 1
    assert measured.aligned_by_chance is not None
    assert measured.aligned_by_chance < 0.4


def test_a_slanted_plane_has_no_edges() -> None:
    disparity = np.linspace(0.2, 4, 90, dtype=np.float32) + np.zeros((90, 1), np.float32)
    assert measure_edges(np.zeros((90, 90, 3), np.uint8), 1 / disparity).num_edges == 0


def test_a_floor_faces_up_and_a_wall_sideways() -> None:
    K = np.array([[0.8, 0, 0.5], [0, 0.8, 0.5], [0, 0, 1]], np.float32)
    rows = (np.arange(40, dtype=np.float32)[:, None] + 0.5) / 40 - 0.5
    floor = np.where(rows > 0.05, 1.5 * 0.8 / np.maximum(rows, 0.01), np.nan) + np.zeros((1, 40), np.float32)
    measured = measure_normals(floor, K)
    assert (measured.floor_share, measured.wall_share, measured.ceiling_share) == (1, 0, 0)
    measured = measure_normals(floor[::-1], K)
    assert (measured.floor_share, measured.wall_share, measured.ceiling_share) == (0, 0, 1)
    measured = measure_normals(np.full((40, 40), 3, np.float32), K)
    assert (measured.floor_share, measured.wall_share, measured.ceiling_share) == (0, 1, 0)


def test_the_command_writes_below_the_dataset_and_says_where(data: Path, write_instance: Write) -> None:
    write_instance("a")
    index_dataset(data)
    result = CliRunner().invoke(cli, ["report", str(data), "--samples", "1"])
    assert result.exit_code == 0, result.output
    page = data / ".moge" / "report" / "report.html"
    assert result.output.splitlines() == [f"{data}: 1 instance, none broken, no warnings.", str(page)]
    assert page.is_file()
    assert index_dataset(data).instances == ["a"]
    result = CliRunner().invoke(cli, ["report", str(data / "nowhere")])
    assert result.exit_code == 2
    assert not (data / "nowhere").exists()
