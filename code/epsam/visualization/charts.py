"""Charts of the report and of training."""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from epsam.runtime.files import atomic
from epsam.runtime.training_loop import TrainingHistory

INK, GRID, FIRST, SECOND, QUIET = "#010101", "#020202", "#030303", "#040404", "#050505"
"""Stand-ins that become the theme's colours."""


MIN_SPAN = 0.05
"""Least height of an axis of curves, so that noise does not look like a trend."""


THEME = {INK: "ink", GRID: "grid", FIRST: "first", SECOND: "second", QUIET: "quiet"}


STYLE = """<style>
:root { --ink: #22303c; --grid: #dfe5ea; --first: #0072b2; --second: #d55e00; --quiet: #9aa7b2 }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #d7dee5; --grid: #35414c; --first: #56b4e9; --second: #f0883e; --quiet: #7b8894 }
}
</style>"""


def methods_chart(rows: Sequence[tuple[str, float, float, float]], label: str, emphasis: str) -> str:
    """Horizontal bars with 95 % intervals, one per (title, value, low, high); `emphasis` is the title to stress."""
    figure, axes = _figure(height=0.34 * len(rows) + 0.75)
    titles = [row[0] for row in rows]
    values = [row[1] for row in rows]
    colours = [FIRST if title == emphasis else QUIET for title in titles]
    margins = [[max(0.0, v - low) for _, v, low, _ in rows], [max(0.0, high - v) for _, v, _, high in rows]]
    axes.barh(titles, values, height=0.62, color=colours)
    axes.errorbar(values, titles, xerr=margins, fmt="none", ecolor=INK, elinewidth=1.4, capsize=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(label)
    axes.grid(axis="x", color=GRID)
    axes.tick_params(axis="y", length=0)
    return _as_svg(figure)


def curves_chart(epochs: Sequence[float], lines: Mapping[str, Sequence[float]], best: float | None) -> str:
    """Lines over epochs, with a mark at the epoch whose weights were kept."""
    figure, axes = _figure(height=2.2)
    styles = cycle(((FIRST, "-"), (SECOND, "-."), (INK, ":")))
    for name, values in lines.items():
        colour, dash = (QUIET, "--") if name.startswith("train") else next(styles)
        axes.plot(
            epochs,
            values,
            color=colour,
            linestyle=dash,
            linewidth=1.8,
            label=name,
            marker="o" if len(epochs) == 1 else None,
        )
    low, high = axes.get_ylim()
    if high - low < MIN_SPAN:
        axes.set_ylim((low + high - MIN_SPAN) / 2, (low + high + MIN_SPAN) / 2)
    if best is not None:
        axes.axvline(best, color=INK, linewidth=1, linestyle=":", label=f"kept: epoch {best:.0f}")
    axes.set_xlabel("epoch")
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
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    for stand_in, name in THEME.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    svg = svg.replace("<defs>", STYLE + "<defs>", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def draw_curves(path: Path, fit: TrainingHistory) -> None:
    """Write a PNG of the losses and the validation AUC over epochs; the kept epoch is marked."""
    figure = Figure(figsize=(8, 3.2), layout="constrained", dpi=120)
    losses, areas = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in fit.history]
    for axes, keys in ((losses, ("train_loss", "val_loss")), (areas, ("val_auc",))):
        for key in keys:
            axes.plot(epochs, [row[key] for row in fit.history], marker="o", markersize=3, label=key.replace("_", " "))
        axes.axvline(fit.best_epoch, color="grey", linestyle=":", label=f"kept: epoch {fit.best_epoch}")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    losses.set_ylabel("binary cross-entropy")
    areas.set_ylabel("AUC")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
