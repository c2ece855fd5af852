"""Where a slide holds tissue (method.md, section 0)."""

import cv2
import numpy as np

from epsam.config.schema import Tissue
from epsam.slides.slide import Slide, overview

GREY = 0.1
"""Pen, dust and missing tiles darken all channels alike; a stain's channels differ by more than this share of its
darkness."""
PALE = 0.12
"""Glass has channels that differ by less than this share of its brightness."""
LEAST_CONTRAST = 8
"""Otsu splits anything, the noise of glass too, so the channels of tissue must differ by so much more than those of
glass do."""
SMOOTH_PX = 5
"""Colour is compared as a mean over so many pixels of the overview, in which noise cancels out."""


def tissue_mask(rgb: np.ndarray, settings: Tissue, threshold: int | None = None) -> np.ndarray:
    """(H, W) bool of an overview (H, W, 3) uint8 RGB: saturation above Otsu's threshold, closed and smoothed.

    threshold: saturation in 0..255 in place of Otsu's, for slides on which that fails.
    """
    saturation = cv2.extractChannel(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV), 1)
    red, green, blue = cv2.split(cv2.blur(rgb, (SMOOTH_PX, SMOOTH_PX)))
    low, high = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    colour = high - low
    saturation[colour < cv2.convertScaleAbs(255 - low, alpha=GREY)] = 0
    if threshold is None:
        threshold, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        # Pure white is where the file holds nothing.
        glass = colour[(colour < cv2.convertScaleAbs(high, alpha=PALE)) & (low < 255)]
        saturation[colour < (np.median(glass) if glass.size else 0) + LEAST_CONTRAST] = 0
    return _smoothed(saturation > threshold, settings)


def _smoothed(mask: np.ndarray, settings: Tissue) -> np.ndarray:
    """Closed and median-filtered (H, W) bool. Beyond the border lies no tissue: closing would else reach for it."""
    height, width = mask.shape
    margin = settings.close_px * settings.close_iterations
    closed = cv2.copyMakeBorder(mask.astype(np.uint8), *[margin] * 4, cv2.BORDER_CONSTANT, value=0)
    if settings.close_iterations:
        kernel = np.ones((settings.close_px, settings.close_px), np.uint8)
        closed = cv2.morphologyEx(closed, cv2.MORPH_CLOSE, kernel, iterations=settings.close_iterations)
    inside = np.ascontiguousarray(closed[margin : margin + height, margin : margin + width])
    return cv2.medianBlur(inside, settings.median_px | 1) > 0


def find_tissue(slide: Slide, settings: Tissue, threshold: int | None = None) -> np.ndarray:
    """(ceil(H / downsample), ceil(W / downsample)) bool of the slide."""
    return tissue_mask(overview(slide, settings.downsample), settings, threshold)
