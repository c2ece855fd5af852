"""A slide as the stages see it, whichever library reads it.

Frames: x and y are level-0 pixels of the slide; width and height are pixels of the level that is read.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from epsam.errors import SlideError
from epsam.runtime.log import logger

MAX_PIXEL_RATIO = 1.1
"""Of the sides of a pixel: scanners' pixels are square to a per cent, so other sides are an error of the file."""
PLAUSIBLE_MPP = (0.02, 20.0)
"""um per pixel between which a resolution is believed; scanners write 0.1 to 1, converters anything."""

MAX_RATIO_ERROR = 0.03
"""By which the ratio of a level's sides may differ from level 0's; macros and labels differ by far more."""


Opened = TypeVar("Opened", bound="Slide")


class Slide(ABC):
    """An opened slide. It can be pickled and used after a fork: every process opens the file for itself."""

    reader: str
    """`asap`, `openslide` or `tifffile`."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._handle: Any = None
        self._owner: int | None = None
        self.reader_version = ""
        self.vendor = ""
        self.level_sizes: tuple[tuple[int, int], ...] = ()
        """(width, height) of each level."""
        self.mpp: tuple[float, float] | None = None
        """um per level-0 pixel in x and y; None when the file says nothing or something absurd."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.level_sizes[0]

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level, mean of both axes."""
        width, height = self.size
        return tuple((width / w + height / h) / 2 for w, h in self.level_sizes)

    def level_for(self, downsample: float) -> int:
        """The coarsest level that still has at least one pixel per `downsample` level-0 pixels."""
        fitting = [i for i, d in enumerate(self.level_downsamples) if d <= downsample * 1.01]
        return max(fitting, key=self.level_downsamples.__getitem__, default=0)

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Read (height, width, 3) uint8 RGB; white outside the slide and where the file holds no tile.

        x, y: top-left corner in level-0 pixels, moved to the nearest pixel of `level`; width, height: pixels of `level`.
        Raises SlideError when the level does not exist or a tile cannot be decoded.
        """
        x, y, width, height = int(x), int(y), int(width), int(height)
        if not 0 <= level < len(self.level_sizes):
            raise SlideError(f"{self.path}: no level {level}; it has {len(self.level_sizes)}")
        if width < 1 or height < 1:
            raise SlideError(f"{self.path}: cannot read {width} x {height} px; ask for at least one pixel")
        scale = self.level_downsamples[level]
        level_width, level_height = self.level_sizes[level]
        left, top = round(x / scale), round(y / scale)
        x0, x1 = max(0, -left), min(width, level_width - left)
        y0, y1 = max(0, -top), min(height, level_height - top)
        if x0 >= x1 or y0 >= y1:
            return np.full((height, width, 3), 255, np.uint8)
        # Of the level's own pixels: off its grid OpenSlide interpolates where other readers round.
        at = round((left + x0) * scale), round((top + y0) * scale)
        inside = self._read_inside(*at, x1 - x0, y1 - y0, level)
        if inside.shape[:2] == (height, width):
            return inside
        out = np.full((height, width, 3), 255, np.uint8)
        out[y0:y1, x0:x1] = inside
        return out

    def handle(self) -> Any:
        """The library's own object, opened in this process."""
        if self._owner != os.getpid():
            self._handle, self._owner = self._open(), os.getpid()
        return self._handle

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        self._handle, self._owner = None, None

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_owner": None}

    @abstractmethod
    def _open(self) -> Any:
        """Open the file; raises SlideError."""

    @abstractmethod
    def _read_inside(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """Read RGB of a part that lies inside the level; raises SlideError."""


def levels_of_slide(
    path: Path, sizes: Sequence[tuple[int, int]]
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Numbers and sizes (width, height) of the levels that can show what level 0 shows.

    Some files mark a macro or label as a reduced image; its sides have another ratio.
    """
    kept = [number for number, size in enumerate(sizes) if same_shape(sizes[0], size)]
    for number in sorted(set(range(len(sizes))) - set(kept)):
        _log_other_picture(path, number, tuple(sizes[number]))
    return tuple(kept), tuple((int(sizes[number][0]), int(sizes[number][1])) for number in kept)


@cache  # once a process: slides are opened again and again
def _log_other_picture(path: Path, level: int, size: tuple[int, int]) -> None:
    logger.info(f"{path}: level {level} ({size[0]} x {size[1]} px) is another picture than level 0 and is left out")


def same_shape(size: tuple[int, int], level: tuple[int, int]) -> bool:
    """Whether a level has the sides (width, height) of level 0 in the same ratio, but for rounding and cut-off edges."""
    (width, height), (level_width, level_height) = size, level
    expected = height * level_width / width, width * level_height / height
    return any(
        abs(side - other) <= max(2, MAX_RATIO_ERROR * side)
        for side, other in zip((level_height, level_width), expected, strict=True)
    )


def plausible_mpp(x: float | str | None, y: float | str | None) -> tuple[float, float] | None:
    """(x, y) in um when both are numbers that a scanner can have, else None."""
    if x is None or y is None:
        return None
    try:
        values = float(x), float(y)
    except ValueError:
        return None
    low, high = PLAUSIBLE_MPP
    square = max(values) <= MAX_PIXEL_RATIO * min(values)
    return values if square and all(low <= value <= high for value in values) else None


def differing_mpp(in_table: float | None, in_file: tuple[float, float] | None) -> str:
    """What to say where a table gives another resolution than the file: they differ by more than MAX_PIXEL_RATIO."""
    if in_table is None or in_file is None:
        return ""
    said = sum(in_file) / 2
    if max(in_table, said) <= MAX_PIXEL_RATIO * min(in_table, said):
        return ""
    return f"slides.csv gives {in_table:g} um/px, which counts; its file says {said:.3g}"


def read_window(slide: Slide, x: int, y: int, read_px: int, size_px: int) -> np.ndarray:
    """Read the square of `read_px` level-0 pixels at (x, y) as (size_px, size_px, 3) uint8 RGB."""
    if read_px == size_px:
        return slide.read(x, y, size_px, size_px)
    level = slide.level_for(read_px / size_px)
    side = max(1, round(read_px / slide.level_downsamples[level]))
    pixels = slide.read(x, y, side, side, level)
    return cv2.resize(pixels, (size_px, size_px), interpolation=cv2.INTER_AREA if side >= size_px else cv2.INTER_LINEAR)
