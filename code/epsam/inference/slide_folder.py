"""Slides to predict: a file, or those of a folder, and the table that says more of them."""

from pathlib import Path

from epsam.errors import DataError
from epsam.inference.names import output_names
from epsam.inference.predict_slide import SlideToPredict
from epsam.patches.slide_table import SlideInfo, read_slide_table
from epsam.runtime.log import logger
from epsam.runtime.text import listed
from epsam.slides.formats import SUFFIXES, is_slide_name, match_key, slide_name
from epsam.slides.grouping import group_slides

TABLE = "slides.csv"


def find_slides(data: Path) -> dict[str, Path]:
    """Slides by the name of their outputs, those of subfolders too; raises DataError when there are none."""
    if data.is_file():
        return output_names([data], data.parent, slide_name)
    if not data.is_dir():
        raise DataError(f"{data}: no such file or folder; give a patch folder, a slide or a folder of slides")
    files = [path for path in sorted(data.rglob("*")) if path.is_file() and not _is_hidden(path.relative_to(data))]
    paths = [slide.path for slide in group_slides(path for path in files if is_slide_name(path))]
    if not paths:
        raise DataError(
            f"{data}: neither a patch folder (no image/ in it) nor a folder of slides (no file in it or below it ends "
            f"in {', '.join(SUFFIXES)})"
        )
    return output_names(paths, data, slide_name)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def slides_to_predict(data: Path, mpp_if_unknown: float | None) -> list[SlideToPredict]:
    """The slides of `data` with what slides.csv says of their resolution and of which are excluded.

    slides.csv lies in the folder of the slides or, as in a data set, beside a folder `images`.
    """
    slides = find_slides(data)
    keys = {name: match_key(slide_name(path)) for name, path in slides.items()}
    folder = data if data.is_dir() else data.parent
    places = [folder, *([folder.parent] if folder.name == "images" else [])]
    table = next((place / TABLE for place in places if (place / TABLE).is_file()), None)
    rows = read_slide_table(table) if table else {}
    if data.is_dir() and (left := sorted(set(rows) - set(keys.values()))):
        logger.warning(f"{table}: no such slides: {listed(left)}")
    found = []
    for name, path in slides.items():
        row = rows.get(keys[name], SlideInfo())
        found.append(SlideToPredict(name, path, row.mpp, mpp_if_unknown, row.exclude or ""))
    return found
