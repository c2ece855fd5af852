"""Behaves as ASAP's multiresolutionimageinterface was seen to, and shows its pixels through OpenSlide.

Tests copy this file under that name into a folder on Python's path. OLD makes it an ASAP 1.9: BGRA, other enums.
"""

import os
from pathlib import Path

import numpy as np
import openslide
import tifffile

OLD = bool(os.environ.get("ASAP_STAND_IN_OLD"))
if OLD:
    LZW, UChar, ARGB = 1, 2, 3
else:
    Compression_LZW, DataType_UChar, ColorType_RGB = 1, 2, 3


class MultiResolutionImageReader:
    def open(self, path):
        if type(path) is not str:
            raise TypeError("in method 'MultiResolutionImageReader_open', argument 2 of type 'std::string const &'")
        if Path(path).suffix not in (".tif", ".tiff", ".svs"):
            return None
        try:
            with tifffile.TiffFile(path) as tiff:
                page, levels = tiff.pages[0], len(tiff.pages)
            image = _Image(path, page)
        except (openslide.OpenSlideError, tifffile.TiffFileError, IndexError, OSError):
            return None
        too_wide = levels == 1 and page.imagewidth >= 4096
        return None if (page.subifds or too_wide) and not image._through_openslide else image


class _Image:
    def __init__(self, path, page):
        self._path, self._slide, self._owner = path, openslide.OpenSlide(path), os.getpid()
        # Formats that ASAP's own TIFF reader leaves to OpenSlide.
        self._through_openslide = path.endswith(".svs") or "xml" in page.description
        self._grey = page.samplesperpixel == 1
        self._bgra = OLD and page.compression == tifffile.COMPRESSION.JPEG and not self._grey

    def __reduce__(self):
        raise TypeError("cannot pickle 'SwigPyObject' object")

    if not OLD:

        def setCacheSize(self, size):
            _check_level(size)

    def getNumberOfLevels(self):
        return self._slide.level_count

    def getDimensions(self):
        return self._slide.dimensions

    def getLevelDimensions(self, level):
        return self._slide.level_dimensions[level] if _check_level(level) < self._slide.level_count else ()

    def getLevelDownsample(self, level):
        if _check_level(level) >= self._slide.level_count:
            return -1.0
        return self._slide.dimensions[0] / self._slide.level_dimensions[level][0]

    def getBestLevelForDownSample(self, downsample):
        levels = range(self._slide.level_count)
        return min(levels, key=lambda level: abs(self.getLevelDownsample(level) - downsample))

    def getSpacing(self):
        if self._through_openslide:
            mpp = [self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
            return tuple(map(float, mpp)) if all(mpp) else ()
        with tifffile.TiffFile(self._path) as tiff:
            tag = tiff.pages[0].tags.get("XResolution")
        if tag is None or tag.value[0] == tag.value[1]:
            return (10000.0, 10000.0)
        return (1e4 * tag.value[1] / tag.value[0],) * 2  # the unit is ignored

    def getUCharPatch(self, x, y, width, height, level):
        if not all(type(value) is int for value in (x, y, width, height, level)):
            raise TypeError("in method 'MultiResolutionImage_getUCharPatch', argument of type 'long long'")
        if _check_level(level) >= self._slide.level_count:
            return None
        if os.getpid() != self._owner:
            return np.zeros((height, width, 3), np.uint8)  # a handle shared over fork gives black parts
        try:
            rgba = np.asarray(self._slide.read_region((x, y), level, (width, height)))
        except openslide.OpenSlideError:
            rgba = np.zeros((height, width, 4), np.uint8)
            rgba[..., 3] = 255
            self._slide = openslide.OpenSlide(self._path)
        # Outside and where there is no tile.
        rgb = np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(255 if self._through_openslide else 0))
        if self._grey:
            return rgb[..., :1]
        return np.dstack([rgb[..., ::-1], rgba[..., 3]]) if self._bgra else rgb


def _check_level(level):
    if level < 0:
        raise OverflowError("can't convert negative value to unsigned int")
    return level
