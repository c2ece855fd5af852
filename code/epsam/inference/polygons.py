"""Polygons kept in a file, as those of a slide with many foci do not fit in memory, and which of them meet."""

import errno
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import shapely
from shapely.geometry import Polygon

from epsam.slides.spans import ranges

PAIRS = 1_000_000
"""Of boxes that are compared at a time; each takes about 60 bytes meanwhile."""


class Polygons:
    """Polygons, none of them empty, taken and read back one by one, exactly; memory holds 48 bytes of each.

    The file has no name, so it is gone with this object and with the process, however that ends. OSError, when it cannot
    be written or read, names the folder.
    """

    def __init__(self, folder: Path, polygons: Iterable[Polygon]):
        """Write `polygons` to a file in `folder`."""
        self.folder = folder
        self._ends, self._bounds, self._grids = array("q", [0]), array("d"), array("d")
        with self._naming_folder():
            self._stream = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed below
        weakref.finalize(self, _close, self._stream)
        for polygon in polygons:
            data = shapely.to_wkb(polygon)
            with self._naming_folder():
                self._stream.write(data)
            self._ends.append(self._ends[-1] + len(data))
            self._bounds.extend(polygon.bounds)
            self._grids.append(shapely.get_precision(polygon))
        with self._naming_folder():
            self._stream.flush()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> Polygon:
        first, after = self._ends[number], self._ends[number + 1]
        with self._naming_folder():
            self._stream.seek(first)
            data = self._stream.read(after - first)
            if len(data) < after - first:
                raise OSError(errno.EIO, "a temporary file ends too early")
        # What GEOS makes of a polygon on a grid, a point inside it for example, is put on the grid as well.
        return shapely.set_precision(shapely.from_wkb(data), self._grids[number], mode="pointwise")

    def __iter__(self) -> Iterator[Polygon]:
        return (self[number] for number in range(len(self)))

    @property
    def bounds(self) -> np.ndarray:
        """Copy of the least and greatest coordinates of each: (n, 4) float64 x0, y0, x1, y1."""
        return np.array(self._bounds).reshape(-1, 4)

    @property
    def sizes(self) -> np.ndarray:
        """(n,) int64, bytes of each in the file: 16 a corner and few more."""
        return np.diff(self._ends)

    def meeting(self) -> np.ndarray:
        """Pairs of polygons that have a point in common: (2, pairs) int64 numbers, each pair once."""
        sizes, found = self.sizes, array("q")
        for one, other in _meeting_boxes(self.bounds):
            swapped = sizes[one] < sizes[other]
            large, small = np.where(swapped, other, one), np.where(swapped, one, other)
            order = np.argsort(large, kind="stable")
            present = -1
            # The larger one of a pair is read once and prepared: one outline around all others would else be read for each.
            for i, j in zip(large[order].tolist(), small[order].tolist(), strict=True):
                if i != present:
                    present, polygon = i, self[i]
                    shapely.prepare(polygon)
                if shapely.intersects(polygon, self[j]):
                    found.extend((i, j))
        return np.array(found, np.int64).reshape(-1, 2).T

    @contextmanager
    def _naming_folder(self) -> Iterator[None]:
        """A full disk does not say where it is."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder)) from error


def _close(stream: IO[bytes]) -> None:
    with suppress(OSError):  # of what could not be written, which was raised before
        stream.close()


def _meeting_boxes(boxes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of `boxes` (n, 4) that have a point in common, one and the other of each pair, some pairs at a time."""
    order = np.argsort(boxes[:, 1], kind="stable")
    x0, y0, x1, y1 = boxes[order].T
    after = np.searchsorted(y0, y1, "right")  # of each box, the first that begins below it
    count = after - np.arange(1, len(boxes) + 1)
    steps = np.arange(PAIRS, count.sum(), PAIRS)
    for places in np.split(np.arange(len(boxes)), np.searchsorted(np.cumsum(count), steps)):
        which, other = ranges(places + 1, count[places])
        one = places[which]
        meets = (x0[one] <= x1[other]) & (x1[one] >= x0[other])
        yield order[one[meets]], order[other[meets]]
