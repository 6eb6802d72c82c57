"""The depth cache, the preview of batches and the profile of a loader."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from test_loading_loader import assert_same, take
from tiny_planes import data_section, plane_depth, write_instance

from moge_core.cli import cli
from moge_core.errors import ConfigError
from moge_core.io import read_image, write_depth
from moge_core.io.depth import read_depth_codes
from moge_core.loading import depth_cache
from moge_core.loading.depth_cache import DepthCache
from moge_core.loading.profiling import LoaderProfile, judge
from moge_core.training import load_train_config

CAMERA = np.array([[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]])


@pytest.fixture
def depth_file(tmp_path):
    path = tmp_path / "depth.png"
    write_depth(path, plane_depth(CAMERA, 60, 80))
    return path


def test_a_cached_depth_map_is_the_decoded_one(depth_file, tmp_path):
    cache = DepthCache(tmp_path / "cache", 10**8)
    assert cache.get(depth_file) is None
    coded = read_depth_codes(depth_file)
    cache.put(depth_file, coded)
    cached = cache.get(depth_file)
    np.testing.assert_array_equal(cached.codes, coded.codes)
    np.testing.assert_array_equal(cached.depth_of_code, coded.depth_of_code)


def test_a_changed_source_and_a_damaged_entry_are_no_hits(depth_file, tmp_path):
    cache = DepthCache(tmp_path / "cache", 10**8)
    cache.put(depth_file, read_depth_codes(depth_file))
    state = depth_file.stat()
    os.utime(depth_file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert cache.get(depth_file) is None
    cache.put(depth_file, read_depth_codes(depth_file))
    assert cache.get(depth_file) is not None
    (entry,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    for damaged in (entry.read_bytes()[:-20], b"", b"[]\n", os.urandom(300)):
        entry.write_bytes(damaged)
        assert cache.get(depth_file) is None


def test_the_cache_obeys_its_limit_and_an_unwritable_one_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(depth_cache, "_NUM_FOLDERS", 1)
    cache = DepthCache(tmp_path / "cache", 12_000)
    monkeypatch.setattr(DepthCache, "_entry", lambda self, source: self.folder / source.name)
    for i in range(30):
        path = tmp_path / f"{i}.png"
        write_depth(path, np.random.default_rng(i).uniform(1, 9, (20, 50)).astype(np.float32))
        cache.put(path, read_depth_codes(path))
    sizes = [path.stat().st_size for path in (tmp_path / "cache").iterdir()]
    assert 3 <= len(sizes) < 30 and sum(sizes) <= 12_000 + max(sizes)
    (tmp_path / "file").write_text("")
    DepthCache(tmp_path / "file", 10**6).put(path, read_depth_codes(path))


def test_the_stream_is_the_same_with_a_cache_and_hits_are_counted(make_dataset, tmp_path):
    data = data_section({"name": "a", "path": make_dataset("a")})
    cached = {**data, "depth_cache": {"dir": str(tmp_path / "cache"), "max_gb": 0.1}}
    plain = take(6, data, 2, 0)
    for num_workers in (0, 1):
        for one, other in zip(plain, take(6, cached, 2, 0, num_workers=num_workers), strict=True):
            assert_same(one, other)
    from moge_core.loading import TrainLoader

    with TrainLoader(cached, 2, 0, num_workers=0) as loader:
        next(loader)
        assert loader.statistics().metrics()["loader.cache_hit_share"] == 1


def test_a_cache_without_its_package_is_refused_at_once(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(depth_cache.importlib.util, "find_spec", lambda name: None)
    data = data_section({"name": "a", "path": make_dataset("a")}, depth_cache={"dir": str(tmp_path), "max_gb": 1})
    with pytest.raises(ConfigError, match="blosc2"):
        take(1, data, 1, 0)


@pytest.fixture
def config_file(make_dataset, tmp_path):
    """A v1 configuration on a dataset whose labels and sizes differ."""
    root = make_dataset("a")
    write_instance(root / "scene/000", (200, 120))
    config = dict(load_train_config("configs/train/v1.json").raw)
    config["data"] = data_section({"name": "a", "path": root, "depth_unit": 1.0})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return path


def test_preview_batches_draws_four_pictures_of_each_sample(config_file, tmp_path):
    out = tmp_path / "sheet.png"
    arguments = ["preview-batches", str(config_file), "-o", str(out), "--batches", "2", "--batch-size", "3"]
    result = CliRunner().invoke(cli, [*arguments, "--tile-height", "64"], catch_exceptions=False)
    assert result.exit_code == 0 and result.output.count("a/scene/") == 6
    sheet = read_image(out)
    assert sheet.shape[0] > 6 * 64 and sheet.shape[1] > 4 * 30
    rows = np.array_split(sheet, 6)
    assert all(len(np.unique(row.reshape(-1, 3), axis=0)) > 200 for row in rows), "no row is empty"


def test_profile_loader_tells_stages_throughput_and_a_verdict(config_file):
    arguments = ["profile-loader", str(config_file), "--images", "12", "--workers", "1"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    for word in ("jittering", "decode depth", "warp image", "waiting for files", "1 worker", "images/s", "-bound:"):
        assert word in result.output


def test_the_verdict_names_what_takes_most_of_the_time():
    cheap = {"read": 0.1, "decode image": 1.0, "warp image": 1.0, "jittering": 1.0}
    assert judge(cheap, 9.0) == "disk-bound"
    assert judge({**cheap, "decode depth": 8.0}, 0.5) == "decode-bound"
    assert judge({**cheap, "dof": 8.0}, 0.5) == "augment-bound"
    assert judge({**cheap, "warp depth": 8.0}, 0.5) == "warp-bound"
    report = LoaderProfile(8, cheap, 9.0, {0: 3.0, 2: 5.5}, 0.25, 3, "disk-bound").report()
    assert "disk" in report and "25%" in report and "2 workers" in report and "unusable instances drawn: 3" in report
