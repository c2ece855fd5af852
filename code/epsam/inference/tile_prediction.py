"""What the models say of tiles, for slides and for pictures of another size than a patch."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from epsam.errors import DataError
from epsam.inference.segmenter import Segmenter, overlap_of
from epsam.inference.tiles import TileStore, blend, lay_grid

MAX_PICTURE_TILES = 32
"""Tiles of a picture that are predicted together."""


@dataclass(frozen=True)
class Picture:
    """A picture predicted tile by tile."""

    probability: np.ndarray
    """(H, W) uint8, 255 for 1: that a pixel is tumour."""
    classifier_probability: float
    """Of the tile that the classifier gives most."""
    segmented: bool
    """Whether SAM saw a tile of it."""


def predict_tiles(images: np.ndarray, names: list[str], store: TileStore, models: Segmenter) -> None:
    """Predict tiles, RGB uint8 (N, H, W, 3), and append them to `store`; SAM sees those that the classifier picks."""
    probabilities = models.classify(images, names)
    chosen = store.is_candidate(probabilities)
    maps = np.empty((0, store.side, store.side), np.float32)
    if chosen.any():
        names = [name for name, seen in zip(names, chosen, strict=True) if seen]
        maps = shrink(models.segment(images[chosen], names), store.side)
    store.append(probabilities, maps)


def shrink(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps (N, H, W) float as (N, side, side), each pixel the mean of what it covers."""
    return np.stack([cv2.resize(one, (side, side), interpolation=cv2.INTER_AREA) for one in maps])


def predict_picture(image: np.ndarray, name: str, models: Segmenter) -> Picture:
    """Predict RGB uint8 (H, W, 3) that is larger than a patch by overlapping tiles, as a slide.

    Raises DataError where a side is shorter than a patch's: nothing says at which resolution it was taken, and the
    models know no such tissue, neither stretched nor with a border around it.
    """
    size, settings = models.config.patches.size_px, models.config.inference
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise DataError(
            f"{name}: {width} x {height} px, but the models were trained on patches of {size} x {size} px; give "
            "patches of that size and resolution, or larger ones"
        )
    grid = lay_grid(np.ones((1, 1), bool), (height, width), size, overlap_of(models))
    chunks = np.array_split(np.arange(len(grid.positions)), -(-len(grid.positions) // MAX_PICTURE_TILES))
    with tempfile.TemporaryDirectory() as folder:
        store = TileStore(Path(folder), size, settings.classifier_probability)
        for chunk in chunks:
            corners = grid.positions[chunk].tolist()
            tiles = np.stack([image[row : row + size, column : column + size] for row, column in corners])
            predict_tiles(tiles, [f"{name}_x{column}_y{row}" for row, column in corners], store, models)
        blend(grid, store, chunks, Path(folder) / "map.u8")
        probabilities, places = store.read(chunks)
        values = np.fromfile(Path(folder) / "map.u8", np.uint8).reshape(height, width)
    return Picture(values, float(probabilities.max()), bool((places >= 0).any()))
