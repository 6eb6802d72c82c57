"""Datasets that an earlier version imported are up to date, and importing their sources anew gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from moge_core.cli import cli
from moge_core.io import write_meta
from moge_core.io.files import NamedBytes

GOLDEN = Path(__file__).parents[1] / "golden" / "imports"
CASES: Mapping[str, dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())
REAL_CASES: Mapping[str, dict[str, Any]] = json.loads((GOLDEN / "real_samples.json").read_text())


def import_case(case: str, sources: Path, out: Path, *more: str) -> str:
    """Import the source of a case by its command, and return what is printed."""
    what = CASES[case]
    arguments = ["import", what["importer"], str(sources / what["source"]), "-o", str(out), *what["options"], *more]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def files_of(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".moge" not in path.parts
    }


def without_poses(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files, meta.json as it was before poses were read."""
    kept = {}
    for name, data in files.items():
        meta = json.loads(data) if name.endswith("meta.json") else {}
        if "pose" in meta:
            del meta["pose"], meta["source"]["pose"]
            rewritten = NamedBytes(name)
            write_meta(rewritten, meta)
            kept[name] = rewritten.getvalue()
        else:
            kept[name] = data
    return kept


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the sources; what is copied later has later times."""
    return Path(shutil.copytree(GOLDEN / "sources", tmp_path / "sources"))


@pytest.fixture
def copied(sources: Path, tmp_path: Path) -> Path:
    """A copy of the datasets, as new as if they had just been made."""
    return Path(shutil.copytree(GOLDEN / "datasets", tmp_path / "datasets", copy_function=shutil.copyfile))


@pytest.mark.parametrize("case", CASES)
def test_a_dataset_of_before_is_up_to_date_wherever_its_source_lies_now(case: str, sources: Path, copied: Path) -> None:
    before = files_of(copied / case)
    num_instances = sum(name.endswith("meta.json") for name in before)
    assert num_instances
    output = import_case(case, sources, copied / case)
    assert f"0 instances written, {num_instances} already there" in output
    assert files_of(copied / case) == before


@pytest.mark.parametrize("case", CASES)
def test_the_same_import_gives_the_same_bytes(case: str, sources: Path, tmp_path: Path) -> None:
    import_case(case, sources, tmp_path / "new")
    assert without_poses(files_of(tmp_path / "new")) == files_of(GOLDEN / "datasets" / case)


def test_an_option_that_changes_depth_makes_a_dataset_of_before_anew(sources: Path, copied: Path) -> None:
    output = import_case("rgbd-folder", sources, copied / "rgbd-folder", "--max-depth", "1.2")
    assert "0 instances written, 3 replaced, 0 already there" in output


@pytest.mark.slow
@pytest.mark.parametrize("case", REAL_CASES)
def test_real_samples_become_the_files_that_they_became_before(case: str, samples_dir: Path, tmp_path: Path) -> None:
    importer, source, *options = REAL_CASES[case]["arguments"]
    arguments = ["import", importer, str(samples_dir / source), "-o", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    files = without_poses(files_of(tmp_path / "out"))
    made = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert made == REAL_CASES[case]["files"]
