"""One slide after the other, each by one job; slides.csv has a row for each."""

import time
from pathlib import Path
from typing import Any

from epsam.errors import DataError, EpsamError, StateError
from epsam.inference.pages.index import write_slide_index
from epsam.inference.predict_slide import SlideToPredict, predict_slide
from epsam.inference.segmenter import Segmenter
from epsam.inference.slide_outputs import begin_files, clear_work, holds_slide, written_files
from epsam.inference.slide_records import (
    COLUMNS,
    NotPredicted,
    SlideFile,
    SlideRow,
    SlideState,
    file_name_of,
    read_slide_record,
    read_table,
    record_path,
)
from epsam.results import result_line
from epsam.runs.claims import Claims
from epsam.runtime.failures import check_name, guard, log_failure, printable
from epsam.runtime.files import write_csv
from epsam.runtime.log import logger
from epsam.runtime.records import write_record
from epsam.runtime.text import listed
from epsam.slides.formats import slide_bytes, slide_stamp

POLL_S = 1.0
"""Between two looks at slides whose jobs on other machines may be dead."""


def predict_slides(
    slides: list[SlideToPredict], output: Path, claims: Claims, models: Segmenter, trained_at: float | None
) -> None:
    """Predict the slides that no other job works on, the largest first, tiles at `trained_at` um/px.

    Slides that cannot be read fail, and are named at the end; slides that other jobs still work on are left to them.
    slides.csv and index.html are made of the records of all slides. Raises DataError when slides failed; the error itself
    where there is but one slide.
    """
    began, errors, number = claims.now(), dict[str, EpsamError](), 0
    waiting = sorted(slides, key=lambda slide: (-slide_bytes(slide.path), slide.name))
    while waiting:
        passed_over = []
        for slide in waiting:
            claim = f"slide-{file_name_of(slide.name)}"
            if not claims.take(claim):
                passed_over.append(slide)
                continue
            try:
                number += 1
                logger.info(f"--- {slide.name} ({number} of {len(slides)})")
                if not _failed_since(began, output, slide) and (
                    error := _predict_guarded(slide, output, models, trained_at)
                ):
                    errors[slide.name] = error
            finally:
                claims.release(claim)
            write_csv(output / "slides.csv", read_table(output), COLUMNS)
        waiting = [slide for slide in passed_over if not claims.is_held(f"slide-{file_name_of(slide.name)}")]
        if len(waiting) < len(passed_over):
            left = [slide.name for slide in passed_over if slide not in waiting]
            logger.info(f"{listed(left)}: other jobs work on {'it' if len(left) == 1 else 'them'}")
        if waiting:
            time.sleep(POLL_S)
    status = {row["slide"]: row["status"] for row in _write_tables(output, models)}
    failed = [slide.name for slide in slides if slide.name in errors or status.get(printable(slide.name)) == "failed"]
    if len(slides) == 1 and errors:
        raise next(iter(errors.values()))
    if failed:
        raise DataError(
            f"{len(failed)} of {len(slides)} slides failed ({listed(failed)}): see the reasons in "
            f"{output / 'slides.csv'}; the others are done"
        )


def _write_tables(output: Path, models: Segmenter) -> list[dict[str, Any]]:
    """Write slides.csv and index.html; gives the rows.

    Once more where a slide was finished meanwhile, so whichever job writes last writes what is true.
    """
    settings = models.config
    lymph_nodes = settings.inference.lymph_nodes
    if lymph_nodes is None:
        lymph_nodes = settings.slides.collection != "own"
    rows = read_table(output)
    while True:
        write_csv(output / "slides.csv", rows, COLUMNS)
        write_slide_index(output, rows, lymph_nodes=lymph_nodes)
        if (now := read_table(output)) == rows:
            return rows
        rows = now


def _failed_since(began: float, output: Path, slide: SlideToPredict) -> bool:
    """Whether another job has tried a slide since this one began: the next call tries again."""
    path = record_path(output, slide.name)
    if not path.is_file() or path.stat().st_mtime <= began:
        return False
    try:
        tried = read_slide_record(path).not_predicted
    except DataError:
        return False
    return tried is not None and tried.status == "failed"


def _predict_guarded(
    slide: SlideToPredict, output: Path, models: Segmenter, trained_at: float | None
) -> EpsamError | None:
    """Predict a slide once and record what became of it; gives its error."""
    try:
        if slide.exclude:
            logger.warning(f"{slide.name} is excluded by slides.csv: {slide.exclude}")
            _record_not_predicted(slide, output, "excluded", f"by slides.csv: {slide.exclude}")
            return None
        with guard(slide.path):
            row = _predict_once(slide, output, models, trained_at).model_dump()
    except EpsamError as error:
        log_failure(slide.name, error)
        _record_not_predicted(slide, output, "failed", str(error))
        return error
    figures = {key: row[key] for key in ("slide", "tumour_mm2", "tumour_fraction", "foci", "largest_focus_mm")}
    logger.info(result_line({key: value for key, value in figures.items() if value is not None}))
    return None


def _record_not_predicted(slide: SlideToPredict, output: Path, status: Any, reason: str) -> None:
    path = record_path(output, slide.name)
    why = NotPredicted(path=printable(str(slide.path)), status=status, reason=printable(reason))
    state = SlideState(slide=printable(slide.name), of=None, mpp=None, row=None, not_predicted=why, files={})
    if path.is_file():
        try:
            saved = read_slide_record(path)
        except DataError:
            return  # `read_table` gives the reason
        state = saved.model_copy(update={"not_predicted": why, "files": written_files(output, saved)})
    write_record(path, state)


def _predict_once(slide: SlideToPredict, output: Path, models: Segmenter, trained_at: float | None) -> SlideRow:
    """The row of a slide: kept when its outputs are there, else predicted, continued where it stopped."""
    check_name(slide.path)
    name, record = slide.name, record_path(output, slide.name)
    identity = SlideFile(path=str(slide.path.resolve()), stamp=slide_stamp(slide.path))
    mpp = slide.mpp or slide.mpp_if_unknown
    saved = read_slide_record(record) if record.is_file() else None
    if saved and saved.of != identity and saved.row is None and not any(written_files(output, saved).values()):
        saved = None  # nothing was made of the file that it was: a download that was replaced, say
    if saved and saved.of:
        _check_same(slide, identity, saved.of, saved, output)
    if saved and saved.row and holds_slide(output, saved):
        logger.info(f"{name}: done already")
        if saved.not_predicted:
            write_record(record, saved.model_copy(update={"not_predicted": None}))
        clear_work(output, name)
        return saved.row
    files = begin_files(output, name, saved)
    if saved is None or saved.of is None or saved.mpp != mpp:
        clear_work(output, name)  # of another slide, or at another resolution
    state = SlideState(slide=name, of=identity, mpp=mpp, row=None, not_predicted=None, files=files)
    write_record(record, state)
    work = output / "state" / "work" / name
    row = SlideRow.model_validate(predict_slide(slide, output, work, models, trained_at))
    write_record(record, state.model_copy(update={"row": row, "files": written_files(output, state)}))
    clear_work(output, name)
    return row


def _check_same(slide: SlideToPredict, identity: SlideFile, of: SlideFile, saved: SlideState, output: Path) -> None:
    """Raise StateError when the outputs of this name were made from another file or at another resolution."""
    advice = "start over with --fresh, or choose another OUTPUT_DIR"
    if of.path != identity.path:
        raise StateError(f"{output}: its {slide.name} was made from {of.path}, now it is {slide.path}; {advice}")
    if of.stamp != identity.stamp:
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
