"""Masks cut from class activation maps."""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from epsam.cam.activation_map import ActivationMap, check_finite_map, resize_map
from epsam.config.schema import Cam


def cam_mask(cam: ActivationMap, settings: Cam, size: tuple[int, int]) -> np.ndarray:
    """The CAM mask (height, width) bool of `size`. A map of zeros gives an empty one.

    The map is resized to `mask_px` on a side, cut above its threshold, opened, and resized to `size`. Raises DataError
    when the map is not finite.
    """
    (mask,) = masks_at(cam.values, [cam.threshold], settings)
    return cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5


def masks_at(values: np.ndarray, thresholds: Iterable[float], settings: Cam) -> Iterator[np.ndarray]:
    """The masks (mask_px, mask_px), uint8 0 or 1, cut from a map (h, w) at each of `thresholds` and opened."""
    resized = at_mask_px(values, settings)
    kernel = np.ones((settings.opening_px, settings.opening_px), np.uint8)
    for threshold in thresholds:
        mask = (resized > threshold).astype(np.uint8)
        yield cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel).astype(np.uint8) if settings.opening_px > 1 else mask


def at_mask_px(values: np.ndarray, settings: Cam) -> np.ndarray:
    """A map (h, w) in [0, 1] at `mask_px` on a side. Raises DataError when it is not finite."""
    check_finite_map(values)
    return resize_map(values, (settings.mask_px, settings.mask_px))
