"""ASAP's XML annotations: read safely, painted by rule, cut to windows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from epsam.errors import AnnotationError
from epsam.runtime.log import logger
from epsam.slides.spans import Spans, paint

AREAS = ("Polygon", "Rectangle", "Spline")
"""Annotation types that enclose an area; Dot, PointSet and Measurement do not."""
MAX_COORDINATE = 2_000_000


@dataclass(frozen=True)
class Polygon:
    """One outline."""

    kind: str
    """`tumour` or `hole`."""
    group: str
    points: np.ndarray
    """(n, 2) float64, x and y in level-0 pixels."""


@dataclass(frozen=True)
class Annotation:
    """The outlines of one slide, painted kind by kind."""

    path: Path
    polygons: tuple[Polygon, ...]
    paint_order: tuple[str, ...]
    """Kinds; later ones are painted over earlier ones."""
    doubts: tuple[str, ...] = field(default=())
    """What was odd in the file but could be read in one way only."""

    @cached_property
    def spans(self) -> Spans:
        """Tumour as runs of pixels."""
        kinds = list(self.paint_order)
        return paint([p.points for p in self.polygons], [kinds.index(p.kind) for p in self.polygons],
                     [kind == "tumour" for kind in kinds])

    def mask(self, x: int, y: int, width: int, height: int, downsample: float = 1) -> np.ndarray:
        """(height, width) bool, True for tumour; x, y level 0.

        Pixel [i, j] is the level-0 pixel (x + j * downsample, y + i * downsample), as in ASAP's mask pyramid.
        """
        return self.spans.mask(int(x), int(y), int(width), int(height), downsample)

    def fraction(self, x: int | np.ndarray, y: int | np.ndarray, width: int, height: int) -> float | np.ndarray:
        """Share of the window that is tumour, in [0, 1]; x, y level 0, numbers or arrays of one shape."""
        shape = np.broadcast_shapes(np.shape(x), np.shape(y))
        flat = [np.rint(np.broadcast_to(value, shape).ravel()).astype(np.int64) for value in (x, y)]
        share = self.spans.area(*flat, int(width), int(height)) / (int(width) * int(height))
        return share.reshape(shape) if shape else float(share[0])

    def bounds(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of all tumour outlines, level-0 pixels."""
        points = np.concatenate([p.points for p in self.polygons if p.kind == "tumour"])
        return (*points.min(axis=0), *points.max(axis=0))


def load_annotation(path: Path | str, groups: Mapping[str, Sequence[str]]) -> Annotation:
    """Read ASAP XML. `groups`: {"tumour": [...], "hole": [...]}, names of PartOfGroup, in paint order.

    Logs a warning where the file is odd. Raises AnnotationError when it is missing, malformed or hostile, when
    a group is named by no rule, or when no outline is tumour.
    """
    annotation = read_annotation(path, groups)
    for doubt in annotation.doubts:
        logger.warning(f"{path}: {doubt}")
    return annotation


def read_annotation(path: Path | str, groups: Mapping[str, Sequence[str]]) -> Annotation:
    """As load_annotation, but without a word in the log: what is odd lies in `doubts`."""
    path = Path(path)
    root = _parse(path)
    kind_of = {name.strip(): kind for kind, names in groups.items() for name in names}
    nodes = root.findall("Annotations/Annotation")
    found = Counter(_group(node) for node in nodes)
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(found.items())) or "none"
    unknown = sorted(set(found) - set(kind_of))
    if unknown:
        raise AnnotationError(f"{path}: no rule names the group {', '.join(unknown)}; groups found: {listed}; "
                              f"rules: {_rules(groups)}. Add it to slides.groups")
    doubts: list[str] = []
    flat = Counter(node.get("Type", "Polygon") for node in nodes if node.get("Type", "Polygon") not in AREAS)
    if flat:
        doubts.append("annotations without an area are left out: " + ", ".join(f"{n} {t}" for t, n in flat.items()))
    nodes = [node for node in nodes if node.get("Type", "Polygon") in AREAS]
    polygons = tuple(Polygon(kind_of[_group(node)], _group(node), _points(path, node, doubts)) for node in nodes)
    if not any(polygon.kind == "tumour" for polygon in polygons):
        raise AnnotationError(f"{path}: nothing in it is tumour; groups found: {listed}; rules: {_rules(groups)}")
    declared = {group.get("Name", "").strip() for group in root.findall("AnnotationGroups/Group")}
    if undeclared := sorted(set(found) - declared - {"None"}):
        doubts.append(f"group {', '.join(undeclared)} is used but not declared under AnnotationGroups")
    doubts += _odd_shapes(polygons)
    return Annotation(path, polygons, tuple(groups), tuple(doubts))


def _parse(path: Path) -> Element:
    try:
        root = parse(path).getroot()
    except FileNotFoundError:
        raise AnnotationError(f"{path}: no such annotation file") from None
    except DefusedXmlException as error:
        raise AnnotationError(f"{path}: refused, the XML defines entities ({type(error).__name__}), which ASAP never "
                              "writes; get the file from its source again") from None
    except (ParseError, OSError, ValueError, LookupError) as error:
        raise AnnotationError(f"{path}: not whole or not XML ({error}); download it again") from None
    if root.tag != "ASAP_Annotations":
        raise AnnotationError(f"{path}: not an annotation of ASAP (its root is {root.tag}, not ASAP_Annotations)")
    return root


def _group(node: Element) -> str:
    return node.get("PartOfGroup", "None").strip()


def _rules(groups: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{kind} = {', '.join(names) or 'nothing'}" for kind, names in groups.items())


def _points(path: Path, node: Element, doubts: list[str]) -> np.ndarray:
    """(n, 2) float64 of one annotation, sorted by Order."""
    name = node.get("Name", "")
    nodes = node.findall("Coordinates/Coordinate")
    try:
        points = np.array([[_number(c.get("X")), _number(c.get("Y"))] for c in nodes], float).reshape(-1, 2)
        order = [int(c.get("Order", i)) for i, c in enumerate(nodes)]
    except ValueError as error:
        raise AnnotationError(f"{path}: annotation `{name}` has a coordinate that is no number ({error})") from None
    if not (np.abs(points) <= MAX_COORDINATE).all():
        raise AnnotationError(f"{path}: annotation `{name}` has a coordinate beyond any slide")
    if sorted(order) != list(range(len(order))):
        doubts.append(f"annotation `{name}`: Order does not count 0 to {len(order) - 1}; points are taken by "
                      "rising Order")
    return points[np.argsort(order, kind="stable")]


def _number(text: str | None) -> float:
    """A decimal number with a point or, as some locales make ASAP write it, a comma."""
    if text is None:
        raise ValueError("X or Y is missing")
    return float(text.replace(",", "."))


def _odd_shapes(polygons: Sequence[Polygon]) -> list[str]:
    distinct = [len(np.unique(p.points, axis=0)) for p in polygons]
    thin = sum(count < 3 for count in distinct)
    rings = [shapely.LinearRing(p.points) for p, count in zip(polygons, distinct, strict=True) if count >= 3]
    crossed = int((~shapely.is_simple(rings)).sum()) if rings else 0
    doubts = []
    if thin:
        doubts.append(f"{thin} of {len(polygons)} outlines have fewer than 3 points and so no area")
    if crossed:
        doubts.append(f"{crossed} of {len(polygons)} outlines cross themselves; the even-odd rule decides, as in ASAP")
    return doubts
