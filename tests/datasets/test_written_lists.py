"""Which list is whose outlives the manifest, and a list stays that of the depth maps that it was made for."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import moge_core.datasets.lists as lists_module
from moge_core.cli import cli
from moge_core.datasets import index_dataset, index_digest, read_index
from moge_core.datasets.manifest import load_manifest
from moge_core.errors import DatasetError

Write = Callable[..., Path]


def test_a_deleted_manifest_is_made_again_and_the_list_is_still_ours(data: Path, write_instance: Write) -> None:
    write_instance("a")
    index_dataset(data).manifest_path.unlink()
    write_instance("b")
    report = index_dataset(data)
    assert (report.adopted, report.num_read, report.notes) == (False, 2, ())
    assert read_index(data) == ["a", "b"]


def test_a_damaged_manifest_is_made_anew_by_index_and_named_by_readers(data: Path, write_instance: Write) -> None:
    write_instance("a")
    path = index_dataset(data).manifest_path
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DatasetError, match=r"manifest\.parquet.*Delete the file"):
        index_digest(data)
    write_instance("b")
    run = CliRunner().invoke(cli, ["index", str(data)])
    assert run.exit_code == 0, run.output
    assert "manifest.parquet was damaged and is made anew" in run.output
    assert read_index(data) == ["a", "b"]
    assert set(load_manifest(data).records) == {("a", "depth.png"), ("b", "depth.png")}
    assert index_dataset(data).notes == ()


@pytest.mark.parametrize("version", [1, 2])
def test_lists_that_a_former_manifest_calls_ours_stay_ours(data: Path, write_instance: Write, version: int) -> None:
    write_instance("a")
    report = index_dataset(data)
    (data / ".moge" / "lists.json").unlink()
    digest = hashlib.sha256(report.index_path.read_bytes()).hexdigest()
    header = {"version": version, "written_lists": {".index.txt": [digest]}, "notes": {}}
    table = pq.read_table(report.manifest_path).replace_schema_metadata({b"moge": json.dumps(header).encode()})
    pq.write_table(
        table if version == 2 else pa.table({"path": ["a"]}, metadata=table.schema.metadata), report.manifest_path
    )
    write_instance("b")
    for name in ("b", "c"):
        report = index_dataset(data)
        assert not report.adopted
        assert report.instances[-1] == name
        write_instance("c") if name == "b" else None


@pytest.mark.parametrize("stop_at", range(1, 6))
def test_killed_between_any_two_writes_the_list_is_still_ours(
    data: Path, write_instance: Write, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    write_instance("a")
    index_dataset(data)
    write_instance("b")
    num_writes = 0

    def stopping(write: Callable[..., object]) -> Callable[..., object]:
        def stopped(*arguments: object) -> object:
            nonlocal num_writes
            num_writes += 1
            if num_writes == stop_at:
                raise KeyboardInterrupt
            return write(*arguments)

        return stopped

    import moge_core.datasets.manifest as manifest_module

    with monkeypatch.context() as patch:
        for module in (lists_module, manifest_module):
            patch.setattr(module, "atomic_open", stopping(module.atomic_open))
        patch.setattr(lists_module, "write_bytes", stopping(lists_module.write_bytes))
        try:
            index_dataset(data)
        except KeyboardInterrupt:
            pass
        else:
            # lists.json, the manifest, the list, lists.json, the manifest with the comparison.
            assert num_writes < stop_at
    write_instance("c")
    report = index_dataset(data)
    assert not report.adopted
    assert read_index(data) == ["a", "b", "c"]
    assert list(json.loads((data / ".moge" / "lists.json").read_text())["lists"][".index.txt"].values()) == [
        "depth.png"
    ]


def test_a_damaged_account_of_the_lists_is_an_error_that_names_it(data: Path, write_instance: Write) -> None:
    write_instance("a")
    index_dataset(data)
    for text in ("[", '{"version": 2}', "[" * 100_000):
        (data / ".moge" / "lists.json").write_text(text)
        with pytest.raises(DatasetError, match=r"lists\.json.*Delete it"):
            index_dataset(data)


def test_an_unchanged_dataset_keeps_its_account_of_lists_untouched(data: Path, write_instance: Write) -> None:
    write_instance("a")
    index_dataset(data)
    path = data / ".moge" / "lists.json"
    before = path.stat().st_mtime_ns
    index_dataset(data)
    assert path.stat().st_mtime_ns == before


def test_another_depth_name_leaves_the_list_to_the_one_it_was_made_for(data: Path, write_instance: Write) -> None:
    write_instance("a")
    folder = write_instance("b")
    shutil.copy(folder / "depth.png", folder / "depth_b.png")
    index_dataset(data)
    report = index_dataset(data, depth_name="depth_b.png")
    assert read_index(data) == report.instances == ["a", "b"]
    assert (report.adopted, report.made_for) == (True, "depth.png")
    assert [(finding.instance, finding.rule) for finding in report.findings] == [("a", "files-present")]
    run = CliRunner().invoke(cli, ["index", str(data), "--depth", "depth_b.png"])
    assert "2 instances (made for depth.png and checked with depth_b.png, left as it is)" in run.output
    assert "1 broken instance in the list" in run.output
    again = index_dataset(data)
    assert (again.adopted, again.made_for, again.num_read, again.findings) == (False, None, 0, [])


def test_a_list_is_made_for_another_depth_name_when_there_is_none_or_on_rebuild(
    data: Path, write_instance: Write
) -> None:
    write_instance("a", depth_name="depth_b.png")
    index_dataset(data, depth_name="depth_b.png")
    write_instance("b", depth_name="depth_b.png")
    shutil.copy(data / "a" / "depth_b.png", data / "a" / "depth.png")
    assert index_dataset(data, depth_name="depth_b.png").instances == ["a", "b"]
    assert index_dataset(data).made_for == "depth_b.png"
    assert read_index(data) == ["a", "b"]
    report = index_dataset(data, rebuild=True)
    assert (report.adopted, report.made_for, report.backup_path) == (False, None, None)
    assert read_index(data) == ["a"]
    assert index_dataset(data, depth_name="depth_b.png").made_for == "depth.png"
