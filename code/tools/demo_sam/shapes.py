"""Random shapes for the pictures from which the demo's SAM learns."""

import numpy as np

from demo_sam.textures import SIDE, log_uniform, noise


def draw_regions(rng: np.random.Generator) -> np.ndarray:
    """Regions (SIDE, SIDE) uint8 numbered from 0: 2 to 4, each at least 6 % of the picture."""
    while True:
        regions = np.zeros((SIDE, SIDE), np.uint8)
        count = rng.choice([2, 3, 4], p=[0.5, 0.3, 0.2])
        for region in range(1, count):
            regions[draw_shape(rng)] = region
        if np.bincount(regions.ravel(), minlength=count).min() >= 0.06 * SIDE**2:
            return regions


def draw_shape(rng: np.random.Generator) -> np.ndarray:
    """A mask (SIDE, SIDE) bool: blobs, a bent half, ellipses, rings or bands, with uneven outlines."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    rough = rng.uniform(2, 14) * noise(log_uniform(15, 60, rng), rng)
    kind = rng.choice(["blobs", "half", "ellipses", "rings", "bands"], p=[0.25, 0.2, 0.3, 0.1, 0.15])
    if kind == "blobs":
        field = noise(log_uniform(35, 130, rng), rng) + 0.02 * rough
        return field > np.quantile(field, rng.uniform(0.35, 0.8))
    if kind == "half":
        turn = rng.uniform(0, 2 * np.pi)
        along = (x - SIDE / 2) * np.cos(turn) + (y - SIDE / 2) * np.sin(turn)
        return along + 2 * rough + rng.uniform(0, 30) * noise(90, rng) > rng.uniform(-70, 70)
    if kind == "bands":
        field = noise(log_uniform(60, 160, rng), rng, stretch=rng.uniform(0.6, 1.6)) + 0.01 * rough
        middle = np.quantile(field, rng.uniform(0.2, 0.8))
        return np.abs(field - middle) < np.quantile(np.abs(field - middle), rng.uniform(0.15, 0.4))
    mask = np.zeros((SIDE, SIDE), bool)
    for _ in range(rng.integers(1, 8)):
        at, turn, stretch = rng.uniform(0, SIDE, 2), rng.uniform(0, np.pi), np.sqrt(rng.uniform(1, 2.6))
        u = (x - at[0]) * np.cos(turn) + (y - at[1]) * np.sin(turn)
        v = (y - at[1]) * np.cos(turn) - (x - at[0]) * np.sin(turn)
        hollow = kind == "rings"
        radius = log_uniform(40 if hollow else 22, 80, rng)
        depth = radius + np.minimum(rough, radius / 2) - np.hypot(u / stretch, v * stretch)
        mask |= (depth > 0) & (depth < radius * rng.uniform(0.35, 0.7)) if hollow else depth > 0
    return mask
