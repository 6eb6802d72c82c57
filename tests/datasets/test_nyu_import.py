"""Importing NYU's MATLAB file: axes, the end of the sensor's range, class names, one frame at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from plane_frames import check_camera, check_is_plane, picture, plane_z

from moge_core.cli.importing_scenes import nyu_mat_command
from moge_core.datasets.importers.nyu_mat import import_nyu_mat
from moge_core.errors import DatasetError, FormatError
from moge_core.io import read_image, read_segmentation

# The published intrinsics, of 640x480, for images of a tenth of the size.
NYU_CAMERA = (51.8857901, 51.9469611, (325.582449 + 0.5) / 10 - 0.5, (253.736166 + 0.5) / 10 - 0.5)


@pytest.fixture
def nyu(tmp_path: Path) -> Path:
    """The labelled file with three small frames, its axes as MATLAB leaves them."""
    path = tmp_path / "nyu" / "nyu_depth_v2_labeled.mat"
    path.parent.mkdir()
    z = plane_z(64, 48, NYU_CAMERA).astype(np.float32)
    raw = z.copy()
    raw[:, :3], raw[5, 40] = 0, 9.99547
    labels = np.zeros((48, 64), np.uint16)
    labels[10:, 20:] = 2
    with h5py.File(path, "w") as file:
        images = [np.roll(picture(64, 48), i, axis=0) for i in range(3)]
        file["images"] = np.stack([image.transpose(2, 1, 0) for image in images])
        file["depths"] = np.stack([z.T] * 3)
        file["rawDepths"] = np.stack([raw.T] * 3)
        file["labels"] = np.stack([labels.T] * 3)
        names = file.create_dataset("names", (1, 2), dtype=h5py.ref_dtype)
        for i, name in enumerate(("book", "floor mat")):
            text = file.create_dataset(f"#refs#/{i}", data=np.array([[ord(letter)] for letter in name], np.uint16))
            names[0, i] = text.ref
    return path


def test_nyu_frames_have_their_axes_the_right_way_round(nyu: Path, tmp_path: Path) -> None:
    report = import_nyu_mat(nyu, tmp_path / "out")
    assert report.instances == ["00000", "00001", "00002"]
    for i, instance in enumerate(report.instances):
        check_is_plane(report.out_dir / instance)
        check_camera(report.out_dir / instance, NYU_CAMERA, 64, 48)
        image = read_image(report.out_dir / instance / "image.jpg").astype(int)
        assert np.abs(image - np.roll(picture(64, 48), i, axis=0)).mean() < 4
        assert not (report.out_dir / instance / "segmentation.png").exists()
    assert any("--raw" in note for note in report.notes)
    assert import_nyu_mat(nyu.parent, tmp_path / "out").num_written == 0


def test_raw_nyu_depth_is_unknown_where_the_sensor_saw_nothing_or_too_far(nyu: Path, tmp_path: Path) -> None:
    report = import_nyu_mat(nyu, tmp_path / "out", raw=True)
    depth = check_is_plane(report.out_dir / "00001")
    assert np.isnan(depth[:, :3]).all()
    assert np.isnan(depth[5, 40])
    assert np.isnan(depth).sum() == 48 * 3 + 1
    assert not any("--raw" in note for note in report.notes)


def test_nyu_labels_become_a_segmentation_with_names(nyu: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(nyu_mat_command, [str(nyu), "-o", str(tmp_path / "out"), "--labels"])
    assert result.exit_code == 0, result.output
    ids, labels = read_segmentation(tmp_path / "out/00002/segmentation.png")
    assert labels == {"book": 1, "floor mat": 2}
    assert (ids[10:, 20:] == 2).all()
    assert (ids == 0).sum() == 48 * 64 - 38 * 44
    assert '"label_type": "sfm"' in result.output


def test_one_nyu_frame_is_read_at_a_time(nyu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    inner = h5py.Dataset.__getitem__

    def watch(self: Any, *arguments: Any, **options: Any) -> Any:
        values = inner(self, *arguments, **options)
        sizes.append(np.asarray(values).nbytes)
        return values

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watch)
    import_nyu_mat(nyu, tmp_path / "out")
    assert max(sizes) == 64 * 48 * np.dtype(np.float32).itemsize


@pytest.mark.parametrize("change", ["gone", "shape", "count", "other", "text", "names"])
def test_other_mat_files_are_refused_by_name(nyu: Path, tmp_path: Path, change: str) -> None:
    if change in {"text", "other"}:
        nyu.write_bytes(b"MATLAB 5.0 MAT-file" if change == "text" else b"")
    else:
        with h5py.File(nyu, "r+") as file:
            key = "names" if change == "names" else "depths"
            del file[key]
            if change == "shape":
                file["depths"] = np.ones((4, 64, 48))
            elif change == "names":
                file["names"] = np.ones((1, 2))
            elif change == "count":
                del file["images"]
                file.create_dataset("images", (10**11, 3, 64, 48), dtype="u1", chunks=(1, 3, 64, 48))
                file.create_dataset("depths", (10**11, 64, 48), dtype="f4", chunks=(1, 64, 48))
    with pytest.raises(FormatError, match="nyu_depth_v2_labeled"):
        import_nyu_mat(nyu, tmp_path / "out", labels=change == "names")
    with pytest.raises(DatasetError, match="nyu_depth_v2_labeled"):
        import_nyu_mat(tmp_path / "nyu" / "..", tmp_path / "nyu" / "out")
