"""Slides through OpenSlide, the default reader."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import openslide
from PIL.Image import Image

from epsam.errors import SlideError
from epsam.slides.diagnosis import why_unreadable
from epsam.slides.fast_tiles import open_fast_tiles
from epsam.slides.slide import Slide, levels_of_slide, plausible_mpp
from epsam.slides.tiff_tiles import TiffTiles, TileError, not_decodable

CACHE_BYTES = 128 * 2**20
"""Of decoded tiles; a tile of 512 px takes 1 MiB."""


@dataclass(frozen=True)
class _Handles:
    """What one process has opened."""

    slide: openslide.OpenSlide
    tiles: TiffTiles | None
    """The fast path; None where OpenSlide reads everything."""


class OpenSlideSlide(Slide):
    """A slide that OpenSlide reads; tiles of plain JPEG are decoded beside it, see fast_tiles.py."""

    reader = "openslide"

    def __init__(self, path: Path):
        super().__init__(path)
        slide = self._open_slide()
        self.reader_version = openslide.__library_version__
        self.vendor = slide.properties.get(openslide.PROPERTY_NAME_VENDOR, "")
        self._levels, self.level_sizes = levels_of_slide(path, slide.level_dimensions)
        self.mpp = plausible_mpp(
            slide.properties.get(openslide.PROPERTY_NAME_MPP_X), slide.properties.get(openslide.PROPERTY_NAME_MPP_Y)
        )

    def _open(self) -> _Handles:
        slide = self._open_slide()
        tiles = open_fast_tiles(slide, self.path, self.level_sizes, partial(self._read_openslide, slide))
        return _Handles(slide, tiles)

    def _open_slide(self) -> openslide.OpenSlide:
        try:
            slide = openslide.OpenSlide(self.path)
            slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
            return slide
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(f"{self.path}: {why_unreadable(self.path, error)}") from None

    def _read_inside(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        handles: _Handles = self.handle()
        if handles.tiles is not None:
            scale = self.level_downsamples[level]
            with suppress(TileError):  # OpenSlide decides whether that is an error
                return handles.tiles.read(level, round(x / scale), round(y / scale), width, height)
        return self._read_openslide(handles.slide, x, y, width, height, level)

    def _read_openslide(
        self, slide: openslide.OpenSlide, x: int, y: int, width: int, height: int, level: int
    ) -> np.ndarray:
        try:
            image = slide.read_region((x, y), self._levels[level], (width, height))
        except openslide.OpenSlideError as error:
            self.close()  # OpenSlide answers nothing more on a handle that failed once
            raise not_decodable(self.path, x, y, level, error) from None
        return over_white(image)


def bounds_origin(path: Path) -> tuple[int, int]:
    """Level-0 position of the scanned region where OpenSlide reports one, else (0, 0); QuPath counts from there."""
    try:
        with openslide.OpenSlide(path) as handle:
            x, y = (
                handle.properties.get(key)
                for key in (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
            )
    except openslide.OpenSlideError:
        return 0, 0  # a slide that only ASAP reads
    return (int(x), int(y)) if x and y else (0, 0)


def over_white(image: Image) -> np.ndarray:
    """RGBA on white ground, as (H, W, 3) uint8: tiles that a file leaves out are transparent."""
    # Pillow packs RGB and alpha apart several times faster than it gives them together.
    alpha, rgb = (
        np.frombuffer(image.tobytes("raw", mode), np.uint8).reshape(image.height, image.width, -1)
        for mode in ("A", "RGB")
    )
    if alpha.min() == 255:
        return rgb.copy()  # bytes are read-only
    share = alpha / 255
    return np.rint(rgb * share + 255 * (1 - share)).astype(np.uint8)
