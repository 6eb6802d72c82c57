"""Models that put out an exact plane, whatever they see: it enters as features before their last level."""

from __future__ import annotations

from typing import Any

import torch
from precision_cases import raw_of, tilted_plane
from torch import Tensor, nn

from moge_core.models import MoGeModel, build_model
from moge_core.models.v1 import MoGeModelV1


@torch.no_grad()
def exact_plane_model(version: str, config: dict[str, Any]) -> MoGeModel:
    """A model of that configuration whose last level passes on `tilted_plane`, at any size."""
    if version == "v2":
        config = {**config, "points_head": {**config["points_head"], "num_res_blocks": [0, 1, 1, 1, 1]}}
    torch.manual_seed(0)
    model = build_model(version, **config).eval()
    entry, channels = _show_features(model)

    def plane(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        height, width = output.shape[-2:]
        raw = raw_of(tilted_plane(height, width, width / height)).to(output.device)
        features = torch.zeros(len(output), channels, height, width, device=output.device)
        features[:, :3], features[:, 3:6] = raw, -raw
        return features

    entry.register_forward_hook(plane)
    return model


def _show_features(model: MoGeModel) -> tuple[nn.Module, int]:
    """Make the last level put out the first three channels of its input, which a ReLU lets pass in two halves.

    Returns:
        the module whose output is that input, and how many channels it has.
    """
    if isinstance(model, MoGeModelV1):
        first, last = model.head.output_block[0][0], model.head.output_block[0][-1]
        _pass_on(first, 6)
        _combine_halves(last)
        return list(model.head.upsample_blocks[-1].children())[-1], first.in_channels - 2
    stack = model.get_submodule("points_head")
    resampler, last = stack.resamplers[-1], stack.output_blocks[-1]
    for parameter in (*stack.input_blocks[-1].parameters(), *stack.res_blocks[-1].parameters()):
        parameter.zero_()
    _pass_on(resampler[-1], 3)
    last.weight.zero_()
    last.bias.zero_()
    for channel in range(3):
        last.weight[channel, channel] = 1
    return list(stack.res_blocks[-2].children())[-1], resampler[-1].in_channels


def _pass_on(convolution: nn.Conv2d, number: int) -> None:
    convolution.weight.zero_()
    convolution.bias.zero_()
    for channel in range(number):
        convolution.weight[channel, channel, 1, 1] = 1


def _combine_halves(convolution: nn.Conv2d) -> None:
    convolution.weight.zero_()
    convolution.bias.zero_()
    centre = convolution.kernel_size[0] // 2
    for channel in range(3):
        convolution.weight[channel, channel, centre, centre] = 1
        convolution.weight[channel, channel + 3, centre, centre] = -1
