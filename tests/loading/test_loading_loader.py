"""The loader as training sees it: one stream for one seed, whole batches, broken instances replaced and told."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest
import torch
from tiny_planes import PLANE_DISTANCE, data_section

from moge_core.configuration import parse_as
from moge_core.errors import ConfigError, DatasetError, InputError, MissingIndexError, TrainingError
from moge_core.io import write_depth, write_image, write_meta, write_normal
from moge_core.loading import DataConfig, TrainLoader, workers
from moge_core.loading import instance as module
from moge_core.loading.failures import Failure, FailureLog


def take(count, *arguments, **keywords):
    with TrainLoader(*arguments, **{"num_workers": 0, **keywords}) as loader:
        return list(itertools.islice(loader, count))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[key].dtype
            np.testing.assert_array_equal(value.numpy(), other[key].numpy(), err_msg=key)
        else:
            assert value == other[key]


def test_a_batch_has_what_training_reads(make_dataset):
    data = data_section(
        {"name": "a", "path": make_dataset("a"), "label_type": "synthetic", "depth_unit": 2.0},
        {"name": "b", "path": make_dataset("b"), "label_type": "lidar", "finite_depth_mask": "only_known"},
    )
    for batch in take(8, data, 3, 0, normals_for=["synthetic"]):
        size = batch["depth"].shape[1:]
        assert batch["image"].shape == (3, 3, *size) and batch["image"].dtype == torch.float32
        assert batch["image"].min() >= 0 and batch["image"].max() <= 1
        assert batch["depth"].shape == (3, *size) and batch["depth"].dtype == torch.float32
        assert batch["intrinsics"].shape == (3, 3, 3) and batch["intrinsics"].dtype == torch.float32
        fin, inf = batch["depth_mask_fin"], batch["depth_mask_inf"]
        assert fin.dtype == inf.dtype == batch["is_metric"].dtype == torch.bool
        assert not (fin & inf).any()
        torch.testing.assert_close(inf, batch["depth"].isinf())
        json.dumps(batch["info"])
        assert ("normal" in batch) == ("synthetic" in batch["label_type"])
        for i, label in enumerate(batch["label_type"]):
            info, depth = batch["info"][i], batch["depth"][i]
            assert info["dataset"] == {"synthetic": "a", "lidar": "b"}[label]
            assert batch["is_metric"][i] == (label == "synthetic")
            assert (depth[depth.isfinite()] > 0).all()
            if label == "lidar":
                assert not depth[fin[i]].isnan().any(), "only_known leaves no unknown depth in the mask"
            else:
                torch.testing.assert_close(fin[i], ~inf[i])
            if "normal" in batch:
                known = ~batch["normal"][i].isnan().any(-1)
                assert known.any() == (label == "synthetic")
                lengths = batch["normal"][i][known].norm(dim=-1)
                torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_depth_intrinsics_and_normals_of_every_view_describe_the_plane_that_was_there(make_dataset):
    """Whatever was turned, cropped and mirrored, and although the source's principal point is off centre."""
    data = data_section(
        {"name": "a", "path": make_dataset("a")},
        image_augmentation=[],
        center_augmentation=1.0,
        area_range=[3000, 6000],
    )
    flips = set()
    for batch in take(12, data, 2, 0, normals_for=["synthetic"]):
        for i in range(2):
            height, width = batch["depth"].shape[1:]
            u, v = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
            rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(batch["intrinsics"][i].double().numpy()).T
            points = rays * batch["depth"][i].double().numpy()[..., None]
            finite = np.isfinite(points).all(-1)
            finite[[0, -1]] = finite[:, [0, -1]] = False
            plane = np.linalg.lstsq(points[finite], np.full(finite.sum(), -PLANE_DISTANCE), rcond=None)[0]
            # The source is quantised to 16 bits and the nearest pixel stands in beside unknown depth.
            np.testing.assert_allclose(np.median(points[finite] @ plane), -PLANE_DISTANCE, rtol=2e-3)
            assert np.linalg.norm(plane) == pytest.approx(1, abs=0.03)
            cosine = batch["normal"][i].double().numpy()[finite] @ plane
            assert np.nanmedian(cosine) > 0.999
            flips.add(batch["info"][i]["flip"])
    assert flips == {True, False}


