"""The report's account of slides and patches: splits, what failed and why, thumbnails."""

from collections import Counter
from pathlib import Path
from typing import Any

from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.patches.patch import patches_for_classifier, patches_for_sam
from epsam.patches.tables import SlideRow, read_summary
from epsam.runtime.files import read_image
from epsam.visualization.panels import as_jpeg
from epsam.workspace import SPLITS, Workspace

THUMBNAIL_PX = 640


THUMBNAILS = 12


def data_section(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Everything of the section "Data"."""
    slides = read_summary(workspace)
    thumbnails = sorted(workspace.qa.glob("*.jpg"))
    more = len(thumbnails) - THUMBNAILS
    return {
        "explanation": _explanation(config, slides),
        "split_columns": ("Split", "Slides", "With tumour, for SAM", "With tumour, classifier only", "Normal"),
        "splits": [_split(workspace, split, slides) for split in SPLITS],
        "failed": [(slide.slide, slide.reason) for slide in slides if slide.status == "failed"],
        "slide_columns": ("Slide", "Split", "Status", "Read by", "Size at level 0", "µm/px", "With tumour", "Normal"),
        "slides": [_slide(slide) for slide in slides],
        "pictures": [_thumbnail(path) for path in thumbnails[:THUMBNAILS]],
        "more_pictures": f"{more} more lie in runs/{config.name}/qa/." if more > 0 else "",
    }


def _explanation(config: Config, slides: list[SlideRow]) -> str:
    cut = config.patches
    low, high = cut.positive_share
    if not slides:
        return "The patches were brought as they are; there is no record of slides."
    counts: Counter[str] = Counter(slide.status for slide in slides)
    tally = ", ".join(
        f"{counts[status]} {name}"
        for status, name in (("ok", "used"), ("failed", "failed"), ("excluded", "excluded"))
        if counts[status]
    )
    at = f"at {cut.target_mpp} µm/px" if cut.target_mpp else "at level 0"
    return (
        f"{len(slides)} slides ({tally}). Patches of {cut.size_px} px {at}; SAM works on patches whose tumour "
        f"share lies between {low:.0%} and {high:.0%}. Split of the slides: {config.slides.split}."
    )


def _split(workspace: Workspace, split: str, slides: list[SlideRow]) -> tuple[str, ...]:
    try:
        patches = patches_for_classifier(workspace, split)
    except DataError:
        return (split, "–", "no patches", "", "")
    positives, for_sam = sum(patch.label for patch in patches), len(patches_for_sam(workspace, split))
    used = sum(slide.split == split and slide.status == "ok" for slide in slides)
    counts = (for_sam, positives - for_sam, len(patches) - positives)
    return (split, str(used) if slides else "–", *(f"{count:,}" for count in counts))


def _slide(slide: SlideRow) -> tuple[str, ...]:
    size = f"{slide.width:,} × {slide.height:,}" if slide.width and slide.height else "–"
    mpp = f"{slide.mpp_x:.3f}" if slide.mpp_x else "unknown"
    read_by = ", ".join(part for part in (slide.reader, slide.vendor) if part) or "–"
    return (
        slide.slide,
        slide.split or "–",
        slide.status,
        read_by,
        size,
        mpp,
        str(slide.patches_positive),
        str(slide.patches_negative),
    )


def _thumbnail(path: Path) -> dict[str, str]:
    return {
        "title": path.stem,
        "uri": as_jpeg(read_image(path), THUMBNAIL_PX),
        "alt": f"Slide {path.stem} with tissue, annotation and the chosen patches",
    }
