"""What happens in days of training: every fault at once, killed workers, resumes, and memory that must not grow."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import psutil
import pytest
from test_loading_loader import BROKEN, assert_same, break_instance, take, worker_processes
from tiny_planes import data_section

from moge_core.errors import DatasetError
from moge_core.io import write_depth
from moge_core.loading import TrainLoader

NUM_INSTANCES = 200


def break_more(folder, how):
    """Faults beyond those of `break_instance`."""
    image, depth = folder / "image.jpg", folder / "depth.png"
    if how == "empty depth":
        depth.write_bytes(b"")
    elif how == "image is a folder":
        image.unlink()
        image.mkdir()
    elif how == "depth of a sensor":  # 16 bits, but no near and far
        import cv2

        cv2.imwrite(str(depth), np.full((64, 48), 1500, np.uint16))
    elif how == "all infinite":
        write_depth(depth, np.full((64, 48), np.inf, np.float32))
    elif how == "link out of the dataset":
        outside = folder.parents[1].with_name("outside.jpg")
        shutil.move(image, outside)
        image.symlink_to(outside)
    elif how == "meta without camera":
        (folder / "meta.json").write_text("{}")
    elif how == "nan camera":
        (folder / "meta.json").write_text('{"intrinsics": [[NaN, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]}')
    elif how == "damaged depth":
        data = bytearray(depth.read_bytes())
        data[len(data) // 2] ^= 0xFF
        depth.write_bytes(data)


MORE = {
    "empty depth": "depth-decodable",
    "image is a folder": "files-present",
    "depth of a sensor": "depth-decodable",
    "all infinite": "depth-known",
    "link out of the dataset": "inside-root",
    "meta without camera": "meta-readable",
    "nan camera": "meta-readable",
    "damaged depth": "depth-decodable",
}


@pytest.fixture
def faulty(make_dataset):
    """A dataset of 200 instances with one of each fault, and the rule that each instance breaks."""
    root = make_dataset("faulty", NUM_INSTANCES)
    expected = {}
    for number, (how, rule) in enumerate({**BROKEN, **MORE}.items()):
        instance = f"scene/{8 * number:03d}"  # the even ones have the size that these faults write
        (break_instance if how in BROKEN else break_more)(root / instance, how)
        expected[instance] = rule
    return root, expected


def test_every_fault_at_once_and_killed_workers_stop_nothing_and_are_all_named(faulty, tmp_path):
    root, expected = faulty
    listed = tmp_path / "failures.jsonl"
    data = data_section({"name": "faulty", "path": root}, image_sizes=[[32, 24]])
    drawn = set()
    with TrainLoader(data, 4, 0, num_workers=2, max_failure_share=1.0, failures_path=listed) as loader:
        for number, batch in enumerate(itertools.islice(loader, 500)):
            assert len(batch["image"]) == 4
            drawn |= {info["instance"] for info in batch["info"]}
            if number in (30, 200):
                worker_processes()[0].kill()
        found = {failure.instance: failure.rule for failure in loader.failures if failure.rule != "worker-died"}
        assert loader.statistics().num_restarts == 2
    assert found == expected
    assert not drawn & set(expected)
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {e["instance"]: e["rule"] for e in entries if e["rule"] != "worker-died"} == expected
    assert all(entry["dataset"] == "faulty" and entry["detail"] for entry in entries)


def test_the_quota_stops_the_run_with_the_list(faulty):
    root, expected = faulty
    data = data_section({"name": "faulty", "path": root}, image_sizes=[[32, 24]])
    with TrainLoader(data, 4, 0, num_workers=2) as loader, pytest.raises(DatasetError) as caught:
        for _ in range(2000):
            next(loader)
    named = [instance for instance in expected if instance in str(caught.value)]
    assert len(named) >= 10 and "at most 1.0%" in str(caught.value)


def test_what_was_listed_before_a_restart_is_not_listed_again(faulty, tmp_path):
    root, _ = faulty
    listed = tmp_path / "failures.jsonl"
    data = data_section({"name": "faulty", "path": root}, image_sizes=[[32, 24]])
    for _ in range(2):
        take(100, data, 2, 0, max_failure_share=1.0, failures_path=listed)
        listed.write_text(listed.read_text() + '{"dataset": "cut sho')
    lines = listed.read_text().split("\n")
    whole = [line for line in lines if line.endswith("}")]
    assert len(set(whole)) == len(whole) > 5


@pytest.mark.parametrize("stop_after", [0, 1, 5, 8])
def test_a_stream_stopped_after_any_batch_goes_on_in_a_new_process(make_dataset, tmp_path, stop_after):
    data = data_section({"name": "a", "path": make_dataset("a")}, {"name": "b", "path": make_dataset("b")})
    whole = take(10, data, 2, 11, accumulation=2)
    with TrainLoader(data, 2, 11, accumulation=2, num_workers=2) as loader:
        for _ in range(stop_after):
            next(loader)
        state = loader.state_dict()
    script = textwrap.dedent("""
        import json, sys, torch
        from moge_core.loading import TrainLoader
        data, state, out, count = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
        with TrainLoader(data, 2, 11, accumulation=2, num_workers=1) as loader:
            loader.load_state_dict(state)
            torch.save([next(loader) for _ in range(count)], out)
    """)
    out = tmp_path / "rest.pt"
    arguments = [json.dumps(data), json.dumps(state), str(out), str(10 - stop_after)]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, timeout=120)
    import torch

    rest = torch.load(out, weights_only=True)
    for before, after in zip(whole[stop_after:], rest, strict=True):
        assert_same(before, after)


def test_one_rank_has_the_stream_of_two_and_of_four(make_dataset):
    data = data_section({"name": "a", "path": make_dataset("a")}, {"name": "b", "path": make_dataset("b"), "weight": 3})
    whole = take(3, data, 4, 7)
    for world_size in (2, 4):
        ranks = [take(3, data, 4 // world_size, 7, rank=rank, world_size=world_size) for rank in range(world_size)]
        for step in range(3):
            for key in ("image", "depth", "depth_mask_fin", "depth_mask_inf", "intrinsics", "is_metric"):
                parts = np.concatenate([rank[step][key].numpy() for rank in ranks])
                np.testing.assert_array_equal(parts, whole[step][key].numpy())


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_memory_is_flat_from_batch_500_to_batch_5000(make_dataset, num_workers):
    data = data_section({"name": "a", "path": make_dataset("a", 20)})

    def resident() -> int:
        process = psutil.Process()
        return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))

    with TrainLoader(data, 2, 0, num_workers=num_workers) as loader:
        for _ in itertools.islice(loader, 500):
            pass
        before, threads = resident(), threading.active_count()
        descriptors = psutil.Process().num_fds()
        for _ in itertools.islice(loader, 4500):
            pass
        assert resident() <= 1.05 * before
        # A mapping more when a batch was asked for late; none for every batch.
        assert threading.active_count() == threads and psutil.Process().num_fds() <= descriptors + 2
    assert not worker_processes()


def test_starting_and_stopping_leaves_nothing_open(make_dataset):
    data = data_section({"name": "a", "path": make_dataset("a")})
    take(1, data, 1, 0, num_workers=2)
    descriptors, threads = psutil.Process().num_fds(), threading.active_count()
    for _ in range(3):
        take(2, data, 1, 0, num_workers=2)
    time.sleep(0.1)
    assert psutil.Process().num_fds() == descriptors and threading.active_count() == threads
