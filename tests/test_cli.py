"""The `moge` command: quick to ask for help, clear about mistakes, complete from raw data to point clouds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from moge_core import doctor
from moge_core.cli import cli, main
from moge_core.datasets import read_index


def invoke(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for i in range(2):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((12, 16, 3), 90 + 20 * i, np.uint8))
        cv2.imwrite(str(folder / f"{i}_depth.png"), np.full((12, 16), 1000 + i, np.uint16))
    return folder


CAMERA = ("--intrinsics", "20,20,7.5,5.5", "--depth-scale", "1000")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from moge_core.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'cv2', 'numpy', 'pyarrow', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "sample-scenes" in done.stdout


def test_dataset_commands_do_not_import_torch(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from moge_core.cli import main\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    try:\n        main(line.split('\\t'))\n    except SystemExit as end:\n        assert end.code == 0, line\n"
        "assert 'torch' not in sys.modules"
    )
    out = str(tmp_path / "out")
    commands = [
        ["import", "rgbd-folder", str(source), "-o", out, *CAMERA],
        ["index", out],
        ["validate", out],
        ["inspect", out],
    ]
    text = "\n".join("\t".join(command) for command in commands)
    subprocess.run([sys.executable, "-c", code], input=text, text=True, check=True, capture_output=True)


def test_raw_data_to_point_clouds(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOGE_DATA_ROOT", raising=False)
    output = invoke("import", "rgbd-folder", source, "-o", "data/desk", *CAMERA, "--label-type", "B")
    entry = json.loads(output[output.index("{") : output.rindex("}") + 1])
    assert entry == {"name": "desk", "path": "data/desk", "label_type": "B", "weight": 1.0, "depth_unit": 1.0}
    assert "2 instances written" in output
    assert "median depth 1.00" in output
    assert "moge index data/desk" in output
    assert "2 instances (written)" in invoke("index", "data/desk")
    assert read_index("data/desk") == ["0", "1"]
    assert json.loads(invoke("validate", "data/desk", "--json"))["findings"] == []
    invoke("inspect", "data/desk", "-o", "vis")
    assert sorted(path.relative_to("vis").as_posix() for path in Path("vis").rglob("*.*")) == [
        f"{i}/{name}" for i in range(2) for name in ("depth_vis.png", "pointcloud.ply")
    ]


def test_the_published_inspection_flags_work_with_underscores_and_dashes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    invoke("import", "rgbd-folder", source, "-o", out, *CAMERA)
    for flag in ("--depth_vis", "--depth-vis"):
        output = invoke("inspect", out / "0", flag, "--max_depth", "3", "--inf", "--fov", "60", "--depth", "depth.png")
        assert "fov 60.0" in output
        assert not (out / "0" / "pointcloud.ply").exists()
        (out / "0" / "depth_vis.png").unlink()
    invoke("inspect", out / "0", "--ply", "-m", "3", "--output", tmp_path / "vis")
    assert not (out / "0" / "depth_vis.png").exists()
    assert [path.name for path in tmp_path.glob("vis/*/*")] == ["pointcloud.ply"]


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for arguments in (["index", tmp_path / "no"], ["inspect", tmp_path], ["validate", tmp_path]):
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr
        verbose = CliRunner().invoke(cli, [str(argument) for argument in [*arguments, "-v"]])
        assert verbose.exit_code == 2
        assert "Traceback" in verbose.stderr
        assert verbose.stderr.endswith(result.stderr)


def test_broken_instances_are_told_and_strict_turns_them_into_an_exit_code(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    invoke("import", "rgbd-folder", source, "-o", out, *CAMERA)
    (out / "0" / "image.jpg").write_bytes(b"no")
    output = invoke("index", out)
    assert "image-decodable: 1 instance" in output
    assert "1 broken instance left out" in output
    invoke("index", out, "--strict", code=1)
    (out / ".index.txt").write_text("0\n1\n")
    assert "your own list" in invoke("index", out)
    report = json.loads(invoke("validate", out, "--json", code=1))
    assert [finding["rule"] for finding in report["findings"]] == ["image-decodable"]
    assert "1 of 2 instances could not be read" in invoke("inspect", out, code=1)


def test_rebuilding_names_the_kept_list(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    invoke("import", "rgbd-folder", source, "-o", out, *CAMERA)
    (out / ".index.txt").write_text("1\n")
    assert ".index.txt.bak" in invoke("index", out, "--rebuild")


@pytest.mark.parametrize("size", ["640", "0x4", "axb", "6x-4"])
def test_a_malformed_size_is_a_usage_error(tmp_path: Path, size: str) -> None:
    assert "such as 640x480" in invoke("sample-scenes", tmp_path, "--size", size, code=2)


def test_sample_scenes_are_rendered_and_can_be_indexed(tmp_path: Path) -> None:
    invoke("sample-scenes", tmp_path / "s", "--count", "2", "--seed", "3", "--size", "64x48")
    assert "2 instances (written)" in invoke("index", tmp_path / "s")


def test_the_doctor_is_content_with_a_machine_that_runs_the_tests(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor.check_machine(tmp_path / "not there yet")}
    assert {"Python", "packages", "OpenCV", "torch", "disk"} <= set(checks)
    assert checks["OpenCV"].ok
    assert checks["torch"].ok


def test_the_doctor_names_the_debian_packages_that_opencv_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = doctor.importlib.import_module

    def without_cv2(name: str) -> object:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
        return real_import(name)

    monkeypatch.setattr(doctor.importlib, "import_module", without_cv2)
    monkeypatch.setattr(doctor, "_loads", lambda library: library == "libX11.so.6")
    output = invoke("doctor", code=1)
    assert "missing OpenCV" in output
    assert "apt-get install -y libgl1 libglib2.0-0 libxcb1\n" in output


def test_main_is_the_entry_point_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("moge, version ")
