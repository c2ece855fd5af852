"""The fast path beside OpenSlide, for tiled TIFF with JPEG tiles.

OpenSlide paints each region through cairo as premultiplied ARGB, which takes three to four times as long as the
decoding. Here the same decoder's pixels are copied. Only where they are the same: some tiles of each level are compared
on opening, and what is not understood (missing tiles, odd colours, damaged tiles) is left to OpenSlide.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openslide
import tifffile

from epsam.runtime.failures import reason_of
from epsam.runtime.log import logger
from epsam.slides.tiff_tiles import TiffLevel, TiffTiles, first_pages

VENDORS = ("generic-tiff", "aperio")
"""Whose levels are the tiled pages of the file."""
COMPARED = 3
"""Tiles of a level that are compared with OpenSlide."""
GRID = 1e-9

Read = Callable[[int, int, int, int, int], np.ndarray]
"""Reads RGB as `Slide._read_inside`: level-0 x and y, then width, height and level."""


def open_fast_tiles(
    handle: openslide.OpenSlide, path: Path, sizes: Sequence[tuple[int, int]], read: Read
) -> TiffTiles | None:
    """The tiles of levels of `sizes`, or None where OpenSlide must read them.

    read: OpenSlide's own way, by which tiles are checked.
    """
    properties = handle.properties
    if properties.get(openslide.PROPERTY_NAME_VENDOR) not in VENDORS or openslide.PROPERTY_NAME_BOUNDS_X in properties:
        return None
    tiff = None
    try:
        tiff = tifffile.TiffFile(path)
        levels = [_level_of(tiff, size) for size in sizes]
        tiles = TiffTiles(tiff, [level for level in levels if level is not None])
        if len(tiles.levels) == len(levels) and all(_equal(tiles, level, read) for level in range(len(levels))):
            return tiles
    except Exception as error:  # noqa: BLE001 tifffile raises many kinds; OpenSlide reads it or says what is wrong
        logger.debug(f"{path}: read by OpenSlide alone ({reason_of(error)})")
    if tiff is not None:
        tiff.close()
    return None


def _level_of(tiff: tifffile.TiffFile, size: tuple[int, int]) -> TiffLevel | None:
    """The one page that is the level of this size, if its tiles are plain JPEG."""
    pages = [p for p in first_pages(tiff) if p.is_tiled and (p.imagewidth, p.imagelength) == size]
    return TiffLevel((pages[0],)) if len(pages) == 1 and _is_plain(pages[0]) else None


def _is_plain(page: tifffile.TiffPage) -> bool:
    return (
        page.compression == tifffile.COMPRESSION.JPEG
        and page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and (page.samplesperpixel, page.bitspersample) == (3, 8)
        and page.imagedepth == 1
        and "InterColorProfile" not in page.tags
        and page.tags.valueof("Orientation", 1) == 1
    )


def _equal(tiles: TiffTiles, level: int, read: Read) -> bool:
    """Whether some tiles of a level are OpenSlide's, to the bit; false where the level has no tile to compare."""
    width, height = tiles.levels[level].size
    page = tiles.levels[level].pages[0]
    columns = -(-width // page.tilewidth)
    base_width, base_height = tiles.levels[0].size
    scale = (base_width / width + base_height / height) / 2
    compared = 0
    for index in _spread(tiles, level, scale):
        row, column = divmod(index, columns)
        left, top = column * page.tilewidth, row * page.tilelength
        size = min(page.tilewidth, width - left), min(page.tilelength, height - top)
        ours = tiles.read(level, left, top, *size)
        if not np.array_equal(ours, read(round(left * scale), round(top * scale), *size, level)):
            return False
        compared += 1
    return compared > 0


def _spread(tiles: TiffTiles, level: int, scale: float) -> list[int]:
    """Numbers of tiles that the file holds, from its beginning, middle and end.

    Where the level's scale is no whole number, OpenSlide interpolates at all positions but the first.
    """
    present = np.flatnonzero(tiles.levels[level].pages[0].databytecounts)
    if abs(scale - round(scale)) > GRID:
        present = present[present == 0]
    if not len(present):
        return []
    return sorted(set(present[np.linspace(0, len(present) - 1, COMPARED).astype(int)].tolist()))
