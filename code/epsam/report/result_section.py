"""The report's figures: headline, table of methods, charts, classifier."""

from typing import Any

from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.evaluation.comparison import paired_difference, run_warnings
from epsam.evaluation.methods import (
    Method,
    figures_csv,
    final_method,
    methods_of,
    predicts_with_student,
    read_figures,
    upper_bound,
)
from epsam.evaluation.table import interval_of
from epsam.report.slide_section import slide_section
from epsam.report.whole_slides import whole_slides_section
from epsam.results import HOW_TO_MEASURE_AGAIN, read_results
from epsam.rounds import used_round
from epsam.visualization.charts import points_chart
from epsam.workspace import Workspace

COLUMNS = (
    ("Dice", "dice"),
    ("IoU", "iou"),
    ("Pooled Dice, all", "all_pooled_dice"),
    ("Precision, all", "all_precision"),
    ("Recall, all", "all_recall"),
    ("Normal area marked", "normal_marked"),
)
"""Of the table; where the test split has no normal patch, the last one is empty."""


SIMPLE = tuple(Method(name).title for name in ("ones", "colour"))
"""Methods that are too far off to set the axis of a chart."""


class Required(dict):
    """Rows or figures of metrics.csv; one that is looked up and not there is a DataError."""

    def __missing__(self, key: str) -> None:
        raise DataError(f"metrics.csv has no {key} in the rows of evaluate; {HOW_TO_MEASURE_AGAIN}")


Row = dict[str, str]


def method_rows(workspace: Workspace) -> dict[str, Row]:
    """Rows of metrics.csv by method, as the evaluation wrote them."""
    return Required(
        (row.get("method", ""), Required(row)) for row in read_results(workspace) if row["stage"] == "evaluate"
    )


def headline(config: Config, workspace: Workspace) -> str:
    """The outcome in one or two sentences."""
    rows = method_rows(workspace)
    last = rows.get(final_method(config, workspace))
    if not last:
        return "No figures on the test split: it has no true masks, or was not evaluated yet."
    low, high = interval_of(last, "dice")
    text = (
        f"On {last['patches']} test patches that hold tumour, {_model(config, workspace)} reaches a mean Dice of "
        f"{_three(last, 'dice')} (95% interval {low:.3f} to {high:.3f}), "
        f"against {_three(rows['ones'], 'dice')} for whole patches, {_three(rows['cam'], 'dice')} for the CAM mask and "
        f"{_three(rows['sam'], 'dice')} for SAM untuned."
    )
    bound = upper_bound(config)
    if bound not in rows:
        return text
    text += f" Trained on true masks, the same network reaches {_three(rows[bound], 'dice')}"
    closed = share_closed(rows, final_method(config, workspace), bound)
    return text + (f": {closed:.0%} of that gain over the CAM came without them." if closed and closed > 0 else ".")


def _model(config: Config, workspace: Workspace) -> str:
    return "the student" if predicts_with_student(config) else f"the decoder of round {used_round(workspace)}"


def share_closed(rows: dict[str, Row], final: str, bound: str) -> float | None:
    """Share of the gap in Dice from the CAM to `bound` that `final` closes; None where there is no such gap."""
    if bound not in rows:
        return None
    cam, last, supervised = (float(rows[name]["dice"]) for name in ("cam", final, bound))
    return (last - cam) / (supervised - cam) if supervised > cam else None


def tiles(config: Config, workspace: Workspace) -> list[dict[str, str]]:
    """The few figures shown large."""
    rows, final = method_rows(workspace), final_method(config, workspace)
    shown = []
    if last := rows.get(final):
        figures = {name: read_figures(figures_csv(workspace, name)) for name in ("ones", "cam", final)}
        shown.append(("Dice", _three(last, "dice"), f"on {last['patches']} patches with tumour"))
        for name, title in (("ones", "Gain over whole patches"), ("cam", "Gain over the CAM")):
            value, low, high = paired_difference(config, figures[final], figures[name])
            shown.append((title, _signed(value), f"Dice, {_signed(low)} to {_signed(high)}"))
        shown.append(("PxAP of the CAM", _three(rows["cam"], "pxap"), "over all thresholds"))
    shown += [
        ("Classifier AUC", f"{float(row['auc']):.3f}", "on test patches")
        for row in read_results(workspace)
        if row["stage"] == "train-classifier" and row.get("split") == "test" and "auc" in row
    ]
    return [{"title": title, "value": value, "note": note} for title, value, note in shown]


def _signed(value: float) -> str:
    rounded = round(value, 3) or 0.0  # never -0.000
    return f"{rounded:+.3f}".replace("-", "−")


