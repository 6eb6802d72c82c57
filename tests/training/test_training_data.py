"""Before a training: every instance that it may draw or score was validated as it lies there now, or is refused."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from planted_faults import FAULTS
from tiny_instances import write_tiny_instance

import moge_core.datasets.listed as listed_module
import moge_core.datasets.refresh as refresh_module
from moge_core.cli import cli
from moge_core.datasets import (
    RULES,
    index_dataset,
    index_digest,
    quarantine_instances,
    render_sample_scenes,
    split_dataset,
)
from moge_core.datasets.manifest import load_manifest, locked, manifest_path
from moge_core.datasets.parallel import parallel_map
from moge_core.errors import DatasetError, MissingIndexError
from moge_core.training import RunFlags, TrainConfig, check_training_data, check_training_inputs, load_train_config

ERRORS = sorted(name for name, fault in FAULTS.items() if RULES[fault.rule].severity == "error")
WARNINGS = sorted(FAULTS.keys() - set(ERRORS))
NAMES = ("a/0", "a/1", "b/0", "b/1")

Configure = Callable[..., TrainConfig]


class Reads:
    """Which instances were read, by way of a spy on the function that reads one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.instances: list[str] = []
        examine = refresh_module.examine_instance

        def counted(root: Path, instance: str, *args: Any, **options: Any) -> Any:
            self.instances.append(instance)
            return examine(root, instance, *args, **options)

        monkeypatch.setattr(refresh_module, "examine_instance", counted)

    def take(self) -> list[str]:
        """Those since the last call."""
        taken, self.instances = sorted(self.instances), []
        return taken


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four tiny instances without list or manifest."""
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    for name in NAMES:
        write_tiny_instance(tmp_path / "data", name)
    return tmp_path / "data"


@pytest.fixture
def configure(tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """A training on the dataset `data`, whose entry and `run` section a test changes; every label type has losses."""
    losses = json.loads(tiny_config().read_text())["loss"]["synthetic"]
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))

    def write(*entries: dict[str, Any], **run: Any) -> TrainConfig:
        usual = {"name": "scenes", "path": "data", "label_type": "synthetic"}
        datasets = [{**usual, **entry} for entry in entries or ({},)]
        labels = {entry["label_type"] for entry in datasets}
        return load_train_config(tiny_config(data={"datasets": datasets}, loss=dict.fromkeys(labels, losses), run=run))

    return write


def write_list(data: Path, names: tuple[str, ...] = NAMES, name: str = ".index.txt") -> bytes:
    (data / name).write_text("".join(f"{each}\n" for each in names))
    return (data / name).read_bytes()


def break_instance(data: Path, name: str) -> None:
    (data / name / "depth.png").write_bytes(b"no picture")


def refusal(config: TrainConfig, flags: RunFlags | None = None) -> str:
    with pytest.raises(DatasetError) as refused:
        check_training_data(config, flags)
    return str(refused.value)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "data"
    render_sample_scenes(folder, 2, 23, size=(160, 120))
    index_dataset(folder)
    return folder


@pytest.fixture
def two_scenes(rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two scenes that were indexed and are as they were then."""
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    return Path(shutil.copytree(rendered, tmp_path / "data"))


def test_there_are_faults_to_refuse_and_faults_to_tell() -> None:
    assert len(ERRORS) >= 15 and len(WARNINGS) >= 10


@pytest.mark.parametrize("fault", ERRORS)
def test_a_fault_planted_after_indexing_keeps_a_training_from_starting_and_is_told_by_its_rule(
    two_scenes: Path, configure: Configure, fault: str
) -> None:
    lists = (two_scenes / ".index.txt").read_bytes()
    victim = lists.decode().splitlines()[-1]
    FAULTS[fault].plant(two_scenes / victim)
    told = refusal(configure())
    for word in ("data.datasets.0 (scenes)", "1 broken of 2", f"{victim}: {FAULTS[fault].rule}: ", "moge index"):
        assert word in told
    assert (two_scenes / ".index.txt").read_bytes() == lists, "the list is not rewritten"
    # What `moge index` makes of it is what the refusal said that it would.
    index_dataset(two_scenes)
    assert check_training_data(configure())[0].num_instances == 1


