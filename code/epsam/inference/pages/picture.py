"""The picture of a slide that its page zooms into: JPEG tiles of at most three levels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from epsam.inference.output import PICTURE_LEVELS, tile_suffix
from epsam.runtime.files import atomic
from epsam.slides.overview import Grid
from epsam.slides.slide import Slide

TILE_PX = 2048
LONGEST_PX = TILE_PX * 2 ** (PICTURE_LEVELS - 1)
"""Of the finest level, whatever the size of the slide: 8192, and so at most 21 tiles, about 20 MB, for a slide."""
QUALITY = 80
BLOCK_PX = 1024

Write = Callable[[int, int, int, np.ndarray], None]
"""Level, row and column of a tile, and the tile, RGB uint8 (H, W, 3)."""


@dataclass(frozen=True)
class Picture:
    """What was written of a slide."""

    levels: list[tuple[int, int, float]]
    """Width, height and level-0 px per px of each level, the coarsest, which is one tile, first."""
    coarsest: np.ndarray
    """RGB uint8 (H, W, 3)."""

    @property
    def step(self) -> float:
        """Level-0 px per px of `coarsest`."""
        return self.levels[0][2]


def finest_downsample(slide: Slide) -> float:
    """Level-0 px per px of the finest tiles.

    That of a level of the file where one is at most LONGEST_PX long and at least half of it: it is read as it is.
    """
    longest = max(slide.size)
    at_least = max(1.0, longest / LONGEST_PX * (1 + 1e-9))  # no rounding may make it a pixel longer
    own = [d for d in slide.level_downsamples if at_least <= d <= 2 * at_least]
    return min(own, default=at_least)


def write_picture(folder: Path, name: str, slide: Slide) -> Picture:
    """Write the tiles of `slide` as <folder>/<name>_<level>_<row>_<column>.jpg; holds a row of tiles in memory.

    Raises SlideError when the slide cannot be read.
    """
    grid = Grid.of(slide, finest_downsample(slide), BLOCK_PX)

    def write(level: int, row: int, column: int, tile: np.ndarray) -> None:
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(tile), QUALITY, "RGB", "420")
        with atomic(folder / (name + tile_suffix(level, row, column))) as temporary:
            temporary.write_bytes(data)

    sizes = [(grid.width, grid.height)]
    while max(sizes[0]) > TILE_PX:
        sizes.insert(0, (-(-sizes[0][0] // 2), -(-sizes[0][1] // 2)))
    levels: list[_Level] = []
    for number, size in enumerate(sizes):
        levels.append(_Level(number, size, write, levels[-1] if levels else None))
    for strip in grid.strips():
        levels[-1].add(strip)
    finest = len(sizes) - 1
    return Picture([(*size, grid.downsample * 2 ** (finest - i)) for i, size in enumerate(sizes)], levels[0].rows)


class _Level:
    """One level, whose tiles are written and handed on to the next coarser one as soon as their rows are there."""

    def __init__(self, number: int, size: tuple[int, int], write: Write, coarser: "_Level | None"):
        self.width, self.height = size
        self.rows = np.empty((min(TILE_PX, self.height), self.width, 3), np.uint8)
        self._number, self._write, self._coarser = number, write, coarser
        self._filled = self._tile_row = 0

    def add(self, rows: np.ndarray) -> None:
        """The next rows, (n, width, 3) uint8."""
        while len(rows):
            count = min(len(rows), len(self.rows) - self._filled)
            self.rows[self._filled : self._filled + count] = rows[:count]
            rows, self._filled = rows[count:], self._filled + count
            if self._filled == len(self.rows):
                self._flush()

    def _flush(self) -> None:
        for column, left in enumerate(range(0, self.width, TILE_PX)):
            self._write(self._number, self._tile_row, column, self.rows[:, left : left + TILE_PX])
        if self._coarser:
            half = (-(-self.width // 2), -(-len(self.rows) // 2))
            self._coarser.add(cv2.resize(self.rows, half, interpolation=cv2.INTER_AREA))
        self._tile_row += 1
        left = self.height - self._tile_row * TILE_PX
        if left > 0:
            self.rows, self._filled = self.rows[:left], 0
