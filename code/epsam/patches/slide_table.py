"""dataset/<name>/slides.csv: what people say of single slides."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from epsam.errors import ConfigError, DataError
from epsam.patches.csv_input import TableRow, read_table
from epsam.runtime.files import write_csv

COLUMNS = (
    "slide",
    "patient",
    "split",
    "label",
    "mpp",
    "origin_x",
    "origin_y",
    "scale",
    "tissue_threshold",
    "exclude",
)
NO = ("0", "no", "false", "n", "nein", "falsch", "non", "faux", "falso", "-")
YES = ("1", "yes", "true", "y", "x", "ja", "wahr", "oui", "vrai", "sí", "vero", "verdadero")
"""Answers, in the words that spreadsheets of other languages write for TRUE and FALSE too; any other cell is a reason."""


@dataclass(frozen=True)
class SlideInfo:
    """One line of slides.csv; None where the cell is empty."""

    patient: str | None = None
    """Slides of one patient come into one split."""
    split: str | None = None
    label: str | None = None
    """`normal`: all its tissue; `tumour`: it holds some."""
    mpp: float | None = None
    """um per level-0 pixel, in place of what the file says."""
    origin: tuple[float, float] | None = None
    """(x, y) in level-0 pixels from which the annotation counts."""
    scale: float | None = None
    """Level-0 pixels per unit of the annotation: 1 where its coordinates are level-0 pixels."""
    tissue_threshold: int | None = None
    """Saturation 0..255 above which a pixel is tissue, in place of Otsu's."""
    exclude: str | None = None
    """Why the slide is not to be used."""


def read_slide_table(path: Path) -> dict[str, SlideInfo]:
    """The table by key of the slide (see `match_key`); none where there is no such file.

    Raises DataError for a table that cannot be read or a slide that comes twice, ConfigError for an unknown column or
    a wrong value; both name the line.
    """
    if not path.is_file():
        return {}
    table: dict[str, SlideInfo] = {}
    for row in read_table(path, COLUMNS, ["slide"]):
        key = row.slide()
        if key in table:
            raise DataError(f"{row.where}: {row.cells['slide']} comes twice")
        table[key] = _info(row)
    return table


def _info(row: TableRow) -> SlideInfo:
    origin = row.number("origin_x"), row.number("origin_y")
    if (origin[0] is None) != (origin[1] is None):
        raise ConfigError(f"{row.where}: origin_x and origin_y go together")
    threshold = row.number("tissue_threshold", 0, 255)
    reason = row.cells.get("exclude", "")
    if reason.casefold() in NO:
        reason = ""
    elif reason.casefold() in YES:
        reason = "asked for"
    return SlideInfo(
        patient=row.cells.get("patient"),
        split=row.split(),
        label=row.label(),
        mpp=row.number("mpp", 0.01, 100),
        origin=(origin[0], origin[1]) if origin[0] is not None and origin[1] is not None else None,
        scale=row.number("scale", 1e-3, 1e3),
        tissue_threshold=None if threshold is None else int(threshold),
        exclude=reason or None,
    )


def write_template(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write a table to fill in, one row per slide; raises DataError where there is one already."""
    if path.exists() or path.is_symlink():
        raise DataError(f"{path} is there already and stays as it is; move it away for a new template")
    write_csv(path, rows, list(COLUMNS))
