"""Slides through ASAP's `multiresolutionimageinterface`, versions 1.8 to 2.2, where it is installed."""

import importlib
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import openslide
import tifffile

from epsam.errors import SlideError
from epsam.runtime.log import logger
from epsam.slides.openslide import OpenSlideSlide
from epsam.slides.slide import Slide, levels_of_slide, plausible_mpp

MODULE = "multiresolutionimageinterface"
INSTALLED = Path("/opt/ASAP/bin")
CACHE_BYTES = 64 * 2**20
CHANNELS = {3: [0, 1, 2], 4: [2, 1, 0]}
"""Where R, G and B stand in what ASAP gives: RGB, or BGRA (JPEG in versions 1.8 and 1.9)."""
_warned: set[str] = set()


def find_asap(folder: Path | None = None) -> ModuleType | None:
    """ASAP's module from `folder`, Python's path or /opt/ASAP/bin; None (said once, with why) without one."""
    for place in (folder, None, INSTALLED):
        if place is not None and not Path(place).is_dir():
            continue
        extra = [] if place is None or MODULE in sys.modules else [str(place)]
        sys.path.extend(extra)
        try:
            return importlib.import_module(MODULE)
        except ImportError as error:
            if getattr(error, "name", None) != MODULE:
                _warn_once(
                    f"ASAP's Python module is there but cannot be imported ({error}); it was built for another "
                    "Python or NumPy. Reading with OpenSlide"
                )
        finally:
            for entry in extra:
                sys.path.remove(entry)
    return None


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)


class AsapSlide(Slide):
    """A slide that ASAP reads."""

    reader = "asap"

    def __init__(self, path: Path, folder: Path | None = None):
        super().__init__(path)
        self._folder = folder
        self._other: OpenSlideSlide | None = None
        image = self.handle()
        module = self._module()
        # No version attribute is known before 2.2; the names of its enums tell 2.1 from what came before.
        since_21 = hasattr(module, "Compression_LZW")
        self.reader_version = str(getattr(module, "__version__", "2.1 or later" if since_21 else "before 2.1"))
        self.vendor = openslide.OpenSlide.detect_format(str(path)) or ""
        sizes = (image.getLevelDimensions(level) for level in range(image.getNumberOfLevels()))
        found = [(int(size[0]), int(size[1])) for size in sizes]
        if not found or min(found[0]) < 1:
            raise SlideError(f"{path}: ASAP finds no pixels in it; read it with slides.reader=openslide")
        self._levels, self.level_sizes = levels_of_slide(path, found)
        self.mpp = _mpp(path, image.getSpacing())

    def _module(self) -> ModuleType:
        module = find_asap(self._folder)
        if module is None:
            raise SlideError(
                f"{self.path}: ASAP's Python module was not found; install ASAP, give its folder as "
                "slides.asap_path, or use slides.reader=openslide"
            )
        return module

    def _open(self) -> Any:
        _check_whole(self.path)
        image = self._module().MultiResolutionImageReader().open(str(self.path))
        if image is None:
            raise SlideError(
                f"{self.path}: ASAP cannot open it (damaged, not tiled, or an extension it does not "
                "know, such as one in capitals); use slides.reader=openslide or download it again"
            )
        if hasattr(image, "setCacheSize"):
            image.setCacheSize(CACHE_BYTES)
        return image

    def _read_inside(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        raw = self.handle().getUCharPatch(x, y, width, height, self._levels[level])
        if raw is None or np.shape(raw) not in [(height, width, channels) for channels in CHANNELS]:
            raise SlideError(f"{self.path}: ASAP gives nothing at x={x} y={y}, level {level}; download it again")
        pixels = _as_rgb(np.asarray(raw, np.uint8))
        if not cv2.countNonZero(cv2.inRange(pixels, (0, 0, 0), (0, 0, 0))):
            return pixels
        # Pure black may stand for a tile that is missing or cannot be decoded, on which OpenSlide is outspoken.
        return self._second_opinion(x, y, width, height, level)

    def _second_opinion(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """The region as OpenSlide reads it; raises SlideError where it cannot, as ASAP's black is then not believed."""
        try:
            self._other = other = self._other or OpenSlideSlide(self.path)
        except SlideError:
            raise SlideError(
                f"{self.path}: ASAP gives black at x={x} y={y}, level {level}, and OpenSlide, which would "
                "tell whether the file holds that, cannot open it; download it again"
            ) from None
        if self.level_sizes[level] in other.level_sizes:
            return other.read(x, y, width, height, other.level_sizes.index(self.level_sizes[level]))
        if other.size != self.size:
            raise SlideError(
                f"{self.path}: ASAP gives black at x={x} y={y}, level {level}, and finds {self.size} px in the file, "
                f"OpenSlide {other.size}; download it again, or use slides.reader=openslide"
            )
        return _resampled(other, x, y, width, height, self.level_downsamples[level])


def _resampled(slide: Slide, x: int, y: int, width: int, height: int, downsample: float) -> np.ndarray:
    """A region at a downsample that the slide has no level of, from the next finer level; as `Slide.read`."""
    level = slide.level_for(downsample)
    scale = downsample / slide.level_downsamples[level]
    pixels = slide.read(x, y, max(1, round(width * scale)), max(1, round(height * scale)), level)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def _check_whole(path: Path) -> None:
    """Raise SlideError when a TIFF's tiles go on beyond its end: ASAP reads those as black, without an error."""
    try:
        size = path.stat().st_size
        with tifffile.TiffFile(path) as tiff:
            end = max(
                (
                    int((np.array(page.dataoffsets, np.uint64) + np.array(page.databytecounts, np.uint64)).max())
                    for page in tiff.pages
                    if len(page.dataoffsets)
                ),
                default=0,
            )
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, IndexError, struct.error):
        return  # no TIFF, or none that tifffile knows: its reader judges
    if end > size:
        raise SlideError(f"{path}: cut off, the last {end - size} of its {end} bytes are missing; download it again")


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W, channels) as (H, W, 3) RGB; where A is 0, the rest is black."""
    return pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels[..., CHANNELS[pixels.shape[2]]])


def _mpp(path: Path, spacing: tuple[float, ...]) -> tuple[float, float] | None:
    """ASAP's spacing, put right where it took a TIFF's pixels per inch for pixels per centimetre."""
    if len(spacing) < 2:
        return None
    x, y = spacing[:2]
    try:
        with tifffile.TiffFile(path) as tiff:
            tags = tiff.pages[0].tags
            per_unit, unit = tags["XResolution"].value, tags["ResolutionUnit"].value
    except (tifffile.TiffFileError, KeyError, IndexError):
        return plausible_mpp(x, y)
    raw = 1e4 * per_unit[1] / per_unit[0] if per_unit[0] else 0
    if abs(x - raw) < 0.01 * raw and unit != 3:
        return plausible_mpp(x * 2.54, y * 2.54) if unit == 2 else None
    return plausible_mpp(x, y)
