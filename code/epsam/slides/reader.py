"""Opening slides: which library reads a file."""

from pathlib import Path

import openslide

from epsam.errors import SlideError
from epsam.slides.asap import AsapSlide, find_asap
from epsam.slides.openslide import OpenSlideSlide
from epsam.slides.slide import Slide
from epsam.slides.tiff import TiffSlide, check_tiff, is_tiled_tiff, needs_tifffile

BACKENDS = ("auto", "asap", "openslide", "tifffile")


def open_slide(path: Path | str, backend: str = "auto", asap_path: Path | None = None) -> Slide:
    """Open a slide with `asap`, `openslide`, or `auto`: ASAP when its module is there and opens it.

    A TIFF that OpenSlide reads in part or not at all is read by tifffile, see tiff.py, unless `asap` is asked for.
    So that a slide can be opened again as it was read before, any `Slide.reader` is a backend, `tifffile` too.

    asap_path: folder of ASAP's module, when it lies neither on Python's path nor in /opt/ASAP/bin.
    A small region is read, so that a file which opens but cannot be decoded is found out now.
    Raises SlideError when the file cannot be read; the message says why and what to do.
    """
    path = Path(path)
    if backend not in BACKENDS:
        raise SlideError(f"slide reader `{backend}` is unknown; choose one of {', '.join(BACKENDS)}")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise SlideError(f"{path}: {what}; give the path of a slide file")
    if path.stat().st_size == 0:
        raise SlideError(f"{path}: the file is empty; download it again")
    plain = openslide.OpenSlide.detect_format(path) in (None, "generic-tiff")
    if plain:
        check_tiff(path)
        if backend == "tifffile" or (backend != "asap" and needs_tifffile(path)):
            return _probe(TiffSlide(path))
    if backend == "asap" or (backend == "auto" and find_asap(asap_path)):
        try:
            return _probe(AsapSlide(path, asap_path))
        except SlideError:
            if backend == "asap":
                raise
    try:
        slide: Slide = OpenSlideSlide(path)
    except SlideError:
        if not (plain and is_tiled_tiff(path)):
            raise
        slide = TiffSlide(path)  # such as one whose pages OpenSlide finds in no order
    return _probe(slide)


def _probe(slide: Slide) -> Slide:
    level = len(slide.level_sizes) - 1
    (width, height), (level_width, level_height) = slide.size, slide.level_sizes[level]
    side = min(32, level_width, level_height)
    slide.read(width // 2, height // 2, side, side, level)
    return slide
