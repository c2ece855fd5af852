"""state/slides/<name>.json: what became of each slide, so that jobs and calls share OUTPUT_DIR; slides.csv is made of these.

The job that holds a slide's claim alone writes its record.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from epsam.errors import DataError
from epsam.inference.output import OUTPUTS, PAGE_FILES, TILES
from epsam.runtime.failures import MAX_NAME_BYTES, printable
from epsam.runtime.files import TEMPORARY
from epsam.runtime.records import PlainName, Record, is_plain, read_record

COLUMNS = [
    "slide",
    "status",
    "reason",
    "path",
    "reader",
    "vendor",
    "width",
    "height",
    "mpp_x",
    "mpp_y",
    "tumour_mm2",
    "tissue_mm2",
    "tumour_fraction",
    "foci",
    "largest_focus_mm",
    "tumour_px2",
    "largest_focus_px",
]
SlidePlace = Literal["", "pages"]
"""Folders of a slide's outputs below OUTPUT_DIR; "" is OUTPUT_DIR itself."""
SlideFiles = dict[SlidePlace, dict[PlainName, str | None]]


class SlideRow(Record):
    """Figures of a slide, see `describe`; None where its resolution is not known."""

    slide: PlainName
    path: str
    reader: str
    vendor: str
    width: int
    height: int
    mpp_x: float | None
    mpp_y: float | None
    tumour_mm2: float | None
    tissue_mm2: float | None
    tumour_fraction: float
    foci: int
    largest_focus_mm: float | None
    tumour_px2: float
    largest_focus_px: float


class SlideFile(Record):
    """The file that a slide was predicted from."""

    path: str
    stamp: str
    """See `slide_stamp`."""


class NotPredicted(Record):
    """Why a slide has no figures."""

    path: str
    status: Literal["failed", "excluded"]
    reason: str


class SlideState(Record):
    """What became of a slide; without a row and a reason while it is under way."""

    slide: str
    of: SlideFile | None
    """None for a slide that was never begun."""
    mpp: float | None
    """um/px that slides.csv or --mpp gave, whether or not it was needed."""
    row: SlideRow | None
    not_predicted: NotPredicted | None
    """Of the last call that tried; the row of an earlier one is kept beside it."""
    files: SlideFiles
    """Outputs that this program wrote or was about to, with their SHA-256 once they are complete."""


def record_path(output: Path, name: str) -> Path:
    """Where the record of a slide is."""
    return output / "state" / "slides" / f"{file_name_of(name)}.json"


def file_name_of(name: str) -> str:
    """A slide's name, or, where it cannot be part of a file's name, a hash of it."""
    if is_plain(name) and name == printable(name) and len(name.encode()) <= MAX_NAME_BYTES:
        return name
    return f"unusable-{hashlib.sha256(printable(name).encode()).hexdigest()[:16]}"


def read_slide_record(path: Path) -> SlideState:
    """A slide's record; DataError when it is damaged."""
    return read_record(path, SlideState, "delete it and the slide's outputs, and the slide is predicted again")


def slide_records(output: Path) -> Iterator[Path]:
    """Records of all slides of OUTPUT_DIR, by name."""
    folder = output / "state" / "slides"
    if not folder.is_dir():
        return
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".look.", suffix=".epsam-tmp"):
        # A file made here has network disks list the folder as it is now, not as they knew it some seconds ago.
        found = sorted(folder.iterdir())
    yield from (path for path in found if path.suffix == ".json" and not TEMPORARY.fullmatch(path.name))


def read_table(output: Path) -> list[dict[str, Any]]:
    """Rows of slides.csv, by name of the slide: of all that any job and call predicted, failed or excluded."""
    rows = {}
    for path in slide_records(output):
        try:
            state = read_slide_record(path)
        except DataError as error:
            name = printable(path.stem)
            rows[name] = {"slide": name, "status": "failed", "reason": printable(str(error))}
            continue
        if state.not_predicted:
            rows[state.slide] = {"slide": state.slide} | state.not_predicted.model_dump()
        elif state.row:
            rows[state.slide] = {"status": "ok", "reason": ""} | state.row.model_dump()
    return [rows[name] for name in sorted(rows)]


def output_names_of(slide: str) -> dict[SlidePlace, list[str]]:
    """Names that outputs of a slide may have, by folder; none for a slide whose name cannot be theirs."""
    if file_name_of(slide) != slide:
        return {"": [], "pages": []}
    return {"": [slide + suffix for suffix in OUTPUTS], "pages": [slide + suffix for suffix in (*PAGE_FILES, *TILES)]}


def recorded_files(state: SlideState) -> Iterator[tuple[SlidePlace, str, str | None]]:
    """Folder, name and SHA-256 of the files that a record names, and that are of its slide."""
    for place, names in output_names_of(state.slide).items():
        known = state.files.get(place, {})
        yield from ((place, name, known[name]) for name in names if name in known)
