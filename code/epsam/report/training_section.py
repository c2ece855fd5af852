"""The report's training curves and the contact sheets of maps and pseudo-labels."""

import math
import re
from pathlib import Path
from typing import Any

from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.runtime.files import read_csv, read_image
from epsam.visualization.charts import curves_chart
from epsam.visualization.contact_sheet import sheet_path
from epsam.visualization.panels import as_jpeg
from epsam.workspace import Workspace

SHEET_PX = 1300


COLUMN = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""Names of learning curves."""


MAX_FIGURE = 1e9
"""Of a loss or score that a chart can show."""


ROUND_COLUMNS = {
    "round": "Round",
    "patches": "Patches",
    "kept": "Kept",
    "mean_ids": "Mean IDS",
    "cam_share": "CAM mask",
    "sam_share": "SAM's mask",
    "kept_share": "Kept masks",
    "sensitivity": "Prompt sensitivity",
}


def training_section(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Everything of the section "Training"."""
    chosen_on = {
        "pseudo": "masks made from the CAM on the validation split: no true mask was looked at",
        "val_masks": "true masks of the validation split",
    }[config.finetune.select_on]
    files = sorted(workspace.run.glob("*_curves.csv"))
    return {
        "explanation": f"The epoch kept is the one with the lowest validation loss. For SAM's decoder that loss is "
        f"measured on {chosen_on}.",
        "charts": [chart for path in files for chart in _charts(path)],
        "round_columns": tuple(ROUND_COLUMNS.values()),
        "rounds": _rounds(workspace),
        "pictures": [_sheet(path, title) for path, title in _sheets(config, workspace).items() if path.is_file()],
    }


def read_curves(path: Path) -> dict[str, list[float]]:
    """Columns of a file of learning curves, `epoch` among them; an empty cell is NaN.

    Raises DataError when a cell is no number or a column has no name of ours, which a chart could not show.
    """
    rows = read_csv(path, ["epoch"])
    again = "delete it; the stage makes it anew with --from"
    if odd := [str(key) for row in rows[:1] for key in row if not COLUMN.fullmatch(str(key))]:
        raise DataError(f"{path}: `{odd[0]}` is not the name of a learning curve; {again}")
    try:
        columns = {key: [float(row[key] or math.nan) for row in rows] for key in (rows[0] if rows else ())}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: has a cell that is no number ({error}); {again}") from None
    if any(abs(value) > MAX_FIGURE for values in columns.values() for value in values):
        raise DataError(f"{path}: has a figure beyond {MAX_FIGURE:g}; {again}")
    return columns


def _charts(path: Path) -> list[dict[str, str]]:
    columns = read_curves(path)
    if not columns:
        return []
    name = re.sub(r"(\d+)$", r" \1", path.name.removesuffix("_curves.csv").capitalize())
    epochs = columns.pop("epoch")
    losses = {key: values for key, values in columns.items() if key.endswith("loss")}
    scores = {key: values for key, values in columns.items() if key not in losses and key != "lr"}
    validation = losses.get("val_loss")
    best = epochs[validation.index(min(validation))] if validation else None
    return [
        _chart(f"{name}: {what}", epochs, lines, best)
        for what, lines in (("loss", losses), ("scores", scores))
        if lines
    ]


def _chart(title: str, epochs: list[float], lines: dict[str, list[float]], best: float | None) -> dict[str, str]:
    named = {key.replace("_", " "): values for key, values in lines.items()}
    spoken = "; ".join(f"{key} from {values[0]:.3f} to {values[-1]:.3f}" for key, values in named.items())
    kept = f" Kept: epoch {best:.0f}." if best is not None else ""
    return {
        "title": title,
        "uri": curves_chart(epochs, named, best),
        "alt": f"Lines over {len(epochs)} epochs. {title}: {spoken}.{kept}",
    }


def _rounds(workspace: Workspace) -> list[tuple[str, ...]]:
    """What each round learned from: counts, then shares with two decimals."""
    path = workspace.run / "pseudo_labels.csv"
    rows = read_csv(path, list(ROUND_COLUMNS)) if path.is_file() else []
    return [
        tuple(row[key] if key in ("round", "patches", "kept") else f"{float(row[key]):.2f}" for key in ROUND_COLUMNS)
        for row in rows
    ]


def _sheets(config: Config, workspace: Workspace) -> dict[Path, str]:
    rounds = {
        sheet_path(workspace, n): f"Round {n}: masks predicted for training patches, and whether they were kept"
        for n in range(1, config.retrain.rounds + 1)
    }
    return {workspace.run / "cams" / "sheet.png": "Training patches: patch, map, CAM mask, annotation"} | rounds


def _sheet(path: Path, title: str) -> dict[str, str]:
    return {
        "title": title,
        "uri": as_jpeg(read_image(path), SHEET_PX),
        "alt": f"Contact sheet. {title}.",
        "wide": path.stem == "sheet",
    }
