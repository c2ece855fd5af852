"""Random images of 2 to 4 kinds of texture in random shapes, from which the demo's SAM learns to segment.

Nothing here knows of tumour or normal tissue: colours, grain, blobs and shapes are drawn over wide ranges.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from epsam.runtime.seeds import generator

SIDE = 256


@dataclass(frozen=True)
class Palette:
    """Where the colours of one image come from: any colour, or two dyes of one stain."""

    dyes: np.ndarray | None
    """Optical densities (2, 3) of the dyes, or None for any colour."""
    white: float

    def colour(self, rng: np.random.Generator, near: np.ndarray | None = None) -> np.ndarray:
        """RGB (3,) in [0, 255]; with `near`, one close to it."""
        if near is not None:
            return np.clip(near + rng.normal(0, 22, 3), 5, 255)
        if self.dyes is None:
            return rng.uniform(15, 250, 3)
        amounts = rng.uniform(0, 1, 2) * rng.choice([0.5, 1.1])
        return self.white * np.exp(-amounts @ self.dyes)

    def dark(self, rng: np.random.Generator) -> np.ndarray:
        """RGB (3,) of something that stands out, such as nuclei in a stain."""
        if self.dyes is None:
            return rng.uniform(0, 255, 3)
        return self.white * np.exp(-(rng.uniform([0.5, 0.0], [1.6, 0.5]) @ self.dyes))


def draw_palette(rng: np.random.Generator) -> Palette:
    """Two images of three are stain-like, one of these with any two dyes."""
    kind = rng.integers(0, 3)
    if kind == 0:
        return Palette(None, 250)
    if kind == 1:
        dyes = rng.uniform(0.05, 1, (2, 3))
    else:
        dyes = np.array([[0.62, 0.70, 0.32], [0.15, 0.90, 0.35]]) + rng.normal(0, 0.07, (2, 3))
    dyes = np.clip(dyes, 0.02, None)
    return Palette(rng.uniform(0.8, 1.6) * dyes / np.linalg.norm(dyes, axis=1, keepdims=True), rng.uniform(235, 252))


def noise(scale: float, rng: np.random.Generator, stretch: float = 1) -> np.ndarray:
    """Smooth noise (SIDE, SIDE) float32, about standard normal, features `scale` px high, `stretch` times as wide."""
    rows, columns = (max(4, int(np.ceil(SIDE / s)) + 3) for s in (scale, scale * stretch))
    field = rng.normal(0, 1.3, (rows, columns)).astype(np.float32)
    field = cv2.resize(field, None, fx=max(scale * stretch, SIDE / (columns - 3)), fy=max(scale, SIDE / (rows - 3)),
                       interpolation=cv2.INTER_CUBIC)
    top, left = (rng.integers(0, n - SIDE + 1) for n in field.shape)
    return field[top : top + SIDE, left : left + SIDE]


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _ground(palette: Palette, rng: np.random.Generator) -> np.ndarray:
    """Two colours mixed by noise of some scale, or by strands."""
    first = palette.colour(rng)
    second = palette.colour(rng, first if rng.random() < 0.7 else None)
    if rng.random() < 0.35:
        field = noise(_log_uniform(2, 9, rng), rng, stretch=_log_uniform(3, 12, rng))
        turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), rng.uniform(0, 180), 1.45)
        field = cv2.warpAffine(field, turn, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    else:
        field = noise(_log_uniform(2, 40, rng), rng)
    share = np.clip(0.5 + 0.5 * field, 0, 1)[..., None]
    return first * share + second * (1 - share) + rng.uniform(0, 8) * noise(2, rng)[..., None]


def _blobs(picture: np.ndarray, palette: Palette, rng: np.random.Generator) -> None:
    """Draw blobs of one family, such as nuclei, over `picture` (SIDE, SIDE, 3) uint8, in place."""
    spacing = _log_uniform(8, 42, rng)
    radius = np.clip(spacing * rng.uniform(0.22, 0.55), 2.2, 17)
    step = spacing * np.sqrt(3) / 2
    rows, columns = np.mgrid[-1 : int(SIDE / step) + 2, -1 : int(SIDE / spacing) + 2]
    centres = np.stack([(columns + 0.5 * (rows % 2)) * spacing, rows * step], -1).reshape(-1, 2)
    centres = centres + rng.normal(0, rng.uniform(0.05, 0.35) * spacing, centres.shape)
    centres = centres[rng.random(len(centres)) < rng.uniform(0.35, 1)]
    count, corners = len(centres), 12
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    uneven = rng.uniform(0, 0.15)
    length = 1 + uneven * rng.normal(0, 1, (count, corners))
    stretch = np.sqrt(_log_uniform(1, 3.5, rng)) * rng.uniform(0.9, 1.1, (count, 1))
    turn = rng.uniform(0, np.pi) + rng.normal(0, rng.choice([0.2, 3]), (count, 1))
    size = radius * np.exp(rng.normal(0, rng.uniform(0.05, 0.3), (count, 1)))
    u, v = size * stretch * length * np.cos(angle), size / stretch * length * np.sin(angle)
    x, y = u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)
    outlines = np.stack([x, y], -1) + centres[:, None]
    fill, line = palette.dark(rng), palette.dark(rng)
    shades = np.clip(fill + rng.normal(0, rng.uniform(2, 22), (count, 1)), 0, 255)
    rimmed, spotted = rng.random() < 0.5, rng.random() < 0.4 and radius > 4
    spots = (16 * (centres + 0.3 * radius * rng.normal(0, 1, (count, 2)))).astype(int)
    for k, points in enumerate((16 * outlines).astype(np.int32)):
        cv2.fillPoly(picture, [points], shades[k].tolist(), cv2.LINE_AA, 4)
        if rimmed:
            cv2.polylines(picture, [points], True, line.tolist(), 1, cv2.LINE_AA, 4)
        if spotted:
            cv2.circle(picture, tuple(spots[k].tolist()), int(16 * radius * 0.22), line.tolist(), -1, cv2.LINE_AA, 4)


def draw_texture(palette: Palette, rng: np.random.Generator) -> np.ndarray:
    """One texture, (SIDE, SIDE, 3) uint8: a ground, mostly with one or two families of blobs."""
    picture = np.clip(_ground(palette, rng), 0, 255).astype(np.uint8)
    for _ in range(rng.choice(3, p=[0.2, 0.6, 0.2])):
        _blobs(picture, palette, rng)
    if rng.random() < 0.7:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.2))
    grain = np.clip(128 + rng.uniform(0, 9) * noise(2, rng), 0, 255).astype(np.uint8)[..., None]
    return np.clip(picture.astype(np.int16) + grain - 128, 0, 255).astype(np.uint8)


def draw_shape(rng: np.random.Generator) -> np.ndarray:
    """A mask (SIDE, SIDE) bool: blobs, a bent half, ellipses, rings or bands, with uneven outlines."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    rough = rng.uniform(2, 14) * noise(_log_uniform(15, 60, rng), rng)
    kind = rng.choice(["blobs", "half", "ellipses", "rings", "bands"], p=[0.25, 0.2, 0.3, 0.1, 0.15])
    if kind == "blobs":
        field = noise(_log_uniform(35, 130, rng), rng) + 0.02 * rough
        return field > np.quantile(field, rng.uniform(0.35, 0.8))
    if kind == "half":
        turn = rng.uniform(0, 2 * np.pi)
        along = (x - SIDE / 2) * np.cos(turn) + (y - SIDE / 2) * np.sin(turn)
        return along + 2 * rough + rng.uniform(0, 30) * noise(90, rng) > rng.uniform(-70, 70)
    if kind == "bands":
        field = noise(_log_uniform(60, 160, rng), rng, stretch=rng.uniform(0.6, 1.6)) + 0.01 * rough
        middle = np.quantile(field, rng.uniform(0.2, 0.8))
        return np.abs(field - middle) < np.quantile(np.abs(field - middle), rng.uniform(0.15, 0.4))
    mask = np.zeros((SIDE, SIDE), bool)
    for _ in range(rng.integers(1, 8)):
        at, turn, stretch = rng.uniform(0, SIDE, 2), rng.uniform(0, np.pi), np.sqrt(rng.uniform(1, 2.6))
        u = (x - at[0]) * np.cos(turn) + (y - at[1]) * np.sin(turn)
        v = (y - at[1]) * np.cos(turn) - (x - at[0]) * np.sin(turn)
        hollow = kind == "rings"
        radius = _log_uniform(40 if hollow else 22, 80, rng)
        depth = radius + np.minimum(rough, radius / 2) - np.hypot(u / stretch, v * stretch)
        mask |= (depth > 0) & (depth < radius * rng.uniform(0.35, 0.7)) if hollow else depth > 0
    return mask


