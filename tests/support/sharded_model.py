"""What one rank of a sharded model sees, as JSON: `accelerate launch --config_file FSDP -m sharded_model VERSION`."""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import torch
from accelerate import Accelerator
from precision_cases import mean_angle, mean_relative_error, point_normals, smooth_image, wide_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from moge_core.losses import edge_loss
from moge_core.models import MoGeModel
from moge_core.training.sharding import shard, whole


def main(version: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = wide_model(version)
    image = smooth_image(accelerator.process_index)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        exact = model(image, 1200)
    shard(model, accelerator)
    model.train()
    dtypes = _watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with torch.no_grad(), accelerator.autocast():
        output = model(image, 1200)
    found: dict[str, Any] = {
        "units": sum(isinstance(module, FSDPModule) for module in model.modules()),
        "normals": mean_angle(point_normals(output["points"]), point_normals(exact["points"])),
        "rel": mean_relative_error(output["points"], exact["points"]),
        "edge": float(edge_loss(output["points"], exact["points"])[0]) * 2 * max(image.shape[-2:]),
    }
    small = image[..., ::8, ::8]
    for _ in range(3):
        with accelerator.autocast():
            model(small, 12)["points"].square().mean().backward()
        found["gradients"] = sorted({str(p.grad.dtype) for p in model.parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: whole(value.detach()) for name, value in model.named_parameters()}
    found["digest"] = {name: float(value.double().sum()) for name, value in weights.items()}
    found |= {name: sorted(values) for name, values in dtypes.items()}
    found["off"] = _error_of_whole_training(twin, weights, accelerator)
    sys.stdout.write(json.dumps({"rank": accelerator.process_index, **found}) + "\n")
    sys.stdout.flush()
    torch.distributed.destroy_process_group()


def _error_of_whole_training(model: MoGeModel, sharded: dict[str, Tensor], accelerator: Accelerator) -> float:
    """The same steps in one process on both images: the largest difference, relative to how far weights moved."""
    model.train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(3):
        for rank in range(accelerator.num_processes):
            with accelerator.autocast():
                (model(smooth_image(rank)[..., ::8, ::8], 12)["points"].square().mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = torch.stack([(value.detach() - before[name]).norm() for name, value in model.named_parameters()]).norm()
    off = torch.stack([(value.detach() - sharded[name]).norm() for name, value in model.named_parameters()]).norm()
    return float(off / moved)


def _watch(model: MoGeModel) -> dict[str, set[str]]:
    """Types of what goes through the transformer's blocks and through everything else."""
    blocks = {id(module) for block in model.dinov2.blocks for module in block.modules()}
    seen: dict[str, set[str]] = {"in_blocks": set(), "elsewhere": set()}

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = [value for value in (*inputs, output) if isinstance(value, Tensor)]
        weights = list(module.parameters(recurse=False))
        place = "in_blocks" if id(module) in blocks else "elsewhere"
        seen[place].update(str(value.dtype) for value in (*tensors, *weights))

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(hook)
    return seen


if __name__ == "__main__":
    main(sys.argv[1])
