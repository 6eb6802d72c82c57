#!/usr/bin/env bash
# One GPU in under eight minutes: the tests of a real device, then every row of benchmarks/gpu.py.
#   benchmarks/gpu.sh          on a machine with a GPU
#   benchmarks/gpu.sh --dry    the same steps on the CPU with tiny shapes, within a minute; measures nothing
#   PYTHON=...                 the interpreter; else .venv/bin/python or python3, whichever has a torch that finds the GPU
#   OUT=...                    folder for nvidia-smi.txt, tests.txt and gpu.md; else gpu-results
# Where no interpreter will do, one is made in $OUT/venv from package index. Exits with 1 when a test or a row failed.
set -euo pipefail
cd "$(dirname "$0")/.."

# Seconds: of the whole, of the installation and of the tests at most. The table gets what is left.
WHOLE=460
INSTALLATION=240
TESTS=180
DEVICE=cuda
DRY=()
if [[ ${1:-} == --dry ]]; then
  DEVICE=cpu
  DRY=(--dry)
elif (($#)); then
  sed -n '2,7s/^# \?//p' "$0" >&2
  exit 2
fi
OUT=${OUT:-gpu-results}
mkdir -p "$OUT"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1

left() { echo $((WHOLE - SECONDS > 10 ? WHOLE - SECONDS : 10)); }

at_most() { # seconds, or what is left of the whole
  local limit=$(left)
  echo $(($1 < limit ? $1 : limit))
}

finds_device() { "$1" -c "import torch; raise SystemExit('$DEVICE' == 'cuda' and not torch.cuda.is_available())" 2>/dev/null; }
has_project() { "$1" -c "import accelerate, click, cv2, moge_core.training.trainer, pytest, pytest_timeout" 2>/dev/null; }

# A torch that is there is kept: it is the one that suits the driver.
python=
for candidate in ${PYTHON:+"$PYTHON"} .venv/bin/python python3; do
  if command -v "$candidate" >/dev/null && finds_device "$candidate"; then
    python=$candidate
    break
  fi
done
if [[ -z $python ]] || ! has_project "$python"; then
  base=${python:-${PYTHON:-python3}}
  echo "installing what is missing beside $base"
  "$base" -m venv --system-site-packages "$OUT/venv"
  python=$OUT/venv/bin/python
  timeout "$(at_most "$INSTALLATION")" "$python" -m pip install --quiet -e . "pytest>=8.3" "pytest-timeout>=2.3"
  if ! finds_device "$python"; then
    echo "no GPU: $("$python" -c 'import torch; print("torch", torch.__version__)') finds no CUDA device here" >&2
    exit 2
  fi
fi

if [[ $DEVICE == cuda ]]; then
  nvidia-smi 2>&1 | tee "$OUT/nvidia-smi.txt" || true
fi

failed=0
timeout "$(at_most "$TESTS")" "$python" -m pytest tests/cuda -q --durations 10 -p no:cacheprovider 2>&1 \
  | tee "$OUT/tests.txt" || failed=1

# A row that was begun may take half a minute more.
seconds=$(($(left) - 40))
timeout "$(left)" "$python" -m benchmarks.gpu --out "$OUT" --seconds "$seconds" "${DRY[@]}" || failed=1

echo
echo "$OUT/tests.txt: $(tail -n 1 "$OUT/tests.txt")"
echo "$OUT/gpu.md:"
cat "$OUT/gpu.md"
exit "$failed"
