"""The table of methods: its rows, their intervals, and how it is logged."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from epsam.cam.activation_map import resize_map
from epsam.config.schema import Config
from epsam.evaluation import metrics
from epsam.evaluation.methods import Figures, Method
from epsam.patches.patch import Patch
from epsam.results import Value
from epsam.runtime.files import read_mask
from epsam.runtime.log import logger, progress

if TYPE_CHECKING:
    from epsam.sam.session import SamSession  # which imports torch: the report does without


def cam_curve(session: "SamSession", patches: Sequence[Patch]) -> metrics.MapCurve:
    """Precision and recall of the CAMs of test patches over all thresholds."""
    cams, curve = {e.patch.name: e.cam for e in session.examples("test")}, metrics.MapCurve()
    for patch in progress(patches, desc="PxAP", unit="patch"):
        truth = read_mask(patch.mask)
        curve.add(resize_map(cams[patch.name].values, truth.shape), truth)
    return curve


def result_row(config: Config, method: str, figures: Figures) -> dict[str, Value]:
    """One row of the table: figures on patches with tumour, the same as `all_...` on all patches, and `normal_marked`.

    dice and iou are means over patches, the others take the pixels of all patches together. `normal_marked` is the
    share of the area of normal patches that is predicted tumour. Each has its 95% interval over patches as `_low` and
    `_high` and, where the slides are known, over slides as `_slides_low` and `_slides_high`.
    """
    gated = figures.gated(config.inference.classifier_probability)
    row: dict[str, Value] = {"split": "test", "method": method, "patches": len(figures.positives().names)}
    row |= _measures(config, "", figures.positives()) | _measures(config, "all_", gated)
    if len(normals := gated.normals().names):
        rows = np.stack([gated.normals().overlaps[:, 1], gated.normals().areas], 1)
        row |= _with_intervals(config, "normal_marked", rows, lambda s: s[:, 0] / s[:, 1], gated.normals().slides)
    row |= {"all_patches": len(gated.names), "normal_patches": len(normals)}
    return row | ({"slides": len(set(figures.slides))} if figures.slides else {})


def _measures(config: Config, prefix: str, figures: Figures) -> dict[str, float]:
    """The measures of a set of patches with their intervals."""
    measures: dict[str, float] = {}
    for key, values in (("dice", figures.dice), ("iou", figures.iou)):
        rows = np.stack([values, np.ones_like(values)], 1)
        measures |= _with_intervals(config, prefix + key, rows, lambda s: s[:, 0] / s[:, 1], figures.slides)
    for key, statistic in (
        ("pooled_dice", metrics.pooled_dice),
        ("precision", metrics.pooled_precision),
        ("recall", metrics.pooled_recall),
    ):
        measures |= _with_intervals(config, prefix + key, figures.overlaps, statistic, figures.slides)
    return measures


def _with_intervals(
    config: Config,
    key: str,
    rows: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    slides: Sequence[str] | None,
) -> dict[str, float]:
    resamples, seed = config.evaluate.bootstrap, metrics.BOOTSTRAP_SEED
    value, low, high = metrics.with_interval(rows, statistic, resamples, seed)
    found = {key: value, f"{key}_low": low, f"{key}_high": high}
    if slides:
        _, low, high = metrics.with_interval(rows, statistic, resamples, seed, groups=slides)
        found |= {f"{key}_slides_low": low, f"{key}_slides_high": high}
    return found


def map_figures(config: Config, curve: metrics.MapCurve) -> dict[str, float]:
    """Figures of the CAM that need no threshold, or choose it on true masks."""
    resamples, seed = config.evaluate.bootstrap, metrics.BOOTSTRAP_SEED
    found = {"pxap": curve.average_precision(resamples, seed), "best_threshold_dice": curve.best_dice(resamples, seed)}
    return {
        key + end: value
        for key, values in found.items()
        for end, value in zip(("", "_low", "_high"), values, strict=True)
    }


LOGGED = {
    "Dice": "dice",
    "pooled Dice, all": "all_pooled_dice",
    "precision, all": "all_precision",
    "recall, all": "all_recall",
    "normal area marked": "normal_marked",
}
"""Columns of the table in the log."""


def interval_of(row: Mapping[str, Any], key: str) -> tuple[float, float]:
    """The interval to show: the wider of that over patches and, where the slides are known, that over slides.

    With few slides the latter is too narrow, with many the former.
    """
    found = [
        (float(row[f"{key}{over}_low"]), float(row[f"{key}{over}_high"]))
        for over in ("", "_slides")
        if f"{key}{over}_low" in row
    ]
    return max(found, key=lambda interval: interval[1] - interval[0])


def log_table(methods: Sequence[Method], rows: Sequence[dict[str, Value]]) -> None:
    """The table as aligned lines."""

    def cell(row: dict[str, Value], key: str) -> str:
        if key not in row:
            return "-"
        low, high = interval_of(row, key)
        return f"{row[key]:.3f} [{low:.3f}, {high:.3f}]"

    lines = [["method", *LOGGED]]
    lines += [[m.title, *(cell(row, key) for key in LOGGED.values())] for m, row in zip(methods, rows, strict=True)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    over = f"patches or {rows[0]['slides']} slides, the wider" if "slides" in rows[0] else "patches"
    logger.info(
        f"Test split, {rows[0]['patches']} patches with tumour (Dice is their mean) of {rows[0]['all_patches']} (all); "
        f"95% bootstrap intervals over {over}"
    )
    for line in lines:
        logger.info("  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
