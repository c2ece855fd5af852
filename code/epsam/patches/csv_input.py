"""Tables that people write, as spreadsheets save them."""

import csv
import difflib
import io
import math
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from epsam.errors import ConfigError, DataError
from epsam.runtime.files import FORMULA
from epsam.runtime.log import logger
from epsam.runtime.placeholders import placeholder
from epsam.runtime.text import UTF16_HEADS
from epsam.slides.formats import is_slide_name, match_key, slide_name
from epsam.workspace import SPLITS

MAX_BYTES = 256 * 2**20
DELIMITERS = (",", ";", "\t")
THOUSANDS = re.compile(r"[1-9][0-9]{0,2}[.,][0-9]{3}")
"""A number that a spreadsheet may have written with a separator of thousands."""
LABELS = {"0": "normal", "1": "tumour", "normal": "normal", "tumour": "tumour", "tumor": "tumour"}
"""How people write the label of a slide or window."""


@dataclass(frozen=True)
class TableRow:
    """One line of a table: the cells that are not empty, by column."""

    where: str
    """File and line, for messages."""
    cells: dict[str, str]
    delimiter: str = ","
    """What separates cells in the file: where it is the comma, a comma in a number separates thousands."""

    def slide(self) -> str:
        """Key of the slide that the row is about, see `match_key`; raises DataError when it has none."""
        if "slide" not in self.cells:
            raise DataError(f"{self.where}: no slide name")
        return slide_key(self.cells["slide"])

    def number(self, column: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        """A number, with a decimal point or comma; None where the cell is empty. Raises ConfigError."""
        if column not in self.cells:
            return None
        text = self.cells[column]
        if THOUSANDS.fullmatch(text) and ("." if self.delimiter == ";" else ",") in text:
            raise ConfigError(
                f"{self.where}: {column} {text} may be {re.sub('[.,]', '', text)} or {text.replace(',', '.')}; write it "
                "without a separator of thousands"
            )
        try:
            value = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
        except ValueError:
            raise ConfigError(f"{self.where}: {column} {text[:40]!r} is not a number") from None
        if not math.isfinite(value) or not low <= value <= high:
            raise ConfigError(f"{self.where}: {column} {text[:40]} is not between {low:g} and {high:g}")
        return value

    def one_of(self, column: str, choices: Collection[str]) -> str | None:
        """One of `choices`, in any case; None where the cell is empty. Raises ConfigError."""
        if column not in self.cells:
            return None
        value = self.cells[column].casefold()
        if value not in choices:
            raise ConfigError(f"{self.where}: {column} {self.cells[column][:40]} is none of {', '.join(choices)}")
        return value

    def split(self) -> str | None:
        """The cell `split`: train, val, test or None."""
        return self.one_of("split", SPLITS)

    def label(self) -> str | None:
        """The cell `label` as `normal`, `tumour` or None."""
        found = self.one_of("label", LABELS)
        return LABELS[found] if found else None


def slide_key(text: str) -> str:
    """Key of a slide that somebody named in a table: with or without folder and suffix."""
    path = Path(re.split(r"[/\\]", text.strip())[-1])
    return match_key(slide_name(path) if is_slide_name(path) else path.name)


def nearest(name: str, names: Iterable[str]) -> str:
    """What else somebody may have meant, as the end of a message: ` (is it ...?)`, or nothing."""
    names = list(names)
    by_key = {match_key(known): known for known in names}
    close = difflib.get_close_matches(match_key(name), list(by_key), n=1, cutoff=0.6)
    return f" (is it {by_key[close[0]]}?)" if close else ""


def read_table(path: Path, columns: Sequence[str], needed: Sequence[str]) -> list[TableRow]:
    """The rows of a table that has `needed` and any others of `columns`; empty lines are left out.

    Read are UTF-8 with or without byte-order mark, UTF-16 with one, and Windows-1252 (with a warning); commas,
    semicolons or tabs between cells. Raises DataError when the file cannot be read or a column is missing,
    ConfigError for a column that is not known.
    """
    text = _text(path)
    delimiter, text = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[TableRow] = []
    try:
        header = _header(path, next(reader, []), columns, needed)
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if found := _cells(where, header, cells):
                rows.append(TableRow(where, found, delimiter))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: cannot be read as CSV ({error}); save it again as CSV UTF-8"
        ) from None
    return rows


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: larger than {MAX_BYTES >> 20} MiB, too large for a table of slides or windows")
    if data.startswith(b"PK\3\4"):
        raise DataError(f"{path}: is a workbook (xlsx), not CSV; in Excel: Save As, CSV UTF-8")
    if what := placeholder(data):
        raise DataError(f"{path}: is {what}")
    with suppress(UnicodeDecodeError):
        text = data.decode("utf-16" if data.startswith(UTF16_HEADS) else "utf-8-sig")
        if "\0" not in text:  # as in UTF-16 without a byte-order mark
            return text
    try:
        text = data.decode("cp1252")
        if "\0" in text:
            raise ValueError
    except ValueError:
        raise DataError(
            f"{path}: its letters are neither UTF-8 nor Windows-1252; in Excel: Save As, CSV UTF-8"
        ) from None
    logger.warning(f"{path}: is not UTF-8; read as Windows-1252. Where names look wrong, save it as CSV UTF-8")
    return text


def _delimiter(text: str) -> tuple[str, str]:
    """What separates cells, by the first line, and the text without Excel's line `sep=;`."""
    first, _, rest = text.partition("\n")
    if match := re.fullmatch(r"sep=([,;\t])\r?", first):
        return match[1], rest
    return max(DELIMITERS, key=first.count), text


def _header(path: Path, cells: Sequence[str], columns: Sequence[str], needed: Sequence[str]) -> list[str]:
    header = [cell.strip().casefold() for cell in cells]
    if missing := [column for column in needed if column not in header]:
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing; its first line is {', '.join(header)[:200] or 'empty'}"
        )
    if unknown := sorted({name for name in header if name} - set(columns)):
        raise ConfigError(f"{path}: unknown column {', '.join(unknown)[:200]}; known are {', '.join(columns)}")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise ConfigError(f"{path}: column {', '.join(twice)} comes twice")
    return header


def _cells(where: str, header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """The cells of a line that are not empty, by column."""
    stripped = [cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell for cell in map(str.strip, cells)]
    extra = [cell for place, cell in enumerate(stripped) if cell and not (header[place] if place < len(header) else "")]
    if extra:
        raise DataError(
            f"{where}: {extra[0][:40]!r} has no column: the line has {len(cells)} cells, the first line {len(header)}; "
            "put quotes around a cell that holds a comma or semicolon"
        )
    return {name: cell for name, cell in zip(header, stripped, strict=False) if name and cell}
