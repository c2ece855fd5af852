"""The report's training curves and the contact sheets of maps and pseudo-labels."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.rounds import read_rounds, used_round
from epsam.runtime.files import read_csv, read_image
from epsam.visualization.charts import Curve, curves_chart
from epsam.visualization.contact_sheet import sheet_path
from epsam.visualization.panels import as_jpeg
from epsam.workspace import Workspace

SHEET_PX = 1300


COLUMN = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""Names of learning curves."""


DECODER = re.compile(r"round\d+|supervised")
"""Networks whose curves are shown together."""
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
        "charts": _charts(files),
        "round_columns": tuple(ROUND_COLUMNS.values()),
        "rounds": _rounds(workspace),
        "round_choice": _round_choice(workspace),
        "pictures": [_sheet(path, title) for path, title in _sheets(config, workspace).items() if path.is_file()],
    }


def read_curves(path: Path) -> dict[str, list[float]]:
    """Columns of a file of learning curves, `epoch` among them; an empty cell is NaN.

    Raises DataError when a cell is no number or a column has no name of ours, which a chart could not show.
    """
    rows = read_csv(path, ["epoch"])
    again = "delete it; the stage writes it again with --from"
    if odd := [str(key) for row in rows[:1] for key in row if not COLUMN.fullmatch(str(key))]:
        raise DataError(f"{path}: `{odd[0]}` is not the name of a learning curve; {again}")
    try:
        columns = {key: [float(row[key] or math.nan) for row in rows] for key in (rows[0] if rows else ())}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: has a cell that is no number ({error}); {again}") from None
    if any(abs(value) > MAX_FIGURE for values in columns.values() for value in values):
        raise DataError(f"{path}: has a figure beyond {MAX_FIGURE:g}; {again}")
    return columns


def _charts(files: Sequence[Path]) -> list[dict[str, str]]:
    """Charts of each network by itself, but all decoders, which differ in their labels alone, in one."""
    networks = {path.name.removesuffix("_curves.csv"): read_curves(path) for path in files}
    networks = {name: columns for name, columns in networks.items() if columns}
    decoders = {name: columns for name, columns in networks.items() if DECODER.fullmatch(name)}
    charts = []
    for name, columns in networks.items():
        if name not in decoders:
            keys = [key for key in columns if key not in ("epoch", "lr")]
            losses, scores = [k for k in keys if k.endswith("loss")], [k for k in keys if not k.endswith("loss")]
            charts += [
                _chart(f"{name.capitalize()}: {what}", {_spoken(key): _curve(columns, key) for key in chosen})
                for what, chosen in (("loss", losses), ("scores", scores))
                if chosen
            ]
    titles = {
        "val_loss": "validation loss",
        "val_pseudo_dice": "Dice with the pseudo masks of the val split",
        "val_dice": "Dice with the true masks of the val split",
    }
    for key, title in titles.items():
        curves = {_named(name): _curve(columns, key) for name, columns in decoders.items() if key in columns}
        charts += [_chart(f"SAM's decoder, all rounds: {title}", curves)] if curves else []
    return charts


def _named(network: str) -> str:
    return re.sub(r"(\d+)$", r" \1", network)


def _spoken(key: str) -> str:
    return key.replace("_", " ")


def _curve(columns: dict[str, list[float]], key: str) -> Curve:
    losses = columns.get("val_loss")
    best = columns["epoch"][losses.index(min(losses))] if losses else None
    return Curve(columns["epoch"], columns[key], best)


def _chart(title: str, curves: dict[str, Curve]) -> dict[str, str]:
    spoken = "; ".join(
        f"{name} from {curve.values[0]:.3f} to {curve.values[-1]:.3f} over {len(curve.epochs)} epochs"
        + ("" if curve.best is None else f", kept epoch {curve.best:.0f}")
        for name, curve in curves.items()
    )
    return {"title": title, "uri": curves_chart(curves), "alt": f"Lines over epochs. {title}: {spoken}."}


def _rounds(workspace: Workspace) -> list[tuple[str, ...]]:
    """What each round learned from: counts, then shares with two decimals."""
    path = workspace.run / "pseudo_labels.csv"
    rows = read_csv(path, list(ROUND_COLUMNS)) if path.is_file() else []
    return [
        tuple(row[key] if key in ("round", "patches", "kept") else f"{float(row[key]):.2f}" for key in ROUND_COLUMNS)
        for row in rows
    ]


def _round_choice(workspace: Workspace) -> str:
    """How far each round agrees with the CAM masks, and which is used; nothing where no round is trained yet."""
    if not workspace.rounds_csv.is_file():
        return ""
    rounds = read_rounds(workspace)
    agreements = ", ".join(f"{row.agreement:.3f} after round {row.round}" for row in rounds)
    return (
        f"Mean Dice of what is predicted for the validation patches with their CAM masks: {agreements}. "
        f"Round {used_round(workspace)} is used."
    )


def _sheets(config: Config, workspace: Workspace) -> dict[Path, str]:
    rounds = {
        sheet_path(workspace, n): f"Round {n}: masks predicted for training patches, and whether they were kept"
        for n in range(1, config.retrain.rounds + 1)
    }
    return {workspace.run / "cams" / "sheet.png": "Training patches: patch, map, CAM mask, annotation"} | rounds


def _sheet(path: Path, title: str) -> dict[str, str | bool]:
    return {
        "title": title,
        "uri": as_jpeg(read_image(path), SHEET_PX),
        "alt": f"Contact sheet. {title}.",
        "wide": path.stem == "sheet",
    }
