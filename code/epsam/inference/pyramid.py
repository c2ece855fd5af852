"""Mask and probability as pyramidal TIFF that OpenSlide, ASAP and QuPath open, written tile by tile."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from epsam.inference.foci import Foci
from epsam.inference.painted import PaintedFoci
from epsam.inference.probability import ProbabilityMap
from epsam.runtime.files import atomic

TILE = 512
MAX_COARSEST_PX = 4096
"""ASAP does not open a file whose only level is this wide; further halvings follow until none is wider."""

DrawTile = Callable[[float, float, int, float], np.ndarray | int]
"""(x, y, side, downsample) -> uint8 (side, side), or one value for the whole tile; x, y level-0 px."""


def write_mask(path: Path, foci: Foci, levels: Sequence[tuple[int, int]], mpp: tuple[float, float] | None) -> None:
    """Write the outlines as 0/255, painted as our reader and ASAP paint the XML of the same outlines."""
    write_pyramid(path, PaintedFoci(foci).tile, levels, mpp)


def write_probability(
    path: Path, source: ProbabilityMap, levels: Sequence[tuple[int, int]], mpp: tuple[float, float] | None
) -> None:
    """Write the map, 0 to 255 for 0 to 1, interpolated between its pixels."""
    write_pyramid(path, lambda x, y, side, downsample: source.sample(x, y, side, side, downsample), levels, mpp)


def all_levels(levels: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The slide's level sizes (width, height), followed by halves while the last is MAX_COARSEST_PX or more."""
    levels = list(levels)
    while max(levels[-1]) >= MAX_COARSEST_PX:
        levels.append((levels[-1][0] // 2, levels[-1][1] // 2))
    return levels


def write_pyramid(
    path: Path, draw: DrawTile, levels: Sequence[tuple[int, int]], mpp: tuple[float, float] | None
) -> None:
    """Write a one-channel uint8 BigTIFF, LZW, one top-level directory a level; memory holds a few tiles.

    `levels`: sizes (width, height), level 0 first; `mpp`: um/px of level 0, None leaves the resolution out.
    """
    width, height = levels[0]
    with atomic(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as tiff:
        for number, (level_width, level_height) in enumerate(all_levels(levels)):
            downsample = (width / level_width, height / level_height)
            resolution = (
                {}
                if mpp is None
                else {
                    "resolution": tuple(1e4 / (m * d) for m, d in zip(mpp, downsample, strict=True)),
                    "resolutionunit": "CENTIMETER",
                }
            )
            tiff.write(
                _encoded_tiles(draw, level_width, level_height, sum(downsample) / 2),
                shape=(level_height, level_width),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="minisblack",
                compression="lzw",
                subfiletype=min(number, 1),
                metadata=None,
                software="epsam",
                **resolution,
            )


def _compressed(tile: np.ndarray) -> bytes:
    return bytes(imagecodecs.lzw_encode(tile.tobytes()))


def _encoded_tiles(draw: DrawTile, width: int, height: int, downsample: float) -> Iterator[bytes]:
    flat: dict[int, bytes] = {}
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            tile = draw(x * downsample, y * downsample, TILE, downsample)
            if not isinstance(tile, int):
                first = int(tile[0, 0])
                if (tile != first).any():
                    yield _compressed(tile)
                    continue
                tile = first
            if tile not in flat:
                flat[tile] = _compressed(np.full((TILE, TILE), tile, np.uint8))
            yield flat[tile]
