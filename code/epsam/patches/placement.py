"""Annotations in the frame of their slide: where they count from, and whether they lie on its tissue."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from epsam.errors import AnnotationError
from epsam.patches.slide_table import SlideInfo
from epsam.slides.annotation import Annotation, MaskAnnotation, Polygon
from epsam.slides.annotation_file import is_geojson, read_annotation
from epsam.slides.openslide import bounds_origin

GroupRules = Mapping[Literal["tumour", "hole", "ignore", "roi"], Sequence[str]]
"""Names of groups by what they are; see slides.groups."""
MIN_ON_TISSUE = 0.5
"""Share of the outlined area that lies on tissue where outlines are in their place."""
MIN_GLASS, MAX_ON_GLASS = 0.1, 0.5
"""Share of a slide that must be glass to check a mask by it, and of the glass that no mask of tumour covers."""
NOTABLE = 0.05
"""Difference between shares of the outlined area that is reported."""
CORRECT = "correct it with origin_x, origin_y and scale in slides.csv, or annotate the slide again"


@dataclass(frozen=True)
class AnnotationSource:
    """A slide's annotation and how it is read."""

    path: Path
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    origin: tuple[float, float] | None
    """(x, y) in level-0 pixels from which it counts; None: as its format does."""
    scale: float | None
    """Level-0 pixels per unit of its coordinates; None: 1."""

    @classmethod
    def of(cls, path: Path, groups: GroupRules, info: SlideInfo) -> "AnnotationSource":
        """With the placement that slides.csv gives."""
        return cls(path, tuple((kind, tuple(names)) for kind, names in groups.items()), info.origin, info.scale)

    def read(self, slide: Path, size: tuple[int, int]) -> Annotation:
        """The annotation in level-0 pixels of `slide`, which is `size` (width, height); raises AnnotationError.

        A point p of the file lies at origin + scale * p.
        """
        scale = self.scale or 1.0
        bounds = bounds_origin(slide) if self.origin is None else (0, 0)
        if self.origin is None and scale == 1:
            return read_annotation(self.path, dict(self.groups), bounds, size)
        before_scaling = (bounds[0] / scale, bounds[1] / scale)
        annotation = read_annotation(self.path, dict(self.groups), before_scaling, size)
        if isinstance(annotation, MaskAnnotation):
            raise AnnotationError(
                f"{self.path}: a mask covers all of its slide; slides.csv cannot give it an origin or scale"
            )
        return replace(annotation, polygons=tuple(_moved(p, scale, self.origin or (0, 0)) for p in annotation.polygons))


def _moved(polygon: Polygon, scale: float, origin: tuple[float, float]) -> Polygon:
    shift = np.array(origin, float)
    return replace(
        polygon, points=polygon.points * scale + shift, holes=tuple(hole * scale + shift for hole in polygon.holes)
    )


def check_placement(
    annotation: Annotation,
    size: tuple[int, int],
    tissue: np.ndarray,
    downsample: float,
    bounds: tuple[int, int] = (0, 0),
) -> list[str]:
    """Warnings about where the outlines lie on a slide of `size` (width, height).

    tissue: (h, w) bool at `downsample`; bounds: level-0 x, y of the scanned region, from which some programs count.
    Raises AnnotationError when all outlines lie outside the slide, when less than half of the outlined area lies on
    tissue, or when a mask covers most of the glass.
    """
    x0, y0, x1, y1 = annotation.bounds()
    width, height = size
    where = f"x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}; the slide is {width} x {height} px"
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise AnnotationError(
            f"{annotation.path}: all tumour outlines lie outside the slide ({where}); is it the annotation of another "
            f"slide? Else {CORRECT}"
        )
    _check_not_inverted(annotation, tissue, downsample)
    warnings = list(annotation.warnings)
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        warnings.append(f"tumour outlines reach beyond the slide ({where})")
    share = _share_on_tissue(annotation, tissue, downsample)
    frame = _other_frame(annotation, bounds)
    other = _share_if_moved(frame.shift, annotation, tissue, downsample)
    fit = (
        f"; counted from {frame.name} it would be {other:.0%}: if the program that wrote it counts from there"
        f"{frame.example}, give origin_x {frame.origin[0]} and origin_y {frame.origin[1]} in slides.csv"
        if other > share + NOTABLE
        else ""
    )
    if share < MIN_ON_TISSUE:
        raise AnnotationError(
            f"{annotation.path}: only {share:.0%} of the outlined tumour lies on tissue ({where})"
            + (fit or f": it is not in its place, or tissue was not found (tissue_threshold in slides.csv); {CORRECT}")
        )
    return [*warnings, f"{share:.0%} of the outlined tumour lies on tissue{fit}"] if fit else warnings


@dataclass(frozen=True)
class _Frame:
    """From where an annotation may count instead."""

    name: str
    example: str
    origin: tuple[int, int]
    """For slides.csv."""
    shift: tuple[int, int]
    """By which its outlines would move, level-0 x and y."""


def _other_frame(annotation: Annotation, bounds: tuple[int, int]) -> _Frame:
    """GeoJSON is taken to count from the scanned region, all else from the corner of the glass."""
    x, y = bounds
    if is_geojson(annotation.path):
        return _Frame("the corner of the glass", "", (0, 0), (-x, -y))
    return _Frame("the scanned region", ", as QuPath does", (x, y), (x, y))


def _share_if_moved(shift: tuple[int, int], annotation: Annotation, tissue: np.ndarray, downsample: float) -> float:
    """The share on tissue if the annotation were moved by `shift`; 0 where that is nothing."""
    if shift == (0, 0):
        return 0.0
    x, y = (round(by / downsample) for by in shift)
    height, width = tissue.shape
    part = tissue[max(0, y) : max(0, height + min(0, y)), max(0, x) : max(0, width + min(0, x))]
    moved = np.zeros_like(tissue)
    top, left = max(0, -y), max(0, -x)
    moved[top : top + part.shape[0], left : left + part.shape[1]] = part
    return _share_on_tissue(annotation, moved, downsample)


def _check_not_inverted(annotation: Annotation, tissue: np.ndarray, downsample: float) -> None:
    """Raise AnnotationError for a mask that covers most of the glass, as one does that has 0 where tumour is."""
    glass = ~tissue
    if not isinstance(annotation, MaskAnnotation) or glass.mean() < MIN_GLASS:
        return
    height, width = tissue.shape
    share = float(annotation.mask(0, 0, width, height, downsample)[glass].mean())
    if share > MAX_ON_GLASS:
        raise AnnotationError(
            f"{annotation.path}: covers {share:.0%} of the glass around the tissue: is it inverted, with 0 where tumour "
            "is? Write 0 where nothing is annotated"
        )


def _share_on_tissue(annotation: Annotation, tissue: np.ndarray, downsample: float) -> float:
    """Share of the tumour's pixels inside the slide, at the resolution of `tissue`, that are tissue; 1 without any."""
    x0, y0, x1, y1 = annotation.bounds()
    left, top = (max(0, int(value // downsample)) for value in (x0, y0))
    right, bottom = (
        min(length, math.ceil(value / downsample) + 1)
        for value, length in ((x1, tissue.shape[1]), (y1, tissue.shape[0]))
    )
    if right <= left or bottom <= top:
        return 1.0
    corner = round(left * downsample), round(top * downsample)
    tumour = annotation.mask(*corner, right - left, bottom - top, downsample)
    count = int(tumour.sum())
    return float((tumour & tissue[top:bottom, left:right]).sum() / count) if count else 1.0
