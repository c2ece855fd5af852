"""The report's figures: headline, table of methods, charts, classifier."""

from typing import Any

from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.evaluation.methods import Method, figures_csv, final_method, methods_of, read_figures
from epsam.evaluation.metrics import BOOTSTRAP_SEED, mean_with_interval
from epsam.report.slide_section import slide_section
from epsam.results import HOW_TO_MAKE_IT_ANEW, read_results
from epsam.visualization.charts import methods_chart
from epsam.workspace import Workspace

COLUMNS = (
    ("Dice", "dice"),
    ("IoU", "iou"),
    ("Pooled Dice", "pooled_dice"),
    ("Dice, all patches", "all_dice"),
    ("Pooled Dice, all", "all_pooled_dice"),
)


class Required(dict):
    """Rows or figures of metrics.csv; one that is looked up and not there is a DataError."""

    def __missing__(self, key: str) -> None:
        raise DataError(f"metrics.csv has no {key} in the rows of evaluate; {HOW_TO_MAKE_IT_ANEW}")


Row = dict[str, str]


def method_rows(workspace: Workspace) -> dict[str, Row]:
    """Rows of metrics.csv by method, as the evaluation wrote them."""
    return Required(
        (row.get("method", ""), Required(row)) for row in read_results(workspace) if row["stage"] == "evaluate"
    )


def headline(config: Config, workspace: Workspace) -> str:
    """The outcome in one or two sentences."""
    rows = method_rows(workspace)
    last = rows.get(final_method(config))
    if not last:
        return "No figures on the test split: it has no true masks, or was not evaluated yet."
    rounds = f"round {config.retrain.rounds}" if config.retrain.rounds else "the preliminary round"
    text = (
        f"On {last['patches']} test patches that hold tumour, the decoder of {rounds} reaches a mean Dice of "
        f"{_two(last, 'dice')} (95 % interval {_two(last, 'dice_low')} to {_two(last, 'dice_high')}), "
        f"against {_two(rows['cam'], 'dice')} for the CAM mask and {_two(rows['sam'], 'dice')} for SAM untuned."
    )
    if "supervised" not in rows:
        return text
    text += f" Trained on true masks, the same decoder reaches {_two(rows['supervised'], 'dice')}"
    closed = share_closed(rows, final_method(config))
    return text + (f": {closed:.0%} of that gain over the CAM came without them." if closed and closed > 0 else ".")


def share_closed(rows: dict[str, Row], final: str) -> float | None:
    """Share of the gap in Dice from CAM to supervised that `final` closes; None where there is no such gap."""
    if "supervised" not in rows:
        return None
    cam, last, supervised = (float(rows[name]["dice"]) for name in ("cam", final, "supervised"))
    return (last - cam) / (supervised - cam) if supervised > cam else None


def tiles(config: Config, workspace: Workspace) -> list[dict[str, str]]:
    """The few figures shown large."""
    rows = method_rows(workspace)
    shown = []
    if last := rows.get(final_method(config)):
        shown += [
            ("Dice", _two(last, "dice"), f"on {last['patches']} patches with tumour"),
            ("Gain over the CAM", _signed(last, rows["cam"]), _gain(config, workspace)),
            ("PxAP of the CAM", _two(rows["cam"], "pxap"), "over all thresholds"),
        ]
    shown += [
        ("Classifier AUC", f"{float(row['auc']):.3f}", "on test patches")
        for row in read_results(workspace)
        if row["stage"] == "train-classifier" and row.get("split") == "test" and "auc" in row
    ]
    return [{"title": title, "value": value, "note": note} for title, value, note in shown]


def _signed(last: Row, first: Row) -> str:
    difference = round(float(last["dice"]) - float(first["dice"]), 2) or 0.0  # never -0.00
    return f"{difference:+.2f}".replace("-", "−")


