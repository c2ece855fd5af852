"""Tiles of TIFF pages: the tile table by tifffile, decoding by simplejpeg and imagecodecs, the last tiles kept.

JPEG goes through simplejpeg, because imagecodecs says nothing of damaged data and gives a tile that is half grey.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

from epsam.errors import SlideError

CACHE_BYTES = 128 * 2**20
"""Of decoded tiles; a tile of 512 px takes 768 KiB."""
MAX_PAGES = 1000
"""A file with more pages is a stack of images or hostile, not a slide."""
ADOBE_MARKER = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""APP14 up to its last byte, which says how the colours are stored: 0 as RGB, 1 as YCbCr."""


class TileError(Exception):
    """A tile cannot be read or decoded."""


@dataclass(frozen=True)
class TiffLevel:
    """A level of a pyramid: one page, or three pages with a colour each."""

    pages: tuple[tifffile.TiffPage, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.pages[0].imagewidth, self.pages[0].imagelength


class TiffTiles:
    """Regions of the levels of a TIFF file, from its tiles; for one process and one thread at a time."""

    def __init__(self, tiff: tifffile.TiffFile, levels: Sequence[TiffLevel]):
        self.levels = tuple(levels)
        self._stream = tiff.filehandle
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._bytes = 0

    def read(self, level: int, left: int, top: int, width: int, height: int, missing: int | None = None) -> np.ndarray:
        """(height, width, 3) uint8 RGB of a part inside the level, in its own pixels.

        Raises TileError when a tile cannot be decoded or, unless it is to be filled with `missing`, is not there.
        """
        page = self.levels[level].pages[0]
        side_x, side_y = page.tilewidth, page.tilelength
        columns = -(-page.imagewidth // side_x)
        out = np.empty((height, width, 3), np.uint8)
        for row in range(top // side_y, (top + height - 1) // side_y + 1):
            for column in range(left // side_x, (left + width - 1) // side_x + 1):
                x, y = column * side_x, row * side_y
                x0, x1 = max(left, x), min(left + width, x + side_x)
                y0, y1 = max(top, y), min(top + height, y + side_y)
                part = out[y0 - top : y1 - top, x0 - left : x1 - left]
                index = row * columns + column
                if missing is not None and self.is_missing(level, index):
                    part[:] = missing
                else:
                    part[:] = self._tile(level, index)[y0 - y : y1 - y, x0 - x : x1 - x]
        return out

    def is_missing(self, level: int, index: int) -> bool:
        """Whether the file leaves this tile out."""
        return any(not page.databytecounts[index] for page in self.levels[level].pages)

    def _tile(self, level: int, index: int) -> np.ndarray:
        """(tile height, tile width, 3) uint8."""
        key = (level, index)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        if self.is_missing(level, index):
            raise TileError("a tile is missing")
        tile = self._decode(level, index)
        self._cache[key] = tile
        self._bytes += tile.nbytes
        while self._bytes > CACHE_BYTES and len(self._cache) > 1:
            self._bytes -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def _decode(self, level: int, index: int) -> np.ndarray:
        pages = self.levels[level].pages
        if len(pages) == 3:
            return np.dstack([self._segment(page, index) for page in pages])
        page = pages[0]
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            count = len(page.dataoffsets) // page.samplesperpixel
            return np.dstack([self._segment(page, index + plane * count) for plane in range(3)])
        return self._segment(page, index)[..., :3]

    def _segment(self, page: tifffile.TiffPage, index: int) -> np.ndarray:
        """(tile height, tile width, samples) uint8."""
        count = page.databytecounts[index]
        try:
            self._stream.seek(page.dataoffsets[index])
            data = self._stream.read(count)
            if len(data) < count:
                raise TileError(f"the file ends {count - len(data)} bytes too early")
            if page.compression == tifffile.COMPRESSION.JPEG:
                tile = _decode_jpeg(page, data)
            else:
                segment = page.decode(data, index, _fullsize=True)[0]
                if segment is None:
                    raise TileError("a tile is empty")
                tile = segment[0]
        except TileError:
            raise
        except Exception as error:
            raise TileError(" ".join(str(error).split())[:160] or type(error).__name__) from error
        if tile.shape[:2] != (page.tilelength, page.tilewidth) or tile.dtype != np.uint8:
            raise TileError("a tile does not have the size and type that the file says")
        return tile


def _decode_jpeg(page: tifffile.TiffPage, data: bytes) -> np.ndarray:
    """(H, W, 3) RGB or (H, W, 1) of a JPEG stream whose tables the page may hold; raises ValueError where damaged."""
    tables = page.jpegtables or b"\xff\xd8\xff\xd9"
    marker = b"" if page.is_jfif else ADOBE_MARKER + bytes([page.photometric == tifffile.PHOTOMETRIC.YCBCR])
    stream = data[:2] + marker + tables[2:-2] + data[2:]
    height, width, colours, _ = simplejpeg.decode_jpeg_header(stream)
    if (height, width) != (page.tilelength, page.tilewidth):  # before memory is taken for it
        raise ValueError(f"a tile of {width} x {height} px, not {page.tilewidth} x {page.tilelength}")
    return simplejpeg.decode_jpeg(stream, "GRAY" if colours.upper() == "GRAY" else "RGB")


def first_pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The pages at the top of a TIFF, at most MAX_PAGES."""
    return [page for page in islice(tiff.pages, MAX_PAGES) if isinstance(page, tifffile.TiffPage)]


def not_decodable(path: Path, x: int, y: int, level: int, reason: object) -> SlideError:
    """The error of every reader for a region that cannot be decoded; x, y in level-0 pixels."""
    return SlideError(f"{path}: cannot be decoded at x={x} y={y}, level {level} ({reason}); download it again")
