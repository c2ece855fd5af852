"""Slides through OpenSlide, the default reader."""

from pathlib import Path

import numpy as np
import openslide
from PIL.Image import Image

from epsam.errors import SlideError
from epsam.slides.slide import Slide, plausible_mpp

CACHE_BYTES = 128 * 2**20
"""Of decoded tiles; a tile of 512 px takes 1 MiB."""


class OpenSlideSlide(Slide):
    """A slide that OpenSlide reads."""

    reader = "openslide"

    def __init__(self, path: Path):
        super().__init__(path)
        handle = self.handle()
        self.reader_version = openslide.__library_version__
        self.vendor = handle.properties.get(openslide.PROPERTY_NAME_VENDOR, "")
        self.level_sizes = tuple(handle.level_dimensions)
        self.mpp = plausible_mpp(
            handle.properties.get(openslide.PROPERTY_NAME_MPP_X), handle.properties.get(openslide.PROPERTY_NAME_MPP_Y)
        )

    def _open(self) -> openslide.OpenSlide:
        try:
            handle = openslide.OpenSlide(self.path)
            handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
            return handle
        except openslide.OpenSlideUnsupportedFormatError:
            raise SlideError(
                f"{self.path}: OpenSlide does not know this format (a TIFF must be tiled); download it "
                "again, or convert it to a tiled pyramidal TIFF"
            ) from None
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(f"{self.path}: OpenSlide cannot open it ({error}); download it again") from None

    def _read_inside(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        try:
            image = self.handle().read_region((x, y), level, (width, height))
        except openslide.OpenSlideError as error:
            self.close()  # OpenSlide answers nothing more on a handle that failed once
            raise SlideError(
                f"{self.path}: cannot be decoded at x={x} y={y}, level {level} ({error}); download it again"
            ) from None
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
