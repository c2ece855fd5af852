"""Overlapping tiles over a slide's tissue, what the models said of each, and the map blended from it."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from epsam.errors import DataError
from epsam.runtime.files import atomic

CHUNK = 32
"""Tiles that are read, predicted and written down together: what an interruption can cost."""


@dataclass(frozen=True)
class TileGrid:
    """Tiles of one slide, in map pixels; a tile's level-0 corner is its map position times `step`."""

    shape: tuple[int, int]
    """Rows and columns of the map."""
    side: int
    """Of a tile, in map px."""
    positions: np.ndarray
    """(N, 2) int, row and column of each tile's corner, row by row."""

    def chunks(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The tiles' numbers in runs of CHUNK, the runs in random order: the time left can then be estimated."""
        numbers = np.arange(len(self.positions))
        runs = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
        return [runs[i] for i in rng.permutation(len(runs))]


def lay_grid(tissue: np.ndarray, shape: tuple[int, int], side: int, overlap: float) -> TileGrid:
    """Tiles whose part of the slide holds tissue.

    `tissue`: bool, the whole slide at any resolution; `shape`: rows and columns of the map; `side`: of a tile in
    map px; `overlap`: share of it in common with the next. A tile's part reaches to the middle of its overlap
    with its neighbours, so that the parts tile the slide.
    """
    rows, columns = (_starts(length, side, overlap) for length in shape)
    row_edges, column_edges = (
        _edges(starts, side, length, size)
        for starts, length, size in zip((rows, columns), shape, tissue.shape, strict=True)
    )
    chosen = []
    for row, (y0, y1) in zip(rows, row_edges, strict=True):
        band = np.any(tissue[y0:y1], axis=0, keepdims=True)[0]
        chosen += [(row, column) for column, (x0, x1) in zip(columns, column_edges, strict=True) if band[x0:x1].any()]
    return TileGrid(shape, side, np.array(chosen, np.int64).reshape(-1, 2))


def _starts(length: int, side: int, overlap: float) -> list[int]:
    stride = max(1, round(side * (1 - overlap)))
    last = max(0, length - side)
    return [*range(0, last, stride), last]


def _edges(starts: list[int], side: int, length: int, size: int) -> list[tuple[int, int]]:
    """Part of each tile on an axis of `length` map px, as indices of an axis of `size` pixels; at least one each."""
    middles = [(a + side + b) / 2 for a, b in pairwise(starts)]
    edges = np.array([0, *middles, length]) * size / length
    return [(int(a), max(int(np.ceil(b)), int(a) + 1)) for a, b in pairwise(edges)]


class TileStore:
    """What the models said, chunk by chunk, in two files that only grow; a run that was killed goes on with them.

    `tiles.u8`: the probability maps, (side, side) uint8 each, of the tiles that SAM saw; `classified.f32`: the
    classifier's probability of every tile, written after the maps, so that its length says what is whole.
    """

    def __init__(self, folder: Path, side: int, classifier_probability: float):
        self.classified, self.tiles = folder / "classified.f32", folder / "tiles.u8"
        self.side, self.classifier_probability = side, classifier_probability
        folder.mkdir(parents=True, exist_ok=True)
        self.classified.touch()
        self.tiles.touch()

    def resume(self, chunks: list[np.ndarray]) -> int:
        """Cut off what an interruption left of a chunk; returns how many chunks are whole."""
        written = np.fromfile(self.classified, np.float32)
        ends = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        whole = int(np.searchsorted(ends, len(written), side="right")) - 1
        maps = np.cumsum([0, *(self.is_candidate(written[a:b]).sum() for a, b in pairwise(ends[: whole + 1]))])
        while maps[whole] * self.side**2 > self.tiles.stat().st_size:
            whole -= 1  # a crash of the whole machine may have lost what was written last
        for path, size in ((self.classified, ends[whole] * 4), (self.tiles, maps[whole] * self.side**2)):
            with path.open("r+b") as stream:
                stream.truncate(int(size))
        return whole

    def is_candidate(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether tiles with these classifier probabilities go to SAM."""
        return probabilities >= self.classifier_probability

    def append(self, probabilities: np.ndarray, maps: np.ndarray) -> None:
        """Write one chunk: float32 (n,), and float [0, 1] (k, side, side) of its k candidates, in order."""
        with self.tiles.open("ab") as stream:
            stream.write(np.rint(maps * 255).astype(np.uint8).tobytes())
        with self.classified.open("ab") as stream:
            stream.write(probabilities.astype(np.float32).tobytes())

    def read(self, chunks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Classifier probability (N,) of every tile, and where its map lies in `tiles.u8` (N,), -1 for none."""
        written = np.fromfile(self.classified, np.float32)
        order = np.concatenate([np.empty(0, np.int64), *chunks])
        if len(written) != len(order):
            raise DataError(f"{self.classified}: holds {len(written)} tiles of {len(order)}; run again with --fresh")
        seen = self.is_candidate(written)
        places = np.where(seen, np.cumsum(seen) - 1, -1)
        by_tile = np.argsort(order)
        return written[by_tile], places[by_tile]

    def read_map(self, place: int) -> np.ndarray:
        """The map of one tile, uint8 (side, side)."""
        size = self.side**2
        return np.fromfile(self.tiles, np.uint8, size, offset=int(place) * size).reshape(self.side, self.side)


def blend(grid: TileGrid, store: TileStore, chunks: list[np.ndarray], target: Path) -> None:
    """Write the map of the whole slide: at each pixel the mean of all tiles there, their middles counting most.

    What a tile says of a pixel is the probability that it holds tumour at all (the classifier's) times that of the
    pixel if it does (SAM's); tiles that SAM did not see say 0. Goes through the tiles in the order of the grid, so
    the bytes do not depend on when they were made; holds one row of tiles in memory.
    """
    probabilities, places = store.read(chunks)
    window = _window(grid.side)
    rows, columns = grid.shape
    total, weight = np.zeros((2, grid.side, max(columns, grid.side)), np.float32)
    with atomic(target) as temporary, temporary.open("wb") as stream:
        top = 0
        for (row, column), place, probability in zip(grid.positions.tolist(), places, probabilities, strict=True):
            while row > top:  # the rows above are done
                top += _flush(stream, total, weight, row - top, columns)
            area = np.s_[:, column : column + grid.side]
            weight[area] += window
            if place >= 0:
                total[area] += window * (probability * store.read_map(place))
        while top < rows:
            top += _flush(stream, total, weight, rows - top, columns)


def _flush(stream, total: np.ndarray, weight: np.ndarray, count: int, columns: int) -> int:
    """Write the first rows, at most `count` and what is held, and move the rest up; returns how many."""
    count = min(count, len(total))
    mean = total[:count, :columns] / np.maximum(weight[:count, :columns], 1e-6)
    stream.write(np.rint(mean).astype(np.uint8).tobytes())
    for buffer in (total, weight):
        buffer[:-count] = buffer[count:] if count < len(buffer) else 0
        buffer[-count:] = 0
    return count


def _window(side: int) -> np.ndarray:
    """Weights of a tile, (side, side) float32: a half sine wave each way, above 0 also at the border."""
    wave = np.sin(np.pi * (np.arange(side) + 0.5) / side)
    return np.outer(wave, wave).astype(np.float32)