def result_section(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Everything of the section "Results"."""
    rows = method_rows(workspace)
    methods = [method for method in methods_of(config, workspace) if method.name in rows]
    section = {
        "methods": [_method(method, rows[method.name], final_method(config, workspace)) for method in methods],
        "columns": [title for title, _ in COLUMNS],
        "missing": "The test split has no true masks, so nothing could be measured. Put them into test/mask/ under "
        "the names of their patches and run ./train.sh again with --from evaluate.",
        "classifier_columns": ("Split", "AUC", "Accuracy", "Sensitivity at 90% specificity", "Patches"),
        "classifier": [_classifier(row) for row in read_results(workspace) if row["stage"] == "train-classifier"],
        "slides": {"rows": []},
        "whole_slides": {"rows": []},
        "charts": [],
        "warnings": [],
    }
    if methods:
        section |= {
            "explanation": _explanation(config, rows[methods[-1].name]),
            "map_note": _map_note(rows["cam"]),
            "warnings": [f"{found.what}: {found.advice}." for found in run_warnings(config, workspace)],
            "charts": _charts(config, workspace, methods, rows),
            "slides": slide_section(config, workspace),
            "whole_slides": whole_slides_section(config, workspace),
        }
    return section


def _explanation(config: Config, row: Row) -> str:
    over = (
        f"the wider of that over patches and that over the {row['slides']} test slides"
        if "slides" in row
        else "over patches, which does not tell how much other slides would change"
    )
    gate = config.inference.classifier_probability
    return (
        f"Dice and IoU are means over {row['patches']} patches that hold tumour. The other columns take the pixels of "
        f"all {row['all_patches']} patches together, normal ones too, where a patch that the classifier finds normal "
        f"(below {gate:g}) is predicted empty (not for the student, which has no classifier before it); the last is the "
        "share of the area of normal patches that is marked. Below "
        f"each figure its 95% bootstrap interval: {over}."
    )


def _charts(config: Config, workspace: Workspace, methods: list[Method], rows: dict[str, Row]) -> list[dict[str, str]]:
    final = final_method(config, workspace)
    charts = [
        _chart(title, [(m.title, float(rows[m.name][key]), *interval_of(rows[m.name], key)) for m in methods], final)
        for key, title in (
            ("dice", "Mean Dice, patches with tumour"),
            ("all_pooled_dice", "Pooled Dice, all patches"),
        )
    ]
    last = read_figures(figures_csv(workspace, final))
    others = {m.title: read_figures(figures_csv(workspace, m.name)) for m in methods if m.name != final}
    differences = [(title, *paired_difference(config, last, figures)) for title, figures in others.items()]
    title = f"{Method(final).title} minus each other method: Dice, patches with tumour, same patches"
    return [*charts, _chart(title, differences, "")]


def _map_note(cam: Row) -> str:
    pxap, best = (
        f"{float(cam[key]):.3f} ({float(cam[key + '_low']):.3f} to {float(cam[key + '_high']):.3f})"
        for key in ("pxap", "best_threshold_dice")
    )
    return (
        f"The maps without a threshold: pixel-level average precision (PxAP) {pxap}. The best single threshold "
        f"would give a Dice of {best}; it is chosen on test masks, so it is a bound and not a result."
    )


def _method(method: Method, row: Row, final: str) -> dict[str, Any]:
    return {
        "title": method.title,
        "note": method.note,
        "cells": [_cell(row, key) for _, key in COLUMNS],
        "emphasis": method.name == final,
    }


def _cell(row: Row, key: str) -> dict[str, str]:
    if key == "normal_marked" and key not in row:
        return {"value": "–", "interval": ""}
    low, high = interval_of(row, key)
    return {"value": _three(row, key), "interval": f"{low:.3f}–{high:.3f}"}


def _chart(title: str, points: list[tuple[str, float, float, float]], final: str) -> dict[str, str]:
    spoken = "; ".join(f"{name} {value:.3f} ({low:.3f} to {high:.3f})" for name, value, low, high in points)
    uri = points_chart(points, "with 95% interval", Method(final).title if final else "", SIMPLE)
    return {"title": title, "uri": uri, "alt": f"Points with intervals. {title}. {spoken}."}


def _classifier(row: Row) -> tuple[str, ...]:
    keys = ("auc", "accuracy", "sensitivity_at_90_specificity")
    figures = (f"{float(row[key]):.3f}" if key in row else "–" for key in keys)
    return (row.get("split", "–"), *figures, row.get("patches", "–"))


def _three(row: Row, key: str) -> str:
    return f"{float(row[key]):.3f}"
