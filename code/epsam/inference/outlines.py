"""Outlines of the tumour foci: polygons with holes, cut from the probability map at one threshold."""

import math
from collections.abc import Iterator
from itertools import groupby, pairwise
from operator import itemgetter

import contourpy
import cv2
import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely.geometry import Polygon
from shapely.geometry.polygon import orient

from epsam.inference.foci import Foci, Focus
from epsam.inference.polygons import Polygons
from epsam.inference.probability import ProbabilityMap

GRID = 0.25
"""Vertices lie on multiples of this many level-0 px: exact in binary and in the text of the exports."""
SIMPLIFY = 0.25
"""An outline may move by this many map pixels when vertices are left out."""
BLOCK = 1024


def find_foci(source: ProbabilityMap, threshold: float, min_area: float) -> Foci:
    """Regions where the map, interpolated between its pixel centres, exceeds `threshold`; top to bottom.

    `min_area` (level-0 px2): smaller foci are dropped, smaller holes filled. Works block by block and outline by
    outline, which lie in files beside the map; memory grows with the longest of them and with those across blocks of a row.
    Raises OSError as `Polygons` does.
    """
    folder = source.path.parent
    outlines = Polygons(
        folder, (p for whole in _outlines(source, threshold) for p in _simplified(whole, source.step, min_area))
    )
    # Simplified outlines may overlap, and a hole that was filled may have held another polygon.
    outlines = Polygons(folder, (_without_small_holes(p, min_area) for p in _merged(outlines)))
    outlines = Polygons(folder, (p for p in _merged(outlines) if p.area >= min_area))
    x0, y0, *_ = outlines.bounds.T
    ordered = (orient(outlines[number]) for number in np.lexsort((x0, y0)).tolist())
    return Foci(folder, (Focus(polygon, _mean_inside(source, polygon)) for polygon in ordered))


def _outlines(source: ProbabilityMap, threshold: float) -> Iterator[Polygon]:
    """All polygons of the map, in one piece each, as soon as the rows of blocks are past them."""
    cut = CutPolygons()
    for row, blocks in groupby(source.blocks(BLOCK), key=itemgetter(0, 1)):
        for block in blocks:
            for polygon in _polygons_of(source, block, threshold):
                if _is_cut(polygon, source, block):
                    cut.add(polygon)
                else:
                    yield polygon
        yield from cut.completed_above((row[1] + 0.5) * source.step)
    yield from cut.completed_above(math.inf)


def _is_cut(polygon: Polygon, source: ProbabilityMap, block: tuple[int, int, int, int]) -> bool:
    """Whether a polygon of `block` ends where the next block begins, and so may go on there."""
    row0, row1, column0, column1 = ((edge + 0.5) * source.step for edge in block)
    rows, columns = source.shape
    x0, y0, x1, y1 = polygon.bounds
    return bool(
        (block[0] > 0 and y0 <= row0)
        or (block[1] < rows and y1 >= row1)
        or (block[2] > 0 and x0 <= column0)
        or (block[3] < columns and x1 >= column1)
    )


class CutPolygons:
    """Polygons that blocks cut, until the rows of blocks are past all pieces of one: so memory holds few of them."""

    def __init__(self) -> None:
        self._open: list[tuple[list[Polygon], list[Polygon]]] = []
        """Of each polygon that may go on: its pieces, and those of them that reach the next row of blocks."""
        self._new: list[Polygon] = []

    def add(self, piece: Polygon) -> None:
        """Take a piece of the present row of blocks."""
        self._new.append(piece)

    def completed_above(self, edge: float) -> list[Polygon]:
        """The polygons that do not go on below `edge` (y, level-0 px), where the row of blocks ends; they are forgotten."""
        groups = [*self._open, *(([piece], [piece]) for piece in self._new)]
        joined: dict[int, tuple[list[Polygon], list[Polygon]]] = {}
        for (pieces, ends), number in zip(groups, _joined([ends for _, ends in groups]), strict=True):
            all_pieces, all_ends = joined.setdefault(number, ([], []))
            all_pieces += pieces
            all_ends += [piece for piece in ends if piece.bounds[3] >= edge]
        self._open, self._new = [(pieces, ends) for pieces, ends in joined.values() if ends], []
        return [part for pieces, ends in joined.values() if not ends for part in _united(pieces)]


def _merged(polygons: Polygons) -> Iterator[Polygon]:
    """The union of `polygons`, vertices of those united on GRID; only those that meet are united, as the time of a union
    grows with all it is given."""
    if not len(polygons):
        return
    numbers = _connected(polygons.meeting(), len(polygons))
    _, first, place = np.unique(numbers, return_index=True, return_inverse=True)
    group = first[place]  # of each polygon, the first one that is united with it
    order = np.argsort(group, kind="stable")
    edges = np.flatnonzero(np.diff(group[order], prepend=-1, append=len(polygons)))
    for start, stop in pairwise(edges.tolist()):
        yield from _united([polygons[number] for number in order[start:stop].tolist()], GRID)


