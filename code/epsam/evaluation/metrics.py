"""Measures of masks, maps and labels, with bootstrap intervals; plain NumPy."""

from collections.abc import Callable, Sequence

import numpy as np

from epsam.errors import DataError
from epsam.runtime.seeds import generator

SMOOTH = 1e-3
"""Keeps the measures defined for empty masks; too small to show in the fourth decimal otherwise."""


BOOTSTRAP_SEED = "bootstrap"
"""The same resamples for every method, so that methods can be compared."""


THRESHOLDS = 1000
"""Thresholds 0, 1/1000, ..., 999/1000 of a map, as in Choe et al. (CVPR 2020)."""


def overlap(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """Pixels in both, in the prediction and in the truth, of two boolean masks (H, W).

    Raises DataError when the masks differ in size.
    """
    if prediction.shape != truth.shape:
        raise DataError(
            f"a predicted mask of {_size(prediction)} px was compared with a true one of "
            f"{_size(truth)} px; cut both at the same size"
        )
    return int(np.count_nonzero(prediction & truth)), int(prediction.sum()), int(truth.sum())


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two boolean masks (H, W), in [0, 1]: (2 |P and T| + s) / (|P| + |T| + s).

    Both empty gives 1; one of the two empty gives nearly 0 (s / (area + s)).
    """
    return float(pooled_dice(np.array(overlap(prediction, truth))))


def iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two boolean masks (H, W), in [0, 1]: (|P and T| + s) / (|P or T| + s).

    Both empty gives 1; one of the two empty gives nearly 0.
    """
    return float(pooled_iou(np.array(overlap(prediction, truth))))


def pooled_dice(overlaps: np.ndarray) -> np.ndarray:
    """Dice of all pixels together from `overlap` summed over patches, (..., 3) -> (...); both empty gives 1."""
    both, predicted, true = np.moveaxis(np.asarray(overlaps, float), -1, 0)
    return (2 * both + SMOOTH) / (predicted + true + SMOOTH)


def pooled_iou(overlaps: np.ndarray) -> np.ndarray:
    """IoU of all pixels together from `overlap` summed over patches, (..., 3) -> (...); both empty gives 1."""
    both, predicted, true = np.moveaxis(np.asarray(overlaps, float), -1, 0)
    return (both + SMOOTH) / (predicted + true - both + SMOOTH)


def pooled_precision(overlaps: np.ndarray) -> np.ndarray:
    """Share of the predicted pixels that are true, (..., 3) -> (...) as in `pooled_dice`; 1 where none is predicted."""
    both, predicted, _ = np.moveaxis(np.asarray(overlaps, float), -1, 0)
    return (both + SMOOTH) / (predicted + SMOOTH)


def pooled_recall(overlaps: np.ndarray) -> np.ndarray:
    """Share of the true pixels that are predicted, (..., 3) -> (...) as in `pooled_dice`; 1 where none is true."""
    both, _, true = np.moveaxis(np.asarray(overlaps, float), -1, 0)
    return (both + SMOOTH) / (true + SMOOTH)


class MapCurve:
    """Pixel-level precision and recall of maps over all thresholds, patch by patch.

    A pixel counts as predicted at a threshold when its value is at least the threshold. Each patch is kept as
    two histograms (8 KB whatever its size), which is what the bootstrap resamples.
    """

    def __init__(self):
        self._histograms: list[np.ndarray] = []

    def add(self, values: np.ndarray, truth: np.ndarray) -> None:
        """Add a map (H, W) float in [0, 1] and its true mask (H, W) bool.

        Raises DataError when they differ in size or the map is not in [0, 1] (NaN included).
        """
        if values.shape != truth.shape:
            raise DataError(f"a map of {_size(values)} px was compared with a mask of {_size(truth)} px")
        if not ((values >= 0) & (values <= 1)).all():
            raise DataError("a map holds values outside [0, 1] or NaN")
        # The margin keeps k / THRESHOLDS, which floats only come near to, in the bin that it opens.
        bins = np.minimum((values.astype(np.float64) * THRESHOLDS + 1e-4).astype(np.int64), THRESHOLDS - 1)
        both = np.bincount(bins.ravel() + THRESHOLDS * truth.ravel(), minlength=2 * THRESHOLDS)
        self._histograms.append(both.astype(np.int32))

    def average_precision(self, resamples: int, *seed: object) -> tuple[float, float, float]:
        """PxAP, low, high: area under the precision-recall curve of all pixels together, in [0, 1].

        Source: Choe et al., "Evaluating weakly supervised object localization methods right", CVPR 2020.
        """
        return with_interval(self._rows(), _average_precision, resamples, *seed)

    def best_dice(self, resamples: int, *seed: object) -> tuple[float, float, float]:
        """Highest mean per-patch Dice that one threshold for all patches reaches, low, high.

        The threshold is chosen again in each resample. A bound for comparing maps, not a result: it is
        chosen on true masks.
        """
        per_patch = self._dice_at_thresholds()
        count = np.ones((len(per_patch), 1))
        return with_interval(np.hstack([per_patch, count]), lambda s: (s[:, :-1] / s[:, -1:]).max(1), resamples, *seed)

    def whole_patch_dice(self) -> float:
        """Mean per-patch Dice of calling every pixel tumour: what any other figure is to be compared with."""
        return float(self._dice_at_thresholds()[:, 0].mean())

    def _dice_at_thresholds(self) -> np.ndarray:
        """Dice of each patch at each threshold, (N, T)."""
        normal, tumour = _at_thresholds(self._rows())
        return (2 * tumour + SMOOTH) / (normal + tumour + tumour[:, :1] + SMOOTH)

    def _rows(self) -> np.ndarray:
        if not self._histograms:
            raise DataError("no map with a true mask was given; nothing can be measured")
        return np.stack(self._histograms)


def _at_thresholds(histograms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of normal tissue and of tumour at or above each threshold: (N, 2 T) -> 2 x (N, T)."""
    cumulated = histograms.reshape(-1, 2, THRESHOLDS)[..., ::-1].cumsum(-1)[..., ::-1]
    return cumulated[:, 0], cumulated[:, 1]


def _average_precision(histograms: np.ndarray) -> np.ndarray:
    normal, tumour = _at_thresholds(histograms)
    predicted = normal + tumour
    precision = np.divide(tumour, predicted, out=np.ones_like(predicted, float), where=predicted > 0)
    recall = tumour / np.maximum(tumour[:, :1], 1)
    steps = recall - np.hstack([recall[:, 1:], np.zeros_like(recall[:, :1])])
    return (precision * steps).sum(1)


def mean_with_interval(
    values: np.ndarray, resamples: int, *seed: object, groups: Sequence[str] | None = None
) -> tuple[float, float, float]:
    """Mean of values (N,), and its 95% bootstrap interval: mean, low, high."""
    values = np.asarray(values, float)
    rows = np.stack([values, np.ones_like(values)], 1)
    return with_interval(rows, lambda sums: sums[:, 0] / sums[:, 1], resamples, *seed, groups=groups)


def with_interval(
    rows: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    resamples: int,
    *seed: object,
    groups: Sequence[str] | None = None,
) -> tuple[float, float, float]:
    """A statistic of sums over patches and its 95% percentile bootstrap interval: value, low, high.

    `rows` (N, K) holds one row per patch; `statistic` takes sums of rows, (R, K) -> (R,). Patches are resampled
    with replacement, each by itself: the interval says how far the figure hangs on which patches were drawn,
    not how far it would move with other slides. With `groups`, the slide of each row, whole slides are resampled
    (cluster bootstrap), which does say that, roughly where slides are few. The generator depends on `seed` alone.
    With no resamples low and high equal the value. Raises DataError when there are no rows.
    """
    rows = np.asarray(rows, float)
    if not len(rows):
        raise DataError("no patch with a true mask was given; nothing can be measured")
    if groups is not None:
        names, index = np.unique(np.asarray(groups), return_inverse=True)
        summed = np.zeros((len(names), rows.shape[1]))
        np.add.at(summed, index, rows)
        rows = summed
    value = float(statistic(rows.sum(0, keepdims=True))[0])
    if not resamples:
        return value, value, value
    rng = generator(*seed)
    drawn = np.empty(resamples)
    for start in range(0, resamples, 100):
        part = min(100, resamples - start)
        counts = np.stack(
            [np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows)) for _ in range(part)]
        )
        drawn[start : start + part] = statistic(counts @ rows)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return value, float(low), float(high)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of labels (N,) in {0, 1} and scores (N,), ties counted half.

    Raises DataError when one of the two classes is missing.
    """
    labels, scores = _two_classes(labels, scores)
    positives = int(labels.sum())
    ordered, positive = np.sort(scores), scores[labels]
    # From 1, the mean of those that are equal; scipy.stats has them too, and takes 0.7 s to load.
    ranks = (np.searchsorted(ordered, positive) + np.searchsorted(ordered, positive, "right") + 1).sum() / 2
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def accuracy(labels: np.ndarray, scores: np.ndarray, threshold: float = 0.5) -> float:
    """Share of labels (N,) in {0, 1} that score >= threshold gets right."""
    return float(((np.asarray(scores) >= threshold) == np.asarray(labels, bool)).mean())


def sensitivity_at_specificity(labels: np.ndarray, scores: np.ndarray, specificity: float = 0.9) -> float:
    """Highest sensitivity of a threshold whose specificity is at least `specificity`.

    Raises DataError when one of the two classes is missing.
    """
    labels, scores = _two_classes(labels, scores)
    thresholds = np.append(np.unique(scores), np.inf)
    negatives, positives = np.sort(scores[~labels]), np.sort(scores[labels])
    specific = np.searchsorted(negatives, thresholds, "left") / len(negatives)
    sensitive = 1 - np.searchsorted(positives, thresholds, "left") / len(positives)
    return float(sensitive[specific >= specificity].max())


def _two_classes(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels, bool), np.asarray(scores, float)
    if labels.all() or not labels.any():
        raise DataError(f"all {len(labels)} patches have the same label; AUC needs both positives and negatives")
    if not np.isfinite(scores).all():
        raise DataError("a score is not finite; train the classifier again")
    return labels, scores


def _size(array: np.ndarray) -> str:
    return " x ".join(str(side) for side in array.shape[::-1])
