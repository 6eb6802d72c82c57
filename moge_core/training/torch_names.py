"""Which optimisers and schedulers a configuration may name, with their keywords.

Kept as a table so that a configuration is checked without importing torch; a test compares it with the installed torch.
"""

from __future__ import annotations

from collections.abc import Mapping

_ADAM = "lr betas eps weight_decay foreach maximize capturable differentiable"

OPTIMIZER_PARAMETERS: Mapping[str, frozenset[str]] = {
    name: frozenset(keys.split())
    for name, keys in {
        "Adam": f"{_ADAM} amsgrad fused",
        "AdamW": f"{_ADAM} amsgrad fused",
        "NAdam": f"{_ADAM} momentum_decay decoupled_weight_decay",
        "RAdam": f"{_ADAM} decoupled_weight_decay",
        "Adamax": _ADAM,
        "Adagrad": "lr lr_decay weight_decay initial_accumulator_value eps foreach maximize differentiable fused",
        "RMSprop": "lr alpha eps weight_decay momentum centered capturable foreach maximize differentiable",
        "SGD": "lr momentum dampening weight_decay nesterov maximize foreach differentiable fused",
    }.items()
}

SCHEDULER_PARAMETERS: Mapping[str, frozenset[str]] = {
    name: frozenset(keys.split())
    for name, keys in {
        "SequentialLR": "schedulers milestones",
        "ChainedScheduler": "schedulers",
        "LambdaLR": "lr_lambda",
        "MultiplicativeLR": "lr_lambda",
        "StepLR": "step_size gamma",
        "MultiStepLR": "milestones gamma",
        "ConstantLR": "factor total_iters",
        "LinearLR": "start_factor end_factor total_iters",
        "ExponentialLR": "gamma",
        "PolynomialLR": "total_iters power",
        "CosineAnnealingLR": "T_max eta_min",
        "CosineAnnealingWarmRestarts": "T_0 T_mult eta_min",
        "OneCycleLR": "max_lr total_steps epochs steps_per_epoch pct_start anneal_strategy cycle_momentum base_momentum"
        " max_momentum div_factor final_div_factor three_phase",
        "CyclicLR": "base_lr max_lr step_size_up step_size_down mode gamma scale_mode cycle_momentum base_momentum"
        " max_momentum",
    }.items()
}
"""Schedulers that step without an argument; `ReduceLROnPlateau` needs a score and is left out."""

REQUIRED_SCHEDULER_PARAMETERS: Mapping[str, frozenset[str]] = {
    name: frozenset(keys.split())
    for name, keys in {
        "SequentialLR": "schedulers milestones",
        "ChainedScheduler": "schedulers",
        "LambdaLR": "lr_lambda",
        "MultiplicativeLR": "lr_lambda",
        "StepLR": "step_size",
        "MultiStepLR": "milestones",
        "ExponentialLR": "gamma",
        "CosineAnnealingLR": "T_max",
        "CosineAnnealingWarmRestarts": "T_0",
        "OneCycleLR": "max_lr",
        "CyclicLR": "base_lr max_lr",
    }.items()
}
"""Keywords without a default."""

NESTED_SCHEDULERS = frozenset({"SequentialLR", "ChainedScheduler"})
LAMBDA_SCHEDULERS = frozenset({"LambdaLR", "MultiplicativeLR"})
