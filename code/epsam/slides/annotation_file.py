"""Reading the annotation of a slide from a file of any format, with the rules that say what its groups are."""

import codecs
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from epsam.errors import AnnotationError
from epsam.runtime.log import logger
from epsam.runtime.placeholders import head_of, placeholder
from epsam.runtime.text import UTF16_HEADS, listed
from epsam.slides.annotation import Annotation, MaskAnnotation, Polygon
from epsam.slides.asap_xml import read_asap_xml
from epsam.slides.geojson import read_geojson
from epsam.slides.mask_annotation import join, read_mask_file
from epsam.slides.outline import Outline, shown

MAX_CLASSES = 16
"""Values of a mask that no rule names, up to which they can be groups."""
MASK_HEADS = (b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of PNG, TIFF and BigTIFF."""


def load_annotation(
    path: Path | str,
    groups: Mapping[Any, Sequence[str]],
    origin: tuple[float, float] = (0, 0),
    slide_size: tuple[int, int] | None = None,
) -> Annotation:
    """Read ASAP XML, QuPath GeoJSON (plain or gzip) or a mask (TIFF, PNG); the content says which, not the name.

    `groups`: {"tumour": [...], "hole": [...], "ignore": [...], "roi": [...]}, names of groups (PartOfGroup in XML,
    classifications in GeoJSON). Tumour and holes are painted in the order of `groups`, ignored groups not at all.
    Detections, cells and tiles of QuPath count only where a rule names `detection: <classification>` and so on.
    `origin`: level-0 position (x, y) that GeoJSON counts from, openslide.bounds-x/y where the slide has them.
    The groups of a mask are its values as text, 0 none of them; a mask of one other value needs no rule: it is tumour.
    `slide_size`: (width, height) of level 0, by which a coarser mask is scaled. Logs a warning where the file is odd.
    Raises AnnotationError when it is missing, malformed or hostile, when a group is named by no rule, when
    no outline is tumour, or when holes cover all that is.
    """
    annotation = read_annotation(path, groups, origin, slide_size)
    for warning in annotation.warnings:
        logger.warning(f"{path}: {warning}")
    return annotation


def read_annotation(
    path: Path | str,
    groups: Mapping[Any, Sequence[str]],
    origin: tuple[float, float] = (0, 0),
    slide_size: tuple[int, int] | None = None,
) -> Annotation:
    """As load_annotation, but without a word in the log: what is odd lies in `warnings`."""
    path = Path(path)
    if head_of(path).startswith(MASK_HEADS):
        return _from_mask(path, groups, slide_size)
    if what := placeholder(head_of(path)):
        raise AnnotationError(f"{path}: is {what}")
    outlines, warnings = read_geojson(path, origin) if is_geojson(path) else read_asap_xml(path)
    # Group names are compared in composed Unicode: macOS writes an umlaut as two characters.
    groups = {kind: [_plain(name) for name in names] for kind, names in groups.items()}
    outlines = [replace(o, group=_plain(o.group), parents=tuple(map(_plain, o.parents))) for o in outlines]
    named = {name for names in groups.values() for name in names}
    if left := Counter(o.group for o in outlines if o.optional and o.group not in named):
        warnings.append(
            "objects that are no annotations are left out: "
            + _cut([f"{shown(group)} ({count})" for group, count in sorted(left.items())])
        )
        outlines = [o for o in outlines if o.group not in left]
    if not outlines:
        raise AnnotationError(
            f"{path}: holds no outline"
            + (f" ({'; '.join(warnings)})" if warnings else "")
            + "; if its slide is free of tumour, move the file away and give the slide the label normal in slides.csv"
        )
    polygons, found = _by_rule(path, outlines, groups)
    empty = sum(not len(p.points) for p in polygons)
    if empty:
        warnings.append(f"{empty} of {len(polygons)} outlines have no coordinates and are left out")
    polygons = [p for p in polygons if len(p.points)]
    if not any(polygon.kind == "tumour" for polygon in polygons):
        raise AnnotationError(f"{path}: nothing in it is tumour; groups found: {found}; rules: {_rules(groups)}")
    annotation = Annotation(path, tuple(polygons), tuple(groups), warnings + _odd_shapes(polygons))
    _check_holes(annotation)
    return annotation


def _plain(group: str) -> str:
    return unicodedata.normalize("NFC", group.strip())


def is_geojson(path: Path) -> bool:
    """Whether a file is GeoJSON, plain or gzip, by its first bytes."""
    head = head_of(path)
    text = head.replace(b"\0", b"") if head.startswith(UTF16_HEADS) else head
    for mark in (codecs.BOM_UTF8, *UTF16_HEADS):
        text = text.removeprefix(mark)
    return head.startswith(b"\x1f\x8b") or text.lstrip()[:1] in (b"{", b"[")


def _from_mask(path: Path, groups: Mapping[Any, Sequence[str]], slide_size: tuple[int, int] | None) -> MaskAnnotation:
    values = read_mask_file(path, slide_size)
    kind_of = {name.strip(): kind for kind, names in groups.items() for name in names}
    unnamed = [value for value in values if str(value) not in kind_of]
    found = _cut([str(value) for value in values])
    if len(values) == len(unnamed) == 1:
        kind_of[str(unnamed[0])] = "tumour"
    elif len(unnamed) > MAX_CLASSES:
        raise AnnotationError(
            f"{path}: holds {len(values)} values ({found}), from a soft border or from compression with loss, as JPEG's; "
            "write one value for each group, without smoothing and without loss"
        )
    elif unnamed:
        raise AnnotationError(
            f"{path}: no rule names the value {_cut([str(value) for value in unnamed])} of this mask; "
            f"values found: {found}; rules: {_rules(groups)}. Add it in quotes to slides.groups, under "
            "ignore where it is not tumour"
        )
    tumour, roi = (
        [runs for value, runs in values.items() if kind_of[str(value)] == kind] for kind in ("tumour", "roi")
    )
    if not tumour:
        raise AnnotationError(f"{path}: nothing in it is tumour; values found: {found}; rules: {_rules(groups)}")
    return MaskAnnotation(path, (), tuple(groups), [], join(tumour), join(roi) if roi else None)


def _by_rule(path: Path, outlines: Sequence[Outline], groups: Mapping[Any, Sequence[str]]) -> tuple[list[Polygon], str]:
    """The outlines that rules use, with the kind of each, and all groups found, in words."""
    kind_of = {name.strip(): kind for kind, names in groups.items() for name in names}
    named = {
        (o.group, o.parents): next((kind_of[g] for g in (o.group, *o.parents) if g in kind_of), None) for o in outlines
    }
    counts = Counter((o.group, o.parents) for o in outlines)
    texts = [
        shown(group) + (f" in {shown(parents[0])}" if parents else "") + f" ({count})"
        for (group, parents), count in sorted(counts.items())
    ]
    found = _cut(texts)
    if unknown := sorted({group for (group, _), kind in named.items() if kind is None}):
        raise AnnotationError(
            f"{path}: no rule names the group {_cut([shown(name) for name in unknown])}; groups "
            f"found: {found}; rules: {_rules(groups)}. Add it to slides.groups, under ignore where "
            "it is neither tumour nor hole"
        )
    polygons = []
    for outline in outlines:
        kind = named[outline.group, outline.parents]
        if kind is None or kind == "ignore":
            continue
        if not outline.rings:
            raise AnnotationError(
                f"{path}: annotation `{shown(outline.name)}` is of type {shown(outline.shape)}, which "
                "has no known shape; draw it as a polygon"
            )
        polygons.append(Polygon(kind, outline.group, outline.rings[0], outline.rings[1:]))
    return polygons, found


def _cut(texts: Sequence[str], most: int = 20) -> str:
    return listed(texts, most) or "none"


def _rules(groups: Mapping[Any, Sequence[str]]) -> str:
    return "; ".join(f"{kind} = {', '.join(names) or 'nothing'}" for kind, names in groups.items())


def _odd_shapes(polygons: Sequence[Polygon]) -> list[str]:
    distinct = [len(np.unique(p.points, axis=0)) for p in polygons]
    thin = sum(count < 3 for count in distinct)
    rings = [shapely.LinearRing(p.points) for p, count in zip(polygons, distinct, strict=True) if count >= 3]
    crossed = int((~shapely.is_simple(rings)).sum()) if rings else 0
    warnings = []
    if thin:
        warnings.append(f"{thin} of {len(polygons)} outlines have fewer than 3 points and so no area")
    if crossed:
        warnings.append(
            f"{crossed} of {len(polygons)} outlines cross themselves; all that they go round is filled, as "
            "in ASAP (non-zero winding)"
        )
    return warnings


def _check_holes(annotation: Annotation) -> None:
    """Raise AnnotationError for holes that leave no tumour, and warn of islands in holes.

    Painting is only worth it here where there are holes.
    """
    holes = [p for p in annotation.polygons if p.kind == "hole"]
    cut_out = [p for p in annotation.polygons if p.kind == "tumour" and p.holes]
    if not holes and not cut_out:
        return
    if annotation.spans.is_empty:
        groups = listed(sorted({shown(p.group) for p in holes or cut_out}))
        raise AnnotationError(
            f"{annotation.path}: all its tumour is covered by holes ({len(holes or cut_out)} outlines of {groups}), so that no "
            "pixel of tumour is left; correct the outlines, or the groups under hole in slides.groups"
        )
    if islands := sum(layer > 1 and layer % 2 == 0 for layer in annotation.layers):
        annotation.warnings.append(
            f"{islands} tumour outlines lie in a hole of other tumour and are kept as islands, "
            "which ASAP's own masks lose"
        )
