"""Polygons as horizontal runs of pixels.

The pixel rule is that of ASAP 2.2.0 (annotation/AnnotationToMask.cpp, checked against a real build). The pixel at the
integer position (x, y) is inside an outline when it lies strictly inside its bounding box and the winding number of
the edges to its left is not zero. An edge counts in rows y_low <= y < y_high, and the cross product of edge and pixel
is cut to an integer: a pixel counts as right of an edge from 1 / (y_high - y_low) px beyond it on. So the inside of a
row is (left, right], and an outline that is drawn twice is filled, not empty.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from epsam.errors import AnnotationError
from epsam.slides.spans import FAR, Spans, ranges, stacked

KEPT_CROSSINGS = 20_000_000
"""Of outlines and pixel rows, up to which the runs of all rows are kept, at 6 bytes a crossing; annotations drawn by hand have a
few million."""
CROSSINGS_PER_CORNER = 200
"""Of outlines with more. Those that `./infer.sh` writes have about 3 for each level-0 px of a map pixel, zigzags over a whole
slide 100,000."""
BAND_CROSSINGS = 500_000
"""Crossings that are sorted at a time; each takes about 150 bytes meanwhile."""
NEAR = 1e-6


Runs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Owner (a ring or a polygon), row, start, end; all (n,) int64."""


def rasterize(
    polygons: Sequence[Sequence[np.ndarray]], layer: Sequence[int], painted: Sequence[bool]
) -> "Spans | SpansByRow":
    """Fill polygons layer by layer; each is its outline and its holes, (n, 2) float x, y in level-0 pixels.

    `painted[layer]` says whether a layer sets or clears. Polygons of one layer form a union; a later layer covers the
    earlier ones. Memory is bounded whatever the outlines: where they cross many pixel rows, these are filled as they are
    asked for. Raises AnnotationError when they cross more than the outlines of a slide do.
    """
    rasterizer = Rasterizer(polygons, layer, painted)
    if rasterizer.crossings <= KEPT_CROSSINGS:
        return rasterizer.spans(rasterizer.rows())
    corners = sum(len(ring) for parts in polygons for ring in parts)
    if rasterizer.crossings > CROSSINGS_PER_CORNER * corners:
        raise AnnotationError(
            f"outlines cross {rasterizer.crossings} pixel rows, too many for a slide; check the coordinates"
        )
    return SpansByRow(rasterizer)


class Rasterizer:
    """Fills polygons as `rasterize` does, the rows that are asked for at a time: any number of outlines, little memory."""

    def __init__(
        self,
        polygons: Sequence[Sequence[np.ndarray]],
        layer: Sequence[int] | np.ndarray,
        painted: Sequence[bool],
    ):
        self._edges, self._layer, self._painted = _Edges.of(polygons), layer, painted

    @property
    def crossings(self) -> int:
        """How many pixel rows all outlines cross."""
        return int((self._edges.high - self._edges.low).sum())

    def rows(self) -> np.ndarray:
        """All rows from the first to the last that an outline crosses, int64."""
        edges = self._edges
        return np.arange(edges.low.min(), edges.high.max()) if len(edges.low) else np.zeros(0, np.int64)

    @property
    def is_empty(self) -> bool:
        """Whether no pixel is inside."""
        rows = self.rows()
        return all(self.spans(band).is_empty for band in self._edges.bands(rows))

    def spans(self, rows: np.ndarray) -> Spans:
        """The runs in `rows`, (n,) int64 in ascending order, at scale 1."""
        edges = self._edges
        return stacked(
            [
                _merge(_cut_out_holes(edges.fill(band), edges.polygon, edges.is_hole), self._layer, self._painted)
                for band in edges.bands(rows)
            ]
        )


class SpansByRow:
    """As Spans at scale 1, but that runs are made of the rows that are asked for, and only the last ones kept."""

    def __init__(self, rasterizer: Rasterizer):
        self._rasterizer = rasterizer
        self.of_rows = lru_cache(1)(self._of_rows)  # windows beside each other share them

    @property
    def is_empty(self) -> bool:
        """Whether no pixel is inside."""
        return self._rasterizer.is_empty

    def mask(self, x: int, y: int, width: int, height: int, downsample: float = 1) -> np.ndarray:
        """As `Spans.mask`."""
        return self.of_rows(y, height, downsample).mask(x, y, width, height, downsample)

    def area(self, x: np.ndarray, y: np.ndarray, width: int, height: int) -> np.ndarray:
        """As `Spans.area`."""
        area = np.zeros(len(x))
        for top in np.unique(y):
            here = y == top
            area[here] = self.of_rows(int(top), height, 1).area(x[here], y[here], width, height)
        return area

    def _of_rows(self, y: int, height: int, downsample: float) -> Spans:
        return self._rasterizer.spans(rows_of_window(y, height, downsample))


