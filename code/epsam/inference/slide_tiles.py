"""The tiles of a slide, read ahead of the models that predict them."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby

import numpy as np

from epsam.runtime.read_ahead import read_ahead
from epsam.slides.remote import RemoteSlide
from epsam.slides.slide import Slide, read_window

Corner = tuple[int, int]
"""Level-0 x, y."""


def read_chunks(
    slide: RemoteSlide, chunks: Sequence[Sequence[Corner]], read_px: int, size_px: int, threads: int
) -> Iterator[np.ndarray]:
    """The tiles of each chunk, RGB uint8 (n, size_px, size_px, 3), in order; `read_px`: side of a tile in level-0 px.

    `threads` (1 or more) of them are read at once, each in a process of its own. Memory holds two chunks a thread.
    """
    with ExitStack() as opened:
        idle = deque([slide])  # its operations are atomic

        def read(corners: Sequence[Corner]) -> np.ndarray:
            try:
                reader = idle.pop()
            except IndexError:
                reader = opened.enter_context(slide.opened_again())
            try:
                return read_tiles(reader, corners, read_px, size_px)
            finally:
                idle.append(reader)

        yield from read_ahead(read, chunks, threads)


def read_tiles(slide: Slide, corners: Sequence[Corner], read_px: int, size_px: int) -> np.ndarray:
    """Tiles (n, size_px, size_px, 3); those of one row that overlap are cut out of one window, where none is scaled."""
    if read_px != size_px:
        return np.stack([read_window(slide, x, y, read_px, size_px) for x, y in corners])
    tiles: list[np.ndarray] = []
    for run in _overlapping(corners, size_px):
        (left, top), (right, _) = run[0], run[-1]
        window = slide.read(left, top, right + size_px - left, size_px)
        tiles += [window[:, x - left : x - left + size_px] for x, _ in run]
    return np.stack(tiles)


def _overlapping(corners: Sequence[Corner], size_px: int) -> Iterator[list[Corner]]:
    """Runs of `corners`, in order: of one row, each overlapping or touching the one before."""
    number, before = 0, (0, 0)

    def run_of(corner: Corner) -> int:
        nonlocal number, before
        if corner[1] != before[1] or not 0 <= corner[0] - before[0] <= size_px:
            number += 1
        before = corner
        return number

    for _, run in groupby(corners, run_of):
        yield list(run)
