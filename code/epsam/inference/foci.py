"""The tumour foci of a slide: polygons with holes, kept in files, as a slide may have tens of thousands."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon
from shapely.ops import split

from epsam.inference.polygons import Polygons


@dataclass(frozen=True)
class Focus:
    """One connected region of tumour."""

    polygon: Polygon
    """Level-0 px, valid; exterior anticlockwise and holes clockwise as RFC 7946 counts (y up)."""
    probability: float
    """Mean of the map inside, in [0, 1]."""

    @property
    def rings(self) -> Iterator[np.ndarray]:
        """The exterior and the holes, (n, 2) float64 x, y; the last corner is the first."""
        return (np.asarray(ring.coords) for ring in (self.polygon.exterior, *self.polygon.interiors))


class Foci:
    """All foci of a slide in the order of its files; they are read one by one, and may be gone through again and again."""

    def __init__(self, folder: Path, foci: Iterable[Focus]):
        """Take `foci`, which do not overlap, one by one; their outlines go to a file in `folder`, see `Polygons`."""
        self._probabilities = array("d")
        self.outlines = Polygons(folder, (self._noted(focus) for focus in foci))

    def _noted(self, focus: Focus) -> Polygon:
        self._probabilities.append(focus.probability)
        return focus.polygon

    def __len__(self) -> int:
        return len(self.outlines)

    def __getitem__(self, number: int) -> Focus:
        return Focus(self.outlines[number], self._probabilities[number])

    def __iter__(self) -> Iterator[Focus]:
        return (self[number] for number in range(len(self)))

    @cached_property
    def exclusions(self) -> Polygons:
        """Holes of all foci as polygons without holes that cover no tumour, level-0 px.

        Exclusions are painted last, so tumour inside a hole would be lost: such a hole is cut into pieces around it.
        """
        return Polygons(self.outlines.folder, self._exclusions())

    def _exclusions(self) -> Iterator[Polygon]:
        boxes = self.outlines.bounds
        tree = shapely.STRtree(shapely.box(*boxes.T))
        for outline in self.outlines:
            for ring in outline.interiors:
                hole = Polygon(ring)
                shapely.prepare(hole)
                islands = (self.outlines[number] for number in _within(hole.bounds, boxes, tree.query(hole)))
                inside = [Polygon(island.exterior) for island in islands if hole.contains(island)]
                empty = hole.difference(shapely.unary_union(inside)) if inside else hole
                for piece in shapely.get_parts(empty):
                    yield from _without_holes(piece)


def _within(box: tuple[float, float, float, float], boxes: np.ndarray, numbers: np.ndarray) -> list[int]:
    """Those of `numbers` whose `boxes` (n, 4) lie in `box`."""
    least, most = boxes[numbers, :2], boxes[numbers, 2:]
    return numbers[((least >= box[:2]) & (most <= box[2:])).all(axis=1)].tolist()


def _without_holes(polygon: Polygon) -> Iterator[Polygon]:
    """Cut a polygon with holes by vertical lines through them into polygons without holes."""
    if not polygon.interiors:
        yield polygon
        return
    x = Polygon(polygon.interiors[0]).representative_point().x
    _, y0, _, y1 = polygon.bounds
    for piece in split(polygon, LineString([(x, y0 - 1), (x, y1 + 1)])).geoms:
        yield from _without_holes(piece)