def _joined(groups: list[list[Polygon]]) -> list[int]:
    """A number for each group of polygons; groups of which two polygons meet, directly or through others, have the same."""
    polygons = [polygon for group in groups for polygon in group]
    if not polygons:
        return []
    owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    pairs = owners[shapely.STRtree(polygons).query(polygons, predicate="intersects")]
    return _connected(pairs, len(groups)).tolist()


def _connected(pairs: np.ndarray, count: int) -> np.ndarray:
    """(count,) int32, a number for each item; items that `pairs` (2, n) connect, directly or through others, have the same."""
    links = coo_array((np.ones(pairs.shape[1], bool), pairs), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _united(group: list[Polygon], grid: float | None = None) -> list[Polygon]:
    return group if len(group) == 1 else _parts(shapely.unary_union(group, grid_size=grid))


def _simplified(polygon: Polygon, step: float, min_area: float) -> list[Polygon]:
    """What is left of one outline: small holes filled, vertices left out, those that stay on the grid."""
    filled = _without_small_holes(polygon, min_area)
    if filled.area < min_area:
        return []
    simple = shapely.simplify(filled, SIMPLIFY * step, preserve_topology=False)
    if not simple.is_valid:  # rare, and the careful way takes several times as long
        simple = shapely.simplify(filled, SIMPLIFY * step, preserve_topology=True)
    return _parts(shapely.set_precision(shapely.make_valid(simple), GRID))


def _without_small_holes(polygon: Polygon, min_area: float) -> Polygon:
    holes = polygon.interiors
    large = [hole for hole in holes if Polygon(hole).area >= min_area]
    return polygon if len(large) == len(holes) else Polygon(polygon.exterior, large)


def _polygons_of(source: ProbabilityMap, block: tuple[int, int, int, int], threshold: float) -> list[Polygon]:
    """Polygons between the centres of the first pixels of `block` and of the next blocks: they tile the slide."""
    row0, row1, column0, column1 = block
    rows, columns = source.shape
    y, top, bottom = _centres(row0, row1, rows, source.step, source.slide_size[1])
    x, left, right = _centres(column0, column1, columns, source.step, source.slide_size[0])
    values = source.read(row0, row1 + 1, column0, column1 + 1)
    level = threshold * 255 - 1e-6  # a map pixel of just the threshold counts as tumour
    if values.max() <= level:
        return []
    values = np.pad(values, ((top, bottom), (left, right)), mode="edge")
    lines = contourpy.contour_generator(x, y, values.astype(np.float64), fill_type=contourpy.FillType.OuterOffset)
    filled = lines.filled(level, 256)
    polygons = []
    for vertices, cuts in zip(filled[0], filled[1], strict=True):
        if vertices is None or cuts is None:  # so contourpy marks an empty chunk
            continue
        rings = [vertices[a:b] for a, b in pairwise(cuts)]
        polygons += _parts(shapely.make_valid(Polygon(rings[0], rings[1:])))
    return polygons


def _centres(first: int, last: int, count: int, step: float, length: int) -> tuple[np.ndarray, int, int]:
    """Centres of pixels first..last (last included where it exists) in level-0 px, with the slide's edges added.

    Returns them and how many were added in front and behind (0 or 1 each).
    """
    before, behind = int(first == 0), int(last == count)
    stop = last + 1 - behind
    centres = (np.arange(first, stop) + 0.5) * step
    if behind:
        centres = np.append(np.minimum(centres, length - GRID), length)
    return np.insert(centres, 0, [0.0] * before), before, behind


def _parts(geometry: shapely.Geometry) -> list[Polygon]:
    """The polygons of any geometry; points and lines that validation left over are dropped."""
    return [p for p in shapely.get_parts(shapely.get_parts(geometry)) if isinstance(p, Polygon) and not p.is_empty]


def _mean_inside(source: ProbabilityMap, polygon: Polygon) -> float:
    """Mean probability of the map pixels in `polygon`, to a pixel at its border; of its middle if there is none."""
    total = count = 0
    for row0, row1, column0, column1 in _blocks_in(source, polygon):
        part = shapely.clip_by_rect(polygon, *(np.array([column0, row0, column1, row1]) * source.step))
        inside = np.zeros((row1 - row0, column1 - column0), np.uint8)
        for piece in _parts(part):
            rings = [
                np.asarray(ring.coords) / source.step - (column0 + 0.5, row0 + 0.5)
                for ring in (piece.exterior, *piece.interiors)
            ]
            cv2.fillPoly(inside, [np.rint(ring).astype(np.int32) for ring in rings], 1)
        total += int(source.read(row0, row1, column0, column1)[inside > 0].sum(dtype=np.int64))
        count += int(inside.sum())
    if not count:
        point = polygon.representative_point()
        return float(source.sample(point.x - 0.5, point.y - 0.5, 1, 1, 1)[0, 0]) / 255
    return total / count / 255


def _blocks_in(source: ProbabilityMap, polygon: Polygon, side: int = 1024) -> Iterator[tuple[int, int, int, int]]:
    x0, y0, x1, y1 = (int(v / source.step) for v in polygon.bounds)
    rows, columns = source.shape
    for row in range(y0, min(y1 + 1, rows), side):
        for column in range(x0, min(x1 + 1, columns), side):
            yield row, min(row + side, y1 + 1, rows), column, min(column + side, x1 + 1, columns)
