"""Which outline is painted over which: tumour inside a hole of a tumour is an island, not part of the hole."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import shapely

from epsam.errors import AnnotationError

MAX_PAIRS = 1_000_000
"""Of outlines of which one may lie in the other; real annotations have some thousands at most."""


def layers(kinds: Sequence[str], outlines: Sequence[np.ndarray], paint_order: Sequence[str]) -> list[int]:
    """The layer that each outline, (n, 2) float x, y, is painted in: its kind's place in `paint_order`, or later.

    Where holes are painted over tumour, tumour drawn wholly inside a hole that itself lies wholly inside tumour is an
    island and painted over that hole; so is a hole inside an island, and so on. Layer l holds kind l % 2 then.
    Raises AnnotationError when more outlines lie in one another than in any real file.
    """
    depth = [paint_order.index(kind) for kind in kinds]
    if list(paint_order) != ["tumour", "hole"] or len(set(kinds)) < 2:
        return depth
    outer_of = _outer(kinds, outlines)
    in_tumour = {i for i in outer_of if kinds[i] == "hole"}
    corners = np.array([(*p.min(axis=0), *p.max(axis=0)) for p in outlines])
    by_size = np.argsort(-np.prod(corners[:, 2:] - corners[:, :2], axis=1), kind="stable")
    for i in (i for i in by_size.tolist() if i in outer_of):
        outer = [j for j in outer_of[i] if kinds[i] == "hole" or j in in_tumour]
        depth[i] = max([depth[i], *(depth[j] + 1 for j in outer)])
    return depth


def _outer(kinds: Sequence[str], outlines: Sequence[np.ndarray]) -> dict[int, list[int]]:
    """For each outline the larger ones of the other kind that hold it; only those that have some."""
    enough = [i for i, points in enumerate(outlines) if len(points) >= 3]
    shapes = np.array([shapely.make_valid(shapely.Polygon(outlines[i])) for i in enough], object)
    kind, area = np.array([kinds[i] for i in enough]), shapely.area(shapes)
    tree, found, pairs = shapely.STRtree(shapes), defaultdict(list), 0
    shapely.prepare(shapes)
    for number, shape in enumerate(shapes):
        inner = tree.query(shapely.box(*shape.bounds), predicate="contains")
        inner = inner[(kind[inner] != kind[number]) & (area[inner] < area[number])]
        pairs += len(inner)
        if pairs > MAX_PAIRS:
            raise AnnotationError(
                f"more than {MAX_PAIRS} pairs of tumour and hole outlines lie in one another, too many for a slide"
            )
        for i in inner[shapely.covers(shape, shapes[inner])]:
            found[enough[i]].append(enough[number])
    return found
