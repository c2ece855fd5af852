"""Where a class activation map is cut: a fixed value, a percentile, or Otsu's criterion on features."""

import cv2
import numpy as np

from epsam.cam.activation_map import check_finite_map
from epsam.cam.mask import masks_at
from epsam.config.schema import Cam


def fixed_threshold(values: np.ndarray, settings: Cam) -> float:
    """The threshold of a map (h, w) in [0, 1] by settings alone: a fixed threshold, or the percentile of what is not zero.

    The percentile is that of the map as the network gives it, as published, not of the map resized to `mask_px`.
    Raises DataError when the map is not finite.
    """
    if isinstance(settings.threshold, float):
        return settings.threshold
    if settings.percentile is None:
        raise ValueError("with cam.threshold: auto a map has no fixed threshold; see otsu_threshold")
    check_finite_map(values)
    positive = values[values > 0]
    return float(np.percentile(positive, settings.percentile)) if len(positive) else 1.0


THRESHOLDS = np.linspace(0.02, 0.6, 30)
"""Thresholds that are tried."""


GLASS = 220
"""A pixel whose darkest channel is at least this shows no tissue."""


NEAR_BEST = 0.9
"""Share of the greatest variance that is enough: of thresholds about as good, the lowest gives the largest mask."""


def otsu_threshold(values: np.ndarray, features: np.ndarray, image: np.ndarray, settings: Cam) -> float:
    """The lowest of THRESHOLDS, `max_threshold` at most, whose CAM mask separates the features about as well as the best.

    `values` (h, w) in [0, 1] is the map, `features` (C, fh, fw) float the classifier's at stride 8 (`fine_features`),
    `image` (H, W, 3) the patch, RGB uint8. The criterion is the variance between the two classes, inside and outside of
    the mask (Otsu, IEEE Trans. Syst. Man Cybern. 9, 1979), summed over the channels. Glass is left out, as nothing else
    differs as much. The best threshold itself gives masks that are too small; so the lowest of all thresholds with
    NEAR_BEST of the greatest variance is taken. Where no threshold separates anything, as in a map of zeros, that is
    the lowest of all.
    """
    grid = features.shape[1:]
    tissue = _resized(image.min(2) < GLASS, grid)
    shares = np.stack([_resized(mask, grid) for mask in masks_at(values, THRESHOLDS, settings)])
    variances = between_variance(features.reshape(len(features), -1).T, shares, tissue)
    return min(float(THRESHOLDS[(variances >= NEAR_BEST * variances.max()).argmax()]), settings.max_threshold)


def between_variance(features: np.ndarray, shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Variance between two classes, (T,), of features (P, C) that belong to the first by `shares` (T, P) in [0, 1].

    w (1 - w) |m1 - m0|^2 with the weight w of the first class and the means m1, m0 of both, each feature counting by
    `weights` (P,) in [0, 1]; 0 for an empty class.
    """
    total = max(weights.sum(), 1e-6)
    first = (shares * weights).sum(1, keepdims=True)
    second = total - first
    sums = (shares * weights) @ features
    means = sums / np.maximum(first, 1e-6), (weights @ features - sums) / np.maximum(second, 1e-6)
    return (first * second / total**2).squeeze(1) * ((means[0] - means[1]) ** 2).sum(1)


def _resized(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Share of each place of `grid` (rows, columns) that a mask covers, flat, float32."""
    return cv2.resize(mask.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA).ravel()
