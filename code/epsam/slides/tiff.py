"""Slides that only tifffile reads with all their levels: OME-TIFF, SubIFDs, planar colours, rarer compressions.

OpenSlide takes OME-TIFF for a plain TIFF: of its levels, which are SubIFDs, it reads the first, without a resolution,
and three planes of colour become one of grey. We read them through tifffile and imagecodecs, which are here anyway,
because the libraries that would do it cost more than this file: tiffslide brings zarr and fsspec and reads slower than
OpenSlide, large_image brings a tile server's cache and its many sources, wsidicom reads DICOM, as OpenSlide does.
"""

from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from epsam.errors import SlideError
from epsam.runtime.failures import reason_of
from epsam.slides.diagnosis import AGAIN, check_codec, check_picture
from epsam.slides.slide import Slide, plausible_mpp, same_shape
from epsam.slides.tiff_tiles import TiffLevel, TiffTiles, TileError, first_pages, not_decodable

UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0, "in": 25400.0}
"""um in the units of OME-XML."""
UM_PER_UNIT = {2: 25400.0, 3: 1e4}
"""um in the values of TIFF's ResolutionUnit: inch and centimetre."""
RED_GREEN_BLUE = ("-16776961", "16711935", "65535")
"""OME-XML's colours of three channels that together are a picture in colour: signed RGBA."""
MAX_CHECKED_PX = 2048
MIN_LIGHT = 64
"""Median of each channel from which three unnamed planes are taken for a slide on bright ground."""
OPENSLIDE_READS = (1, 5, 6, 7, 8, 32773, 32946, 33003, 33005, 34712)
"""TIFF's numbers of compressions: none, LZW, JPEG, Deflate, PackBits, JPEG 2000."""


