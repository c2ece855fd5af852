"""Charts of the report and of training."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from epsam.runtime.files import atomic
from epsam.visualization.palette import (
    CLASSIFIER_PATCH,
    NORMAL_PATCH,
    PREDICTION,
    TISSUE,
    TUMOUR_PATCH,
    WRONG,
    css,
)

if TYPE_CHECKING:
    from epsam.runtime.training_loop import TrainingHistory  # which imports torch: the report does without

INK, GRID, QUIET = "#010101", "#020202", "#030303"
FIRST, SECOND, THIRD, FOURTH, FIFTH = "#040404", "#050505", "#060606", "#070707", "#080808"
"""Stand-ins that become the theme's colours."""
LINES = tuple(product((FIRST, SECOND, THIRD, FOURTH, FIFTH), ("-", "--", ":")))
"""Colour and dash of the lines of a chart, those of all colours first."""
MIN_SPAN = 0.05
"""Least height of an axis of curves, so that noise does not look like a trend."""
MIN_WIDTH = 0.02
"""Least width of an axis of figures, likewise."""
THEME = {
    INK: ("ink", "#22303c", "#d7dee5"),
    GRID: ("grid", "#dfe5ea", "#35414c"),
    QUIET: ("quiet", "#75828e", "#8b98a5"),
    FIRST: ("first", css(PREDICTION), css(NORMAL_PATCH)),
    SECOND: ("second", css(WRONG), "#f0883e"),
    THIRD: ("third", css(TISSUE), "#2cc79a"),
    FOURTH: ("fourth", "#a64d82", "#cc79a7"),
    FIFTH: ("fifth", css(CLASSIFIER_PATCH), css(TUMOUR_PATCH)),
}
"""Names of the colours with their values on a light and on a dark page: those of the palette, or shades of them."""
STYLE = (
    "<style>:root {"
    + "; ".join(f"--{name}: {light}" for name, light, _ in THEME.values())
    + "} @media screen and (prefers-color-scheme: dark) {:root {"
    + "; ".join(f"--{name}: {dark}" for name, _, dark in THEME.values())
    + "}}</style>"
)


@dataclass(frozen=True)
class Curve:
    """A figure over epochs."""

    epochs: Sequence[float]
    values: Sequence[float]
    best: float | None = None
    """The epoch whose weights were kept."""


def points_chart(
    rows: Sequence[tuple[str, float, float, float]], label: str, emphasis: str = "", far: Sequence[str] = ()
) -> str:
    """Points with intervals, one line per (title, value, low, high), on an axis as wide as they are.

    `emphasis` is the title to stress. Titles in `far` do not set the axis: beyond its ends they are an arrow with
    their value. Where the axis reaches 0, the line of 0 is drawn.
    """
    figure, axes = _figure(height=0.3 * len(rows) + 0.8)
    near = [row for row in rows if row[0] not in far] or rows
    low, high = min(row[2] for row in near), max(row[3] for row in near)
    margin = max(0.08 * (high - low), (MIN_WIDTH - (high - low)) / 2)
    low, high = low - margin, high + margin
    axes.set_xlim(low, high)
    for line, (title, value, start, end) in enumerate(rows):
        colour = FIRST if title == emphasis or not emphasis else QUIET
        if low <= value <= high:
            axes.plot([start, end], [line, line], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([value], [line], color=colour, marker="o", markersize=7)
        else:
            edge = axes.get_yaxis_transform()  # x counts from 0 to 1 over the width of the axis
            x, mark, align = (0.02, "<", "left") if value < low else (0.98, ">", "right")
            axes.plot([x], [line], color=colour, marker=mark, transform=edge)
            inward = 0.035 if align == "left" else -0.035
            axes.text(x + inward, line, f"{value:.3f}", ha=align, va="center", fontsize=9.5, color=INK, transform=edge)
    if low <= 0 <= high:
        axes.axvline(0, color=INK, linewidth=1.2)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel(label)
    axes.grid(axis="x", color=GRID)
    axes.tick_params(axis="y", length=0)
    return _as_svg(figure)


def curves_chart(curves: Mapping[str, Curve]) -> str:
    """Lines over epochs by their name, each with a point at the epoch whose weights were kept."""
    figure, axes = _figure(height=2.6)
    styles = cycle(LINES[::3] + LINES[1::3] + LINES[2::3])
    for name, curve in curves.items():
        colour, dash = (QUIET, "--") if name.startswith("train") else next(styles)
        single = "o" if len(curve.epochs) == 1 else None
        axes.plot(curve.epochs, curve.values, color=colour, linestyle=dash, linewidth=1.8, label=name, marker=single)
        if curve.best is not None and curve.best in curve.epochs:
            value = curve.values[list(curve.epochs).index(curve.best)]
            axes.plot([curve.best], [value], color=colour, marker="o", markersize=6)
    low, high = axes.get_ylim()
    if high - low < MIN_SPAN:
        axes.set_ylim((low + high - MIN_SPAN) / 2, (low + high + MIN_SPAN) / 2)
    axes.set_xlabel("epoch; points: the epoch kept")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y", color=GRID)
    figure.legend(
        frameon=False,
        labelcolor=INK,
        loc="outside upper left",
        ncols=3,
        fontsize=9,
        handlelength=1.6,
        columnspacing=1.2,
        borderpad=0,
    )
    return _as_svg(figure)


def _figure(height: float) -> tuple[Figure, Axes]:
    # Narrow, so that the text keeps its size where the page is shown on a phone.
    figure = Figure(figsize=(4.4, height), layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.tick_params(colors=INK, labelcolor=INK, labelsize=9.5, color=QUIET)
    axes.xaxis.label.set_color(INK)
    return figure, axes


def _as_svg(figure: Figure) -> str:
    """A data URI; sizes in the SVG are relative, so the page decides how wide it is shown."""
    stream = io.StringIO()
    # Without a salt the identifiers in the file are drawn at random: the same run gives the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "epsam", "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    for stand_in, (name, _, _) in THEME.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    svg = svg.replace("<defs>", STYLE + "<defs>", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def draw_curves(path: Path, fit: "TrainingHistory") -> None:
    """Write a PNG of the losses and the validation AUC over epochs; the kept epoch is marked."""
    figure = Figure(figsize=(8, 3.2), layout="constrained", dpi=120)
    losses, areas = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in fit.history]
    for axes, keys in ((losses, ("train_loss", "val_loss")), (areas, ("val_auc",))):
        for key in keys:
            colour = css(CLASSIFIER_PATCH if key.startswith("train") else PREDICTION)
            axes.plot(
                epochs,
                [row[key] for row in fit.history],
                color=colour,
                marker="o",
                markersize=3,
                label=key.replace("_", " "),
            )
        axes.axvline(fit.best_epoch, color="grey", linestyle=":", label=f"kept: epoch {fit.best_epoch}")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    losses.set_ylabel("binary cross-entropy")
    areas.set_ylabel("AUC")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
