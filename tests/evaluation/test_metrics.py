from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.errors import InputError
from moge_core.evaluation import compute_metrics
from moge_core.geometry import depth_map_to_point_map

CASES = [
    f"{scene}.{case}"
    for scene in "01"
    for case in (
        "points_metric",
        "points_affine",
        "points_scale",
        "depth_metric",
        "depth_affine",
        "disparity",
        "all_v2",
        "points_seg_scale",
    )
]


def golden_case(golden_dir: Path, case: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, float]]]:
    """Prediction, truth and published metrics."""
    numbers = json.loads((golden_dir / "metrics" / "manifest.json").read_text())[case]
    with np.load(golden_dir / "metrics" / "metrics.npz") as stored:
        field = {key[2:]: value for key, value in stored.items() if key[0] == case[0]}
    sources = {
        "points": field["pred_points"],
        "depth": field["pred_depth"],
        "disparity": 1 / field["pred_depth"],
        "intrinsics": field["Kp"],
    }
    pred = {key: sources[key.partition("_")[0]] for key in numbers["pred_keys"]}
    gt = {
        "depth": field["gt_depth"],
        "points": field["gt_points"],
        "depth_mask": field["mask"],
        "intrinsics": field["K"],
        "is_metric": numbers["is_metric"],
        "has_sharp_boundary": True,
    }
    if numbers["has_seg"]:
        gt |= {"segmentation_mask": field["seg"], "segmentation_labels": {"wall": 1, "floor": 2, "box": 3}}
    return pred, gt, numbers["metrics"]


@pytest.mark.parametrize("case", CASES)
def test_metrics_are_the_published_ones(golden_dir: Path, case: str) -> None:
    pred, gt, expected = golden_case(golden_dir, case)
    found = compute_metrics(pred, gt)
    assert set(found) == set(expected)
    for kind, values in expected.items():
        assert found[kind] == pytest.approx(values, abs=2e-5), kind


