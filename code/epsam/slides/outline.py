"""Outlines as the readers of annotation files give them, before rules say what each group means."""

from dataclasses import dataclass

import numpy as np

from epsam.errors import AnnotationError

MAX_COORDINATE = 2_000_000
MAX_SHOWN = 60
"""Characters of a file's own text that a message repeats."""


@dataclass(frozen=True)
class Outline:
    """One outlined area with its holes."""

    name: str
    """As messages call it."""
    group: str
    rings: tuple[np.ndarray, ...]
    """The outline and then its holes, each (n, 2) float64, x and y in level-0 pixels; none: its shape is unknown."""
    parents: tuple[str, ...] = ()
    """Groups that hold `group`, from the nearest on."""
    shape: str = "Polygon"
    """The file's own word for the type."""
    optional: bool = False
    """Left out where no rule names its group."""


def check_coordinates(where: str, points: np.ndarray) -> None:
    """Raise AnnotationError when a coordinate is no number or beyond any slide."""
    if not (np.abs(points) <= MAX_COORDINATE).all():
        raise AnnotationError(f"{where} has a coordinate beyond any slide, or one that is no number")


def shown(text: object) -> str:
    """Text of a file as a message may repeat it: short, and without control characters."""
    text = str(text)
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:MAX_SHOWN])
    return escaped + ("..." if len(text) > MAX_SHOWN else "")
