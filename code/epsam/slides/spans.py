"""Masks as horizontal runs of pixels: exact masks and areas of any window without a whole mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FAR = 2**30
"""Beyond any pixel; fits int32 with room to add to."""


@dataclass(frozen=True)
class Spans:
    """Runs of pixels, sorted by row and then start; disjoint within a row."""

    row: np.ndarray
    """(n,) int32, y in pixels of `scale`."""
    start: np.ndarray
    """(n,) int32, first x of the run."""
    end: np.ndarray
    """(n,) int32, first x after the run."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Level-0 pixels per pixel of the runs, in x and y."""

    @property
    def is_empty(self) -> bool:
        """Whether no pixel is inside."""
        return not len(self.row)

    def mask(self, x: int, y: int, width: int, height: int, downsample: float = 1) -> np.ndarray:
        """(height, width) bool; pixel [i, j] is the level-0 pixel (x + j * downsample, y + i * downsample)."""
        columns = self._pixels(x + np.floor(np.arange(width) * downsample), self.scale[0])
        rows = self._pixels(y + np.floor(np.arange(height) * downsample), self.scale[1])
        first, last = np.searchsorted(self.row, rows, "left"), np.searchsorted(self.row, rows, "right")
        line, index = ranges(first, last - first)
        left = np.searchsorted(columns, self.start[index])
        right = np.searchsorted(columns, self.end[index])
        seen = left < right
        line, left, right = line[seen], left[seen], right[seen]
        change = np.zeros((height, width + 1), np.int8)
        change[line, left] += 1
        change[line, right] -= 1
        return np.cumsum(change, axis=1, dtype=np.int8)[:, :width].astype(bool)

    def area(self, x: np.ndarray, y: np.ndarray, width: int, height: int) -> np.ndarray:
        """Level-0 px2 inside the windows at level-0 (x, y): all (n,), x and y int64, the area float64."""
        area = np.zeros(len(x))
        order = np.argsort(y, kind="stable")
        tops, begin = np.unique(y[order], return_index=True)
        first = np.searchsorted(self.row, self._pixels(tops, self.scale[1]))
        last = np.searchsorted(self.row, self._pixels(tops + height - 1, self.scale[1]), "right")
        for top, a, b, windows in zip(tops, first, last, np.split(order, begin[1:]), strict=True):
            if a < b:
                rows = self.row[a:b] * self.scale[1]
                share = np.minimum(rows + self.scale[1], top + height) - np.maximum(rows, top)
                starts = _Ramp(self.start[a:b] * self.scale[0], share)
                ends = _Ramp(self.end[a:b] * self.scale[0], share)
                left, right = x[windows], x[windows] + width
                area[windows] = starts(right) - ends(right) - starts(left) + ends(left)
        return area

    @staticmethod
    def _pixels(position: np.ndarray, scale: float) -> np.ndarray:
        """Level-0 positions as int32 pixels: of the same type as the runs, which are searched without a copy then."""
        return np.clip(np.floor(position / scale), -FAR, FAR).astype(np.int32)


def stacked(parts: Sequence[Spans]) -> Spans:
    """Spans at scale 1 of rows below one another as one."""
    none = np.zeros(0, np.int32)
    row, start, end = zip(*([(part.row, part.start, part.end) for part in parts] or [(none, none, none)]), strict=True)
    return Spans(np.concatenate(row), np.concatenate(start), np.concatenate(end))


class _Ramp:
    """Weighted sum of max(0, x - at) over all `at`, as a function of x; runs left of x are starts(x) - ends(x)."""

    def __init__(self, at: np.ndarray, weight: np.ndarray):
        order = np.argsort(at)
        self.at, weight = at[order], weight[order]
        self.count = np.concatenate([[0], np.cumsum(weight)])
        self.sum = np.concatenate([[0], np.cumsum(self.at * weight)])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        before = np.searchsorted(self.at, x)
        return self.count[before] * x - self.sum[before]


def ranges(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers first[i] ... first[i] + count[i] - 1 in a row, with the i that each belongs to."""
    which = np.repeat(np.arange(len(first)), count)
    before = np.repeat(np.cumsum(count) - count, count)
    return which, np.repeat(first, count) + np.arange(len(which)) - before
