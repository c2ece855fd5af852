"""The tumour probability of a whole slide, kept in a file: what all exports are made from."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

OVERVIEW = 8
"""Map pixels per pixel of the overview that is held in memory."""


@dataclass(frozen=True)
class ProbabilityMap:
    """Probability per map pixel, 0 to 255 for 0 to 1, in a raw uint8 file; read in windows, never as a whole.

    Map pixel [r, c] covers level-0 pixels x in [c * step, (c + 1) * step), y likewise.
    """

    path: Path
    slide_size: tuple[int, int]
    """Width and height of the slide in level-0 px."""
    step: float
    """Level-0 px per map px."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        width, height = self.slide_size
        return math.ceil(height / self.step), math.ceil(width / self.step)

    def read(self, row0: int, row1: int, column0: int, column1: int) -> np.ndarray:
        """Copy of the window [row0:row1, column0:column1], uint8; cut at the border of the map."""
        # Mapped anew for each read, so that the pages do not add up in this process.
        rows = np.memmap(self.path, np.uint8, "r", shape=self.shape)
        return np.array(rows[max(row0, 0) : row1, max(column0, 0) : column1])

    def blocks(self, side: int = 1024) -> Iterator[tuple[int, int, int, int]]:
        """Windows row0, row1, column0, column1 that tile the map, row by row."""
        rows, columns = self.shape
        for row in range(0, rows, side):
            for column in range(0, columns, side):
                yield row, min(row + side, rows), column, min(column + side, columns)

    @cached_property
    def overview(self) -> np.ndarray:
        """The map at 1/OVERVIEW of its size, uint8, each pixel the mean of what it covers."""
        rows, columns = self.shape
        strips = []
        for row in range(0, rows, 128 * OVERVIEW):
            strip = self.read(row, row + 128 * OVERVIEW, 0, columns)
            padding = ((0, -strip.shape[0] % OVERVIEW), (0, -strip.shape[1] % OVERVIEW))
            strip = np.pad(strip, padding, mode="edge")
            size = (strip.shape[1] // OVERVIEW, strip.shape[0] // OVERVIEW)
            strips.append(cv2.resize(strip, size, interpolation=cv2.INTER_AREA).reshape(size[::-1]))
        return np.concatenate(strips)

    def sample(self, x: float, y: float, width: int, height: int, downsample: float) -> np.ndarray:
        """Probability in a window of the slide at any resolution, bilinear, uint8 (height, width).

        `x`, `y`: its level-0 corner; `width`, `height`: its size in pixels of `downsample` level-0 px each.
        """
        step, source = self.step, None
        if downsample >= OVERVIEW * step:
            step, source = step * OVERVIEW, self.overview
        scale = downsample / step
        margin = math.ceil(scale) + 1
        column0, row0 = (max(0, math.floor(v / step) - margin) for v in (x, y))
        column1 = math.ceil((x + width * downsample) / step) + margin
        row1 = math.ceil((y + height * downsample) / step) + margin
        window = self.read(row0, row1, column0, column1) if source is None else source[row0:row1, column0:column1]
        if window.size == 0:
            return np.zeros((height, width), np.uint8)
        low, high = int(window.min()), int(window.max())
        if low == high:
            return np.full((height, width), low, np.uint8)
        if scale > 1:
            side = 2 * round(scale / 2) + 1  # odd, so that nothing shifts
            window = cv2.blur(window, (side, side))
        # Centre of output pixel i, in pixels of the window.
        shift = [(v + downsample / 2) / step - 0.5 - first for v, first in ((x, column0), (y, row0))]
        affine = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        return cv2.warpAffine(
            window,
            affine,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
