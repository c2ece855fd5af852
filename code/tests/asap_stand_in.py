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
            return _Image(path)
        except (openslide.OpenSlideError, OSError):
            return None


class _Image:
    def __init__(self, path):
        self._path, self._slide, self._owner = path, openslide.OpenSlide(path), os.getpid()

    def __reduce__(self):
        raise TypeError("cannot pickle 'SwigPyObject' object")

    def getNumberOfLevels(self):
        return self._slide.level_count

    def getDimensions(self):
        return self._slide.dimensions

    def getLevelDimensions(self, level):
        return self._slide.level_dimensions[level] if level < self._slide.level_count else ()

    def getLevelDownsample(self, level):
        if level >= self._slide.level_count:
            return -1.0
        return self._slide.dimensions[0] / self._slide.level_dimensions[level][0]

    def getSpacing(self):
        with tifffile.TiffFile(self._path) as tiff:
            tag = tiff.pages[0].tags.get("XResolution")
        if tag is None or tag.value[0] == tag.value[1]:
            return (10000.0, 10000.0)
        return (1e4 * tag.value[1] / tag.value[0],) * 2  # the unit is ignored

    def getUCharPatch(self, x, y, width, height, level):
        if not all(type(value) is int for value in (x, y, width, height, level)):
            raise TypeError("in method 'MultiResolutionImage_getUCharPatch', argument of type 'long long'")
        if level < 0:
            raise OverflowError("can't convert negative value to unsigned int")
        if level >= self._slide.level_count:
            return None
        if os.getpid() != self._owner:
            return np.zeros((height, width, 3), np.uint8)  # a handle shared over fork gives black parts
        try:
            rgba = np.asarray(self._slide.read_region((x, y), level, (width, height)))
        except openslide.OpenSlideError:
            rgba = np.zeros((height, width, 4), np.uint8)
            self._slide = openslide.OpenSlide(self._path)
        rgb = rgba[..., :3] * (rgba[..., 3:] > 0)  # outside and where there is no tile: black
        return np.dstack([rgb[..., ::-1], rgba[..., 3]]) if OLD else rgb