def rows_of_window(y: int, height: int, downsample: float) -> np.ndarray:
    """(height,) int64, the rows y, y + downsample, ... that a window shows."""
    return y + np.floor(np.arange(height) * downsample).astype(np.int64)


@dataclass(frozen=True)
class _Edges:
    """The edges of all rings that cross pixel rows."""

    a: np.ndarray
    b: np.ndarray
    """(n, 2) float64, ends of each edge."""
    ring: np.ndarray
    """(n,) number of its ring."""
    low: np.ndarray
    high: np.ndarray
    """(n,) int64: rows low <= y < high are crossed."""
    corners: np.ndarray
    """(rings, 2, 2) float64: least and greatest x, y of each ring."""
    polygon: np.ndarray
    """(rings,) number of the polygon of each ring."""
    is_hole: np.ndarray
    """(rings,) bool."""

    @classmethod
    def of(cls, polygons: Sequence[Sequence[np.ndarray]]) -> "_Edges":
        rings = [
            (ring, number, place > 0)
            for number, parts in enumerate(polygons)
            for place, ring in enumerate(parts)
            if len(ring)
        ]
        a = np.concatenate([np.zeros((0, 2)), *(ring for ring, *_ in rings)])
        b = np.concatenate([np.zeros((0, 2)), *(np.roll(ring, 1, axis=0) for ring, *_ in rings)])
        owner = np.repeat(np.arange(len(rings)), [len(ring) for ring, *_ in rings]).astype(np.int64)
        low = np.ceil(np.minimum(a[:, 1], b[:, 1])).astype(np.int64)
        high = np.ceil(np.maximum(a[:, 1], b[:, 1])).astype(np.int64)
        seen = low < high
        corners = np.array([(ring.min(axis=0), ring.max(axis=0)) for ring, *_ in rings]).reshape(-1, 2, 2)
        return cls(
            a[seen],
            b[seen],
            owner[seen],
            low[seen],
            high[seen],
            corners,
            np.array([number for _, number, _ in rings], np.int64),
            np.array([hole for *_, hole in rings], bool),
        )

    def bands(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Parts of `rows` that hold about BAND_CROSSINGS each; none where nothing is crossed."""
        _, low, high = self._crossed(rows)
        if not len(low):
            return
        total = np.bincount(low, minlength=len(rows) + 1)
        total -= np.bincount(high, minlength=len(rows) + 1)
        total = total[: len(rows)]
        for _ in range(2):  # crossings of each row, then of all rows up to it
            np.cumsum(total, out=total)
        steps = np.arange(BAND_CROSSINGS, total[-1] + BAND_CROSSINGS, BAND_CROSSINGS)
        last = np.unique(np.minimum(np.searchsorted(total, steps) + 1, len(rows)))
        yield from np.split(rows[: last[-1]], last[:-1])

    def _crossed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Edges that cross some of `rows`: their numbers, and the first row and the first row after, as places in `rows`."""
        if not len(rows):
            return (np.zeros(0, np.int64),) * 3
        here = np.flatnonzero((self.low <= rows[-1]) & (self.high > rows[0]))
        low, high = np.searchsorted(rows, self.low[here]), np.searchsorted(rows, self.high[here])
        seen = low < high  # the others lie between two of the rows
        return here[seen], low[seen], high[seen]

    def fill(self, rows: np.ndarray) -> Runs:
        """Runs of each ring by itself in `rows`, sorted by ring, row and start."""
        here, low, high = self._crossed(rows)
        index, place = ranges(low, high - low)
        row = rows[place]
        edge = here[index]
        (ax, ay), (bx, by) = self.a[edge].T, self.b[edge].T
        crossing = _first_right_of(ax, ay, bx, by, row)
        ring = self.ring[edge]
        order = np.lexsort((crossing, row, ring))
        start, row, ring = crossing[order], row[order], ring[order]
        winding = np.cumsum(np.where(by > ay, 1, -1)[order])  # 0 at the end of each row of each ring
        (x0, y0), (x1, y1) = self.corners[ring].transpose(1, 2, 0)
        end = np.minimum(np.append(start[1:], 0), np.ceil(x1).astype(np.int64))
        start = np.maximum(start, np.floor(x0).astype(np.int64) + 1)
        seen = (winding != 0) & (start < end) & (row > y0) & (row < y1)
        return ring[seen], row[seen], start[seen], end[seen]


def _first_right_of(ax: np.ndarray, ay: np.ndarray, bx: np.ndarray, by: np.ndarray, row: np.ndarray) -> np.ndarray:
    """(n,) int64, the first x in `row` that ASAP takes to be right of the edge from b to a."""
    exact = ax + (bx - ax) / (by - ay) * (row - ay) + 1 / np.abs(by - ay)
    exact = np.clip(exact, -FAR, FAR)
    first = np.ceil(exact).astype(np.int64)
    # Where it comes out at a whole number, the last bit decides: as ASAP computes it.
    near = np.flatnonzero(np.abs(exact - np.rint(exact)) < NEAR)
    x = np.rint(exact[near])
    ax, ay, bx, by, row = (values[near] for values in (ax, ay, bx, by, row))
    product = (ax - bx) * (row - by) - (x - bx) * (ay - by)
    first[near] = x.astype(np.int64) + (np.abs(product) < 1)
    return first


def _cut_out_holes(runs: Runs, polygon: np.ndarray, is_hole: np.ndarray) -> Runs:
    """Runs of rings as runs of polygons, those of holes taken away from those of their own polygon."""
    ring, row, start, end = runs
    owner, hole = polygon[ring], is_hole[ring]
    cut = np.isin(owner, owner[hole])
    if not cut.any():
        return owner, row, start, end
    change = np.where(hole[cut], -FAR, 1)
    (rows, owners), starts, ends = _sweep(
        (row[cut], owner[cut]), start[cut], end[cut], change, lambda changes: np.cumsum(changes) > 0
    )
    rest = ~cut
    return (
        np.concatenate([owner[rest], owners]),
        np.concatenate([row[rest], rows]),
        np.concatenate([start[rest], starts]),
        np.concatenate([end[rest], ends]),
    )


def _merge(runs: Runs, layer: Sequence[int] | np.ndarray, painted: Sequence[bool]) -> Spans:
    """What is set when all layers are painted one over the other."""
    owner, row, start, end = runs
    depth = np.asarray(layer, np.int64)[owner]

    def inside(changes: np.ndarray) -> np.ndarray:
        state = np.zeros(len(changes), bool)
        for number, sets in enumerate(painted, 1):
            state[np.cumsum(np.where(np.abs(changes) == number, np.sign(changes), 0)) > 0] = sets
        return state

    (rows,), starts, ends = _sweep((row,), start, end, depth + 1, inside)
    return Spans(rows.astype(np.int32), starts.astype(np.int32), ends.astype(np.int32))


def _sweep(
    keys: tuple[np.ndarray, ...],
    start: np.ndarray,
    end: np.ndarray,
    change: np.ndarray,
    inside: Callable[[np.ndarray], np.ndarray],
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Maximal runs (keys, starts, ends) of what is inside, along lines of equal keys, the first key slowest.

    Each run changes the state by `change` at its start and by -`change` at its end; `inside` turns all changes in
    order into the state after each, bool.
    """
    at = np.concatenate([start, end])
    keys = tuple(np.concatenate([key, key]) for key in keys)
    order = np.lexsort((at, *reversed(keys)))
    at, keys = at[order], tuple(key[order] for key in keys)
    state = inside(np.concatenate([change, -change])[order])
    same = np.ones(max(len(at) - 1, 0), bool)
    for values in (at, *keys):
        same &= values[1:] == values[:-1]
    last = ~np.append(same, np.zeros(min(len(at), 1), bool))  # the changes at one position count together
    at, state, keys = at[last], state[last], tuple(key[last] for key in keys)
    before = np.append(np.zeros(min(len(at), 1), bool), state[:-1])
    return tuple(key[state & ~before] for key in keys), at[state & ~before], at[~state & before]
