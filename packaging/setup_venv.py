"""Makes the virtual environment of `make setup`; needs nothing but the standard library.

python3 packaging/setup_venv.py .venv
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

MIN_PYTHON = (3, 11)
ACTIVATE_MARK = "# set by make setup"
ACTIVATE_LINE = f"export DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME=moge_pipeline.definitions  {ACTIVATE_MARK}\n"
OPENCV_PACKAGES = "libgl1 libglib2.0-0 libxcb1 libx11-6"


def main() -> None:
    """Create or update the environment named on the command line."""
    if sys.version_info < MIN_PYTHON:
        needed, found = (".".join(map(str, version)) for version in (MIN_PYTHON, sys.version_info[:3]))
        sys.exit(f"Python {needed} or newer is needed, found {found}. Try `make setup PYTHON=python3.11`.")
    folder = Path(sys.argv[1])
    if not (folder / "bin" / "python").exists():
        print(f"making {folder}", flush=True)
        venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    print("installing the pinned packages; the first time this downloads about 1 GB", flush=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", "-e", ".[dev]"], check=True)
    _name_definitions(folder / "bin" / "activate")
    _check_opencv(python)


def _name_definitions(activate: Path) -> None:
    """`dagster asset materialize` reads neither workspace.yaml nor pyproject.toml: the environment names the code."""
    text = activate.read_text(encoding="utf-8")
    if ACTIVATE_MARK not in text:
        activate.write_text(text + "\n" + ACTIVATE_LINE, encoding="utf-8")


def _check_opencv(python: Path) -> None:
    """opencv-python links against system libraries that slim images lack; say which before a test fails on it."""
    result = subprocess.run([python, "-c", "import cv2"], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(
            f"OpenCV cannot be loaded: {result.stderr.strip().splitlines()[-1]}\n"
            f"On Debian or Ubuntu: apt-get install {OPENCV_PACKAGES}"
        )


if __name__ == "__main__":
    main()
