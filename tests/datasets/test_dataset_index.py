"""Lists and manifests: what is found, what is kept, whose list is whose."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moge_core.datasets.lists as lists_module
from moge_core.datasets import dataset_fingerprint, index_dataset, index_digest, read_index
from moge_core.datasets.layout import check_entry
from moge_core.datasets.manifest import load_manifest
from moge_core.errors import ConfigError, DatasetError, InputError, MissingIndexError

Write = Callable[..., Path]


def lines_of(data: Path, name: str = ".index.txt") -> list[str]:
    return (data / name).read_text().splitlines()


def test_instances_are_found_at_any_depth_and_listed_sorted_as_posix_paths(data: Path, write_instance: Write) -> None:
    for name in ("b/2", "a/b/c", "b/10", "single"):
        write_instance(name)
    (data / "b" / "not an instance").mkdir()
    report = index_dataset(data)
    assert lines_of(data) == report.instances == ["a/b/c", "b/10", "b/2", "single"]
    assert (report.num_scanned, report.num_read, report.adopted, report.findings) == (4, 4, False, [])
    assert read_index(data) == report.instances


def test_the_manifest_records_size_depth_and_field_of_view(data: Path, write_instance: Write) -> None:
    depth = np.full((12, 16), 2.0, np.float32)
    depth[:3], depth[3:6], depth[6] = np.nan, np.inf, 8
    write_instance("one", depth=depth)
    index_dataset(data)
    record = load_manifest(data).records["one", "depth.png"]
    assert (record.width, record.height) == (16, 12)
    assert (record.depth_min, record.depth_max) == pytest.approx((2, 8), rel=1e-4)
    assert record.depth_median == pytest.approx(2, rel=1e-4)
    assert (record.valid_share, record.inf_share) == (0.5, 0.25)
    assert record.fov_x == pytest.approx(np.degrees(2 * np.arctan(0.5 / 0.8)))


def test_only_new_and_changed_instances_are_read_again(data: Path, write_instance: Write) -> None:
    for name in "abc":
        write_instance(name)
    first = index_dataset(data)
    assert index_dataset(data).num_read == 0
    write_instance("d")
    meta = data / "b" / "meta.json"
    meta.write_text(meta.read_text().replace("0.8", "0.7"))
    second = index_dataset(data)
    assert second.num_read == 2
    assert second.digest != first.digest
    assert load_manifest(data).records["b", "depth.png"].fov_x == pytest.approx(np.degrees(2 * np.arctan(0.5 / 0.7)))


def test_a_broken_instance_is_told_and_left_out(data: Path, write_instance: Write) -> None:
    write_instance("good")
    (write_instance("bad") / "depth.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    report = index_dataset(data)
    assert report.instances == lines_of(data) == ["good"]
    assert {(finding.instance, finding.rule) for finding in report.findings} == {("bad", "depth-decodable")}
    assert report.num_broken == 1


def test_a_mended_instance_comes_back(data: Path, write_instance: Write) -> None:
    write_instance("good")
    folder = write_instance("bad")
    whole = (folder / "image.jpg").read_bytes()
    (folder / "image.jpg").write_bytes(whole[: len(whole) // 2])
    assert index_dataset(data).instances == ["good"]
    (folder / "image.jpg").write_bytes(whole)
    assert index_dataset(data).instances == ["bad", "good"]


def test_a_dataset_without_anything_usable_is_refused_with_the_first_reason(data: Path, write_instance: Write) -> None:
    with pytest.raises(DatasetError, match=r"none.*moge import"):
        index_dataset(data)
    write_instance("only", depth=np.full((12, 16), np.nan, np.float32))
    with pytest.raises(DatasetError, match="only: all pixels are unknown"):
        index_dataset(data)
    assert not (data / ".index.txt").exists()


def test_a_single_instance_is_no_dataset(write_instance: Write) -> None:
    with pytest.raises(DatasetError, match="single instance"):
        index_dataset(write_instance("one"))


def test_a_users_own_list_is_adopted_byte_for_byte(data: Path, write_instance: Write) -> None:
    for name in "abc":
        write_instance(name)
    own = "c\r\na"
    (data / ".index.txt").write_bytes(own.encode())
    for _ in range(2):
        report = index_dataset(data)
        assert report.adopted
        assert report.instances == ["c", "a"]
        assert (data / ".index.txt").read_bytes() == own.encode()
    assert index_digest(data) == report.digest


def test_a_list_of_ours_that_the_user_edits_becomes_the_users_own(data: Path, write_instance: Write) -> None:
    for name in "abc":
        write_instance(name)
    index_dataset(data)
    (data / ".index.txt").write_text("b\n")
    assert index_dataset(data).adopted
    assert lines_of(data) == ["b"]


def test_broken_instances_of_an_adopted_list_are_findings(data: Path, write_instance: Write) -> None:
    write_instance("a")
    (data / ".index.txt").write_text("a\ngone\na\n")
    report = index_dataset(data)
    assert {(finding.instance, finding.rule) for finding in report.findings} == {
        ("gone", "files-present"),
        (".index.txt", "listed-once"),
    }
    assert lines_of(data) == ["a", "gone", "a"]


def test_rebuild_keeps_the_users_list_under_a_free_name(data: Path, write_instance: Write) -> None:
    for name in "ab":
        write_instance(name)
    for number, text in enumerate(["b\n", "a\n"]):
        (data / ".index.txt").write_text(text)
        report = index_dataset(data, rebuild=True)
        assert not report.adopted
        assert lines_of(data) == ["a", "b"]
        backup = data / (".index.txt.bak" + (f".{number}" if number else ""))
        assert report.backup_path == backup
        assert backup.read_text() == text
    assert index_dataset(data, rebuild=True).backup_path is None


def test_rebuild_reads_everything_again(data: Path, write_instance: Write) -> None:
    write_instance("a")
    index_dataset(data)
    assert index_dataset(data, rebuild=True).num_read == 1


def test_a_split_is_checked_but_never_made_up(data: Path, write_instance: Write) -> None:
    for name in "ab":
        write_instance(name)
    with pytest.raises(MissingIndexError, match=r"\.train\.txt"):
        index_dataset(data, index_name=".train.txt")
    with pytest.raises(InputError, match="split"):
        index_dataset(data, index_name=".train.txt", rebuild=True)
    (data / ".train.txt").write_text("b\n")
    report = index_dataset(data, index_name=".train.txt")
    assert (report.instances, report.adopted) == (["b"], True)


def test_a_depth_variant_has_its_own_records(data: Path, write_instance: Write) -> None:
    write_instance("a")
    folder = write_instance("b")
    shutil.copy(folder / "depth.png", folder / "depth_completed.png")
    index_dataset(data)
    (data / ".index.txt").write_text("b\n")
    index_dataset(data, depth_name="depth_completed.png")
    assert set(load_manifest(data).records) == {("a", "depth.png"), ("b", "depth.png"), ("b", "depth_completed.png")}


def test_the_digest_is_equal_for_equal_data_elsewhere_and_differs_for_other_data(
    data: Path, write_instance: Write, tmp_path: Path
) -> None:
    for name in "ab":
        write_instance(name)
    first = index_dataset(data)
    copy = tmp_path / "copy"
    shutil.copytree(data, copy, ignore=shutil.ignore_patterns(".*"), copy_function=shutil.copyfile)
    assert index_dataset(copy).digest == first.digest == index_digest(data)
    shutil.copyfile(copy / "a" / "depth.png", copy / "b" / "depth.png")
    assert index_dataset(copy).digest != first.digest


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", "blank"),
        ("  ", "blank"),
        ("/etc", "absolute"),
        ("C:/x", "absolute"),
        ("a/../../x", "inside"),
        ("a\\b", "back"),
    ],
)
def test_a_list_with_a_line_that_is_no_path_inside_is_refused(
    data: Path, write_instance: Write, line: str, named: str
) -> None:
    write_instance("a")
    (data / ".index.txt").write_text(f"a\n{line}\na\n")
    for use in (read_index, index_dataset, index_digest):
        with pytest.raises(DatasetError, match=rf"\.index\.txt:2: .*{named}"):
            use(data)


@pytest.mark.parametrize("link", ["folder", "parent"])
def test_a_list_entry_that_a_link_leads_out_is_refused(
    data: Path, write_instance: Write, tmp_path: Path, link: str
) -> None:
    write_instance("a")
    outside = tmp_path / "elsewhere"
    shutil.move(data / "a", outside / "a")
    if link == "folder":
        (data / "a").symlink_to(outside / "a")
    else:
        (data / "b").symlink_to(outside)
    (data / ".index.txt").write_text("a\n" if link == "folder" else "b/a\n")
    with pytest.raises(DatasetError, match="elsewhere"):
        read_index(data)


def test_a_file_that_is_a_link_out_of_the_dataset_is_not_read(
    data: Path, write_instance: Write, tmp_path: Path
) -> None:
    write_instance("good")
    folder = write_instance("bad")
    shutil.move(folder / "image.jpg", tmp_path / "secret.jpg")
    (folder / "image.jpg").symlink_to(tmp_path / "secret.jpg")
    report = index_dataset(data)
    assert report.instances == ["good"]
    assert [finding.rule for finding in report.findings] == ["inside-root"]
    assert "secret.jpg" in report.findings[0].evidence


def test_linked_folders_are_not_entered_and_that_is_said(data: Path, write_instance: Write) -> None:
    write_instance("a/one")
    (data / "loop").symlink_to(data)
    report = index_dataset(data)
    assert report.instances == ["a/one"]
    assert [(finding.instance, finding.severity) for finding in report.findings] == [("loop", "warning")]


def test_a_name_that_fits_no_line_is_a_finding(data: Path, write_instance: Write) -> None:
    write_instance("good")
    write_instance("line\nbreak")
    report = index_dataset(data)
    assert report.instances == ["good"]
    assert [finding.rule for finding in report.findings] == ["listable-path"]


def test_a_missing_list_says_which_command_makes_it(data: Path) -> None:
    with pytest.raises(MissingIndexError, match=f"moge index {data}"):
        read_index(data)
    (data / ".index.txt").write_text("")
    with pytest.raises(DatasetError, match="at least one"):
        read_index(data)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.txt", ""])
def test_a_list_name_must_stay_inside(data: Path, name: str) -> None:
    with pytest.raises(InputError, match="index_name"):
        read_index(data, name)


def test_an_interrupted_index_goes_on_where_it_was(
    data: Path, write_instance: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        write_instance(name)

    class Interrupted(BaseException):
        pass

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        index_dataset(data, progress=interrupt)
    assert not (data / ".index.txt").exists()
    assert index_dataset(data).num_read < 4


def test_a_list_whose_replacing_was_interrupted_is_still_ours(
    data: Path, write_instance: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_instance("a")
    index_dataset(data)
    write_instance("b")
    with monkeypatch.context() as patch:
        patch.setattr(lists_module, "atomic_open", lambda path: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            index_dataset(data)
    assert lines_of(data) == ["a"]
    report = index_dataset(data)
    assert not report.adopted
    assert lines_of(data) == ["a", "b"]


def test_the_fingerprint_changes_with_data_and_the_users_lists_only(data: Path, write_instance: Write) -> None:
    folder = write_instance("a")
    before = dataset_fingerprint(data)
    index_dataset(data)
    (folder / "pointcloud.ply").write_bytes(b"from inspection")
    assert dataset_fingerprint(data) == before
    os.utime(folder / "depth.png", ns=(1, 1))
    touched = dataset_fingerprint(data)
    assert touched != before
    (data / ".train.txt").write_text("a\n")
    with_split = dataset_fingerprint(data)
    assert with_split != touched
    write_instance("b")
    assert dataset_fingerprint(data) != with_split


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_an_accepted_entry_never_leaves_the_dataset(line: str) -> None:
    root = Path("/somewhere/data")
    try:
        check_entry(line, "list")
    except DatasetError:
        return
    assert Path(os.path.normpath(root / line)).is_relative_to(root)


def test_an_unchanged_dataset_is_indexed_without_writing_anything(data: Path, write_instance: Write) -> None:
    for name in "ab":
        write_instance(name)
    first = index_dataset(data)
    before = {path: path.stat().st_mtime_ns for path in (first.manifest_path, first.index_path)}
    second = index_dataset(data)
    assert second.num_read == 0
    assert (second.digest, second.findings) == (first.digest, first.findings)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_manifest_of_the_first_version_still_says_which_list_is_ours(data: Path, write_instance: Write) -> None:
    for name in "ab":
        write_instance(name)
    report = index_dataset(data)
    digest = hashlib.sha256(report.index_path.read_bytes()).hexdigest()
    old = pa.table({"path": ["a"]}).replace_schema_metadata(
        {b"moge": json.dumps({"version": 1, "written_lists": {".index.txt": [digest]}}).encode()}
    )
    pq.write_table(old, report.manifest_path)
    write_instance("c")
    again = index_dataset(data)
    assert not again.adopted
    assert again.instances == ["a", "b", "c"]


def test_leftovers_of_a_killed_run_are_removed(data: Path, write_instance: Write) -> None:
    write_instance("a")
    index_dataset(data)
    leftovers = [data / "..index.txt.0123456789ab.tmp", data / ".moge" / ".manifest.parquet.456789abcdef.tmp"]
    for path in leftovers:
        path.write_bytes(b"half")
    index_dataset(data)
    assert not any(path.exists() for path in leftovers)


def test_new_thresholds_judge_unchanged_instances_again(data: Path, write_instance: Write) -> None:
    write_instance("a")
    assert index_dataset(data).findings == []
    (data / ".moge" / "validation.json").write_text('{"max_fov_deg": 20}')
    report = index_dataset(data)
    assert report.num_read == 1
    assert {finding.rule for finding in report.findings} == {"fov-plausible"}
    assert index_dataset(data).num_read == 0
    (data / ".moge" / "validation.json").write_text('{"max_fov": 20}')
    with pytest.raises(ConfigError, match="max_fov_deg"):
        index_dataset(data)


def test_findings_of_comparing_instances_are_remembered_until_something_changes(
    data: Path, write_instance: Write
) -> None:
    write_instance("a")
    shutil.copytree(data / "a", data / "b")
    for _ in range(2):
        report = index_dataset(data)
        assert [(finding.instance, finding.rule) for finding in report.findings] == [("b", "not-duplicated")]
    shutil.rmtree(data / "b")
    assert index_dataset(data).findings == []
