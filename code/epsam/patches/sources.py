"""The files of a data set as people bring them: slides, annotations, and which annotation belongs to which slide."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epsam.slides.formats import DATA_FOLDERS, files_below, is_slide_name, match_key, slide_name
from epsam.slides.grouping import group_slides
from epsam.workspace import Workspace

OUTLINES = re.compile(r"\.(xml|geojson|geojson\.gz|json|json\.gz)$", re.IGNORECASE)
"""Ends of names of annotations, wherever they lie."""
BESIDE = re.compile(rf"{OUTLINES.pattern}|\.(csv|txt|md|html)$", re.IGNORECASE)
"""Ends of names of what else may lie beside slides and is no slide that somebody misses."""
MASKS = re.compile(r"\.(tif|tiff|png)$", re.IGNORECASE)
"""Ends of names of masks in annotations/; beside slides they are known by `_mask`."""
MASK_END = re.compile(r"[_-](mask|annotation|annotations)$", re.IGNORECASE)
PARTS_BESIDE = re.compile(r"\.(jpg|opt|vmi|dat|ini)$", re.IGNORECASE)


@dataclass(frozen=True)
class Sources:
    """What lies in images/ and annotations/, each sorted by path."""

    slides: list[Path]
    """The file of each slide that is opened, see `group_slides`."""
    annotations: list[Path]
    others: list[Path]
    """Neither slide nor annotation by their names."""


def find_sources(workspace: Workspace) -> Sources:
    """Slides and annotations in images/ and annotations/ and all their folders; hidden files do not count."""
    slides: list[Path] = []
    annotations: list[Path] = []
    others: list[Path] = []
    for path in files_below(workspace.slides):
        if OUTLINES.search(path.name):
            annotations.append(path)
        else:
            (slides if is_slide_name(path) else others).append(path)
    slides = [slide.path for slide in group_slides(slides)]
    names = {match_key(slide_name(path)) for path in slides}
    for found in (slides, others):
        for path in [path for path in found if MASKS.search(path.name) and _mask_of(path) in names]:
            found.remove(path)
            annotations.append(path)
    for path in [p for p in annotations if p.name.lower().endswith(".json") and not slide_of(p, names)]:
        annotations.remove(path)  # lists of a download, more often than not
        others.append(path)
    if any(path.suffix.lower() in DATA_FOLDERS for path in slides):
        others = [path for path in others if not PARTS_BESIDE.search(path.name)]
    for path in files_below(workspace.annotations):
        (annotations if OUTLINES.search(path.name) or MASKS.search(path.name) else others).append(path)
    return Sources(slides, annotations, others)


def not_slides(files: Sequence[Path]) -> list[Path]:
    """Which of the files of a folder of slides are neither slides nor parts of them, annotations or tables."""
    others = [path for path in files if not is_slide_name(path) and not BESIDE.search(path.name)]
    if any(path.suffix.lower() in DATA_FOLDERS for path in files):
        others = [path for path in others if not PARTS_BESIDE.search(path.name)]
    return others


def slide_of(annotation: Path, slides: set[str]) -> str:
    """Key of the slide, one of `slides`, that an annotation belongs to by its name; empty when none is.

    Names are equal after `match_key`; the annotation's may keep the suffix of the slide (`a.svs.geojson`) or say what
    it is (`a_mask.tif`).
    """
    stem = OUTLINES.sub("", annotation.name)
    stem = slide_name(annotation) if stem == annotation.name else stem
    named = Path(stem)
    short = slide_name(named) if is_slide_name(named) else stem
    short = re.sub(r"\.ome$", "", short, flags=re.IGNORECASE)
    return next((key for name in (stem, short, MASK_END.sub("", short)) if (key := match_key(name)) in slides), "")


def _mask_of(path: Path) -> str:
    """Key of the slide whose mask a file is by the end of its name; empty when it does not say so."""
    stem = slide_name(path)
    short = MASK_END.sub("", stem)
    return match_key(short) if short != stem else ""