def draw_one(purpose: str, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The example that belongs to the arguments, see `draw_example`."""
    cv2.setNumThreads(1)
    return draw_example(generator("textures", purpose, seed, number))


def draw_example(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (SIDE, SIDE, 3) uint8 and its regions (SIDE, SIDE) uint8, each of 2 to 4 at least 6 % of it.

    A region is one texture, or several in layers from its outline inwards, as in a gland with its lumen.
    """
    regions = _draw_regions(rng)
    palette = draw_palette(rng)
    # Textures meet raggedly along the outlines.
    if rng.random() < 0.6:
        y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        amount, scale = rng.uniform(1, 7), rng.uniform(7, 22)
        seen = cv2.remap(regions, x + amount * noise(scale, rng), y + amount * noise(scale, rng), cv2.INTER_NEAREST,
                         borderMode=cv2.BORDER_REFLECT)
    else:
        seen = regions
    picture = np.zeros((SIDE, SIDE, 3), np.float32)
    softness = rng.uniform(0.4, 2.5)
    for region in range(regions.max() + 1):
        cover = (seen == region).astype(np.float32)
        texture = draw_texture(palette, rng).astype(np.float32)
        if region and rng.random() < 0.4:
            texture = _layer(texture, seen == region, palette, rng)
        picture += cv2.GaussianBlur(cover, (0, 0), softness)[..., None] * texture
    if rng.random() < 0.3:
        specks = noise(rng.uniform(12, 30), rng) > rng.uniform(2.2, 3)
        picture[specks] = palette.white
    picture *= 1 + rng.uniform(0, 0.1) * noise(120, rng)[..., None]
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.9))
    return np.clip(picture, 0, 255).astype(np.uint8), regions


def _draw_regions(rng: np.random.Generator) -> np.ndarray:
    while True:
        regions = np.zeros((SIDE, SIDE), np.uint8)
        count = rng.choice([2, 3, 4], p=[0.5, 0.3, 0.2])
        for region in range(1, count):
            regions[draw_shape(rng)] = region
        if np.bincount(regions.ravel(), minlength=count).min() >= 0.06 * SIDE**2:
            return regions


def _layer(texture: np.ndarray, mask: np.ndarray, palette: Palette, rng: np.random.Generator) -> np.ndarray:
    """Put one or two further textures, the innermost often blank, into the depth of a region."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1] + 2 * noise(14, rng)
    first = rng.uniform(7, 26)
    for start in (first, first + rng.uniform(6, 22))[: rng.integers(1, 3)]:
        blank = rng.random() < 0.6
        inner = np.full_like(texture, palette.white) + 4 * noise(5, rng)[..., None] if blank else (
            draw_texture(palette, rng).astype(np.float32))
        texture = np.where((depth > start)[..., None], inner, texture)
    return texture
