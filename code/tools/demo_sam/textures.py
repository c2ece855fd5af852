"""Random images of 2 to 4 kinds of texture in random shapes, from which the demo's SAM learns to segment.

Nothing here knows of tumour or normal tissue: colours, grain, blobs and shapes are drawn over wide ranges.
"""

from dataclasses import dataclass

import cv2
import numpy as np

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
    field = cv2.resize(
        field,
        None,
        fx=max(scale * stretch, SIDE / (columns - 3)),
        fy=max(scale, SIDE / (rows - 3)),
        interpolation=cv2.INTER_CUBIC,
    )
    top, left = (rng.integers(0, n - SIDE + 1) for n in field.shape)
    return field[top : top + SIDE, left : left + SIDE]


def log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _ground(palette: Palette, rng: np.random.Generator) -> np.ndarray:
    """Two colours mixed by noise of some scale, or by strands."""
    first = palette.colour(rng)
    second = palette.colour(rng, first if rng.random() < 0.7 else None)
    if rng.random() < 0.35:
        field = noise(log_uniform(2, 9, rng), rng, stretch=log_uniform(3, 12, rng))
        turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), rng.uniform(0, 180), 1.45)
        field = cv2.warpAffine(field, turn, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    else:
        field = noise(log_uniform(2, 40, rng), rng)
    share = np.clip(0.5 + 0.5 * field, 0, 1)[..., None]
    return first * share + second * (1 - share) + rng.uniform(0, 8) * noise(2, rng)[..., None]


def _blobs(picture: np.ndarray, fill: np.ndarray, line: np.ndarray, rng: np.random.Generator) -> None:
    """Draw blobs of one family, such as nuclei, over `picture` (SIDE, SIDE, 3) uint8, in place."""
    spacing = log_uniform(8, 42, rng)
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
    stretch = np.sqrt(log_uniform(1, 3.5, rng)) * rng.uniform(0.9, 1.1, (count, 1))
    turn = rng.uniform(0, np.pi) + rng.normal(0, rng.choice([0.2, 3]), (count, 1))
    size = radius * np.exp(rng.normal(0, rng.uniform(0.05, 0.3), (count, 1)))
    u, v = size * stretch * length * np.cos(angle), size / stretch * length * np.sin(angle)
    x, y = u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)
    outlines = np.stack([x, y], -1) + centres[:, None]
    shades = np.clip(fill + rng.normal(0, rng.uniform(2, 22), (count, 1)), 0, 255)
    rim = int(rng.choice([0, 1, 2], p=[0.5, 0.3, 0.2]))
    spots = rng.integers(0, 4) if radius > 4 and rng.random() < 0.6 else 0
    spot_at = (16 * (centres + 0.3 * radius * rng.normal(0, 1, (spots, count, 2)))).astype(int)
    for k, points in enumerate((16 * outlines).astype(np.int32)):
        cv2.fillPoly(picture, [points], shades[k].tolist(), cv2.LINE_AA, 4)
        if rim:
            cv2.polylines(picture, [points], True, line.tolist(), rim, cv2.LINE_AA, 4)
        for at in spot_at[:, k]:
            cv2.circle(picture, tuple(at.tolist()), int(16 * radius * 0.22), line.tolist(), -1, cv2.LINE_AA, 4)


@dataclass(frozen=True)
class Shared:
    """What all textures of one image have in common, so that only their blobs distinguish them."""

    ground: np.ndarray
    fill: np.ndarray
    line: np.ndarray


def draw_shared(palette: Palette, rng: np.random.Generator) -> Shared:
    """One ground and two colours of blobs for a whole image."""
    return Shared(_ground(palette, rng), palette.dark(rng), palette.dark(rng))


def draw_texture(palette: Palette, rng: np.random.Generator, shared: Shared | None = None) -> np.ndarray:
    """One texture, (SIDE, SIDE, 3) uint8: a ground, mostly with one or two families of blobs."""
    picture = np.clip(_ground(palette, rng) if shared is None else shared.ground, 0, 255).astype(np.uint8)
    for _ in range(rng.choice(3, p=[0.2, 0.6, 0.2] if shared is None else [0.1, 0.65, 0.25])):
        if shared is None:
            _blobs(picture, palette.dark(rng), palette.dark(rng), rng)
        else:
            _blobs(picture, shared.fill + rng.normal(0, 12, 3), shared.line, rng)
    if rng.random() < 0.7:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.2))
    grain = np.clip(128 + rng.uniform(0, 9) * noise(2, rng), 0, 255).astype(np.uint8)[..., None]
    return np.clip(picture.astype(np.int16) + grain - 128, 0, 255).astype(np.uint8)


def draw_textures(regions: np.ndarray, palette: Palette, rng: np.random.Generator) -> np.ndarray:
    """The picture (S, S, 3) float32 in [0, 255] of `regions` (S, S) uint8, each of another texture.

    A region is one texture, or several in layers from its outline inwards, as in a gland with its lumen.
    """
    # Textures meet raggedly along the outlines.
    if rng.random() < 0.6:
        y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        amount, scale = rng.uniform(1, 7), rng.uniform(7, 22)
        seen = cv2.remap(
            regions,
            x + amount * noise(scale, rng),
            y + amount * noise(scale, rng),
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_REFLECT,
        )
    else:
        seen = regions
    picture = np.zeros((SIDE, SIDE, 3), np.float32)
    softness = rng.uniform(0.4, 2.5)
    shared = draw_shared(palette, rng) if rng.random() < 0.5 else None
    for region in range(regions.max() + 1):
        cover = (seen == region).astype(np.float32)
        texture = draw_texture(palette, rng, shared).astype(np.float32)
        if region and shared is None and rng.random() < 0.4:
            texture = _layer(texture, seen == region, palette, rng)
        picture += cv2.GaussianBlur(cover, (0, 0), softness)[..., None] * texture
    return picture


def _layer(texture: np.ndarray, mask: np.ndarray, palette: Palette, rng: np.random.Generator) -> np.ndarray:
    """Put one or two further textures, the innermost often blank, into the depth of a region."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1] + 2 * noise(14, rng)
    first = rng.uniform(7, 26)
    for start in (first, first + rng.uniform(6, 22))[: rng.integers(1, 3)]:
        blank = rng.random() < 0.6
        inner = (
            np.full_like(texture, palette.white) + 4 * noise(5, rng)[..., None]
            if blank
            else (draw_texture(palette, rng).astype(np.float32))
        )
        texture = np.where((depth > start)[..., None], inner, texture)
    return texture
