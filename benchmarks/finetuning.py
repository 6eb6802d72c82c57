"""`python -m benchmarks.finetuning BASE.pt --samples FOLDER`: what finetuning on a few frames does to unseen rooms.

The frames of MANIFEST.json in FOLDER are divided by rooms into two halves. The base model is finetuned on each half and
scored on the rooms of the other. The number of steps is chosen on one half and its score claimed on the other, so no
frame has a part in the choice that its own score is claimed for. About 7 minutes of one core with the defaults.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moge_core.configuration import load_json
from moge_core.datasets import import_table, index_dataset, read_index
from moge_core.models import load_model
from moge_core.training import Workspace
from moge_core.training.scoring import HeldOutScorer, scoring_tokens
from moge_core.training.validation import HeldOut

ROOT = Path(__file__).resolve().parents[1]
# Three of the sources are one room, rendered and scanned: ICL-NUIM's living room.
INDOOR = (
    {
        "ICL living room": (
            "icl_livingroom1_clean/public/image/00000",
            "icl_livingroom1_clean/public/image/00080",
            "icl_livingroom1_clean/public/image/00160",
            "open3d_livingroom1_simkinect/public/RGBD/color/00000",
            "icl_nuim_living_room/public/color/1",
            "icl_nuim_living_room/public/color/2",
            "icl_nuim_living_room/public/color/3",
        )
    },
    {
        "NYU, first room": ("nyu_v2/public/nyu_demo/rgb/rgb_00000", "nyu_v2/public/nyu_demo/rgb/rgb_00050"),
        "NYU, second room": ("nyu_v2/public/ch5/rgbd/color/1",),
        "3DMatch Kinect": (
            "3dmatch_kinect/public/seq-01/frame-000000.color",
            "3dmatch_kinect/public/seq-01/frame-000116.color",
        ),
        "TUM desk": ("tum_rgbd/public/ch7/1",),
        "Replica office": ("replica_office0/public/office0/results/frame000000",),
    },
)
RATES = [
    {"params": {"include": ["*"], "exclude": ["*backbone.*"]}, "lr": 1e-5},
    {"params": {"include": ["*backbone.*"]}, "lr": 1e-6},
]


def main() -> int:
    """Print a table for each half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="model file to begin with")
    parser.add_argument("--samples", type=Path, required=True, help="folder with MANIFEST.json")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=25, help="steps between scores")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = {
            str(Path(each["image"]).with_suffix("")): each for each in _manifest(given.samples) if each.get("image")
        }
        halves = [
            _import(folder / f"data/half{number}", given.samples, records, half) for number, half in enumerate(INDOOR)
        ]
        curves = []
        for number, unseen in ((0, halves[1]), (1, halves[0])):
            checkpoints = _finetune(folder, number, given.base.resolve(), given.steps, given.every)
            curves.append(_score(given.base, checkpoints, unseen))
            print(f"\nTrained on {', '.join(INDOOR[number])}; scored on the rooms of the other half (rel)\n")
            _print(curves[-1])
        _claim(curves)
    return 0


def _manifest(samples: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((samples / "MANIFEST.json").read_text())
    return records


def _import(
    out: Path, samples: Path, records: Mapping[str, Mapping[str, Any]], rooms: Mapping[str, Sequence[str]]
) -> list[HeldOut]:
    """A dataset of these rooms, and each of them as what is scored."""
    out.mkdir(parents=True)
    table = out.with_suffix(".csv")
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "image", "depth", "fx", "fy", "cx", "cy", "scale", "invalid"])
        for room, frames in rooms.items():
            for frame in frames:
                record = records[frame]
                places = [str((samples / record[part]).resolve()) for part in ("image", "depth")]
                invalid = " ".join(map(str, record["invalid"]))
                name = f"{_plain(room)}/{frame.replace('/', '_')}"
                writer.writerow([name, *places, *record["expected"]["K"], 1 / record["unit_scale"], invalid])
    import_table(table, out)
    index_dataset(out)
    instances = read_index(out)
    return [
        HeldOut(room, out, "depth.png", tuple(name for name in instances if name.startswith(f"{_plain(room)}/")))
        for room in rooms
    ]


def _plain(room: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in room)


def _finetune(folder: Path, number: int, base: Path, steps: int, every: int) -> dict[int, Path]:
    """Plain weights by the steps that were made."""
    config = load_json(ROOT / "configs/train/sample.json")
    config["data"]["datasets"] = [
        {"name": "frames", "path": f"data/half{number}", "label_type": "sensor", "depth_unit": 1.0}
    ]
    # Sensors' depth: neither normals nor the finest local loss.
    config["loss"] = {"sensor": {name: config["loss"]["synthetic"][name] for name in ("global", "patch_4", "mask")}}
    config["optimizer"]["params"] = RATES
    config["lr_scheduler"] = {"type": "ConstantLR", "params": {"factor": 1.0, "total_iters": 1}}
    config.pop("run")
    path = folder / f"config{number}.json"
    path.write_text(json.dumps(config))
    workspace = folder / f"workspace{number}"
    command = [sys.executable, "-m", "moge_core.training", "--config", str(path), "--workspace", str(workspace)]
    command += ["--checkpoint", str(base), "--num_iterations", str(steps), "--save_every", str(every)]
    command += ["--batch_size_forward", "16", "--gradient_accumulation_steps", "2", "--num_workers", "0"]
    command += ["--enable_gradient_checkpointing", "False", "--enable_mlflow", "False", "--mixed_precision", "no"]
    environment = {
        "MOGE_DATA_ROOT": str(folder),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    subprocess.run(command, cwd=folder, env=environment, check=True)
    found = Workspace(workspace).checkpoints()
    # A checkpoint of step 25 has 26 steps behind it; step 0 is nearly the base.
    return {checkpoint.step + 1: checkpoint.model_path for checkpoint in found if checkpoint.step > 0}


def _score(base: Path, checkpoints: Mapping[int, Path], unseen: Sequence[HeldOut]) -> dict[int, dict[str, float]]:
    """`rel` of each room by steps; 0 is the base."""
    curve = {}
    for steps, path in {0: base, **checkpoints}.items():
        model = load_model(path)
        found = HeldOutScorer(unseen, scoring_tokens(model), batch_size=4).score(model).values
        curve[steps] = {each.name: found[f"eval.{each.name}.rel"] for each in unseen}
        number_of = {each.name: len(each.instances) for each in unseen}
        total = sum(score * number_of[room] for room, score in curve[steps].items())
        curve[steps]["mean of frames"] = total / sum(number_of.values())
    return curve


def _print(curve: Mapping[int, Mapping[str, float]]) -> None:
    print(f"| unseen | before | {' | '.join(f'{steps} steps' for steps in curve if steps)} |")
    print("|---" * (len(curve) + 1) + "|")
    for room in curve[0]:
        print(f"| {room} | {' | '.join(f'{scores[room]:.3f}' for scores in curve.values())} |")


def _claim(curves: Sequence[Mapping[int, Mapping[str, float]]]) -> None:
    """Steps chosen on one half, scored on the other."""
    print()
    for chosen_on, scored_on in ((0, 1), (1, 0)):
        means = {steps: scores["mean of frames"] for steps, scores in curves[chosen_on].items()}
        steps = min(means, key=means.__getitem__)
        before, after = (curves[scored_on][number]["mean of frames"] for number in (0, steps))
        print(f"{steps} steps, chosen on one half; rel of the other {before:.3f} before, {after:.3f} after")


if __name__ == "__main__":
    sys.exit(main())
