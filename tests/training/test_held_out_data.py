"""What a training holds out of its data: by lists or by share, never beside what it trains on, in two parts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from moge_core.datasets import split_dataset
from moge_core.datasets.lists import WrittenLists
from moge_core.datasets.splits import split_scenes
from moge_core.loading import DataConfig
from moge_core.training.validation import Split, split_datasets, untrained_instances

Frames = Mapping[str, list[str]]
Data = Callable[..., DataConfig]
VIDEO = [f"{number:04d}" for number in range(1, 212)]


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    """Writes the lists of datasets, whose instances need not be there, and the section `data` of a configuration."""
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))

    def write(frames: Frames, **entry: Any) -> DataConfig:
        datasets = []
        for name, instances in frames.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / ".index.txt").write_text("".join(f"{each}\n" for each in instances))
            datasets.append({"name": name, "path": name, "label_type": "sensor", **entry})
        return DataConfig.model_validate(
            {"image_sizes": [[56, 42]], "datasets": datasets, "fov_range_absolute": [30, 120]}
            | {"fov_range_relative": [0.7, 1.0]}
        )

    return write


def own(root: Path, name: str, instances: list[str]) -> None:
    (root / name).write_text("".join(f"{each}\n" for each in instances))


def parts(split: Split, name: str) -> tuple[set[str], set[str], set[str]]:
    chosen, claimed = (
        [set(each.instances) for each in some if each.name == name] for some in (split.held_out, split.claimed)
    )
    return set(split.train[name]), set().union(*chosen), set().union(*claimed)


def test_a_share_of_one_video_is_a_block_with_gaps_and_of_scenes_whole_ones(configure: Data) -> None:
    scenes = [f"{scene}/{number:03d}" for scene in "abcdefgh" for number in range(12)]
    split = split_datasets(configure({"video": VIDEO, "scenes": scenes}), 0.3, 1000)
    train, chosen, claimed = parts(split, "video")
    numbers = [sorted(map(int, some)) for some in (claimed, chosen, train)]
    for near, far in itertools.pairwise(numbers):
        assert far[0] - near[-1] > 0.05 * len(VIDEO)
    assert numbers[0][0] == 1 and numbers[2][-1] == 211
    sides = [{name[0] for name in some} for some in parts(split, "scenes")]
    assert sum(map(len, sides)) == 8 == len(set().union(*sides)) and all(sides)
    assert any("video: of one video of 211 frames" in line for line in split.told)
    assert split.digest() == split_datasets(configure({"video": VIDEO, "scenes": scenes}), 0.3, 1).digest()


def test_too_few_are_still_chosen_by_but_no_score_is_claimed(configure: Data) -> None:
    split = split_datasets(configure({"video": VIDEO[:60], "one": ["0001"], "two": ["a/1", "b/1"]}), 0.1, 1000)
    assert [each.name for each in split.held_out] == ["video", "two"] and split.claimed == []
    assert split.train["one"] == ["0001"]
    assert (
        split.unclaimed.keys() == {"video", "two"}
        and "`--eval_fraction 0.2` of a training, would do" in split.unclaimed["video"]
    )


def test_lists_that_we_wrote_keep_their_gap_out_of_training_whatever_list_is_trained_on(
    configure: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = configure({"video": VIDEO})
    report = split_dataset(tmp_path / "video", 0.3)
    for index in (".index.txt", ".train.txt"):
        split = split_datasets(configure({"video": VIDEO}, index=index), 0.0, 1000)
        train, chosen, claimed = parts(split, "video")
        assert train == set(report.train) and chosen | claimed < set(report.validation)
    assert not caplog.records
    # New frames of a held-out scene are not trained on before the lists are made again.
    scenes = [f"{scene}/{number:03d}" for scene in "abcdefgh" for number in range(12)]
    configure({"scenes": scenes})
    held_out = {name[0] for name in split_dataset(tmp_path / "scenes", 0.3).validation}
    more = [*scenes, *(f"{scene}/100" for scene in "abcdefgh")]
    data = configure({"scenes": more})
    train, chosen, claimed = parts(split_datasets(data, 0.0, 1000), "scenes")
    assert train == {name for name in more if name[0] not in held_out}
    assert not any("/100" in name for name in chosen | claimed)
    assert f"{len(held_out)} instances came into held-out scenes" in caplog.text and "--val-fraction 0.3" in caplog.text


def test_a_list_of_the_users_own_is_kept_divided_and_told_where_it_lies_beside_trained_frames(
    configure: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scenes = [f"{scene}/{number:03d}" for scene in "abcd" for number in range(12)]
    data = configure({"video": VIDEO, "scenes": scenes})
    own(tmp_path / "video", ".val.txt", VIDEO[:60])
    own(tmp_path / "scenes", ".val.txt", scenes[:24])
    split = split_datasets(data, 0.0, 1000)
    assert split.train == {"video": VIDEO[60:], "scenes": scenes[24:]}
    _, chosen, claimed = parts(split, "scenes")
    assert {frozenset(name[0] for name in some) for some in (chosen, claimed)} == {frozenset("a"), frozenset("b")}
    _, chosen, claimed = parts(split, "video")
    assert min(map(int, chosen)) - max(map(int, claimed)) > 0.05 * len(VIDEO)
    assert "video: 11 of the 60 instances of .val.txt lie next to frames of their scene" in caplog.text
    assert "scenes: " not in caplog.text

    own(tmp_path / "video", ".val.txt", VIDEO[:5])
    split = split_datasets(data, 0.0, 1000)
    assert "5 instances of 1 scene are held out" in split.unclaimed["video"]


def test_lists_of_the_rule_of_before_are_kept_and_what_is_wrong_with_them_told(
    configure: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = configure({"video": VIDEO})
    root = tmp_path / "video"
    train, validation = split_scenes(VIDEO, 0.1)
    split_dataset(root, 0.1)
    lists = WrittenLists.load(root)
    for name, some in ((".train.txt", train), (".val.txt", validation)):
        lists.write(root / name, some)
    state = root / ".moge" / "lists.json"
    known = json.loads(state.read_text())
    known["split"].pop("rule")
    state.write_text(json.dumps(known))
    split = split_datasets(data, 0.0, 1000)
    assert split.train["video"] == train
    assert "lie next to frames" in caplog.text and f"moge index {root} --val-fraction 0.1 --rebuild" in caplog.text


def test_what_a_training_without_scores_never_listed_is_divided_too(configure: Data, tmp_path: Path) -> None:
    scenes = [f"{scene}/{number:03d}" for scene in "abcd" for number in range(12)]
    data = configure({"scenes": scenes[:24]})
    own(tmp_path / "scenes", ".val.txt", scenes[12:])
    split = untrained_instances(data, None, 1000)
    found = {name for each in (*split.held_out, *split.claimed) for name in each.instances}
    assert found == set(scenes[24:]) and split.claimed