@pytest.mark.parametrize("fault", WARNINGS)
def test_a_suspicion_is_told_and_keeps_no_training_from_starting(
    two_scenes: Path, configure: Configure, fault: str
) -> None:
    folders = [two_scenes / name for name in (two_scenes / ".index.txt").read_text().splitlines()]
    if not any(map(FAULTS[fault].shows, folders)):
        pytest.skip(f"shows only where {FAULTS[fault].when}")
    for folder in folders:
        FAULTS[fault].plant(folder)
    told: list[str] = []
    check_training_data(configure(), log=told.append)
    assert any(f" x {FAULTS[fault].rule} in .index.txt, first " in line for line in told), told


def test_untouched_files_are_not_opened_again_and_nothing_is_written(
    data: Path, configure: Configure, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_dataset(data)
    assert reads.take() == sorted(NAMES)
    written = manifest_path(data).stat().st_mtime_ns
    monkeypatch.setattr(listed_module, "locked", lambda *_: pytest.fail("nothing is to be written"))
    monkeypatch.setattr(refresh_module, "check_reprojection", lambda *_: pytest.fail("nothing has changed"))
    (identity,) = check_training_data(configure())
    assert reads.take() == []
    assert manifest_path(data).stat().st_mtime_ns == written
    assert identity.num_instances == 4


def test_a_line_that_is_repeated_is_told_and_makes_nothing_be_compared_again(
    data: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_list(data)
    check_training_data(configure())
    write_list(data, (*NAMES, "a/0"))
    monkeypatch.setattr(refresh_module, "compare_instances", lambda *_: pytest.fail("nothing has changed"))
    check_training_data(configure())
    monkeypatch.setattr(listed_module, "locked", lambda *_: pytest.fail("nothing is to be written"))
    told: list[str] = []
    (identity,) = check_training_data(configure(), log=told.append)
    assert identity.num_instances == 5
    assert told == [
        "scenes: 1 x listed-once in .index.txt, first .index.txt: 1 instances stand more than once, such as a/0"
    ]


def test_only_what_is_new_or_changed_since_is_read_and_remembered_for_the_next_start(
    data: Path, configure: Configure, reads: Reads
) -> None:
    index_dataset(data)
    write_tiny_instance(data, "new")
    write_list(data, (*NAMES, "new"))
    (data / "a/1/meta.json").write_text((data / "a/1/meta.json").read_text().replace("0.8", "0.7"))
    reads.take()
    told: list[str] = []
    progress: list[tuple[int, int]] = []
    check_training_data(configure(), log=told.append, progress=lambda done, total: progress.append((done, total)))
    assert reads.take() == ["a/1", "new"]
    assert told == ["scenes: 2 of 5 instances of .index.txt are new or changed, and are read now"]
    assert progress == [(1, 2), (2, 2)]
    check_training_data(configure())
    assert reads.take() == []


@pytest.mark.parametrize("bad", [False, True])
def test_a_list_that_came_without_a_manifest_is_checked_whole_and_left_as_it_is(
    data: Path, configure: Configure, reads: Reads, bad: bool
) -> None:
    own = write_list(data, ("b/1", "a/0"))
    if bad:
        break_instance(data, "a/0")
        told = refusal(configure())
        assert "1 broken of 2: a/0: depth-decodable" in told
        assert "delete their lines from .index.txt, which is your own list" in told
    else:
        (identity,) = check_training_data(configure())
        assert identity.num_instances == 2
        assert identity.digest == index_digest(data)
    assert reads.take() == ["a/0", "b/1"], "only what is listed"
    assert (data / ".index.txt").read_bytes() == own
    assert index_dataset(data).adopted, "and it is still the user's own"
    assert reads.take() == [], "what was read is not read again by indexing"


def test_a_broken_instance_that_was_read_by_a_former_start_is_refused_again_without_reading(
    data: Path, configure: Configure, reads: Reads
) -> None:
    write_list(data)
    break_instance(data, "b/0")
    first = refusal(configure())
    assert len(reads.take()) == 4
    assert refusal(configure()) == first
    assert reads.take() == []


def test_a_mended_instance_is_accepted(data: Path, configure: Configure) -> None:
    write_list(data)
    whole = (data / "a/0/depth.png").read_bytes()
    break_instance(data, "a/0")
    refusal(configure())
    (data / "a/0/depth.png").write_bytes(whole)
    check_training_data(configure())


def test_a_broken_instance_that_is_not_listed_does_not_matter(data: Path, configure: Configure, reads: Reads) -> None:
    break_instance(data, "a/0")
    index_dataset(data)
    reads.take()
    (identity,) = check_training_data(configure())
    assert identity.num_instances == 3
    assert reads.take() == []


def test_an_instance_whose_folder_is_gone_is_refused(data: Path, configure: Configure) -> None:
    index_dataset(data)
    shutil.rmtree(data / "b/1")
    assert "b/1: files-present: there is no folder" in refusal(configure())


def test_each_depth_file_is_checked_for_itself(data: Path, configure: Configure) -> None:
    index_dataset(data)
    check_training_data(configure())
    assert "depth_lidar.png missing" in refusal(configure({"depth": "depth_lidar.png"}))
    for name in NAMES:
        shutil.copy(data / name / "depth.png", data / name / "depth_lidar.png")
    (identity,) = check_training_data(configure({"depth": "depth_lidar.png"}))
    assert identity.digest == index_digest(data, depth_name="depth_lidar.png")


def test_the_digest_is_the_one_that_the_training_finds(data: Path, configure: Configure) -> None:
    write_list(data)
    assert check_training_data(configure()) == check_training_inputs(configure())


def test_lists_that_a_training_scores_are_checked_when_it_scores(data: Path, configure: Configure) -> None:
    index_dataset(data)
    split_dataset(data, 0.5)
    (held_out,) = {line.split("/")[0] for line in (data / ".val.txt").read_text().split()}
    break_instance(data, f"{held_out}/1")
    config = configure({"index": ".train.txt"})
    check_training_data(config)
    told = refusal(config, RunFlags(eval_every=10))
    assert f"{data / '.val.txt'} to be usable; found 1 broken of 2: {held_out}/1: depth-decodable" in told
    assert f"moge validate {data} --index .val.txt` tells all" in told
    assert refusal(configure({"index": ".train.txt"}, eval_every=5)) == told
    index_dataset(data)
    check_training_data(config, RunFlags(eval_every=10))


def test_all_broken_lists_are_told_at_once(data: Path, configure: Configure, tmp_path: Path) -> None:
    write_list(data)
    shutil.copytree(data, tmp_path / "other")
    break_instance(data, "a/0")
    break_instance(tmp_path / "other", "b/1")
    told = refusal(configure({}, {"name": "second", "path": "other"}))
    assert "2 lists with some" in told
    assert "(scenes)" in told and "a/0: depth-decodable" in told
    assert "(second)" in told and "b/1: depth-decodable" in told


def test_what_is_missing_is_told_before_anything_is_read(data: Path, configure: Configure, reads: Reads) -> None:
    write_list(data)
    with pytest.raises(MissingIndexError, match=r"datasets\.1 \(second\): needs its dataset.*moge import"):
        check_training_data(configure({}, {"name": "second", "path": "lost"}))
    with pytest.raises(MissingIndexError, match=r"needs the index .*\.train\.txt"):
        check_training_data(configure({"index": ".train.txt"}))
    (data / ".train.txt").write_text("a/0\n../out\n")
    with pytest.raises(DatasetError, match=r"\.train\.txt:2"):
        check_training_data(configure({}, {"name": "second", "index": ".train.txt"}))
    assert reads.take() == []


def test_a_dataset_of_weight_0_is_not_looked_at(data: Path, configure: Configure) -> None:
    write_list(data)
    identities = check_training_data(configure({}, {"name": "off", "path": "lost", "weight": 0}))
    assert [identity.name for identity in identities] == ["scenes"]


def sparse(data: Path) -> None:
    depth = np.full((48, 64), np.nan, np.float32)
    depth[::8, ::8] = np.linspace(1, 5, 48).reshape(6, 8)
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    write_tiny_instance(data, "sparse", depth=depth, image=image, meta={"depth_unit": 0.001, "label_type": "synthetic"})


SPARSE = "1 x density-fits-label, first sparse: 1.6% of the pixels are known (sparse), and the label type is synthetic"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"label_type": "synthetic"}, {SPARSE, "1 x unit-plausible, first sparse: the median depth is 0.003 m"}),
        ({"label_type": "lidar"}, {"1 x unit-plausible, first sparse: the median depth is 0.003 m"}),
        (
            {"label_type": "lidar", "depth_unit": 0.02},
            {"1 x unit-plausible, first sparse: meta.json says depth_unit 0.001, and the configuration 0.02"},
        ),
        (
            {"label_type": "lidar", "depth_unit": 0.001},
            {"5 x unit-plausible, first a/0: the median depth is 0.002932 m"},
        ),
    ],
)
def test_label_type_and_unit_are_judged_as_the_configuration_says_without_reading_again(
    data: Path, configure: Configure, reads: Reads, entry: dict[str, Any], expected: set[str]
) -> None:
    sparse(data)
    index_dataset(data)
    reads.take()
    told: list[str] = []
    check_training_data(configure(entry), log=told.append)
    lines = {line.removeprefix("scenes: ").replace(" in .index.txt", "") for line in told}
    assert {line for line in lines if "density-consistent" not in line} == expected
    assert reads.take() == []


