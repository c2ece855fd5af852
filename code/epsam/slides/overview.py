"""A whole slide at a coarse scale, at once or strip by strip."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from epsam.errors import SlideError
from epsam.slides.slide import Slide

MAX_OVERVIEW_PX = 2**27
"""Of a whole slide at its coarse scale; a slide of 300,000 x 300,000 px is below it at a downsample of 32."""
BLOCK_PX = 2048
"""Side of the blocks that are read, in pixels of the level."""
MIN_STRIP_ROWS = 64


@dataclass(frozen=True)
class Grid:
    """Pixel [i, j] covers level-0 pixels from (x + j * downsample, y + i * downsample) on."""

    slide: Slide
    downsample: float
    x: int
    y: int
    width: int
    height: int
    block_px: int

    @classmethod
    def of(
        cls,
        slide: Slide,
        downsample: float,
        block_px: int = BLOCK_PX,
        window: tuple[int, int, int, int] | None = None,
    ) -> "Grid":
        """Of the slide or its `window` x, y, W, H in level-0 px.

        Raises SlideError when that is more than MAX_OVERVIEW_PX: a small file may claim any size.
        """
        x, y, *size = window or (0, 0, *slide.size)
        width, height = (-int(-side // downsample) for side in size)
        if width * height > MAX_OVERVIEW_PX:
            raise SlideError(
                f"{slide.path}: claims {size[0]} x {size[1]} px, too many to look at 1 in {downsample:g}; if that is "
                "its true size, raise patches.tissue.downsample, else get the file again"
            )
        return cls(slide, downsample, x, y, width, height, block_px)

    @property
    def level(self) -> int:
        """The level that is read."""
        return self.slide.level_for(self.downsample)

    @property
    def factor(self) -> float:
        """Pixels of the level per pixel of the grid."""
        return self.downsample / self.slide.level_downsamples[self.level]

    @property
    def step(self) -> int:
        """Pixels of the grid along the side of a block."""
        return max(1, int(self.block_px / self.factor))

    def strips(self) -> Iterator[np.ndarray]:
        """(rows, width, 3) uint8 RGB from the top to the bottom, each of some blocks' height."""
        rows = self.step * -(-MIN_STRIP_ROWS // self.step)
        for top in range(0, self.height, rows):
            strip = np.empty((min(rows, self.height - top), self.width, 3), np.uint8)
            for inner in range(0, len(strip), self.step):
                self._read_blocks(top + inner, strip[inner : inner + self.step])
            yield strip

    def _read_blocks(self, top: int, out: np.ndarray) -> None:
        """Fill (rows, width, 3), at most a block high."""
        factor, level = self.factor, self.level
        rows = len(out)
        for left in range(0, self.width, self.step):
            columns = min(self.step, self.width - left)
            block = self.slide.read(
                round(self.x + left * self.downsample),
                round(self.y + top * self.downsample),
                max(1, round(columns * factor)),
                max(1, round(rows * factor)),
                level,
            )
            if block.shape[:2] != (rows, columns):
                block = cv2.resize(block, (columns, rows), interpolation=cv2.INTER_AREA)
            out[:, left : left + columns] = block


def overview(
    slide: Slide, downsample: float, block_px: int = BLOCK_PX, window: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """The whole slide, or its `window` x, y, W, H in level-0 px, as (ceil(H / downsample), ceil(W / downsample), 3).

    uint8 RGB. Pixel [i, j] covers level-0 pixels from (x + j * downsample, y + i * downsample) on, whatever levels
    the file has; it is read in blocks of at most `block_px` level pixels, so memory grows with the result alone.
    Raises SlideError when that is more than MAX_OVERVIEW_PX: a small file may claim any size.
    """
    grid = Grid.of(slide, downsample, block_px, window)
    out, top = np.empty((grid.height, grid.width, 3), np.uint8), 0
    for strip in grid.strips():
        out[top : top + len(strip)] = strip
        top += len(strip)
    return out


def overview_size(slide: Slide, downsample: float) -> tuple[int, int]:
    """(width, height) of the slide's `overview`; raises SlideError as that does."""
    grid = Grid.of(slide, downsample)
    return grid.width, grid.height


class Thumbnail:
    """A small picture of what comes strip by strip: means over blocks, its longer side `longest_px` or little more."""

    def __init__(self, width: int, height: int, longest_px: int):
        self._block = max(1, max(width, height) // longest_px)
        self._parts: list[np.ndarray] = []
        self._rest = np.empty((0, width, 3), np.uint8)

    def add(self, strip: np.ndarray) -> None:
        """The next rows, (rows, width, 3) uint8."""
        rows = np.concatenate([self._rest, strip]) if len(self._rest) else strip
        whole = len(rows) // self._block * self._block
        self._shrink(rows[:whole])
        self._rest = rows[whole:].copy()

    def _shrink(self, rows: np.ndarray) -> None:
        if len(rows):
            size = -(-rows.shape[1] // self._block), -(-len(rows) // self._block)
            self._parts.append(cv2.resize(rows, size, interpolation=cv2.INTER_AREA))

    def picture(self) -> np.ndarray:
        """(h, w, 3) uint8 RGB of all rows."""
        self._shrink(self._rest)
        self._rest = self._rest[:0]
        return np.concatenate(self._parts)
