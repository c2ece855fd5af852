"""HTML pages of one look: self-contained, light and dark, in the colours of the pictures."""

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from epsam import __version__
from epsam.visualization import palette

COLOURS = {
    "prediction": palette.PREDICTION,
    "truth": palette.TRUTH,
    "missed": palette.MISSED,
    "wrong": palette.WRONG,
    "prompt": palette.PROMPT,
    "tissue": palette.TISSUE,
    "excluded": palette.EXCLUDED,
    "tumour-patch": palette.TUMOUR_PATCH,
    "classifier-patch": palette.CLASSIFIER_PATCH,
    "normal-patch": palette.NORMAL_PATCH,
}
"""Of the palette, by the name that legends use for them: var(--prediction) and so on."""


def render(template: Path, **values: Any) -> str:
    """A page from a Jinja template, which extends base.html; values are escaped.

    It finds the style of all pages in `style`, the colours of maps in `map_css`, the program's version in `version`.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared = {"style": _style(), "map_css": _map_css(), "version": __version__}
    return environment.get_template(template.name).render(shared | values)


def _style() -> str:
    colours = "; ".join(f"--{name}: {palette.css(colour)}" for name, colour in COLOURS.items())
    return f":root {{ {colours} }}\n" + (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def _map_css() -> str:
    stops = palette.map_colours(np.linspace(0, 1, 9)).tolist()
    return f"linear-gradient(to right, {', '.join(palette.css(stop) for stop in stops)})"
