"""Measures against the golden arrays, by-hand figures and slow definitions."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epsam.errors import DataError
from epsam.evaluation import metrics

GOLDEN = Path(__file__).parent / "golden" / "reference.npz"


def _masks(*areas: slice) -> list[np.ndarray]:
    masks = []
    for area in areas:
        mask = np.zeros((10, 10), bool)
        mask[area] = True
        masks.append(mask)
    return masks


def test_dice_and_iou_by_hand():
    upper, lower, empty = _masks(slice(0, 6), slice(4, 10), slice(0, 0))
    assert metrics.dice(upper, lower) == pytest.approx(2 * 20 / 120, abs=1e-4)
    assert metrics.iou(upper, lower) == pytest.approx(20 / 100, abs=1e-4)
    assert metrics.dice(upper, upper) == metrics.iou(upper, upper) == 1
    assert metrics.dice(empty, empty) == metrics.iou(empty, empty) == 1
    assert metrics.dice(upper, empty) < 1e-4
    assert metrics.iou(empty, upper) < 1e-4


def test_masks_of_other_sizes_are_refused():
    with pytest.raises(DataError, match=r"10 x 10 px .* 12 x 10 px"):
        metrics.dice(np.zeros((10, 10), bool), np.zeros((10, 12), bool))


def test_golden_dice_and_iou():
    golden = np.load(GOLDEN)
    pairs = list(zip(golden["loss_prediction"] > 0.5, golden["loss_target"] > 0.5, strict=True))
    assert np.mean([metrics.dice(*pair) for pair in pairs]) == pytest.approx(golden["dice_metric"], abs=1e-4)
    assert np.mean([metrics.iou(*pair) for pair in pairs]) == pytest.approx(golden["iou_metric"], abs=1e-4)


def test_pooled_dice_weighs_patches_by_area():
    small, large = (1, 2, 2), (90, 100, 100)
    assert metrics.pooled_dice(np.add(small, large)) == pytest.approx(2 * 91 / 204, abs=1e-4)


def _slow_average_precision(values: np.ndarray, truth: np.ndarray) -> float:
    area, before = 0.0, 0.0
    for threshold in np.arange(metrics.THRESHOLDS)[::-1] / metrics.THRESHOLDS:
        predicted = values >= threshold - 1e-9
        precision = truth[predicted].mean() if predicted.any() else 1.0
        recall = (truth & predicted).sum() / truth.sum()
        area += precision * (recall - before)
        before = recall
    return area


def _curve(values: np.ndarray, truth: np.ndarray) -> metrics.MapCurve:
    curve = metrics.MapCurve()
    for pair in zip(values, truth, strict=True):
        curve.add(*pair)
    return curve


def test_pxap_equals_its_definition():
    rng = np.random.default_rng(0)
    truth = rng.random((3, 16, 16)) < 0.3
    values = np.clip(0.4 * truth + rng.random(truth.shape) * 0.6, 0, 1)
    value, low, high = _curve(values, truth).average_precision(50, "test")
    assert value == pytest.approx(_slow_average_precision(values, truth), abs=1e-9)
    assert low <= value <= high


def test_pxap_of_right_flat_and_wrong_maps():
    truth = np.zeros((1, 10, 10), bool)
    truth[:, :3] = True
    assert _curve(truth.astype(np.float32), truth).average_precision(0)[0] == pytest.approx(1)
    assert _curve(np.full(truth.shape, 0.5), truth).average_precision(0)[0] == pytest.approx(0.3)
    assert _curve(1.0 - truth, truth).average_precision(0)[0] == pytest.approx(0.3)


def test_best_dice_finds_the_threshold():
    ramp = np.linspace(0, 0.99, 100, dtype=np.float32).reshape(1, 10, 10)
    assert _curve(ramp, ramp >= 0.37).best_dice(0)[0] == pytest.approx(1)


def test_whole_patches_are_the_figure_to_beat():
    truth = np.stack(_masks(slice(0, 5), slice(0, 10)))
    curve = _curve(np.full(truth.shape, 0.3), truth)
    assert curve.whole_patch_dice() == pytest.approx((2 * 50 / 150 + 1) / 2, abs=1e-4)


@pytest.mark.parametrize("wrong", [np.nan, -0.1, 1.5])
def test_maps_outside_their_range_are_refused(wrong):
    with pytest.raises(DataError, match=r"outside \[0, 1\] or NaN"):
        metrics.MapCurve().add(np.full((2, 2), wrong), np.ones((2, 2), bool))


def test_nothing_measured_is_an_error():
    with pytest.raises(DataError, match="nothing can be measured"):
        metrics.MapCurve().average_precision(0)
    with pytest.raises(DataError, match="nothing can be measured"):
        metrics.mean_with_interval(np.array([]), 10)


def test_interval_is_repeatable_and_near_the_normal_one():
    values = np.random.default_rng(1).normal(0.7, 0.1, 400)
    first = metrics.mean_with_interval(values, 2000, 1, "cam")
    assert first == metrics.mean_with_interval(values, 2000, 1, "cam")
    assert first != metrics.mean_with_interval(values, 2000, 2, "cam")
    half = 1.96 * values.std() / np.sqrt(400)
    assert first == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), abs=0.002)


labelled = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=30).filter(
    lambda rows: 0 < sum(label for label, _ in rows) < len(rows)
)


@given(labelled)
def test_auc_is_the_share_of_pairs_in_order(rows):
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], float)
    margins = scores[labels][:, None] - scores[~labels][None]
    assert metrics.auc(labels, scores) == pytest.approx(((margins > 0) + 0.5 * (margins == 0)).mean())


@given(labelled)
def test_sensitivity_at_specificity_tries_every_threshold(rows):
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], float)
    best = max((scores[labels] >= t).mean() for t in range(8) if (scores[~labels] < t).mean() >= 0.9)
    assert metrics.sensitivity_at_specificity(labels, scores) == pytest.approx(best)


def test_one_class_has_no_auc():
    with pytest.raises(DataError, match="same label"):
        metrics.auc(np.ones(4), np.arange(4))
    assert metrics.accuracy(np.ones(4), np.array([0.2, 0.5, 0.9, 1])) == 0.75


def test_precision_and_recall_by_hand():
    overlaps = np.array([20, 60, 40])
    assert metrics.pooled_precision(overlaps) == pytest.approx(1 / 3, abs=1e-4)
    assert metrics.pooled_recall(overlaps) == pytest.approx(1 / 2, abs=1e-4)


def test_an_interval_over_slides_is_wider_where_slides_differ():
    slides = [f"slide_{n}" for n in range(8) for _ in range(50)]
    values = np.repeat(np.linspace(0.5, 0.9, 8), 50)
    _, low, high = metrics.mean_with_interval(values, 1000, "test")
    value, low_slides, high_slides = metrics.mean_with_interval(values, 1000, "test", groups=slides)
    assert value == pytest.approx(0.7)
    assert high_slides - low_slides > 4 * (high - low)


def test_slides_count_by_their_patches_in_an_interval_over_slides():
    values = np.array([0.0] * 90 + [1.0] * 10)
    groups = ["large"] * 90 + ["small"] * 10
    assert metrics.mean_with_interval(values, 100, "test", groups=groups) == pytest.approx((0.1, 0, 1))
