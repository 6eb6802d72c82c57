"""What this package writes stays inside the dataset, what the user left there stays, and odd names are told."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from moge_core.cli import cli
from moge_core.datasets import (
    dataset_fingerprint,
    index_dataset,
    quarantine_instances,
    read_index,
    render_sample_scenes,
    split_dataset,
    validate_dataset,
    write_quality_report,
)
from moge_core.datasets.layout import Finding
from moge_core.errors import DatasetError

Write = Callable[..., Path]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious.txt").write_text("a/0\n")
    (folder / ".manifest.parquet.0123456789ab.tmp").write_text("of another dataset")
    return folder


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [".index.txt", ".train.txt", ".val.txt", ".moge"])
@pytest.mark.parametrize("dangling", [False, True])
def test_nothing_is_written_through_a_link_that_leads_out(
    data: Path, write_instance: Write, outside: Path, name: str, dangling: bool
) -> None:
    for scene in "ab":
        write_instance(f"{scene}/0")
    target = outside / "new" if dangling else outside if name == ".moge" else outside / "precious.txt"
    (data / name).symlink_to(target)
    before = contents_of(outside)
    for write in (
        lambda: index_dataset(data),
        lambda: index_dataset(data, rebuild=True),
        lambda: split_dataset(data, 0.5, rebuild=True),
        lambda: quarantine_instances(data, {"a/0": "blurred"}),
        lambda: render_sample_scenes(data, 1, 0, size=(32, 24), num_workers=1),
    ):
        with pytest.raises(DatasetError, match=rf"{name}: must lie inside the dataset.*{target}"):
            write()
    assert contents_of(outside) == before
    assert not (outside / "new").exists()


@pytest.mark.parametrize("name", ["lock", "manifest.parquet", "lists.json", "quarantine.json"])
def test_no_file_of_the_state_leads_out(data: Path, write_instance: Write, outside: Path, name: str) -> None:
    write_instance("a")
    (data / ".moge").mkdir()
    (data / ".moge" / name).symlink_to(outside / "new")
    with pytest.raises(DatasetError, match=f"{name}: must lie inside the dataset"):
        index_dataset(data)
    assert not (outside / "new").exists()


def test_a_backup_is_not_written_through_a_dangling_link(data: Path, write_instance: Write, outside: Path) -> None:
    write_instance("a")
    (data / ".index.txt").write_text("a\n")
    (data / ".index.txt.bak").symlink_to(outside / "new")
    report = index_dataset(data, rebuild=True)
    assert report.backup_path == data / ".index.txt.bak.1"
    assert not (outside / "new").exists()


def test_links_that_stay_inside_and_shared_thresholds_are_the_users_choice(
    data: Path, write_instance: Write, outside: Path
) -> None:
    write_instance("a")
    (data / "lists").mkdir()
    (data / ".index.txt").symlink_to(data / "lists" / "all.txt")
    (data / ".moge").mkdir()
    (outside / "thresholds.json").write_text("{}")
    (data / ".moge" / "validation.json").symlink_to(outside / "thresholds.json")
    index_dataset(data)
    assert (data / "lists" / "all.txt").read_text() == "a\n"


@pytest.mark.parametrize("name", ["report", "report/pointclouds", "report/report.html"])
def test_the_report_in_the_dataset_is_not_written_through_a_link(
    data: Path, write_instance: Write, outside: Path, name: str
) -> None:
    write_instance("a")
    index_dataset(data)
    link = data / ".moge" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    before = contents_of(outside)
    with pytest.raises(DatasetError, match=f"{name}: must lie inside the dataset"):
        write_quality_report(data)
    assert CliRunner().invoke(cli, ["report", str(data)]).exit_code == 2
    assert contents_of(outside) == before


def test_a_report_folder_that_the_user_names_may_be_a_link(data: Path, write_instance: Write, outside: Path) -> None:
    write_instance("a")
    index_dataset(data)
    (data / "out").symlink_to(outside)
    assert CliRunner().invoke(cli, ["report", str(data), "-o", str(data / "out")]).exit_code == 0
    assert (outside / "report.html").is_file()


def test_only_leftovers_of_our_own_files_are_removed(data: Path, write_instance: Write) -> None:
    write_instance("a")
    index_dataset(data)
    ours = [
        data / "..index.txt.0123456789ab.tmp",
        data / "..val.txt.0123456789ab.tmp",
        data / "..index.txt.bak.1.0123456789ab.tmp",
        data / ".moge" / ".lists.json.0123456789ab.tmp",
    ]
    theirs = [
        data / ".notes.tmp",
        data / ".notes.0123456789ab.tmp",
        data / "..index.txt.tmp",
        data / ".moge" / ".notes.tmp",
    ]
    for path in (*ours, *theirs):
        path.write_bytes(b"half")
    index_dataset(data)
    assert [path for path in ours if path.exists()] == []
    assert [path for path in theirs if not path.exists()] == []


def test_a_finding_escapes_bytes_that_are_no_utf_8() -> None:
    odd = os.fsdecode(b"n\xe9")
    finding = Finding(f"a/{odd}", "files-known", "warning", f"{odd} lies there", f"Rename {odd}. \u00e9")
    assert (finding.instance, finding.evidence) == ("a/n\\udce9", "n\\udce9 lies there")
    assert finding.fix == "Rename n\\udce9. \u00e9"


def test_names_that_are_no_utf_8_are_told_on_every_run(data: Path, write_instance: Write) -> None:
    write_instance("good")
    folder = write_instance("bad")
    (folder / "depth.png").unlink()
    odd = os.fsdecode(b"n\xe9")
    (folder / f"{odd}.txt").write_text("x")
    (data / odd).mkdir()
    shutil.copy(folder / "image.jpg", data / odd / "image.jpg")
    (data / f"{odd}.link").symlink_to(data / "good")
    for _ in range(2):
        report = index_dataset(data)
        assert report.instances == ["good"]
        told = {(finding.instance, finding.rule) for finding in report.findings}
        assert {("bad", "files-present"), ("n\\udce9", "files-present"), ("n\\udce9.link", "inside-root")} <= told
    for command in (["index"], ["validate", "--json"]):
        assert CliRunner().invoke(cli, [*command, str(data)]).exit_code in {0, 1}


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("name", [".index.txt", ".val.txt", ".moge/quarantine.json", ".moge/lock", ".moge/lists.json"])
def test_a_pipe_or_folder_in_place_of_a_file_is_a_typed_error(
    data: Path, write_instance: Write, kind: str, name: str
) -> None:
    write_instance("a")
    (data / ".moge").mkdir()
    os.mkfifo(data / name) if kind == "pipe" else (data / name).mkdir()
    uses: list[Callable[[], object]] = [lambda: index_dataset(data)]
    uses += [lambda: read_index(data), lambda: validate_dataset(data)] if name == ".index.txt" else []
    for use in uses:
        with pytest.raises(DatasetError, match=f"{Path(name).name}.*must be|must be.*{Path(name).name}"):
            use()
    if name != ".moge/lists.json":
        assert len(dataset_fingerprint(data)) == 64


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a": ' * 200_000], ids=["lists", "objects"])
def test_a_deep_quarantine_is_a_typed_error(data: Path, write_instance: Write, text: str) -> None:
    write_instance("a")
    (data / ".moge").mkdir()
    (data / ".moge" / "quarantine.json").write_text(text)
    with pytest.raises(DatasetError, match=r"quarantine\.json: must be a readable JSON file"):
        index_dataset(data)


def test_a_huge_quarantine_is_refused_before_it_is_read(data: Path, write_instance: Write) -> None:
    write_instance("a")
    (data / ".moge").mkdir()
    with (data / ".moge" / "quarantine.json").open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(DatasetError, match=r"quarantine\.json: must have at most 64 MiB"):
        index_dataset(data)


def test_the_fingerprint_counts_what_the_user_decides_and_not_what_is_told_of_depth(
    data: Path, write_instance: Write
) -> None:
    folder = write_instance("a")
    write_instance("b")
    index_dataset(data)
    seen = [dataset_fingerprint(data)]
    shutil.copy(folder / "depth.png", folder / "depth_completed.png")
    seen.append(dataset_fingerprint(data))
    (folder / "depth_completed.json").write_text("{}")
    assert dataset_fingerprint(data) == seen[-1]
    quarantine_instances(data, {"b": "blurred"})
    seen.append(dataset_fingerprint(data))
    (data / ".moge" / "validation.json").write_text(json.dumps({"max_fov_deg": 100}))
    seen.append(dataset_fingerprint(data))
    (folder / "meta.json").write_text((folder / "meta.json").read_text() + " ")
    seen.append(dataset_fingerprint(data))
    assert len(np.unique(seen)) == 5
    index_dataset(data)
    write_quality_report(data, num_samples=1)
    assert dataset_fingerprint(data) == seen[-1]
