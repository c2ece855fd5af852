"""The windows of a slide that may become patches: those on tissue with their tumour share, or those of labels.csv."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from epsam.config.schema import Config
from epsam.errors import AnnotationError, SlideError
from epsam.patches.grid import candidate_windows, share_of_windows, window_px
from epsam.patches.labels import WindowLabels
from epsam.patches.manifest import SlideRecord
from epsam.patches.placement import CORRECT, MIN_ON_TISSUE, AnnotationSource, check_placement
from epsam.slides.annotation import Annotation
from epsam.slides.openslide import bounds_origin
from epsam.slides.slide import Slide
from epsam.slides.tissue import GREY_SLIDE, is_grey


@dataclass(frozen=True)
class Windows:
    """The part of a slide's candidates that depends on what is known of its tumour."""

    read_px: int
    """Side of a window in level-0 pixels."""
    notes: tuple[str, ...]
    """Oddities for the log."""
    x: np.ndarray
    """(n,) int64, level 0; with y the corners of the windows."""
    y: np.ndarray
    fraction: np.ndarray
    """(n,) float64 in [0, 1], tumour share; NaN where only the label is known."""
    label: np.ndarray
    """(n,) int8: 1 holds tumour, 0 does not."""


def find_windows(
    record: SlideRecord, slide: Slide, mpp: tuple[float, float] | None, tissue: np.ndarray, config: Config
) -> Windows:
    """The windows of a slide; tissue: (h, w) bool at `patches.tissue.downsample`.

    Raises SlideError when there is none, AnnotationError when the annotation cannot be used.
    """
    if record.labels is None:
        return _from_tissue(record, slide, mpp, tissue, config)
    # True masks of the positives come from the annotation, where there is one.
    notes = _annotation_of(record, record.annotation, slide, tissue, config)[1] if record.annotation else []
    return _from_labels(record, record.labels, slide, mpp, tissue, config, notes)


def _annotation_of(
    record: SlideRecord, path: Path, slide: Slide, tissue: np.ndarray, config: Config
) -> tuple[Annotation, list[str]]:
    """The annotation of a slide, which lies at `path`, and warnings of its place."""
    source = AnnotationSource.of(path, config.slides.groups, record.info)
    annotation = source.read(slide.path, slide.size)
    bounds = bounds_origin(slide.path) if record.info.origin is None else (0, 0)
    return annotation, check_placement(annotation, slide.size, tissue, config.patches.tissue.downsample, bounds)


def _from_tissue(
    record: SlideRecord, slide: Slide, mpp: tuple[float, float] | None, tissue: np.ndarray, config: Config
) -> Windows:
    """The windows on tissue, with their tumour share by the annotation; without one, they are all alike."""
    settings = config.patches
    read_px = window_px(settings, mpp)
    x, y = candidate_windows(tissue, slide.size, read_px, settings)
    if not len(x):
        raise SlideError(_why_empty(slide, tissue, read_px))
    if record.annotation is None:
        fraction = np.full(len(x), np.nan if record.all_tumour else 0.0)
        return Windows(read_px, (), x, y, fraction, np.full(len(x), record.all_tumour, np.int8))
    annotation, notes = _annotation_of(record, record.annotation, slide, tissue, config)
    fraction = np.asarray(annotation.fraction(x, y, read_px, read_px))
    if not fraction.any():
        raise AnnotationError(
            f"{annotation.path}: none of the {len(x)} windows of {read_px} px on tissue holds tumour: its outlines are "
            f"too small, lie at the slide's border or between windows, or not in their place; {CORRECT}"
        )
    annotated = (fraction > 0) | annotation.in_regions(x, y, read_px, read_px)
    x, y, fraction = x[annotated], y[annotated], fraction[annotated]
    return Windows(read_px, tuple(notes), x, y, fraction, (fraction > 0).astype(np.int8))


