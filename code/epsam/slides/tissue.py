"""Where a slide holds tissue (method.md, section 0)."""

import cv2
import numpy as np

from epsam.config.schema import Tissue
from epsam.slides.overview import Grid, Thumbnail, overview
from epsam.slides.slide import Slide

GREY = 0.1
"""Pen, dust and missing tiles darken all channels alike; a stain's channels differ by more than this share of its
darkness."""
PALE = 0.12
"""Glass has channels that differ by less than this share of its brightness."""
MIN_CONTRAST = 8
"""Otsu splits anything, the noise of glass too, so the channels of tissue must differ by so much more than those of
glass do."""
SMALL_PX = 512
"""Longest side of the overview in which a slide without tissue is looked at for colour."""
PEN, GLASS, MIN_TONES = 64, 192, 0.02
"""Brightness below which pen is, from which glass is, and share of a slide between them where it shows something."""
SMOOTH_PX = 5
"""Colour is compared as a mean over so many pixels of the overview, in which noise cancels out."""
HALO = SMOOTH_PX // 2
STRIP_ROWS = 256
GREY_SLIDE = "has no colour (grey or black, stored as RGB), and stain is told by colour; export it again in colour"
"""What errors say of a slide that `is_grey`."""


def tissue_mask(rgb: np.ndarray, settings: Tissue, threshold: float | None = None) -> np.ndarray:
    """(H, W) bool of an overview (H, W, 3) uint8 RGB: saturation above Otsu's threshold, closed and smoothed.

    threshold: saturation in 0..255 in place of Otsu's, for slides on which that fails.
    """
    planes = _Planes(*rgb.shape[:2])
    planes.add(rgb)
    return planes.mask(settings, threshold)


def find_tissue(
    slide: Slide, settings: Tissue, threshold: float | None = None, thumbnail: Thumbnail | None = None
) -> np.ndarray:
    """(ceil(H / downsample), ceil(W / downsample)) bool of the slide, as `tissue_mask` of its overview.

    The slide is read once, strip by strip, in about 3 bytes of memory a pixel of the overview; a `thumbnail` of the
    overview's size is filled on the way.
    """
    grid = Grid.of(slide, settings.downsample)
    planes = _Planes(grid.height, grid.width)
    for strip in grid.strips():
        planes.add(strip)
        if thumbnail is not None:
            thumbnail.add(strip)
    return planes.mask(settings, threshold)


def is_grey(slide: Slide) -> bool:
    """Whether a slide shows something, but without any colour: grey or black stored as RGB.

    Glass is brighter, pen darker than the tones of grey tissue.
    """
    rgb = overview(slide, max(1, max(slide.size) / SMALL_PX))
    brightness = rgb.max(axis=2)
    tones = (brightness >= PEN) & (brightness < GLASS)
    shown = tones.mean() > MIN_TONES or np.median(brightness) < PEN
    return bool(shown and np.percentile(np.ptp(rgb, axis=2), 99.9) < MIN_CONTRAST)


class _Planes:
    """What the mask needs of an overview, a byte a pixel each, from its rows as they come."""

    def __init__(self, height: int, width: int):
        self.saturation = np.empty((height, width), np.uint8)
        self.colour = np.empty((height, width), np.uint8)
        """Greatest less smallest channel of the smoothed overview."""
        self.glass = np.zeros(256, np.int64)
        """How many pixels of glass have each colour."""
        self._done = 0
        self._rows = np.empty((0, width, 3), np.uint8)
        """Rows that wait for those below, with the rows above that smoothing needs."""
        self._above = 0

    def add(self, strip: np.ndarray) -> None:
        """The next (rows, W, 3) uint8 RGB."""
        for top in range(0, len(strip), STRIP_ROWS):
            self._rows = np.concatenate([self._rows, strip[top : top + STRIP_ROWS]])
            self._take(len(self._rows) - HALO)

    def _take(self, end: int) -> None:
        """Fill the planes from the rows that wait, but those from `end` on."""
        if end <= self._above:
            return
        rows = slice(self._above, end)
        saturation = cv2.extractChannel(cv2.cvtColor(self._rows[rows], cv2.COLOR_RGB2HSV), 1)
        red, green, blue = cv2.split(cv2.blur(self._rows, (SMOOTH_PX, SMOOTH_PX))[rows])
        low, high = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
        colour = high - low
        saturation[colour < cv2.convertScaleAbs(255 - low, alpha=GREY)] = 0
        # Pure white is where the file holds nothing.
        glass = colour[(colour < cv2.convertScaleAbs(high, alpha=PALE)) & (low < 255)]
        self.glass += np.bincount(glass, minlength=256)
        out = slice(self._done, self._done + end - self._above)
        self.saturation[out], self.colour[out] = saturation, colour
        self._done = out.stop
        keep = max(0, end - HALO)
        self._rows, self._above = self._rows[keep:].copy(), end - keep

    def mask(self, settings: Tissue, threshold: float | None) -> np.ndarray:
        """(H, W) bool, after the last row."""
        self._take(len(self._rows))
        out = np.empty(self.saturation.shape, np.uint8)
        if threshold is None:
            cut, _ = cv2.threshold(self.saturation, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU, dst=out)
            contrast = _median(self.glass) + MIN_CONTRAST
        else:
            cut, contrast = threshold, 0.0
        halo = 2 * settings.close_px * settings.close_iterations + settings.median_px
        height = len(out)
        for top in range(0, height, STRIP_ROWS):
            first, last = max(0, top - halo), min(height, top + STRIP_ROWS + halo)
            mask = (self.saturation[first:last] > cut) & (self.colour[first:last] >= contrast)
            out[top : top + STRIP_ROWS] = _smoothed(mask, settings)[top - first :][:STRIP_ROWS]
        return out.view(bool)


def _median(counts: np.ndarray) -> float:
    """Median of numbers 0, 1, ... that come so often; 0 of none."""
    total, up_to = int(counts.sum()), np.cumsum(counts)
    middle = np.searchsorted(up_to, [(total - 1) // 2 + 1, total // 2 + 1])
    return float(middle.mean()) if total else 0.0


def _smoothed(mask: np.ndarray, settings: Tissue) -> np.ndarray:
    """Closed and median-filtered (H, W) bool. Beyond the border lies no tissue: closing would else reach for it."""
    height, width = mask.shape
    margin = settings.close_px * settings.close_iterations
    closed = cv2.copyMakeBorder(mask.astype(np.uint8), margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=[0])
    if settings.close_iterations:
        kernel = np.ones((settings.close_px, settings.close_px), np.uint8)
        closed = cv2.morphologyEx(closed, cv2.MORPH_CLOSE, kernel, iterations=settings.close_iterations)
    inside = np.ascontiguousarray(closed[margin : margin + height, margin : margin + width])
    return cv2.medianBlur(inside, settings.median_px | 1) > 0
