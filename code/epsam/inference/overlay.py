"""One picture of a slide to look at: tissue, probability in colour, outlines, scale bar, figures."""

from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from epsam.inference.foci import Foci
from epsam.inference.probability import ProbabilityMap
from epsam.runtime.files import atomic
from epsam.runtime.text import length_text, round_length
from epsam.slides.overview import overview
from epsam.slides.slide import Slide
from epsam.visualization.drawing import drawable
from epsam.visualization.palette import MAP, PREDICTION, css, edge_of, map_colours, map_opacity

LONG_SIDE = 1800
"""Pixels of the longer side of the slide in the picture."""
DPI = 100
DRAWN_TOGETHER = 200
"""Lines, of outlines and holes: one by one takes several times as long."""
PNG_COMPRESSION = 1
"""Of 9: Pillow's default of 6 takes several times as long for a picture a tenth smaller."""


def write_overlay(path: Path, slide: Slide, source: ProbabilityMap, foci: Foci, title: str, caption: str) -> None:
    """Write the picture as PNG."""
    width, height = slide.size
    downsample = max(width, height) / min(LONG_SIDE, max(width, height))
    image = overview(slide, downsample)
    rows, columns = image.shape[:2]
    probability = source.sample(0, 0, columns, rows, downsample)
    figure, axes = _canvas(columns, rows)
    axes.imshow(_tint(image, probability), interpolation="none", extent=(0, width, height, 0))
    outlines = axes.add_artist(_Outlines(foci, axes))
    if slide.mpp is not None:
        _draw_scale_bar(axes, width, height, slide.mpp[0])
    _add_text(figure, axes, title, caption)
    with atomic(path) as temporary:
        # No software and version in the file: the same run gives the same bytes.
        figure.savefig(
            temporary, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": PNG_COMPRESSION}
        )
    outlines.remove()  # a figure, and so the file of the foci, would else stay until Python looks for cycles


def _tint(image: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """`image` RGB uint8 with the colours of `probability` (uint8, 255 for 1) over it, the more opaque the higher."""
    values = np.arange(256, dtype=np.float32) / 255
    opacity = map_opacity(values)[:, None]
    colours = (map_colours(values) * opacity).astype(np.float32)
    return (image * (1 - opacity)[probability] + colours[probability]).astype(np.uint8)


def _canvas(columns: int, rows: int) -> tuple[Figure, Axes]:
    """A figure that shows `columns` x `rows` pixels one to one, with room above and below."""
    margin, above, below = 40, 90, 90
    # Narrow slides still need room for the text.
    full = (max(columns, 900) + 2 * margin, rows + above + below)
    figure = Figure(figsize=(full[0] / DPI, full[1] / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left = (full[0] - columns) / 2
    axes = figure.add_axes((left / full[0], below / full[1], columns / full[0], rows / full[1]))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("0.8")
    return figure, axes


class _Outlines(Artist):
    """The outlines of all foci; matplotlib would else hold all of them until the picture is saved."""

    zorder = LineCollection([]).zorder

    def __init__(self, foci: Foci, axes: Axes):
        super().__init__()
        self._foci, self._axes = foci, axes

    def draw(self, renderer: RendererBase) -> None:
        """Draw line by line, each over the ones before it."""
        rings = (ring for focus in self._foci for ring in focus.rings)
        while some := list(islice(rings, DRAWN_TOGETHER)):
            lines = LineCollection(some, colors=css(PREDICTION), linewidths=1.5, capstyle="round")
            lines.set_path_effects([patheffects.withStroke(linewidth=3.5, foreground=css(edge_of(PREDICTION)))])
            self._axes.add_collection(lines, autolim=False)
            lines.draw(renderer)
            lines.remove()


def _draw_scale_bar(axes: Axes, width: int, height: int, mpp: float) -> None:
    """A bar of a round length, about a sixth of the slide's width, in the lower left corner."""
    length = round_length(width * mpp / 6)
    label = length_text(length)
    bar, pad = length / mpp, 0.012 * max(width, height)
    pixels = axes.get_window_extent().width / width
    axes.add_patch(
        Rectangle(
            (pad, height - pad - 52 / pixels),
            bar + 2 * pad,
            52 / pixels,
            facecolor="white",
            edgecolor="none",
            alpha=0.85,
            zorder=3,
        )
    )
    axes.plot(
        [2 * pad, 2 * pad + bar],
        [height - pad - 12 / pixels] * 2,
        color="black",
        linewidth=4,
        solid_capstyle="butt",
        zorder=4,
    )
    axes.text(2 * pad + bar / 2, height - pad - 18 / pixels, label, ha="center", va="bottom", fontsize=15, zorder=4)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _add_text(figure: Figure, axes: Axes, title: str, caption: str) -> None:
    box = axes.get_position()
    height = figure.get_figheight() * DPI
    left = 40 / (figure.get_figwidth() * DPI)
    figure.text(
        left, 1 - 40 / height, drawable(title), fontsize=20, weight="bold", ha="left", va="center", parse_math=False
    )  # a slide may be named $\x$
    figure.text(left, 1 - 72 / height, caption, fontsize=14, color="0.3", ha="left", va="center", parse_math=False)
    bar = figure.add_axes((left, box.y0 - 40 / height, 300 / (figure.get_figwidth() * DPI), 16 / height))
    colour_bar = figure.colorbar(ScalarMappable(cmap=MAP), cax=bar, orientation="horizontal", ticks=[0, 0.5, 1])
    colour_bar.outline.set_visible(False)
    colour_bar.ax.tick_params(labelsize=12, length=0)
    figure.text(
        left + 320 / (figure.get_figwidth() * DPI),
        box.y0 - 32 / height,
        "probability of tumour; blue lines: outline of the foci",
        fontsize=13,
        va="center",
    )
