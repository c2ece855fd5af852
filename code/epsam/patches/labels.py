"""dataset/<name>/labels.csv: windows that people labelled, without outlines."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from epsam.errors import ConfigError
from epsam.patches.csv_input import TableRow, read_table

COLUMNS = ("slide", "x", "y", "label", "width", "level", "mpp", "split", "patient")
MAX_COORDINATE = 2**31
PER_SLIDE = ("width", "level", "mpp", "split", "patient")


@dataclass(frozen=True)
class WindowLabels:
    """The labelled windows of one slide."""

    slide: str
    """Its name as the table has it."""
    x: np.ndarray
    """(n,) int64, level 0; with y the top-left corners, each once."""
    y: np.ndarray
    label: np.ndarray
    """(n,) int8: 1 holds tumour, 0 does not."""
    width: float | None = None
    """Side of the windows in level-0 pixels; instead of it `level` or `mpp`, at which they are `patches.size_px`."""
    level: int | None = None
    mpp: float | None = None
    split: str | None = None
    patient: str | None = None
    duplicates: int = 0
    """Rows that repeat another one."""
    problem: str = ""
    """Why the slide cannot be used: rows that contradict each other."""


def read_labels(path: Path) -> dict[str, WindowLabels]:
    """The windows by key of the slide (see `match_key`); none where there is no such file.

    Raises DataError or ConfigError, which name the line, for a table that cannot be read and values that make no sense.
    """
    if not path.is_file():
        return {}
    rows: dict[str, list[TableRow]] = {}
    for row in read_table(path, COLUMNS, ["slide", "x", "y", "label"]):
        rows.setdefault(row.slide(), []).append(row)
    return {key: _labels(found) for key, found in rows.items()}


def _labels(rows: list[TableRow]) -> WindowLabels:
    windows: dict[tuple[int, int], int] = {}
    duplicates, problems = 0, []
    for row in rows:
        corner, label = _corner(row), int(row.label() == "tumour")
        if corner in windows:
            duplicates += 1
            if windows[corner] != label:
                problems.append(f"{row.where}: the window at x {corner[0]}, y {corner[1]} has both labels")
        windows.setdefault(corner, label)
    common = {column: _common(rows, column, problems) for column in PER_SLIDE}
    if sum(common[column] is not None for column in ("width", "level", "mpp")) > 1:
        problems.append(f"{rows[0].where}: give one of width, level and mpp")
    level = common["level"].number("level", 0, 30) if common["level"] else None
    corners = np.array(list(windows), np.int64).reshape(-1, 2)
    return WindowLabels(
        rows[0].cells["slide"],
        corners[:, 0],
        corners[:, 1],
        np.array(list(windows.values()), np.int8),
        common["width"].number("width", 1, MAX_COORDINATE) if common["width"] else None,
        None if level is None else int(level),
        common["mpp"].number("mpp", 0.01, 100) if common["mpp"] else None,
        common["split"].split() if common["split"] else None,
        common["patient"].cells["patient"] if common["patient"] else None,
        duplicates,
        "; ".join(problems[:3]),
    )


def _corner(row: TableRow) -> tuple[int, int]:
    x, y = (row.number(column, -MAX_COORDINATE, MAX_COORDINATE) for column in ("x", "y"))
    if x is None or y is None or row.label() is None:
        empty = [column for column in ("x", "y", "label") if column not in row.cells]
        raise ConfigError(f"{row.where}: {', '.join(empty)} is empty")
    return round(x), round(y)


def _common(rows: list[TableRow], column: str, problems: list[str]) -> TableRow | None:
    """A row that has this cell, which is the same for all windows of a slide; None where no row has it."""
    values = Counter(row.cells.get(column) for row in rows)
    if len(values) > 1:
        problems.append(
            f"{rows[0].where}: the windows of one slide have one {column}, these "
            + ", ".join(value or "none" for value in list(values)[:4])
        )
    return next((row for row in rows if column in row.cells), None)