def test_a_mirrored_view_is_the_mirror_image_of_its_twin(make_dataset, monkeypatch):
    class Rng:
        """numpy's generator with the flip decided."""

        flip = False

        def __init__(self, seed):
            self._rng = np.random.Generator(np.random.PCG64(seed))

        def uniform(self, *limits):
            return self._rng.uniform(*limits)

        def choice(self, _options):
            return self.flip

    root = make_dataset("a")
    config = parse_as(DataConfig, data_section({"name": "a", "path": root}, image_augmentation=[]), "data")
    (recipe,) = module.recipes_of(config, ["synthetic"])
    monkeypatch.setattr(module.np.random, "default_rng", Rng)
    plain = module.load_sample(recipe, "scene/001", 3, (40, 50))
    monkeypatch.setattr(Rng, "flip", True)
    mirrored = module.load_sample(recipe, "scene/001", 3, (40, 50))
    np.testing.assert_array_equal(mirrored.image, plain.image[:, ::-1])
    np.testing.assert_array_equal(mirrored.depth, plain.depth[:, ::-1])
    np.testing.assert_array_equal(mirrored.normal, plain.normal[:, ::-1] * [-1, 1, 1])
    off_centre = np.array([[0.8, 0.01, 0.4], [0, 1.1, 0.6], [0, 0, 1]], dtype=np.float32)
    flip = np.array([[-1, 0, 1], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(module._mirrored(off_centre), flip @ off_centre @ np.diag([-1, 1, 1]), atol=1e-6)


def test_stored_normals_are_preferred(make_dataset):
    root = make_dataset("a", 1)
    write_normal(root / "scene/000/normal.png", np.broadcast_to(np.float32([0, 0, -1]), (64, 48, 3)))
    data = data_section({"name": "a", "path": root}, center_augmentation=0.0)
    for batch in take(3, data, 1, 0, normals_for=["synthetic"]):
        normal = batch["normal"][0]
        normal = normal[~normal.isnan().any(-1)]
        # The axis through the image centre is not the optical axis here: the view is turned a little.
        assert (normal.median(0).values[2] < -0.95) and normal.std(0).max() < 1e-3


def test_depth_beyond_the_clamp_is_brought_to_it(make_dataset):
    data = data_section({"name": "a", "path": make_dataset("a")}, clamp_max_depth=1.1)
    for batch in take(4, data, 2, 0):
        for depth in batch["depth"]:
            finite = depth[depth.isfinite()]
            assert finite.max() <= 1.1 * torch.quantile(finite, 0.01) * 1.001


# --- one stream ---


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_the_stream_does_not_depend_on_the_number_of_workers(make_dataset, num_workers):
    data = data_section({"name": "a", "path": make_dataset("a")}, {"name": "b", "path": make_dataset("b")})
    for one, other in zip(take(5, data, 2, 7), take(5, data, 2, 7, num_workers=num_workers), strict=True):
        assert_same(one, other)


def test_the_stream_does_not_depend_on_ranks_or_accumulation(make_dataset):
    data = data_section({"name": "a", "path": make_dataset("a")})
    whole = take(2, data, 4, 7)
    ranks = [take(2, data, 2, 7, rank=rank, world_size=2) for rank in range(2)]
    micro = take(8, data, 1, 7, accumulation=4)
    for step in range(2):
        for parts in ([rank[step] for rank in ranks], micro[4 * step : 4 * step + 4]):
            assert_same(
                {key: whole[step][key] for key in ("image", "depth", "info")},
                {
                    "image": torch.cat([part["image"] for part in parts]),
                    "depth": torch.cat([part["depth"] for part in parts]),
                    "info": [info for part in parts for info in part["info"]],
                },
            )
    assert [info["sample_number"] for info in whole[1]["info"]] == [4, 5, 6, 7]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_interrupted_stream_goes_on_where_it_was(make_dataset, num_workers):
    data = data_section({"name": "a", "path": make_dataset("a")})
    arguments = {"accumulation": 2, "num_workers": num_workers}
    uninterrupted = take(6, data, 1, 3, accumulation=2)
    with TrainLoader(data, 1, 3, **arguments) as loader:
        assert_same(next(loader), uninterrupted[0])
        loader.close()
        assert_same(next(iter(loader)), uninterrupted[1])
        assert_same(next(loader), uninterrupted[2])
        state = loader.state_dict()
    assert all(isinstance(value, int) for value in state.values())
    with TrainLoader(data, 1, 3, **arguments) as loader:
        next(loader)
        loader.load_state_dict(state)
        for expected in uninterrupted[3:]:
            assert_same(next(loader), expected)


def test_a_state_of_another_run_is_refused(make_dataset):
    data = data_section({"name": "a", "path": make_dataset("a")})
    state = TrainLoader(data, 1, 3, accumulation=2, num_workers=0).state_dict()
    with pytest.raises(InputError, match="seed"):
        TrainLoader(data, 1, 4, num_workers=0).load_state_dict(state)
    TrainLoader(data, 2, 3, num_workers=0).load_state_dict(state)
    within_a_step = {**state, "micro_batch": 1}
    with pytest.raises(InputError, match="layout"):
        TrainLoader(data, 2, 3, accumulation=2, num_workers=0).load_state_dict(within_a_step)


# --- broken instances ---


def break_instance(folder, how):
    if how == "missing image":
        (folder / "image.jpg").unlink()
    elif how == "missing folder":
        shutil.rmtree(folder)
    elif how == "truncated image":
        data = (folder / "image.jpg").read_bytes()
        (folder / "image.jpg").write_bytes(data[: len(data) // 2])
    elif how == "truncated depth":
        data = (folder / "depth.png").read_bytes()
        (folder / "depth.png").write_bytes(data[: len(data) // 2])
    elif how == "empty meta":
        (folder / "meta.json").write_text("")
    elif how == "sizes":
        write_image(folder / "image.jpg", np.zeros((10, 10, 3), np.uint8))
    elif how == "singular":
        write_meta(folder / "meta.json", {"intrinsics": [[0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]})
    elif how == "pixels":
        write_meta(folder / "meta.json", {"intrinsics": [[525, 0, 319.5], [0, 525, 239.5], [0, 0, 1]]})
    elif how == "all unknown":
        write_depth(folder / "depth.png", np.full((64, 48), np.nan, np.float32))
    elif how == "hardly any depth":
        depth = np.full((64, 48), np.inf, np.float32)
        depth[0, 0] = 1
        write_depth(folder / "depth.png", depth)


BROKEN = {
    "missing image": "files-present",
    "missing folder": "files-present",
    "truncated image": "image-decodable",
    "truncated depth": "depth-decodable",
    "empty meta": "meta-readable",
    "sizes": "sizes-agree",
    "singular": "intrinsics-normalised",
    "pixels": "intrinsics-normalised",
    "all unknown": "depth-known",
    "hardly any depth": "depth-in-view",
}


@pytest.mark.parametrize(("how", "rule"), BROKEN.items())
def test_a_broken_instance_is_replaced_counted_and_named(make_dataset, how, rule):
    root = make_dataset("a")
    data = data_section({"name": "a", "path": root}, center_augmentation=0.0, fov_range_relative=[0.4, 0.5])
    whole = take(6, data, 2, 0)
    break_instance(root / "scene/000", how)
    with TrainLoader(data, 2, 0, num_workers=0) as loader:
        for batch, before in zip(itertools.islice(loader, 6), whole, strict=True):
            assert len(batch["image"]) == 2
            for i in range(2):
                assert batch["info"][i]["instance"] != "scene/000"
                if before["info"][i]["instance"] != "scene/000":
                    assert batch["info"][i] == before["info"][i], "other samples stay as they were"
        drawn = sum(info["attempt"] for batch in take(6, data, 2, 0) for info in batch["info"])
        assert drawn > 0
        assert loader.failure_counts == {("a", rule): drawn}
        (failure,) = loader.failures
        assert failure[:3] == ("a", "scene/000", rule) and failure.detail


def test_replacements_are_the_same_with_workers_and_named_in_the_log(make_dataset, caplog):
    root = make_dataset("a")
    break_instance(root / "scene/001", "truncated depth")
    data = data_section({"name": "a", "path": root})
    with TrainLoader(data, 2, 0, num_workers=1) as loader:
        for one, other in zip(itertools.islice(loader, 5), take(5, data, 2, 0), strict=True):
            assert_same(one, other)
        assert [failure.instance for failure in loader.failures] == ["scene/001"]
    assert "a/scene/001 (depth-decodable)" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataset_without_a_usable_instance_ends_the_run_by_name(make_dataset, num_workers):
    root = make_dataset("a", 2)
    for instance in ("scene/000", "scene/001"):
        break_instance(root / instance, "empty meta")
    with (
        TrainLoader(data_section({"name": "a", "path": root}), 2, 0, num_workers=num_workers) as loader,
        pytest.raises(DatasetError, match=r"(?s)scene/000 \(meta-readable\).*scene/001|scene/001.*scene/000"),
    ):
        next(loader)


def test_more_failures_than_the_quota_end_the_run():
    log = FailureLog(0.01, window=1000, min_failures=5)
    broken = [Failure("a", "x", "sizes-agree", "1 x 1 and 2 x 2")]
    for _ in range(5):
        log.record(1, broken)
    with pytest.raises(DatasetError, match=r"a/x \(sizes-agree\)"):
        log.record(1, broken)

    log = FailureLog(0.01, window=1000, min_failures=5)
    for _ in range(3000):
        log.record(1, [])
    for _ in range(10):
        log.record(1, broken)
    with pytest.raises(DatasetError, match=r"at most 1\.0%"):
        log.record(1, broken)
    assert len(log.failures) == 1 and log.counts["a", "sizes-agree"] == 11


def test_the_quota_goes_on_over_restarts():
    broken = [Failure("a", "x", "sizes-agree", "1 x 1 and 2 x 2")]
    log = FailureLog(0.5, window=100, min_failures=2)
    log.record(4, broken * 3)
    later = FailureLog(0.5, window=100, min_failures=2)
    later.go_on(*log.count()[1:])
    assert later.count() == (0, 7, 3)
    with pytest.raises(DatasetError):
        later.record(0, broken * 2)


# --- what is refused at once ---


def test_a_missing_index_is_refused_on_construction(make_dataset):
    root = make_dataset("a")
    (root / ".index.txt").unlink()
    with pytest.raises(MissingIndexError, match="moge index"):
        TrainLoader(data_section({"name": "a", "path": root}), 1, 0)
    (root / ".index.txt").write_text("scene/000\n\n")
    with pytest.raises(DatasetError, match="blank"):
        TrainLoader(data_section({"name": "a", "path": root}), 1, 0)


def test_a_dataset_of_weight_zero_need_not_exist(make_dataset, tmp_path):
    data = data_section({"name": "a", "path": make_dataset("a")}, {"name": "off", "path": tmp_path / "no", "weight": 0})
    take(1, data, 1, 0)


def test_wrong_arguments_are_refused(make_dataset):
    data = data_section({"name": "a", "path": make_dataset("a")})
    with pytest.raises(ConfigError, match="area_range"):
        TrainLoader({**data, "area_rang": 1}, 1, 0)
    for wrong in ({"num_workers": -1}, {"num_workers": "many"}, {"max_failure_share": 2}, {"rank": 1}):
        with pytest.raises(InputError):
            TrainLoader(data, 1, 0, **wrong)


# --- worker processes ---


def test_closing_leaves_no_process_behind(make_dataset):
    data = data_section({"name": "a", "path": make_dataset("a")})
    before = set(psutil.Process().children(recursive=True))
    loader = TrainLoader(data, 1, 0, num_workers=2)
    next(loader)
    assert len(set(psutil.Process().children(recursive=True)) - before) == 2
    loader.close()
    loader.close()
    assert set(psutil.Process().children(recursive=True)) == before
    next(loader)
    del loader  # without close
    assert set(psutil.Process().children(recursive=True)) == before


def worker_processes():
    return [p for p in psutil.Process().children() if "moge_core.loading.workers" in " ".join(p.cmdline())]


def test_a_killed_worker_is_replaced_reported_with_its_instance_and_changes_nothing(make_dataset, tmp_path, caplog):
    data = data_section({"name": "a", "path": make_dataset("a")})
    expected = take(12, data, 2, 0)
    listed = tmp_path / "failures.jsonl"
    with TrainLoader(data, 2, 0, num_workers=2, failures_path=listed) as loader:
        for i, batch in enumerate(expected):
            if i in (2, 7):
                for worker in worker_processes():
                    worker.send_signal(signal.SIGTERM)
                    worker.send_signal(signal.SIGINT)  # signals to the whole tree leave it alone
                worker_processes()[0].kill()
            assert_same(batch, next(loader))
            time.sleep(0.05)
        assert loader.statistics().num_restarts == 2
        assert len(worker_processes()) == 2
    # Between two batches a worker may have nothing at hand; then there is no instance to name.
    assert caplog.text.count("ended with signal SIGKILL while it loaded") <= 2
    deaths = [json.loads(line) for line in listed.read_text().splitlines()] if listed.exists() else []
    assert all(death["rule"] == "worker-died" and death["instance"].startswith("scene/") for death in deaths)


def test_an_instance_that_kills_workers_is_skipped_and_named(make_dataset, tmp_path, monkeypatch):
    """A decoder that crashes on a file takes its process along, twice; then the file is left alone."""
    root = make_dataset("a")
    data = data_section({"name": "a", "path": root})
    whole = take(6, data, 2, 0)
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import os, sys
        if "-c" in sys.orig_argv and any("moge_core.loading.workers" in part for part in sys.orig_argv):
            from moge_core.loading import batch
            load = batch.load_sample
            def load_sample(recipe, instance, *rest):
                if instance == "scene/001":
                    os.abort()
                return load(recipe, instance, *rest)
            batch.load_sample = load_sample
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with TrainLoader(data, 2, 0, num_workers=2) as loader:
        for before, batch in zip(whole, itertools.islice(loader, 6), strict=True):
            for i in range(2):
                assert batch["info"][i]["instance"] != "scene/001"
                if before["info"][i]["instance"] != "scene/001":
                    assert batch["info"][i] == before["info"][i], "other samples stay as they were"
        assert {failure[:3] for failure in loader.failures} == {("a", "scene/001", "worker-died")}
        assert "SIGABRT" in loader.failures[0].detail
        assert 2 <= loader.statistics().num_restarts <= 3


def test_workers_that_keep_dying_end_the_run(make_dataset, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif any('moge_core.loading.workers' in part for part in sys.orig_argv): os._exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    data = data_section({"name": "a", "path": make_dataset("a")})
    with TrainLoader(data, 1, 0, num_workers=1) as loader:
        for _ in range(2):  # whoever asks again gets the same answer
            with pytest.raises(TrainingError, match="exit code 3"):
                next(loader)


def test_a_stuck_worker_is_replaced(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_POLL_S", 0.2)
    data = data_section({"name": "a", "path": make_dataset("a")})
    expected = take(4, data, 1, 0)
    with TrainLoader(data, 1, 0, num_workers=1, stall_timeout_s=3) as loader:
        assert_same(next(loader), expected[0])
        time.sleep(0.5)  # what is ahead gets loaded
        worker_processes()[0].suspend()
        for batch in [*expected[1:], *take(8, data, 1, 0)[4:]]:
            assert_same(next(loader), batch)
        assert loader.statistics().num_restarts == 1


def test_prefetching_is_bounded_in_batches_and_in_bytes(make_dataset):
    data = data_section({"name": "a", "path": make_dataset("a")}, image_sizes=[[40, 30]])
    batch_bytes = 1200 * (12 + 4 + 2)
    for limit, most in ({"prefetch_batches": 3}, 3), ({"prefetch_bytes": 2 * batch_bytes + 500}, 2):
        with TrainLoader(data, 1, 0, num_workers=2, **limit) as loader:
            next(loader)
            deadline = time.monotonic() + 20
            while loader._pool.num_ready < most and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.3)
            assert loader._pool.num_ready == most


def test_memory_of_batches_is_used_again_but_never_while_it_is_in_use(make_dataset):
    data = data_section({"name": "a", "path": make_dataset("a")}, image_sizes=[[40, 30]])
    expected = take(24, data, 1, 0)
    with TrainLoader(data, 1, 0, num_workers=2) as loader:
        kept = [next(loader)["depth"] for _ in range(12)]
        for _ in range(12):
            next(loader)
        num_blocks = loader._pool._arena.num_blocks
        for batch, depth in zip(expected, kept, strict=False):
            np.testing.assert_array_equal(batch["depth"].numpy(), depth.numpy())
        for _ in range(30):
            next(loader)
        # On a busy machine one more batch may be on its way than before; without reuse there would be 30 more blocks.
        assert loader._pool._arena.num_blocks <= num_blocks + 3
    np.testing.assert_array_equal(expected[0]["depth"].numpy(), kept[0].numpy(), "valid after the end")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_whoever_keeps_many_batches_does_not_run_out_of_file_descriptors(make_dataset, num_workers):
    data = data_section({"name": "a", "path": make_dataset("a")}, image_sizes=[[16, 12]], image_augmentation=[])
    with TrainLoader(data, 1, 0, num_workers=num_workers) as loader:
        kept = [next(loader)]
        before = psutil.Process().num_fds()
        kept += [next(loader) for _ in range(200)]
        assert psutil.Process().num_fds() <= before + 8
        numbers = [batch["info"][0]["sample_number"] for batch in kept]
        assert numbers == list(range(201))
        assert len({float(batch["depth"].nansum()) for batch in kept}) > 150, "no two share their memory"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["exit", "kill"])
def test_workers_end_with_their_parent(make_dataset, tmp_path, ending):
    """Also in a script without `if __name__ == "__main__"`, and when the parent is killed."""
    data = json.dumps(data_section({"name": "a", "path": make_dataset("a")}))
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, sys, time
        from moge_core.loading import TrainLoader
        loader = TrainLoader(json.loads({data!r}), 1, 0, num_workers=2)
        next(loader)
        print("ready", flush=True)
        if {ending == "kill"}:
            time.sleep(60)
        """)
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
        workers = psutil.Process(parent.pid).children(recursive=True) if ending == "kill" else []
        if ending == "kill":
            assert len(workers) == 2
            os.kill(parent.pid, signal.SIGKILL)
        assert parent.wait(timeout=30) == (-signal.SIGKILL if ending == "kill" else 0)
        assert not psutil.wait_procs(workers, timeout=10)[1]
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
