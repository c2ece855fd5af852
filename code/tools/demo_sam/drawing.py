"""The drawn pictures from which the demo's SAM learns: textures or stained cells in random regions."""

import cv2
import numpy as np

from demo_sam.cells import draw_cells
from demo_sam.shapes import draw_regions
from demo_sam.textures import draw_palette, draw_textures, noise
from epsam.runtime.seeds import generator


def draw_one(purpose: str, seed: int, number: int, strands: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The example that belongs to the arguments, see `draw_example`."""
    cv2.setNumThreads(1)
    return draw_example(generator("textures", purpose, seed, number), strands)


def draw_example(rng: np.random.Generator, strands: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """An image (SIDE, SIDE, 3) uint8 and its regions (SIDE, SIDE) uint8, see `draw_regions`.

    With `strands`, two thirds of the pictures of cells have bands of fibres across their regions.
    """
    regions, palette = draw_regions(rng), draw_palette(rng)
    cells = palette.dyes is not None and rng.random() < 0.7
    if cells:
        picture = draw_cells(regions, palette, rng, strands and rng.random() < 2 / 3)
    else:
        picture = draw_textures(regions, palette, rng)
    if rng.random() < 0.3:
        specks = noise(rng.uniform(12, 30), rng) > rng.uniform(2.2, 3)
        picture[specks] = palette.white
    picture *= 1 + rng.uniform(0, 0.1) * noise(120, rng)[..., None]
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.9))
    return np.clip(picture, 0, 255).astype(np.uint8), regions
