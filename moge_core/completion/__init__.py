"""Refinement of measured depth with a model's prediction (MoGe-2, arXiv 2507.02546, section on real data).

filtering   filter_depth: drop known depth that the prediction contradicts
completing  complete_depth: fill what is unknown along the prediction's gradients
dataset     complete_dataset: both, for every instance of a list, with a before/after sheet
"""

from moge_core.completion.completing import complete_depth
from moge_core.completion.dataset import OUTPUT_NAME, CompletionReport, complete_dataset
from moge_core.completion.filtering import filter_depth

__all__ = ["OUTPUT_NAME", "CompletionReport", "complete_dataset", "complete_depth", "filter_depth"]
