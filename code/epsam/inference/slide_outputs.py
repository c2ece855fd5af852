"""Outputs of slides: begun, complete, kept, deleted; of each slide its record says which are this program's."""

from pathlib import Path

from epsam.errors import DataError
from epsam.inference.output import WORK_FILES, OutputFolder, check_free, check_unchanged
from epsam.inference.slide_records import (
    SlideFiles,
    SlideState,
    output_names_of,
    read_slide_record,
    record_path,
    recorded_files,
    slide_records,
)
from epsam.runtime.files import remove_temporaries, remove_temporaries_of, sha256


def begin_slides(folder: OutputFolder) -> None:
    """Record OUTPUT_DIR and what slides have in common: slides.csv, index.html and the folder of pages."""
    folder.begin()
    folder.claim(["slides.csv", "index.html"], "")
    folder.claim([], "pages")


def check_slide_free(output: Path, slide: str) -> None:
    """Raise StateError when outputs of a slide are there that this program did not write."""
    path = record_path(output, slide)
    try:
        known = {place: set(names) for place, names in read_slide_record(path).files.items()} if path.is_file() else {}
    except DataError:
        return  # damaged: the slide fails, and nothing of it is written
    for place, names in output_names_of(slide).items():
        for name in names:
            if name not in known.get(place, ()):
                check_free(output / place / name)


def begin_files(output: Path, slide: str, saved: SlideState | None) -> SlideFiles:
    """What to record before a slide is predicted; StateError when an output is not as this program left it.

    Deletes what a killed job of this slide left half written. The caller holds the slide's claim.
    """
    check_slide_free(output, slide)
    for place, name, digest in recorded_files(saved) if saved else ():
        check_unchanged(output / place / name, digest)
    for place, name, _ in recorded_files(saved) if saved else ():
        remove_temporaries_of(output / place / name)
    return {place: dict.fromkeys(names) for place, names in output_names_of(slide).items()}


def written_files(output: Path, state: SlideState) -> SlideFiles:
    """The outputs of a slide that are there, with their hashes; those that were complete before keep theirs."""
    files: SlideFiles = {"": {}, "pages": {}}
    for place, name, digest in recorded_files(state):
        path = output / place / name
        if path.is_file():
            files[place][name] = digest or sha256(path)
    return files


def holds_slide(output: Path, state: SlideState) -> bool:
    """Whether all that was written for a slide is still there."""
    return all((output / place / name).is_file() for place, name, _ in recorded_files(state))


def clear_work(output: Path, slide: str) -> None:
    """Delete what a slide under way had in state/work/<slide>/."""
    folder = output / "state" / "work" / slide
    if not folder.is_dir() or folder.is_symlink():
        return
    remove_temporaries(folder)
    for name in WORK_FILES:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def check_slides_unchanged(output: Path) -> None:
    """Raise StateError when an output of any slide was changed since it was written; DataError for a damaged record."""
    for path in slide_records(output):
        for place, name, digest in recorded_files(read_slide_record(path)):
            check_unchanged(output / place / name, digest)


def delete_slides(output: Path) -> None:
    """Delete what was written for slides, and their records."""
    for path in slide_records(output):
        state = read_slide_record(path)
        for place, name, _ in recorded_files(state):
            if (file := output / place / name).is_symlink() or file.is_file():
                file.unlink()
        if any(output_names_of(state.slide).values()):
            clear_work(output, state.slide)
        path.unlink()
