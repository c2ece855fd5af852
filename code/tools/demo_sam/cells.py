"""Random pictures of stained cells: regions distinguished by the nuclei that grow there, of any size, shape and chromatin.

Nothing here knows of tumour or normal tissue: each region draws its own kinds of nuclei, over wide ranges.
"""

import cv2
import numpy as np

from demo_sam.textures import Palette, log_uniform, noise
from epsam.demo.nuclei import Kind, draw_nuclei, scatter, stamp

PAD = 40
"""Nuclei are drawn beyond the picture's border, so that it cuts them."""


def random_kind(rng: np.random.Generator) -> Kind:
    """Nuclei of any kind: 3 to 16 px in radius, dense or vesicular, round or spindly, with or without nucleoli."""
    radius, body = log_uniform(3.2, 12, rng), rng.uniform(0.15, 1.3)
    fewest = int(rng.integers(0, 2))
    return Kind(
        radius=(radius, radius * rng.uniform(1.1, 1.6)),
        elongation=(1.0, log_uniform(1.1, 4, rng)),
        irregularity=rng.uniform(0.02, 0.14),
        body=(body, body + rng.uniform(0.05, 0.4)),
        rim=rng.uniform(0, 0.6),
        clumps=rng.uniform(0.05, 0.25),
        nucleoli=(fewest, fewest + int(rng.integers(0, 3))) if radius > 5 else (0, 0),
        spacing=radius * rng.uniform(2.1, 5),
    )


def draw_cells(regions: np.ndarray, palette: Palette, rng: np.random.Generator, strands: bool = False) -> np.ndarray:
    """The picture (S, S, 3) float32 in [0, 255] of `regions` (S, S) uint8; `palette` must have dyes.

    With `strands`, bands of fibres run through all regions: what lies around them tells where they belong.
    """
    stains, bands = _ground(regions, rng), np.zeros(regions.shape, bool)
    if strands:
        bands, fibres = _strands(rng)
        stains = np.where(bands, fibres, stains)
    stains = np.pad(stains, ((0, 0), (PAD, PAD), (PAD, PAD)), mode="reflect")
    wide, free = np.pad(regions, PAD, mode="reflect"), ~np.pad(bands, PAD, mode="reflect")
    strangers = random_kind(rng) if rng.random() < 0.4 else None
    for region in range(regions.max() + 1):
        kinds = [random_kind(rng) for _ in range(rng.choice([1, 2], p=[0.7, 0.3]))]
        for kind in kinds:
            _grow(stains, (wide == region) & free, kind, rng.uniform(0.5, 1), rng)
    if strangers is not None:
        _grow(stains, free, strangers, rng.uniform(0.05, 0.2), rng)
    inner = stains[:, PAD:-PAD, PAD:-PAD]
    return palette.white * np.exp(-np.tensordot(np.moveaxis(inner, 0, -1), palette.dyes.astype(np.float32), 1))


def _grow(stains: np.ndarray, where: np.ndarray, kind: Kind, share: float, rng: np.random.Generator) -> None:
    points = scatter(kind.spacing, where.shape, rng)
    points = points[where[points[:, 1], points[:, 0]] & (rng.random(len(points)) < share)]
    pictures = draw_nuclei(kind, 12, rng)
    stamp(stains, pictures, points, rng.integers(0, len(pictures), len(points)))


def _ground(regions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stain amounts (2, S, S) between the nuclei: in half of the pictures the same everywhere."""
    softness = rng.uniform(1, 6)
    stains = np.zeros((2, *regions.shape), np.float32)
    common = _one_ground(rng) if rng.random() < 0.5 else None
    for region in range(regions.max() + 1):
        cover = cv2.GaussianBlur((regions == region).astype(np.float32), (0, 0), softness)
        stains += cover * (_one_ground(rng) if common is None else common)
    return stains


def _strands(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where bands of fibres run (S, S) bool, and their stain amounts (2, S, S) float32."""
    course = noise(log_uniform(50, 200, rng), rng) + 0.2 * noise(25, rng)
    grain = noise(log_uniform(2, 4, rng), rng, stretch=log_uniform(3, 12, rng))
    if rng.random() < 0.5:
        grain = grain.T
    amounts = np.array([rng.uniform(0, 0.15), rng.uniform(0.2, 0.8)], np.float32)[:, None, None]
    return np.abs(course) < rng.uniform(0.04, 0.2), np.maximum(amounts * (1 + 0.35 * grain), 0).astype(np.float32)


def _one_ground(rng: np.random.Generator) -> np.ndarray:
    base = np.array([rng.uniform(0, 0.25), rng.uniform(0.02, 0.7)], np.float32)
    grain = noise(log_uniform(3, 40, rng), rng, stretch=log_uniform(1, 6, rng))
    return np.maximum(base[:, None, None] * (1 + rng.uniform(0.1, 0.6) * grain), 0)
