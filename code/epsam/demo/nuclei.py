"""Drawn cell nuclei: small pictures of each kind, stamped on the stain maps of a slide.

Lengths are pixels at about 0.5 um/px; stain amounts are optical densities of haematoxylin and eosin.
"""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Kind:
    """What the nuclei of one kind of cell look like; (low, high) pairs are ranges of one nucleus."""

    radius: tuple[float, float]
    elongation: tuple[float, float]
    irregularity: float
    """Amplitude of the outline's harmonics, as a share of the radius."""
    body: tuple[float, float]
    """Haematoxylin of the nucleoplasm: high is dense, low is vesicular."""
    rim: float
    """Haematoxylin added at the nuclear membrane."""
    clumps: float
    """Standard deviation of the chromatin's grain."""
    nucleoli: tuple[int, int]
    spacing: float
    """Distance between neighbours where the kind grows densely."""


LYMPHOCYTE = Kind((5.2, 6.8), (1.0, 1.2), 0.04, (0.95, 1.25), 0.15, 0.22, (0, 0), 14.5)
CENTROBLAST = Kind((6.2, 7.6), (1.0, 1.2), 0.04, (0.55, 0.75), 0.30, 0.16, (0, 1), 18.5)
HISTIOCYTE = Kind((5.5, 7.5), (1.2, 1.7), 0.05, (0.40, 0.60), 0.25, 0.10, (0, 0), 27.0)
FIBROBLAST = Kind((4.4, 6.4), (2.6, 4.2), 0.06, (0.65, 0.95), 0.15, 0.12, (0, 0), 26.0)
TUMOUR = Kind((9.5, 15.0), (1.0, 1.6), 0.10, (0.22, 0.50), 0.50, 0.17, (1, 3), 29.0)
MITOSIS = Kind((6.5, 9.5), (1.3, 2.4), 0.28, (1.4, 1.7), 0.0, 0.25, (0, 0), 29.0)


def draw_nuclei(kind: Kind, count: int, rng: np.random.Generator, angle: np.ndarray | None = None) -> np.ndarray:
    """Pictures (count, 3, side, side) float32 of nuclei: coverage in [0, 1], haematoxylin, eosin.

    `angle` (count,) turns their long axes, in radians; without it they are random.
    """
    side = 2 * int(np.ceil(kind.radius[1] * np.sqrt(kind.elongation[1]) * (1 + 2 * kind.irregularity) + 2))
    column = (count, 1, 1)
    radius = rng.uniform(*kind.radius, column)
    stretch = np.sqrt(rng.uniform(*kind.elongation, column))
    turn = rng.uniform(0, np.pi, column) if angle is None else np.reshape(angle, column)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    u = (x * np.cos(turn) + y * np.sin(turn)) / (radius * stretch)
    v = (y * np.cos(turn) - x * np.sin(turn)) / (radius / stretch)
    polar = np.arctan2(v, u)
    outline = 1.0
    for order in (2, 3, 4, 5):
        amplitude = kind.irregularity * rng.normal(0, 1.5 / order, column)
        outline = outline + amplitude * np.cos(order * polar + rng.uniform(0, 2 * np.pi, column))
    inside = (outline - np.hypot(u, v)) * radius / stretch
    cover = np.clip(inside + 0.5, 0, 1)
    grain = np.stack([cv2.GaussianBlur(g, (0, 0), 1.1) for g in rng.normal(0, 1, (count, side, side))]) * 3.6
    haematoxylin = rng.uniform(*kind.body, column) + kind.clumps * grain
    haematoxylin += kind.rim * np.exp(-(((inside - 1) / 1.3) ** 2))
    eosin = np.full_like(haematoxylin, 0.15)
    for number in range(kind.nucleoli[1]):
        shown = number < rng.integers(kind.nucleoli[0], kind.nucleoli[1] + 1, column)
        at = 0.5 * np.sqrt(rng.uniform(0, 1, column))
        where = rng.uniform(0, 2 * np.pi, column)
        away = np.hypot(u - at * np.cos(where), v - at * np.sin(where)) * radius
        spot = shown * np.exp(-((away / rng.uniform(1.6, 2.7, column)) ** 4))
        haematoxylin += 0.75 * spot
        eosin += 0.35 * spot
    return np.stack([cover, np.maximum(haematoxylin, 0.05), eosin], axis=1).astype(np.float32)


def scatter(spacing: float, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Points (N, 2) int (x, y) about `spacing` apart all over `shape`: a hexagonal lattice, shaken."""
    height, width = shape
    step = spacing * np.sqrt(3) / 2
    rows, columns = np.mgrid[: int(height / step) + 1, : int(width / spacing) + 1]
    x = (columns + 0.5 * (rows % 2)) * spacing
    points = np.stack([x, rows * step], -1).reshape(-1, 2)
    points = np.rint(points + rng.normal(0, 0.2 * spacing, points.shape)).astype(int)
    inside = (points >= 0).all(1) & (points[:, 0] < width) & (points[:, 1] < height)
    return points[inside]


def stamp(stains: np.ndarray, pictures: np.ndarray, points: np.ndarray, picks: np.ndarray) -> None:
    """Paint `pictures[picks]` centred on `points` (N, 2) (x, y) into `stains` (2, H, W), in place."""
    side = pictures.shape[-1]
    height, width = stains.shape[1:]
    corners = points - side // 2
    inside = (corners >= 0).all(1) & (corners[:, 0] + side <= width) & (corners[:, 1] + side <= height)
    remaining, painted = 1 - pictures[:, :1], pictures[:, :1] * pictures[:, 1:]
    for (x, y), pick in zip(corners[inside], picks[inside], strict=True):
        window = stains[:, y : y + side, x : x + side]
        window *= remaining[pick]
        window += painted[pick]
