"""Slides to predict: a file, or those of a folder, and the table that says more of them."""

import os
from collections.abc import Sequence
from pathlib import Path

from epsam.errors import DataError
from epsam.inference.names import output_names
from epsam.inference.predict_slide import SlideToPredict
from epsam.patches.slide_table import SlideInfo, read_slide_table
from epsam.patches.sources import not_slides
from epsam.runtime.failures import printable
from epsam.runtime.log import logger
from epsam.runtime.text import listed
from epsam.slides.formats import SUFFIXES, files_below, is_slide_name, match_key, slide_name
from epsam.slides.grouping import group_slides

TABLE = "slides.csv"


def find_slides(*inputs: Path) -> dict[str, Path]:
    """Slides by the name of their outputs, those of subfolders too, each once; raises DataError when there are none."""
    if len(inputs) == 1:
        return output_names(_paths_in(inputs[0]), _folder_of(inputs[0]), slide_name)
    found = [path for data in inputs for path in _paths_in(Path(os.path.abspath(data)))]  # noqa: PTH100  without ..
    whole = {slide.path for slide in group_slides(found)}  # of a slide in DICOM all files may have been named
    paths = {path.resolve(): path for path in found if path in whole}
    above = Path(os.path.commonpath([path.parent for path in paths.values()]))
    return output_names(paths.values(), above, slide_name)


def _paths_in(data: Path) -> list[Path]:
    if data.is_file():
        return [data]
    if not data.is_dir():
        raise DataError(f"{data}: no such file or folder; give a patch folder, a slide or a folder of slides")
    files = files_below(data)
    paths = [slide.path for slide in group_slides(path for path in files if is_slide_name(path))]
    if not paths:
        raise DataError(
            f"{data}: neither a patch folder (no image/ in it) nor a folder of slides (no file in it or below it ends "
            f"in {', '.join(SUFFIXES)})"
        )
    if others := not_slides(files):
        logger.warning(
            f"{data}: {len(others)} files are no slides by the ends of their names and are not used: "
            + listed(printable(str(path.relative_to(data))) for path in others)
        )
    return paths


def _folder_of(data: Path) -> Path:
    return data if data.is_dir() else data.parent


def slides_to_predict(inputs: Sequence[Path], mpp_if_unknown: float | None) -> list[SlideToPredict]:
    """The slides of `inputs` with what slides.csv says of their resolution and of which are excluded.

    slides.csv lies in the folder of the slides or, as in a data set, beside a folder `images`.
    """
    slides = find_slides(*inputs)
    keys = {name: match_key(slide_name(path)) for name, path in slides.items()}
    tables = [_read_table(data, set(keys.values())) for data in inputs]
    found = []
    for name, path in slides.items():
        said = [
            rows[keys[name]] for data, rows in zip(inputs, tables, strict=True) if _holds(data, path, rows, keys[name])
        ]
        row = said[0] if said else SlideInfo()
        found.append(SlideToPredict(name, path, row.mpp, mpp_if_unknown, row.exclude or ""))
    return found


def _read_table(data: Path, keys: set[str]) -> dict[str, SlideInfo]:
    """Rows of the slides.csv that belongs to `data`; warns of those of slides that are not there."""
    folder = _folder_of(data)
    places = [folder, *([folder.parent] if folder.name == "images" else [])]
    table = next((place / TABLE for place in places if (place / TABLE).is_file()), None)
    rows = read_slide_table(table) if table else {}
    if data.is_dir() and (left := sorted(set(rows) - keys)):
        logger.warning(f"{table}: no such slides: {listed(left)}")
    return rows


def _holds(data: Path, path: Path, rows: dict[str, SlideInfo], key: str) -> bool:
    """Whether `data` is, or holds, the slide `path`, and its table has a row for it."""
    slide, place = path.resolve(), data.resolve()
    return key in rows and (slide == place or place in slide.parents)
