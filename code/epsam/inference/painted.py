"""Foci as pixels, of the rows that are asked for alone."""

from collections.abc import Iterator

import numpy as np

from epsam.inference.foci import Foci
from epsam.slides.rasterize import Rasterizer, rows_of_window
from epsam.slides.spans import Spans, stacked

LOADED_BYTES = 4_000_000
"""Of outlines, as they lie in their file, that are read at a time; painting takes about ten times as much memory."""
READ_AGAIN = 1.5
"""Rows are parted while that makes no more to read by this factor."""


class PaintedFoci:
    """The foci painted as the XML of the same outlines is: all outlines, and then what is excluded of them."""

    def __init__(self, foci: Foci):
        self._layers = (foci.outlines, foci.exclusions)
        self._layer = np.repeat([0, 1], [len(polygons) for polygons in self._layers])
        self._number = np.concatenate([np.arange(len(polygons)) for polygons in self._layers])
        self._top, self._bottom = np.concatenate([polygons.bounds for polygons in self._layers])[:, [1, 3]].T.copy()
        self._size = np.concatenate([polygons.sizes for polygons in self._layers])
        self._window: tuple[int, int, float] | None = None
        self._spans = stacked([])

    def mask(self, x: int, y: int, width: int, height: int, downsample: float) -> np.ndarray:
        """As `Spans.mask`."""
        return self._of_rows(y, height, downsample).mask(x, y, width, height, downsample)

    def tile(self, x: float, y: float, side: int, downsample: float) -> np.ndarray | int:
        """What `write_pyramid` draws."""
        middle = (downsample - 1) / 2  # of the level-0 pixels under one of this level
        left, top = round(x + middle), round(y + middle)
        right = left + int((side - 1) * downsample) + 1
        spans = self._of_rows(top, side, downsample)
        if not ((spans.start < right) & (spans.end > left)).any():
            return 0
        if np.count_nonzero((spans.start <= left) & (spans.end >= right)) == side:  # runs of a row do not overlap
            return 255
        return spans.mask(left, top, side, side, downsample).astype(np.uint8) * 255

    def _of_rows(self, y: int, height: int, downsample: float) -> Spans:
        if self._window != (y, height, downsample):  # windows beside each other share them
            rows = rows_of_window(y, height, downsample)
            self._spans = stacked([self._filled(part) for part in self._parted(rows)])
            self._window = (y, height, downsample)
        return self._spans

    def _parted(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """`rows` in parts that outlines of LOADED_BYTES cross, or of more where most cross several parts."""
        size = self._size[self._crossed(rows)].sum()
        if size > LOADED_BYTES and len(rows) > 1:
            halves = np.array_split(rows, 2)
            if sum(self._size[self._crossed(half)].sum() for half in halves) <= READ_AGAIN * size:
                for half in halves:
                    yield from self._parted(half)
                return
        yield rows

    def _crossed(self, rows: np.ndarray) -> np.ndarray:
        """Places of the outlines that may cross `rows`."""
        return np.flatnonzero((self._top <= rows[-1]) & (self._bottom >= rows[0]))

    def _filled(self, rows: np.ndarray) -> Spans:
        crossed = self._crossed(rows)
        outlines = [
            [np.asarray(self._layers[layer][number].exterior.coords)[:-1]]
            for layer, number in zip(self._layer[crossed].tolist(), self._number[crossed].tolist(), strict=True)
        ]
        return Rasterizer(outlines, self._layer[crossed], [True, False]).spans(rows)
