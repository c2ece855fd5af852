"""Masks as annotations: TIFF (pyramid or one level) or PNG, values by group, read tile by tile into runs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from epsam.errors import AnnotationError, DataError
from epsam.runtime.files import one_channel, read_pixels
from epsam.slides.spans import Spans

MAX_RUNS = 10_000_000
"""Of equal pixels in the rows of all tiles; smooth outlines have a few million, noise has more."""
MAX_TILE_PX = 2**26
MAX_STRETCH = 0.02
"""By which the scales of a mask in x and y may differ: coarse masks are rounded to whole pixels."""


def read_mask_file(path: Path, slide_size: tuple[int, int] | None) -> dict[int, Spans]:
    """The runs of each value but 0, in the frame of a slide of `slide_size` (width, height).

    A smaller mask is taken for one of the whole slide at a coarser resolution. Raises AnnotationError when the file is
    no mask, damaged, or of another shape than the slide.
    """
    parts: list[np.ndarray] = []
    total = 0
    try:
        size, tiles = _open(path)
        for x, y, tile in tiles:
            parts.append(_runs(tile, x, y))
            total += len(parts[-1])
            if total > MAX_RUNS:
                raise AnnotationError(
                    f"{path}: its values change more than {MAX_RUNS} times along its rows: a picture, "
                    "not a mask of regions"
                )
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError, OSError, RuntimeError) as error:
        raise AnnotationError(f"{path}: cannot be read as a mask ({error}); write it again") from None
    scale = _scale(path, size, slide_size)
    runs = np.concatenate([np.zeros((0, 4), np.int32), *parts])
    runs = runs[np.lexsort((runs[:, 1], runs[:, 0]))]
    return {
        int(value): Spans(row, start, end, scale)
        for value in np.unique(runs[:, 3])
        for row, start, end in [np.ascontiguousarray(runs[runs[:, 3] == value, :3].T)]
    }


def _open(path: Path) -> tuple[tuple[int, int], Iterator[tuple[int, int, np.ndarray]]]:
    """(width, height) of the mask, and its parts that are not all 0: x, y, (h, w) integers."""
    with path.open("rb") as stream:
        is_png = stream.read(4) == b"\x89PNG"
    if is_png:
        pixels = read_pixels(path)
        if pixels.ndim == 3:
            try:
                pixels = one_channel(path, pixels)
            except DataError as error:
                raise AnnotationError(str(error)) from None
        return pixels.shape[::-1], iter([(0, 0, pixels)] if pixels.any() else [])
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        if page.samplesperpixel != 1 or page.dtype is None or page.dtype.kind not in "ub" or page.imagedepth > 1:
            raise AnnotationError(
                f"{path}: no mask of one channel of whole numbers, but {page.samplesperpixel} channels "
                f"of {page.dtype}; write values by group"
            )
        size = page.imagewidth, page.imagelength
        if min(page.chunks[0] * page.chunks[1], size[0] * size[1]) > MAX_TILE_PX:
            raise AnnotationError(
                f"{path}: tiles or strips of {page.chunks[1]} x {page.chunks[0]} px; write tiles of 512"
            )
    return size, _tiles(path)


def _tiles(path: Path) -> Iterator[tuple[int, int, np.ndarray]]:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        for tile, (*_, y, x, _), _ in page.segments():
            if tile is None:
                continue
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                tile = ~tile  # whole numbers without sign, or bool
            if tile.any():
                yield int(x), int(y), tile.reshape(tile.shape[-3:-1])[: page.imagelength - y, : page.imagewidth - x]


def _runs(tile: np.ndarray, x: int, y: int) -> np.ndarray:
    """(n, 4) int32 row, start, end, value of the runs of equal values but 0."""
    height, width = tile.shape
    padded = np.zeros((height, width + 2), np.int64)
    padded[:, 1:-1] = tile
    row, at = np.nonzero(np.diff(padded, axis=1))
    value = padded[row, at + 1]
    starts = value != 0
    # Each run ends at the next change of its row, which is the next one listed: every row ends in 0.
    end = np.append(at[1:], 0)
    return np.stack([row + y, at + x, end + x, value], axis=1)[starts].astype(np.int32)


def _scale(path: Path, size: tuple[int, int], slide_size: tuple[int, int] | None) -> tuple[float, float]:
    if slide_size is None:
        return 1.0, 1.0
    scale = slide_size[0] / size[0], slide_size[1] / size[1]
    rounding = max(1 / min(size), MAX_STRETCH)
    if min(scale) < 1 - rounding or abs(scale[0] / scale[1] - 1) > rounding:
        raise AnnotationError(
            f"{path}: a mask of {size[0]} x {size[1]} px does not fit a slide of {slide_size[0]} x "
            f"{slide_size[1]} px; is it the mask of another slide?"
        )
    return scale


def join(parts: list[Spans]) -> Spans:
    """The runs of several values together; they never overlap."""
    row, start, end = (np.concatenate([getattr(part, name) for part in parts]) for name in ("row", "start", "end"))
    order = np.lexsort((start, row))
    return Spans(row[order], start[order], end[order], parts[0].scale)
