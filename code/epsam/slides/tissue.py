"""Where a slide holds tissue (method.md, section 0)."""

import cv2
import numpy as np

from epsam.config import Tissue
from epsam.slides.reader import Slide, overview

STAINED = 30
LEAST_CONTRAST = 6
"""Otsu splits anything, the noise of an empty slide too: when what it finds is both below STAINED and less than
LEAST_CONTRAST above the rest (saturation, of 255), there is nothing."""
DARK = 40
"""Saturation means nothing in pixels whose brightest channel is below this: pen, missing tiles, dust."""


def tissue_mask(rgb: np.ndarray, settings: Tissue, threshold: int | None = None) -> np.ndarray:
    """(H, W) bool of an overview (H, W, 3) uint8 RGB: saturation above Otsu's threshold, closed and smoothed.

    threshold: saturation in 0..255 in place of Otsu's, for slides on which that fails.
    """
    saturation, value = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV))[1:]
    saturation[value < DARK] = 0
    if threshold is None:
        threshold, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        if _looks_empty(saturation, threshold):
            return np.zeros(saturation.shape, bool)
    mask = (saturation > threshold).astype(np.uint8)
    if settings.close_iterations:
        kernel = np.ones((settings.close_px, settings.close_px), np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel, iterations=settings.close_iterations)
    return cv2.medianBlur(mask, settings.median_px | 1) > 0


def _looks_empty(saturation: np.ndarray, threshold: float) -> bool:
    stained = saturation > threshold
    if not stained.any():
        return True
    found, rest = saturation[stained].mean(), saturation[~stained].mean() if not stained.all() else 0
    return found < STAINED and found - rest < LEAST_CONTRAST


def find_tissue(slide: Slide, settings: Tissue, threshold: int | None = None) -> np.ndarray:
    """(ceil(H / downsample), ceil(W / downsample)) bool of the slide."""
    return tissue_mask(overview(slide, settings.downsample), settings, threshold)
