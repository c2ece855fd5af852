"""The table of methods: its rows, their intervals, and how it is logged."""

from collections.abc import Sequence

from epsam.cam.activation import resize_map
from epsam.config.schema import Config
from epsam.evaluation import metrics
from epsam.evaluation.methods import Figures, Method
from epsam.patches.patch import Patch
from epsam.results import Value
from epsam.runtime.files import read_mask
from epsam.runtime.log import logger, progress
from epsam.sam.session import SamSession


def cam_curve(session: SamSession, patches: Sequence[Patch]) -> metrics.MapCurve:
    """Precision and recall of the CAMs of test patches over all thresholds."""
    cams, curve = {e.patch.name: e.cam for e in session.examples("test")}, metrics.MapCurve()
    for patch in progress(patches, desc="PxAP", unit="patch"):
        truth = read_mask(patch.mask)
        curve.add(resize_map(cams[patch.name].values, truth.shape), truth)
    return curve


def result_row(config: Config, method: str, figures: Figures) -> dict[str, Value]:
    """One row of the table: dice, iou and pooled_dice with `_low` and `_high`, then the same as `all_...`."""
    row: dict[str, Value] = {"split": "test", "method": method}
    sets = (("", figures.positives()), ("all_", figures.gated(config.inference.classifier_probability)))
    resamples, seed = config.evaluate.bootstrap, metrics.BOOTSTRAP_SEED
    intervals: dict[str, float] = {}
    for prefix, chosen in sets:
        measures = {
            "dice": metrics.mean_with_interval(chosen.dice, resamples, seed),
            "iou": metrics.mean_with_interval(chosen.iou, resamples, seed),
            "pooled_dice": metrics.with_interval(chosen.overlaps, metrics.pooled_dice, resamples, seed),
        }
        for key, (value, low, high) in measures.items():
            intervals |= {prefix + key: value, f"{prefix}{key}_low": low, f"{prefix}{key}_high": high}
        intervals[f"{prefix}patches"] = len(chosen.names)
    return row | {key: intervals.pop(key) for key in ("dice", "iou", "patches")} | intervals


def map_figures(config: Config, curve: metrics.MapCurve) -> dict[str, float]:
    """Figures of the CAM that need no threshold, or choose it on true masks."""
    resamples, seed = config.evaluate.bootstrap, metrics.BOOTSTRAP_SEED
    found = {"pxap": curve.average_precision(resamples, seed), "best_threshold_dice": curve.best_dice(resamples, seed)}
    figures = {
        key + end: value
        for key, values in found.items()
        for end, value in zip(("", "_low", "_high"), values, strict=True)
    }
    return figures | {"whole_patch_dice": curve.whole_patch_dice()}


def log_table(methods: Sequence[Method], rows: Sequence[dict[str, Value]]) -> None:
    """The table as aligned lines."""

    def cell(row: dict[str, Value], key: str) -> str:
        return f"{row[key]:.3f} [{row[key + '_low']:.3f}, {row[key + '_high']:.3f}]"

    columns = {"Dice": "dice", "IoU": "iou", "pooled Dice": "pooled_dice", "Dice, all patches": "all_dice"}
    lines = [["method", *columns]]
    lines += [[m.title, *(cell(row, key) for key in columns.values())] for m, row in zip(methods, rows, strict=True)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    logger.info(
        f"Test split, {rows[0]['patches']} patches with tumour of {rows[0]['all_patches']}; "
        "95 % bootstrap intervals over patches. Masks of whole patches have a Dice of "
        f"{rows[0]['whole_patch_dice']:.3f}"
    )
    for line in lines:
        logger.info("  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
