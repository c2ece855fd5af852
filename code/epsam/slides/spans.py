"""Painted polygons as horizontal runs of pixels: exact masks and areas of any window without a whole mask.

A pixel is inside a polygon when its integer (x, y) passes the even-odd test: a crossing counts for edges
with y_low <= y < y_high and x < the crossing's x. ASAP paints by the same rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from epsam.errors import AnnotationError

MAX_CROSSINGS = 20_000_000
"""Of outlines and pixel rows; the longest real annotations have a few million."""


@dataclass(frozen=True)
class Spans:
    """Runs of painted pixels, sorted by row and then start; disjoint within a row."""

    row: np.ndarray
    """(n,) int64, level-0 y."""
    start: np.ndarray
    """(n,) int64, first x of the run."""
    end: np.ndarray
    """(n,) int64, first x after the run."""

    def mask(self, x: int, y: int, width: int, height: int, downsample: float = 1) -> np.ndarray:
        """(height, width) bool; pixel [i, j] is the level-0 pixel (x + j * downsample, y + i * downsample)."""
        columns = x + np.floor(np.arange(width) * downsample).astype(np.int64)
        rows = y + np.floor(np.arange(height) * downsample).astype(np.int64)
        first, last = np.searchsorted(self.row, rows, "left"), np.searchsorted(self.row, rows, "right")
        line, index = _ranges(first, last - first)
        left = np.searchsorted(columns, self.start[index])
        right = np.searchsorted(columns, self.end[index])
        seen = left < right
        line, left, right = line[seen], left[seen], right[seen]
        change = np.zeros((height, width + 1), np.int8)
        change[line, left] += 1
        change[line, right] -= 1
        return np.cumsum(change, axis=1, dtype=np.int8)[:, :width].astype(bool)

    def area(self, x: np.ndarray, y: np.ndarray, width: int, height: int) -> np.ndarray:
        """Painted pixels of the windows at level-0 (x, y), all (n,) int64."""
        area = np.zeros(len(x), np.int64)
        order = np.argsort(y, kind="stable")
        tops, begin = np.unique(y[order], return_index=True)
        first, last = np.searchsorted(self.row, tops), np.searchsorted(self.row, tops + height)
        for k, windows in enumerate(np.split(order, begin[1:])):
            if first[k] < last[k]:
                starts = _Ramp(self.start[first[k]:last[k]])
                ends = _Ramp(self.end[first[k]:last[k]])
                left, right = x[windows], x[windows] + width
                area[windows] = starts(right) - ends(right) - starts(left) + ends(left)
        return area


class _Ramp:
    """Sum of max(0, x - at) over all `at`, as a function of x; runs left of x are starts(x) - ends(x)."""

    def __init__(self, at: np.ndarray):
        self.at = np.sort(at)
        self.sum = np.concatenate([[0], np.cumsum(self.at)])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        count = np.searchsorted(self.at, x)
        return count * x - self.sum[count]


def paint(polygons: Sequence[np.ndarray], layer: Sequence[int], painted: Sequence[bool]) -> Spans:
    """Paint polygons ((n, 2) float x, y) layer by layer; `painted[layer]` says whether it sets or clears.

    Polygons of one layer form a union; a later layer covers the earlier ones.
    Raises AnnotationError when the outlines are too long to be an annotation of a slide.
    """
    owner, row, start, end = _fill(polygons)
    depth_of = np.asarray(layer, np.int64)[owner]
    at = np.concatenate([start, end])
    rows = np.concatenate([row, row])
    order = np.lexsort((at, rows))
    at, rows = at[order], rows[order]
    step = np.concatenate([np.ones(len(start), np.int32), np.full(len(end), -1, np.int32)])[order]
    layers = np.concatenate([depth_of, depth_of])[order]
    inside = np.zeros(len(at), bool)
    for number, value in enumerate(painted):
        inside[np.cumsum(np.where(layers == number, step, 0)) > 0] = value
    after = np.append(at[1:], 0)
    keep = inside & (after > at) & (np.append(rows[1:], 0) == rows)
    return Spans(rows[keep], at[keep], after[keep])


def _fill(polygons: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs of each polygon by itself: polygon number, row, start, end."""
    if not polygons:
        return tuple(np.zeros(0, np.int64) for _ in range(4))
    a = np.concatenate(polygons)
    b = np.concatenate([np.roll(points, 1, axis=0) for points in polygons])
    owner = np.repeat(np.arange(len(polygons)), [len(points) for points in polygons])
    low = np.ceil(np.minimum(a[:, 1], b[:, 1])).astype(np.int64)
    count = np.ceil(np.maximum(a[:, 1], b[:, 1])).astype(np.int64) - low
    if count.sum() > MAX_CROSSINGS:
        raise AnnotationError(f"outlines cross {count.sum()} pixel rows, too many for a slide; check the coordinates")
    edge, row = _ranges(low, count)
    (ax, ay), (bx, by) = a[edge].T, b[edge].T
    crossing = np.ceil((bx - ax) * (row - ay) / (by - ay) + ax).astype(np.int64)
    order = np.lexsort((crossing, row, owner[edge]))
    crossing, row, owner = crossing[order], row[order], owner[edge][order]
    start, end = crossing[0::2], crossing[1::2]
    seen = start < end
    return owner[0::2][seen], row[0::2][seen], start[seen], end[seen]


def _ranges(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers first[i] ... first[i] + count[i] - 1 in a row, with the i that each belongs to."""
    which = np.repeat(np.arange(len(first)), count)
    before = np.repeat(np.cumsum(count) - count, count)
    return which, np.repeat(first, count) + np.arange(len(which)) - before