def scene(seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """A noisy prediction of every kind and its truth, 24 x 32 pixels."""
    rng = np.random.default_rng(seed)
    intrinsics = np.array([[1, 0, 0.5], [0, 4 / 3, 0.5], [0, 0, 1]], np.float32)
    depth = (3 + rng.random((24, 32))).astype(np.float32)
    noisy = (depth * np.exp(0.05 * rng.standard_normal(depth.shape))).astype(np.float32)
    points, noisy_points = depth_map_to_point_map(depth, intrinsics), depth_map_to_point_map(noisy, intrinsics)
    pred = {
        "points_metric": noisy_points,
        "points_scale_invariant": noisy_points / 2,
        "points_affine_invariant": noisy_points / 2 - np.float32(1),
        "depth_metric": noisy,
        "depth_scale_invariant": noisy / 2,
        "depth_affine_invariant": noisy / 2 - 1,
        "disparity_affine_invariant": 3 / noisy + 1,
        "intrinsics": intrinsics,
    }
    gt = {
        "depth": depth,
        "points": points,
        "depth_mask": np.ones((24, 32), bool),
        "intrinsics": intrinsics,
        "is_metric": True,
        "has_sharp_boundary": True,
        "segmentation_mask": (np.indices((24, 32))[1] // 11).astype(np.int32),
        "segmentation_labels": {"left": 0, "middle": 1, "right": 2, "absent": 7},
    }
    return pred, gt


@settings(max_examples=10, deadline=None)
@given(st.floats(0.1, 10), st.floats(-2, 2), st.integers(0, 100))
def test_what_a_kind_leaves_open_does_not_change_its_metrics(factor: float, offset: float, seed: int) -> None:
    pred, gt = scene(seed)
    for kind, moves in (
        ("points_scale_invariant", 0.0),
        ("points_affine_invariant", offset),
        ("depth_scale_invariant", 0.0),
        ("depth_affine_invariant", offset),
        ("disparity_affine_invariant", offset),
    ):
        expected = compute_metrics({kind: pred[kind]}, gt)[kind]
        found = compute_metrics({kind: (pred[kind] * factor + moves).astype(np.float32)}, gt)[kind]
        assert found == pytest.approx(expected, rel=5e-3, abs=3e-3), kind


def test_a_perfect_prediction_scores_perfectly() -> None:
    pred, gt = scene()
    pred = {name: gt[name.partition("_")[0]] for name in pred if not name.startswith("disparity")}
    pred["disparity_affine_invariant"] = 1 / gt["depth"]
    metrics = compute_metrics(pred, gt)
    for name, values in metrics.items():
        if name == "fov_x":
            assert values == {"mae": 0, "deviation": 0}
        elif name == "boundary":
            assert values == pytest.approx({f"radius{radius}_f1": 1 for radius in (1, 2, 3)})
        else:
            assert values == pytest.approx({"rel": 0, "delta1": 1}, abs=1e-5), name


def test_arrays_and_tensors_give_the_same_floats() -> None:
    pred, gt = scene()
    tensors = [
        {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in side.items()} for side in (pred, gt)
    ]
    metrics = compute_metrics(pred, gt)
    assert compute_metrics(*tensors) == metrics
    assert all(type(value) is float for values in metrics.values() for value in values.values())


def test_pixels_outside_the_mask_do_not_count() -> None:
    pred, gt = scene()
    gt["depth_mask"][:, :16] = False
    expected = compute_metrics(pred, gt)
    for values in (*pred.values(), gt["depth"], gt["points"]):
        if values.shape[:2] == (24, 32):
            values[:, :16] = np.nan
    assert compute_metrics(pred, gt) == expected
    assert all(math.isfinite(value) for values in expected.values() for value in values.values())


@pytest.mark.parametrize("valid", [0, 1, 3])
def test_a_mask_of_few_pixels_raises_nothing(valid: int) -> None:
    pred, gt = scene()
    gt["depth_mask"][:] = False
    gt["depth_mask"][0, :valid] = True
    metrics = compute_metrics(pred, gt)
    if valid == 0:
        assert math.isnan(metrics["points_affine_invariant"]["rel"])
        assert math.isnan(metrics["disparity_affine_invariant"]["rel"])
        assert math.isnan(metrics["local_points"]["rel"])
    else:
        assert math.isfinite(metrics["points_metric"]["rel"])


def test_a_segment_without_extent_is_left_out() -> None:
    pred, gt = ({k: v[:4, :4] if getattr(v, "shape", ())[:2] == (24, 32) else v for k, v in s.items()} for s in scene())
    gt["segmentation_mask"] = np.zeros((4, 4), np.int32)
    gt["segmentation_labels"] = {"all": 0}
    expected = compute_metrics(pred, gt)["local_points"]
    gt["segmentation_mask"][0, 0] = 1
    gt["segmentation_labels"]["pixel"] = 1
    found = compute_metrics(pred, gt)["local_points"]
    assert found == pytest.approx(expected, abs=0.05)


def test_metric_kinds_need_metric_truth() -> None:
    pred, gt = scene()
    gt["is_metric"] = False
    metrics = compute_metrics(pred, gt)
    assert "points_metric" not in metrics
    assert "depth_metric" not in metrics
    assert "points_scale_invariant" in metrics


def test_a_negative_depth_is_never_a_good_one() -> None:
    pred, gt = scene()
    assert compute_metrics({"depth_metric": -pred["depth_metric"]}, gt)["depth_metric"]["delta1"] == 0


@pytest.mark.parametrize(
    ("pred_change", "gt_change", "message"),
    [
        ({"points": np.zeros((24, 32, 3))}, {}, "points_metric"),
        ({"depth_metric": np.zeros((24, 31))}, {}, r"pred\.depth_metric"),
        ({"depth_metric": [[1.0]]}, {}, r"pred\.depth_metric"),
        ({}, {"points": None}, "points"),
        ({}, {"depth_mask": np.ones((24, 32))}, "depth_mask"),
        ({}, {"segmentation_labels": None}, "segmentation_labels"),
    ],
)
def test_predictions_and_truth_that_do_not_fit_are_named(
    pred_change: dict[str, Any], gt_change: dict[str, Any], message: str
) -> None:
    pred, gt = scene()
    with pytest.raises(InputError, match=message):
        compute_metrics(pred | pred_change, gt | gt_change)


def test_an_empty_prediction_is_refused() -> None:
    with pytest.raises(InputError, match="nothing"):
        compute_metrics({}, scene()[1])


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 170), st.integers(0, 2**31))
def test_normals_turned_by_an_angle_are_that_far_off(degrees: float, seed: int) -> None:
    _, gt = scene()
    rng = np.random.default_rng(seed)
    true, axis = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in rng.normal(size=(2, 24, 32, 3)))
    across = np.cross(true, axis)
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    angle = math.radians(degrees)
    turned = 3 * (math.cos(angle) * true + math.sin(angle) * across)  # of any length
    true[:5] = np.nan
    found = compute_metrics({"normal": turned}, gt | {"normal": true})["normal"]
    assert found["mean"] == pytest.approx(degrees, abs=1e-4)
    assert found["median"] == pytest.approx(degrees, abs=1e-4)
    for bound in (11.25, 22.5, 30):
        if abs(degrees - bound) > 1e-3:
            assert found[f"within_{bound:g}"] == (degrees < bound)


def test_a_normal_of_no_direction_is_a_right_angle_off() -> None:
    _, gt = scene()
    true = np.tile(np.array([0.0, 0.0, -1.0]), (24, 32, 1))
    assert compute_metrics({"normal": 0 * true}, gt | {"normal": true})["normal"]["mean"] == pytest.approx(90)


def test_a_mask_is_measured_where_the_truth_says_what_is_there() -> None:
    _, gt = scene()
    gt["depth_mask"] = np.zeros((24, 32), bool)
    gt["depth_mask"][:12] = True
    pred = np.zeros((24, 32), bool)
    pred[6:18] = True
    assert compute_metrics({"mask": pred}, gt)["mask"]["iou"] == pytest.approx(6 / 18)
    sky = np.zeros((24, 32), bool)
    sky[20:] = True  # rows 12 to 20 are unknown
    assert compute_metrics({"mask": pred}, gt | {"depth_mask_inf": sky})["mask"]["iou"] == pytest.approx(6 / 12)
    assert compute_metrics({"mask": gt["depth_mask"]}, gt)["mask"]["iou"] == 1
    gt["depth_mask"][:] = False
    assert math.isnan(compute_metrics({"mask": gt["depth_mask"]}, gt)["mask"]["iou"])


@pytest.mark.parametrize(
    ("pred", "truth", "message"),
    [
        ({"normal": np.zeros((24, 32, 3))}, {}, "normal"),
        ({"normal": np.zeros((24, 32))}, {"normal": np.zeros((24, 32, 3))}, r"pred\.normal"),
        ({"mask": np.zeros((24, 32))}, {}, r"pred\.mask"),
        ({"mask": np.zeros((24, 31), bool)}, {}, r"pred\.mask"),
    ],
)
def test_normals_and_masks_that_do_not_fit_are_named(pred: dict[str, Any], truth: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compute_metrics(pred, scene()[1] | truth)