def _gain(config: Config, workspace: Workspace) -> str:
    """Interval of the difference patch by patch, which is narrower than the two intervals suggest."""
    last, cam = (read_figures(figures_csv(workspace, name)).positives() for name in (final_method(config), "cam"))
    _, low, high = mean_with_interval(last.dice - cam.dice, config.evaluate.bootstrap, BOOTSTRAP_SEED)
    return f"Dice, {low:+.2f} to {high:+.2f}".replace("-", "−")


def result_section(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Everything of the section "Results"."""
    rows = method_rows(workspace)
    methods = [method for method in methods_of(config, workspace) if method.name in rows]
    section = {
        "methods": [_method(method, rows[method.name], final_method(config)) for method in methods],
        "columns": [title for title, _ in COLUMNS],
        "missing": "The test split has no true masks, so nothing could be measured. Put them into test/mask/ under "
        "the names of their patches and run ./train.sh again with --from evaluate.",
        "classifier_columns": ("Split", "AUC", "Accuracy", "Sensitivity at 90 % specificity", "Patches"),
        "classifier": [_classifier(row) for row in read_results(workspace) if row["stage"] == "train-classifier"],
        "slides": {"rows": []},
        "charts": [],
    }
    if methods:
        last = rows[methods[-1].name]
        section |= {
            "explanation": (
                f"Mean over {last['patches']} patches that hold tumour, and over all {last['all_patches']} patches "
                "with normal ones too, where a patch that the classifier finds normal (below 0.5) is predicted empty. "
                "Pooled figures take the pixels of all patches together. Below each figure its 95 % bootstrap "
                f"interval from {config.evaluate.bootstrap} resamples of patches; it does not tell how much other "
                "slides would change."
            ),
            "map_note": _map_note(rows["cam"]),
            "charts": [
                _chart(methods, rows, final_method(config), *chart)
                for chart in (
                    ("dice", "Mean Dice, patches with tumour"),
                    ("all_pooled_dice", "Pooled Dice, all patches"),
                )
            ],
            "slides": slide_section(config, workspace),
        }
    return section


def _map_note(cam: Row) -> str:
    pxap, best = (
        f"{float(cam[key]):.3f} ({float(cam[key + '_low']):.3f} to {float(cam[key + '_high']):.3f})"
        for key in ("pxap", "best_threshold_dice")
    )
    return (
        f"The maps without a threshold: pixel-level average precision (PxAP) {pxap}. The best single threshold "
        f"would give a Dice of {best}; it is chosen on test masks, so it is a bound and not a result. "
        f"Masks of whole patches have a Dice of {float(cam['whole_patch_dice']):.3f}."
    )


def _method(method: Method, row: Row, final: str) -> dict[str, Any]:
    cells = [
        {
            "value": f"{float(row[key]):.3f}",
            "interval": f"{float(row[key + '_low']):.3f}–{float(row[key + '_high']):.3f}",
        }
        for _, key in COLUMNS
    ]
    return {"title": method.title, "note": method.note, "cells": cells, "emphasis": method.name == final}


def _chart(methods: list[Method], rows: dict[str, Row], final: str, key: str, title: str) -> dict[str, str]:
    bars = [(m.title, *(float(rows[m.name][key + end]) for end in ("", "_low", "_high"))) for m in methods]
    spoken = "; ".join(f"{name} {value:.2f} ({low:.2f} to {high:.2f})" for name, value, low, high in bars)
    uri = methods_chart(bars, "with 95 % interval", Method(final).title)
    return {"title": title, "uri": uri, "alt": f"Bars: {title}. {spoken}."}


def _classifier(row: Row) -> tuple[str, ...]:
    keys = ("auc", "accuracy", "sensitivity_at_90_specificity")
    figures = (f"{float(row[key]):.3f}" if key in row else "–" for key in keys)
    return (row.get("split", "–"), *figures, row.get("patches", "–"))


def _two(row: Row, key: str) -> str:
    return f"{float(row[key]):.2f}"
