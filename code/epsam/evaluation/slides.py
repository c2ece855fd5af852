"""Whole test slides: what is predicted on them beside what is annotated, slide by slide and over all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile
from pydantic import NonNegativeInt

from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.evaluation import metrics
from epsam.patches.manifest import SlideRecord, read_manifest
from epsam.patches.placement import AnnotationSource
from epsam.patches.tables import SlideRow, read_summary
from epsam.results import Value
from epsam.runtime.files import write_csv
from epsam.runtime.log import logger, progress
from epsam.runtime.records import Row, read_rows
from epsam.slides.annotation import Annotation
from epsam.slides.slide import plausible_mpp
from epsam.workspace import Workspace

MEASURES = {
    "dice": metrics.pooled_dice,
    "precision": metrics.pooled_precision,
    "recall": metrics.pooled_recall,
}


class SlideFigures(Row):
    """A row of slide_metrics.csv."""

    slide: str
    both_px: NonNegativeInt
    """Level-0 pixels that are tumour and predicted tumour."""
    predicted_px: NonNegativeInt
    true_px: NonNegativeInt
    false_mm2: float | None = None
    """Area predicted without being tumour; None where the slide does not say its resolution."""
    dice: float | None = None
    """None where nothing is tumour, as for `recall`."""
    precision: float | None = None
    """None where nothing is predicted."""
    recall: float | None = None


def comparable_slides(config: Config, workspace: Workspace) -> dict[str, SlideRecord]:
    """Test slides, by name, of which it is known where tumour is: annotated in full, or without tumour.

    Not those of which only windows or the slide as a whole have a label, nor those annotated in part.
    """
    names = {row.slide for row in read_summary(workspace) if row.status == "ok" and row.split == "test"}
    records = {record.slide: record for record in read_manifest(workspace, config.slides).records}
    return {
        name: record
        for name, record in records.items()
        if name in names and record.negatives and not record.all_tumour and (record.annotation or not record.labels)
    }


def compare_slides(
    config: Config, workspace: Workspace, records: Mapping[str, SlideRecord], masks: Path
) -> list[SlideFigures]:
    """Figures of slides by their <slide>_mask.tif in `masks`, the settings and annotations of the run.

    Where an annotation has regions of interest, only they count. Raises AnnotationError for an annotation that cannot
    be used, DataError for a mask of another size than its slide.
    """
    rows = {row.slide: row for row in read_summary(workspace)}
    found = []
    for name, record in progress(records.items(), desc="whole slides", unit="slide"):
        overlap = _overlap(masks / f"{name}_mask.tif", rows[name], _annotation(record, rows[name], config))
        found.append(_figures(rows[name], overlap))
    return found


def _annotation(record: SlideRecord, row: SlideRow, config: Config) -> Annotation | None:
    if record.annotation is None:
        return None
    source = AnnotationSource.of(record.annotation, config.slides.groups, record.info)
    return source.read(record.path, (row.width, row.height))


def _overlap(path: Path, row: SlideRow, annotation: Annotation | None) -> np.ndarray:
    """`metrics.overlap` of a mask file and an annotation, (3,) int64 level-0 pixels; one tile in memory at a time."""
    counts = np.zeros(3, np.int64)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        if page.shape != (row.height, row.width):
            raise DataError(f"{path}: {page.shape[1]} x {page.shape[0]} px, its slide has {row.width} x {row.height}")
        for data, index, (_, height, width, _) in page.segments():
            y, x = index[2:4]
            tile = np.zeros((height, width), bool) if data is None else data[0, :height, :width, 0] > 0
            truth = np.zeros_like(tile)
            if annotation is not None:
                truth = annotation.mask(x, y, width, height)
                if annotation.regions is not None:
                    inside = annotation.regions.mask(x, y, width, height)
                    tile, truth = tile & inside, truth & inside
            counts += metrics.overlap(tile, truth)
    return counts


def _figures(row: SlideRow, overlap: np.ndarray) -> SlideFigures:
    both, predicted, true = overlap.tolist()
    mpp = plausible_mpp(row.mpp_x, row.mpp_y)
    denominators = {"dice": true, "precision": predicted, "recall": true}
    return SlideFigures(
        slide=row.slide,
        both_px=both,
        predicted_px=predicted,
        true_px=true,
        false_mm2=None if mpp is None else (predicted - both) * mpp[0] * mpp[1] / 1e6,
        **{key: float(measure(overlap)) for key, measure in MEASURES.items() if denominators[key]},
    )


def write_slide_figures(workspace: Workspace, figures: Sequence[SlideFigures]) -> None:
    """Write runs/<name>/slide_metrics.csv."""
    rows = [{key: "" if value is None else value for key, value in one} for one in figures]
    write_csv(workspace.slide_metrics_csv, rows, list(SlideFigures.model_fields))


def read_slide_figures(workspace: Workspace) -> list[SlideFigures]:
    """Rows of slide_metrics.csv, none where whole slides were not predicted; raises DataError when it is damaged."""
    path = workspace.slide_metrics_csv
    return read_rows(path, SlideFigures, "run ./train.sh again with --from evaluate") if path.is_file() else []


def slides_row(config: Config, method: str, figures: Sequence[SlideFigures]) -> dict[str, Value]:
    """The row `<method>_slides` of metrics.csv: pooled over all slides, with 95% intervals over slides.

    `normal_false_mm2`: area marked on slides without tumour, of those whose resolution is known.
    """
    overlaps = np.array([(one.both_px, one.predicted_px, one.true_px) for one in figures])
    row: dict[str, Value] = {"split": "test", "method": f"{method}_slides", "slides": len(figures)}
    for key, measure in MEASURES.items():
        name = "all_pooled_dice" if key == "dice" else f"all_{key}"
        value, low, high = metrics.with_interval(overlaps, measure, config.evaluate.bootstrap, metrics.BOOTSTRAP_SEED)
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    normal = [one.false_mm2 for one in figures if not one.true_px and one.false_mm2 is not None]
    worst = [one.dice for one in figures if one.true_px and one.dice is not None]
    row |= {"worst_dice": min(worst)} if worst else {}
    return row | ({"normal_slides": len(normal), "normal_false_mm2": float(sum(normal))} if normal else {})


def log_slides(row: Mapping[str, Value]) -> None:
    """The row of `slides_row` as one line."""
    shown = ", ".join(
        f"{title} {row[key]:.3f}"
        for title, key in (
            ("pooled Dice", "all_pooled_dice"),
            ("precision", "all_precision"),
            ("recall", "all_recall"),
            ("worst slide", "worst_dice"),
        )
        if key in row
    )
    normal = (
        f"; {row['normal_false_mm2']:.3f} mm2 marked on {row['normal_slides']} normal" if "normal_slides" in row else ""
    )
    logger.info(f"evaluate: {row['slides']} whole slides: {shown}{normal}")
