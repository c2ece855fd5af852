"""The annotation of one slide: its outlines, painted, and cut to windows."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from epsam.errors import AnnotationError
from epsam.slides.nesting import layers
from epsam.slides.rasterize import SpansByRow, rasterize
from epsam.slides.spans import Spans

PAINTED = {"tumour": True, "hole": False}
"""Kinds of groups that make the mask; `ignore` is left out, `roi` says where negatives may be taken."""


@dataclass(frozen=True)
class Polygon:
    """One outline."""

    kind: str
    """`tumour`, `hole` or `roi`."""
    group: str
    points: np.ndarray
    """(n, 2) float64, x and y in level-0 pixels."""
    holes: tuple[np.ndarray, ...] = ()
    """As points: what this outline leaves out, whatever other outlines cover."""


@dataclass(frozen=True)
class Annotation:
    """The outlines of one slide, painted kind by kind."""

    path: Path
    polygons: tuple[Polygon, ...]
    paint_order: tuple[str, ...]
    """Kinds; later ones are painted over earlier ones."""
    warnings: list[str] = field(default_factory=list)
    """What is odd in the file but can be read in one way only."""

    @cached_property
    def spans(self) -> Spans | SpansByRow:
        """Tumour as runs of pixels."""
        rings = [(p.points, *p.holes) for p in self.polygons if p.kind in PAINTED]
        kinds = [kind for kind in self.paint_order if kind in PAINTED]
        sets = [PAINTED[kinds[number % len(kinds)]] for number in range(max(self.layers, default=0) + 1)]
        try:
            return rasterize(rings, self.layers, sets)
        except AnnotationError as error:
            raise AnnotationError(f"{self.path}: {error}") from None

    @cached_property
    def layers(self) -> list[int]:
        """In which order the outlines of tumour and holes are painted."""
        painted = [p for p in self.polygons if p.kind in PAINTED]
        kinds = [kind for kind in self.paint_order if kind in PAINTED]
        return layers([p.kind for p in painted], [p.points for p in painted], kinds)

    @cached_property
    def regions(self) -> Spans | SpansByRow | None:
        """Regions of interest as runs of pixels; None where the file has none: all of the slide is annotated."""
        rings = [(p.points, *p.holes) for p in self.polygons if p.kind == "roi"]
        return rasterize(rings, [0] * len(rings), [True]) if rings else None

    def mask(self, x: int, y: int, width: int, height: int, downsample: float = 1) -> np.ndarray:
        """(height, width) bool, True for tumour; x, y level 0.

        Pixel [i, j] is the level-0 pixel (x + j * downsample, y + i * downsample), as in ASAP's mask pyramid.
        """
        return self.spans.mask(int(x), int(y), int(width), int(height), downsample)

    def fraction(self, x: int | np.ndarray, y: int | np.ndarray, width: int, height: int) -> float | np.ndarray:
        """Share of the window that is tumour, in [0, 1]; x, y level 0, numbers or arrays of one shape."""
        return _share(self.spans, x, y, int(width), int(height))

    def in_regions(self, x: np.ndarray, y: np.ndarray, width: int, height: int) -> np.ndarray:
        """Whether windows lie in the regions of interest, to a pixel at their border; True where there are none."""
        if self.regions is None:
            return np.ones(np.broadcast_shapes(np.shape(x), np.shape(y)), bool)
        return np.asarray(_share(self.regions, x, y, width, height)) >= 1 - 2 * (width + height) / (width * height)

    def bounds(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of all tumour outlines, level-0 pixels."""
        points = np.concatenate([p.points for p in self.polygons if p.kind == "tumour"])
        return (*points.min(axis=0), *points.max(axis=0))


NO_SPANS = Spans(*np.zeros((3, 0), np.int32))


@dataclass(frozen=True)
class MaskAnnotation(Annotation):
    """A mask file: no outlines, but the runs of tumour and of regions of interest."""

    tumour: Spans = NO_SPANS
    roi: Spans | None = None

    @property
    def spans(self) -> Spans:
        return self.tumour

    @property
    def regions(self) -> Spans | None:
        return self.roi

    def bounds(self) -> tuple[float, float, float, float]:
        x, y = self.tumour.scale
        return (
            float(self.tumour.start.min() * x),
            float(self.tumour.row.min() * y),
            float(self.tumour.end.max() * x),
            float((self.tumour.row.max() + 1) * y),
        )


def _share(
    spans: Spans | SpansByRow, x: int | np.ndarray, y: int | np.ndarray, width: int, height: int
) -> float | np.ndarray:
    shape = np.broadcast_shapes(np.shape(x), np.shape(y))
    left, top = (np.rint(np.broadcast_to(value, shape).ravel()).astype(np.int64) for value in (x, y))
    share = spans.area(left, top, width, height) / (width * height)
    return share.reshape(shape) if shape else float(share[0])
