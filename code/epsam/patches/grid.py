"""Candidate windows of a slide: where they lie and how large they are."""

import math

import cv2
import numpy as np

from epsam.config.schema import Patches
from epsam.errors import SlideError


def window_px(settings: Patches, mpp: tuple[float, float] | None) -> int:
    """Side of a window in level-0 pixels: `size_px`, or what covers it at `target_mpp`.

    Raises SlideError when `target_mpp` is set and the slide's resolution is not known.
    """
    if settings.target_mpp is None:
        return settings.size_px
    if mpp is None:
        raise SlideError(
            "the slide does not say its resolution, which patches.target_mpp needs; give it in the column mpp of slides.csv, or "
            "set patches.target_mpp=null to cut all slides at level 0"
        )
    return max(1, round(settings.size_px * settings.target_mpp / (sum(mpp) / 2)))


def candidate_windows(
    tissue: np.ndarray, size: tuple[int, int], read_px: int, settings: Patches
) -> tuple[np.ndarray, np.ndarray]:
    """Level-0 x and y, each (n,) int64, of the windows whose central part holds tissue.

    tissue: (h, w) bool at `settings.tissue.downsample`; size: (width, height) of level 0.
    Windows lie on a grid without overlap, and on the same grid shifted by half a window right and down; all
    lie inside the slide less `settings.border` on every side.
    """
    width, height = size
    xs, ys = [], []
    for shift in (0, read_px // 2):
        x, y = (
            np.arange(
                math.ceil(settings.border * side) + shift,
                side - math.ceil(settings.border * side) - read_px + 1,
                read_px,
            )
            for side in (width, height)
        )
        grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
        xs.append(grid_x.ravel())
        ys.append(grid_y.ravel())
    x, y = np.concatenate(xs).astype(np.int64), np.concatenate(ys).astype(np.int64)
    held = _holds_tissue(tissue, x, y, read_px, settings)
    return x[held], y[held]


def _holds_tissue(tissue: np.ndarray, x: np.ndarray, y: np.ndarray, read_px: int, settings: Patches) -> np.ndarray:
    """(n,) bool: any tissue in the central part (half-width `centre`) of each window."""
    start, side = (0.5 - settings.centre) * read_px, 2 * settings.centre * read_px
    return _tissue_in(tissue, x + start, y + start, side, settings.tissue.downsample)[0] > 0


def share_of_windows(tissue: np.ndarray, x: np.ndarray, y: np.ndarray, read_px: int, downsample: float) -> np.ndarray:
    """(n,) float64: share of each window of `read_px` level-0 px at x, y that is tissue, (h, w) bool at `downsample`."""
    count, area = _tissue_in(tissue, x, y, read_px, downsample)
    return np.asarray(count / area)


def _tissue_in(
    tissue: np.ndarray, x: np.ndarray, y: np.ndarray, side: float, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of tissue in squares of `side` level-0 px at x, y, and all their pixels, at least one each; (n,) each."""
    sums = cv2.integral(tissue.astype(np.uint8))
    spans = []
    for start, length in ((x, tissue.shape[1]), (y, tissue.shape[0])):
        first = np.clip(np.floor(start / scale).astype(int), 0, length - 1)
        last = np.clip(np.ceil((start + side) / scale).astype(int), first + 1, length)
        spans += [first, last]
    x0, x1, y0, y1 = spans
    return sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0], (x1 - x0) * (y1 - y0)