class TiffSlide(Slide):
    """A tiled TIFF, with its levels as SubIFDs or as pages; a missing tile is white."""

    reader = "tifffile"

    def __init__(self, path: Path):
        super().__init__(path)
        tiles: TiffTiles = self.handle()
        page = tiles.levels[0].pages[0]
        self.reader_version = tifffile.__version__
        self.vendor = "ome-tiff" if page.is_ome else "tiff"
        self.level_sizes = tuple(level.size for level in tiles.levels)
        self.mpp = mpp_of(page)

    def _open(self) -> TiffTiles:
        try:
            tiff = tifffile.TiffFile(self.path)
            tiles = TiffTiles(tiff, pyramid(self.path, tiff))
        except SlideError:
            raise
        except Exception as error:  # noqa: BLE001 tifffile raises many kinds for damaged files
            raise SlideError(f"{self.path}: cannot be read as TIFF ({reason_of(error)}); {AGAIN}") from None
        self._check_channels(tiles)
        return tiles

    def _check_channels(self, tiles: TiffTiles) -> None:
        """Raise SlideError for three grey planes that are no red, green and blue of a slide in transmitted light."""
        planes, (width, height) = tiles.levels[-1].pages, tiles.levels[-1].size
        if len(planes) == 1 or _has_colour_names(planes[0]):
            return
        side_x, side_y = min(width, MAX_CHECKED_PX), min(height, MAX_CHECKED_PX)
        try:
            pixels = tiles.read(
                len(tiles.levels) - 1, (width - side_x) // 2, (height - side_y) // 2, side_x, side_y, missing=255
            )
        except TileError as error:
            raise not_decodable(self.path, 0, 0, len(tiles.levels) - 1, error) from None
        if np.median(pixels, axis=(0, 1)).min() < MIN_LIGHT:
            raise SlideError(
                f"{self.path}: has three grey channels on a dark ground, as fluorescence has; H&E in colour is needed "
                "(if these are red, green and blue, export it in RGB)"
            )

    def _read_inside(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        scale = self.level_downsamples[level]
        tiles: TiffTiles = self.handle()
        try:
            return tiles.read(level, round(x / scale), round(y / scale), width, height, missing=255)
        except TileError as error:
            raise not_decodable(self.path, x, y, level, error) from None


def needs_tifffile(path: Path) -> bool:
    """Whether a TIFF that OpenSlide knows as a plain one has levels or colours that it does not see."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = largest_page(tiff)
            planar = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel >= 3
            other = page.compression not in OPENSLIDE_READS
            # OpenSlide starts at the first page, and takes the largest of the reduced ones, a macro too, for level 0.
            elsewhere = page.index != 0 or _pixels(page) < max(
                _pixels(one) for one in first_pages(tiff) if one.is_tiled
            )
            return page.is_tiled and bool(planar or other or elsewhere or page.subifds or tiff.pages[0].is_ome)
    except Exception:  # noqa: BLE001 tifffile raises many kinds for files that are no TIFF, or a damaged one
        return False


def is_tiled_tiff(path: Path) -> bool:
    """Whether tifffile finds tiles in the largest picture of the file."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(largest_page(tiff).is_tiled)
    except Exception:  # noqa: BLE001 as above
        return False


def check_tiff(path: Path) -> None:
    """Raise SlideError for a plain TIFF that has no colours, not 8 bits or no tiles; other files pass."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page, planes = largest_page(tiff), _planes(tiff)
    except Exception:  # noqa: BLE001 as above: its reader says what is wrong
        return
    if len(planes) == 1:
        check_picture(path, page)


def pyramid(path: Path, tiff: tifffile.TiffFile) -> list[TiffLevel]:
    """The levels of a TIFF, the finest first; raises SlideError where its largest picture cannot be a slide."""
    planes = _planes(tiff)
    if len(planes) == 1:
        check_picture(path, planes[0])
    check_codec(path, planes[0])
    reduced = [TiffLevel(tuple(pages)) for pages in zip(*(_subifds(page) for page in planes), strict=True)]
    if len(planes) == 1 and not reduced:
        reduced = [TiffLevel((page,)) for page in first_pages(tiff) if page.subfiletype & 1]
    levels = [TiffLevel(tuple(planes))]
    for level in sorted(reduced, key=lambda level: -level.size[0]):
        page = level.pages[0]
        same = (page.samplesperpixel, page.bitspersample) == (planes[0].samplesperpixel, planes[0].bitspersample)
        if page.is_tiled and same and level.size[0] < levels[-1].size[0] and same_shape(levels[0].size, level.size):
            levels.append(level)
    return levels


def largest_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    """The page of level 0: of the tiled ones the largest that has levels, as a macro, which may have more pixels, has none."""
    tiled = [page for page in first_pages(tiff) if page.is_tiled]
    sizes = Counter(_size(page) for page in tiled)
    levels = {
        page.index: sum(count for size, count in sizes.items() if same_shape(_size(page), size))
        + len(page.subifds or ())
        for page in tiled
    }

    def rank(page: tifffile.TiffPage) -> tuple[int, bool, int]:
        return levels[page.index], not page.subfiletype & 1, _pixels(page)

    if not tiled:
        return max(first_pages(tiff), key=_pixels)
    best = max(tiled, key=rank)
    return max((page for page in tiled if same_shape(_size(best), _size(page))), key=_pixels)


def _size(page: tifffile.TiffPage) -> tuple[int, int]:
    return page.imagewidth, page.imagelength


def _pixels(page: tifffile.TiffPage) -> int:
    return page.imagewidth * page.imagelength


def _planes(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The largest page, or the three pages of red, green and blue of an OME-TIFF."""
    page, pages = largest_page(tiff), first_pages(tiff)
    planes = pages[page.index : page.index + 3]
    grey = all(p.samplesperpixel == 1 and p.bitspersample == 8 and p.is_tiled for p in planes)
    equal = len(planes) == 3 and all(a.shape == b.shape and a.tilewidth == b.tilewidth for a, b in pairwise(planes))
    return planes if grey and equal and len(_ome(page, "Channel")) == 3 else [page]


def _has_colour_names(page: tifffile.TiffPage) -> bool:
    """Whether OME-XML calls the three channels red, green and blue."""
    channels = _ome(page, "Channel")
    colours = tuple(channel.get("Color", "") for channel in channels)
    names = tuple(channel.get("Name", "").strip().lower() for channel in channels)
    return colours == RED_GREEN_BLUE or names in (("red", "green", "blue"), ("r", "g", "b"))


MAX_SUBIFDS = 64


def _subifds(page: tifffile.TiffPage) -> list[tifffile.TiffPage]:
    pages = islice(page.pages, MAX_SUBIFDS) if page.subifds and page.pages is not None else ()
    return [inner for inner in pages if isinstance(inner, tifffile.TiffPage)]


def mpp_of(page: tifffile.TiffPage) -> tuple[float, float] | None:
    """um per pixel by OME-XML, else by the tags of resolution."""
    for pixels in _ome(page, "Pixels")[:1]:
        sides = [
            _um(pixels.get(f"PhysicalSize{axis}"), UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))) for axis in "XY"
        ]
        if all(sides):
            return plausible_mpp(*sides)
    tags = page.tags
    unit = UM_PER_UNIT.get(int(tags.valueof("ResolutionUnit", 2)))
    ratios = [tags.valueof(f"{axis}Resolution", (0, 1)) for axis in "XY"]
    sides = [unit * by / of if unit and of else None for of, by in ratios]
    return plausible_mpp(*sides)


def _um(size: str | None, unit: float | None) -> float | None:
    try:
        return float(size or "") * (unit or 0) or None
    except ValueError:
        return None


def _ome(page: tifffile.TiffPage, element: str) -> list[Any]:
    """Elements of the first image in the OME-XML of the file's first page."""
    first = page.parent.pages.first
    if not first.is_ome:
        return []
    try:
        root = ElementTree.fromstring(first.description)
    except (ElementTree.ParseError, DefusedXmlException, ValueError):
        return []
    image = next((node for node in root.iter() if node.tag.endswith("}Image")), root)
    return [node for node in image.iter() if node.tag.endswith("}" + element)]
