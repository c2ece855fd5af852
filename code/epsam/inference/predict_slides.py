"""One slide after the other, each once; slides.csv has a row for each."""

from pathlib import Path
from typing import Any

from epsam.errors import DataError, EpsamError, StateError
from epsam.inference.output import OutputFolder
from epsam.inference.pages.index import write_slide_index
from epsam.inference.predict_slide import SlideToPredict, predict_slide
from epsam.inference.segmenter import Segmenter
from epsam.results import result_line
from epsam.runtime.failures import check_name, guard, log_failure, printable
from epsam.runtime.files import read_csv, write_csv
from epsam.runtime.log import logger
from epsam.runtime.records import PlainName, Record, read_record, write_record
from epsam.runtime.text import listed
from epsam.slides.formats import slide_stamp

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


class SlideState(Record):
    """state/slides/<name>.json; without a row while the slide is under way."""

    of: SlideFile
    mpp: float | None
    """um/px that slides.csv or --mpp gave, whether or not it was needed."""
    row: SlideRow | None


def predict_slides(
    slides: list[SlideToPredict], folder: OutputFolder, models: Segmenter, trained_at: float | None
) -> None:
    """One slide after the other, tiles at `trained_at` um/px; those that cannot be read fail, and are named at the end.

    slides.csv keeps the rows of slides that earlier calls wrote to the same folder. Raises DataError when slides
    failed; the error itself where there is but one slide.
    """
    folder.claim(["slides.csv", "index.html"], "")
    table = folder.path / "slides.csv"
    before = read_csv(table, COLUMNS) if table.is_file() else []
    rows = {row["slide"]: {column: row[column] for column in COLUMNS} for row in before}
    failed: dict[str, EpsamError] = {}
    for number, slide in enumerate(slides, 1):
        logger.info(f"--- {slide.name} ({number} of {len(slides)})")
        row: dict[str, Any] = {"slide": slide.name, "path": str(slide.path)}
        try:
            if slide.exclude:
                logger.warning(f"{slide.name} is excluded by slides.csv: {slide.exclude}")
                row |= {"status": "excluded", "reason": f"by slides.csv: {slide.exclude}"}
            else:
                with guard(slide.path):
                    row = {"status": "ok", "reason": ""} | _predict_once(slide, folder, models, trained_at)
        except EpsamError as error:
            log_failure(slide.name, error)
            failed[slide.name] = error
            row |= {"status": "failed", "reason": str(error)}
        rows[printable(slide.name)] = row
        write_csv(table, [rows[key] for key in sorted(rows)], COLUMNS)
        if row["status"] == "ok":
            figures = {key: row[key] for key in ("slide", "tumour_mm2", "tumour_fraction", "foci", "largest_focus_mm")}
            logger.info(result_line({key: value for key, value in figures.items() if value is not None}))
    settings = models.config
    lymph_nodes = settings.inference.lymph_nodes
    if lymph_nodes is None:
        lymph_nodes = settings.slides.collection != "own"
    write_slide_index(folder.path, [rows[key] for key in sorted(rows)], lymph_nodes=lymph_nodes)
    if failed and len(slides) == 1:
        raise next(iter(failed.values()))
    if failed:
        raise DataError(
            f"{len(failed)} of {len(slides)} slides failed ({listed(failed)}): see the reasons in {table}; "
            "the others are done"
        )


def _predict_once(
    slide: SlideToPredict, folder: OutputFolder, models: Segmenter, trained_at: float | None
) -> dict[str, Any]:
    """The row of a slide: kept when its outputs are there, else predicted, continued where it stopped."""
    check_name(slide.path)
    name, output = slide.name, folder.path
    record, work = output / "state" / "slides" / f"{name}.json", output / "state" / "work" / name
    identity = SlideFile(path=str(slide.path.resolve()), stamp=slide_stamp(slide.path))
    state = SlideState(of=identity, mpp=slide.mpp or slide.mpp_if_unknown, row=None)
    saved = state
    if record.is_file():
        saved = read_record(record, SlideState, "delete it, and the slide is predicted again")
    _check_same(slide, identity, saved, output)
    row = saved.row
    if row is None or not folder.holds_slide(name):
        folder.claim_slide(name)
        if saved.mpp != state.mpp:
            folder.clear_work(name)
        write_record(record, state)
        row = SlideRow.model_validate(predict_slide(slide, output, work, models, trained_at))
        write_record(record, state.model_copy(update={"row": row}))
        folder.record_slide(name)
    else:
        logger.info(f"{name}: done already")
    folder.clear_work(name)
    return row.model_dump()


def _check_same(slide: SlideToPredict, identity: SlideFile, saved: SlideState, output: Path) -> None:
    """Raise StateError when the outputs of this name were made from another file or at another resolution."""
    advice = "start over with --fresh, or choose another OUTPUT_DIR"
    if saved.of.path != identity.path:
        raise StateError(f"{output}: its {slide.name} was made from {saved.of.path}, now it is {slide.path}; {advice}")
    if saved.of.stamp != identity.stamp:
        raise StateError(
            f"{output}: {slide.path} is not the file any more that its {slide.name} was made from (by size, time or "
            f"content); {advice}"
        )
    used = saved.row and saved.row.mpp_x
    now = slide.mpp or (used or slide.mpp_if_unknown)
    if saved.row is not None and now != used:
        raise StateError(
            f"{output}: its {slide.name} was made at {f'{used:g} um/px' if used else 'an unknown resolution'}, now "
            f"slides.csv or --mpp gives {now} um/px; {advice}"
        )