def _from_labels(
    record: SlideRecord,
    labels: WindowLabels,
    slide: Slide,
    mpp: tuple[float, float] | None,
    tissue: np.ndarray,
    config: Config,
    notes: list[str],
) -> Windows:
    """The windows of labels.csv that lie on the slide, placed as slides.csv says."""
    scale, (left, top) = record.info.scale or 1.0, record.info.origin or (0.0, 0.0)
    read_px = _labelled_px(labels, scale, slide, mpp, config)
    x, y = (np.rint(corner * scale + start).astype(np.int64) for corner, start in ((labels.x, left), (labels.y, top)))
    width, height = slide.size
    inside = (x >= 0) & (y >= 0) & (x + read_px <= width) & (y + read_px <= height)
    outside = [f"x {a}, y {b}" for a, b in zip(x[~inside], y[~inside], strict=True)]
    if outside:
        shown = "; ".join(outside[:3]) + (f" and {len(outside) - 3} more" if len(outside) > 3 else "")
        where = f"windows of {read_px} px in labels.csv reach beyond the slide of {width} x {height} px: {shown}"
        if not inside.any():
            raise SlideError(f"{slide.path}: all {where}; x and y are the top-left corner in level-0 pixels")
        notes = [f"{len(outside)} {where}; they are left out", *notes]
    x, y, label = x[inside], y[inside], labels.label[inside]
    _check_on_tissue(record, slide, x[label == 1], y[label == 1], read_px, tissue, config)
    return Windows(read_px, tuple(notes), x, y, np.full(len(label), np.nan), label)


def _check_on_tissue(
    record: SlideRecord, slide: Slide, x: np.ndarray, y: np.ndarray, read_px: int, tissue: np.ndarray, config: Config
) -> None:
    """Raise SlideError when less than half of the windows with the label tumour at x, y is tissue."""
    scale = config.patches.tissue.downsample
    share = share_of_windows(tissue, x, y, read_px, scale)
    if not len(x) or share.mean() >= MIN_ON_TISSUE:
        return
    left, top = bounds_origin(slide.path) if record.info.origin is None else (0, 0)
    moved = share_of_windows(tissue, x + left, y + top, read_px, scale)
    advice = (
        f"counted from the scanned region, as QuPath counts, it would be {moved.mean():.0%}: give origin_x {left} and "
        f"origin_y {top} in slides.csv"
        if (left or top) and moved.mean() >= MIN_ON_TISSUE
        else "x and y are the top-left corner in level-0 pixels; origin_x, origin_y and scale in slides.csv place them "
        "otherwise, tissue_threshold finds pale tissue"
    )
    raise SlideError(
        f"{slide.path}: only {share.mean():.0%} of the windows that labels.csv calls tumour is tissue; {advice}"
    )


def _labelled_px(
    labels: WindowLabels, scale: float, slide: Slide, mpp: tuple[float, float] | None, config: Config
) -> int:
    """Side of labelled windows in level-0 pixels; `scale`: level-0 pixels per unit of the table."""
    if labels.width is not None:
        return max(1, round(labels.width * scale))
    if labels.level is not None:
        if labels.level >= len(slide.level_downsamples):
            raise SlideError(
                f"{slide.path}: labels.csv gives level {labels.level}, the slide has {len(slide.level_downsamples)} "
                "levels, from 0 on"
            )
        return round(config.patches.size_px * slide.level_downsamples[labels.level])
    if labels.mpp is not None:
        return window_px(config.patches.model_copy(update={"target_mpp": labels.mpp}), mpp)
    return window_px(config.patches, mpp)


def _why_empty(slide: Slide, tissue: np.ndarray, read_px: int) -> str:
    width, height = slide.size
    if min(slide.size) < read_px:
        return f"{slide.path}: the slide is {width} x {height} px, smaller than one window of {read_px} px"
    if not tissue.any() and is_grey(slide):
        return f"{slide.path}: {GREY_SLIDE}"
    if not tissue.any():
        return f"{slide.path}: no tissue found; if its stain is pale, give tissue_threshold in slides.csv"
    return f"{slide.path}: no window of {read_px} px lies on its tissue ({tissue.mean():.2%} of the slide)"