def test_relative_depth_that_a_configuration_calls_metric_is_told(data: Path, configure: Configure) -> None:
    write_tiny_instance(data, "relative", meta={"source": {"kind": "somebody's"}})
    index_dataset(data)
    told: list[str] = []
    check_training_data(configure({"depth_unit": 1.0}), log=told.append)
    assert told == [
        "scenes: 1 x unit-plausible in .index.txt, first relative:"
        " the import left its unit out as unknown, and the configuration says depth_unit 1"
    ]


def test_the_datasets_own_severities_decide_what_is_refused(data: Path, configure: Configure) -> None:
    sparse(data)
    index_dataset(data)
    (data / ".moge/validation.json").write_text('{"severities": {"density-fits-label": "error"}}')
    assert "1 broken of 5: sparse: density-fits-label" in refusal(configure())
    check_training_data(configure({"label_type": "lidar"}))


def test_a_listed_instance_in_quarantine_is_told(data: Path, configure: Configure) -> None:
    index_dataset(data)
    quarantine_instances(data, {"a/1": "blurred"})
    told: list[str] = []
    check_training_data(configure(), log=told.append)
    assert told == ["scenes: 1 x not-quarantined in .index.txt, first a/1: put aside because: blurred"]


def test_data_that_may_only_be_read_are_checked_all_the_same(
    data: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_list(data)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    told: list[str] = []
    identities = check_training_data(configure(), log=told.append)
    assert "cannot be remembered" in told[-1]
    assert not (data / ".moge").exists()
    assert identities == check_training_inputs(configure())
    break_instance(data, "a/0")
    assert "a/0: depth-decodable" in refusal(configure())


def test_a_damaged_manifest_is_made_anew(data: Path, configure: Configure, reads: Reads) -> None:
    index_dataset(data)
    reads.take()
    manifest_path(data).write_bytes(b"PAR1")
    told: list[str] = []
    check_training_data(configure(), log=told.append)
    assert len(reads.take()) == 4
    assert any("was damaged and is made anew" in line for line in told)


def test_what_was_read_before_an_interruption_is_not_read_again(
    data: Path, configure: Configure, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_list(data)

    def interrupted(*args: Any) -> Iterator[Any]:
        results = parallel_map(*args)
        yield next(results)
        yield next(results)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(refresh_module, "parallel_map", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check_training_data(configure())
    assert len(list(load_manifest(data).keys())) == 2
    reads.take()
    check_training_data(configure())
    assert reads.take() == ["b/0", "b/1"]


def test_of_two_starts_at_once_one_reads_and_the_other_waits_and_says_so(
    data: Path, configure: Configure, reads: Reads
) -> None:
    index_dataset(data)
    known = manifest_path(data).read_bytes()
    manifest_path(data).unlink()
    reads.take()
    told: list[str] = []
    with ThreadPoolExecutor(1) as other:
        with locked(data):
            start = other.submit(check_training_data, configure(), log=told.append)
            deadline = time.monotonic() + 60
            while not told and time.monotonic() < deadline:
                time.sleep(0.01)
            manifest_path(data).write_bytes(known)
        (identity,) = start.result(60)
    assert told == ["scenes: waits for another process that indexes or checks this dataset"]
    assert (identity.num_instances, reads.take()) == (4, [])


def test_indexing_remembers_its_comparison_after_a_training_was_checked(
    data: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_dataset(data)
    check_training_data(configure())
    monkeypatch.setattr(refresh_module, "compare_instances", lambda *_: pytest.fail("nothing has changed"))
    index_dataset(data)


def test_the_command_line_checks_the_same_before_it_fits(data: Path, configure: Configure) -> None:
    write_list(data)
    break_instance(data, "a/1")
    result = CliRunner().invoke(cli, ["preflight", str(configure().source), "--check-data"])
    assert result.exit_code != 0
    assert "1 broken of 4: a/1: depth-decodable" in result.output
    assert "4 of 4 instances of .index.txt are new or changed" in result.output
