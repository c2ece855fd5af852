"""Draw a piece of lymph node in H&E, with or without metastasis, as an RGB picture and a tumour mask.

Normal: lymphocytes, follicles with paler centres, sinuses, trabeculae, fat, folds. Tumour: large, uneven,
vesicular nuclei with nucleoli in nests that infiltrate. Both share the architecture and the stain, so that
only the cells distinguish them.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from epsam.demo import nuclei

PICTURES = 96
"""Different nuclei drawn for each kind and slide."""


@dataclass(frozen=True)
class Stain:
    """How one slide was stained and scanned."""

    haematoxylin: np.ndarray
    eosin: np.ndarray
    white: np.ndarray
    blur: float


def draw_stain(rng: np.random.Generator) -> Stain:
    """A stain such as laboratories and scanners give: hue, strength, white point and focus vary."""
    haematoxylin = np.array([0.61, 0.71, 0.32]) + rng.normal(0, 0.035, 3)
    eosin = np.array([0.13, 0.92, 0.36]) + rng.normal(0, [0.04, 0.03, 0.06], 3)
    strength = rng.uniform([0.85, 0.75], [1.25, 1.2])
    return Stain(
        strength[0] * haematoxylin / np.linalg.norm(haematoxylin),
        strength[1] * np.clip(eosin, 0.03, 1) / np.linalg.norm(eosin),
        rng.uniform(240, 247) + rng.uniform(-1.5, 1.5, 3),
        rng.uniform(0.45, 0.75),
    )


def noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise (H, W) float32, about standard normal, with features of about `scale` px."""
    small = [max(4, int(np.ceil(n / scale)) + 3) for n in shape]
    field = cv2.resize(
        rng.normal(0, 1, small).astype(np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC
    )
    top, left = rng.integers(0, int(scale) + 1, 2)
    field = field[top : top + shape[0], left : left + shape[1]]
    return field / 0.75


def fibres(shape: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Wavy strands (H, W) float32, about standard normal, and their direction (H, W) in radians."""
    bend = 60 * noise(shape, 260, rng) + 12 * noise(shape, 70, rng)
    turn = rng.uniform(0, np.pi)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    across = x * np.float32(-np.sin(turn)) + y * np.float32(np.cos(turn)) + bend
    along = x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn))
    grain = cv2.GaussianBlur(rng.normal(0, 1, (512, 512)).astype(np.float32), (0, 0), 1.0) * 3.5
    strands = cv2.remap(grain, np.mod(along / 14, 511), np.mod(across, 511), cv2.INTER_LINEAR)
    # Strands follow lines of constant `across`, perpendicular to its gradient.
    slope_y, slope_x = cv2.Sobel(across, cv2.CV_32F, 0, 1), cv2.Sobel(across, cv2.CV_32F, 1, 0)
    return strands, np.arctan2(-slope_x, slope_y)


CAPSULE_PX = 22
"""Thickness of the fibres around the node; the tumour stays inside."""

COARSE = 8
"""Outlines are laid out on a grid this much coarser than the pixels."""


def _coarse_grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates x, y float32 of the coarse grid's points."""
    rows, columns = (-(-n // COARSE) for n in shape)
    y, x = np.mgrid[:rows, :columns].astype(np.float32) * COARSE
    return x, y


def _refine(field: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    fine = cv2.resize(field.astype(np.float32), None, fx=COARSE, fy=COARSE, interpolation=cv2.INTER_CUBIC)
    return fine[: shape[0], : shape[1]]


def outline(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Depth below the tissue's edge in px, (H, W) float32; negative outside."""
    x, y = _coarse_grid(shape)
    half = min(shape) / 2
    distance = np.hypot(2 * x / shape[1] - 1, 2 * y / shape[0] - 1) ** 1.4
    rough = 0.09 * noise(x.shape, half / 2 / COARSE, rng) + 0.03 * noise(x.shape, half / 8 / COARSE, rng)
    return _refine((0.84 + np.clip(rough, -0.3, 0.12) - distance) * half / 1.4, shape)


def tumour_depth(tissue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Depth below the tumour's border in px, (H, W) float32: a few irregular regions, some with holes.

    `tissue` (H, W) is the depth below the tissue's edge: the tumour stays inside.
    """
    x, y = _coarse_grid(tissue.shape)
    side = min(tissue.shape)

    def blobs(count, radii, within):
        depth = np.full(x.shape, -1e4, np.float32)
        rows, columns = np.nonzero(within)
        for pick in rng.integers(0, len(rows), count):
            turn, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.7)
            dx, dy = x - COARSE * columns[pick], y - COARSE * rows[pick]
            u = (dx * np.cos(turn) + dy * np.sin(turn)) / stretch
            v = (dy * np.cos(turn) - dx * np.sin(turn)) * stretch
            depth = np.maximum(depth, rng.uniform(*radii) * side - np.hypot(u, v))
        return depth

    depth = blobs(rng.integers(3, 6), (0.10, 0.19), tissue[::COARSE, ::COARSE] > 0.06 * side)
    depth += 0.021 * side * noise(x.shape, 0.066 * side / COARSE, rng)
    islands = blobs(rng.integers(2, 5), (0.03, 0.05), depth > min(0.04 * side, depth.max() / 2))
    depth = _refine(np.minimum(depth, -islands), tissue.shape)
    depth += 30 * noise(tissue.shape, 64, rng) + 18 * noise(tissue.shape, 34, rng)
    return np.minimum(depth, tissue - CAPSULE_PX)


def annotate(depth: np.ndarray, least_px: float = 1500) -> np.ndarray:
    """What an annotator outlines: bool mask of the regions and holes larger than `least_px`, without islands."""
    smooth = cv2.GaussianBlur(depth, (0, 0), 3) > 0
    regions = _large(smooth, least_px)
    contours, _ = cv2.findContours(regions.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros(depth.shape, np.uint8), contours, -1, 1, cv2.FILLED) > 0
    return filled & ~_large(filled & ~regions, least_px)


def _large(mask: np.ndarray, least_px: float) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= least_px
    keep[0] = False
    return keep[labels]


def draw_tissue(
    shape: tuple[int, int], tumour: bool, stain: Stain, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """RGB (H, W, 3) uint8 of a slide and its tumour mask (H, W) bool (empty when `tumour` is false)."""
    tissue = outline(shape, rng)
    depth = tumour_depth(tissue, rng) if tumour else np.full(shape, -1e4, np.float32)
    stains = np.zeros((2, *shape), np.float32)
    _draw_cells(stains, tissue, depth, rng)
    fold = np.abs(noise(shape, 900, rng) - rng.uniform(-0.5, 0.5)) < 0.006
    stains *= 1 + 0.6 * cv2.GaussianBlur(fold.astype(np.float32), (0, 0), 2)
    stains *= 1 + 0.08 * noise(shape, 500, rng)
    picture = _develop(stains, np.clip(tissue / 4 + 0.5, 0, 1), stain, rng)
    return picture, annotate(depth) if tumour else np.zeros(shape, bool)


def _draw_cells(stains: np.ndarray, tissue: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> None:
    shape = tissue.shape
    # Single tumour cells leave the nests: the annotated border is nearly, not quite, where they end.
    ragged = depth + 3 * noise(shape, 18, rng)
    nests = ragged > 0
    plan = noise(shape, 230, rng) + 0.3 * noise(shape, 60, rng)
    beams = np.abs(noise(shape, 330, rng) + 0.2 * noise(shape, 60, rng)) < 0.055
    septa = nests & (np.abs(noise(shape, 110, rng) + 0.2 * noise(shape, 30, rng)) < 0.03)
    follicle = noise(shape, 200, rng) + 0.1 * noise(shape, 40, rng)
    lumen = noise(shape, 50, rng) + 0.4 * noise(shape, 20, rng) > 2.9
    stroma = ((beams & ~nests) | septa | (tissue < CAPSULE_PX)) & ~lumen
    # A growing metastasis pushes follicles and sinuses away: neither touches it.
    centres = (follicle > 1.15) & (depth < -70) & ~stroma & ~lumen
    sinus = (plan > 0.7) & (depth < -40) & ~centres & ~stroma & ~nests & ~lumen
    nests &= ~stroma & ~lumen
    packed = ~(stroma | centres | sinus | nests | lumen)

    strands, direction = fibres(shape, rng)
    grain = 0.5 * noise(shape, 4, rng) + 0.5 * noise(shape, 11, rng)
    haematoxylin, eosin = stains
    for region, h, e, roughness in (
        (packed, 0.20, 0.25, 0.10),
        (centres, 0.17, 0.28, 0.08),
        (sinus, 0.07, 0.20, 0.13),
        (nests, 0.24, 0.40, 0.09),
    ):
        haematoxylin += region * (h + 0.3 * roughness * grain)
        eosin += region * (e + roughness * grain)
    haematoxylin += stroma * 0.05
    eosin += stroma * (0.55 + 0.17 * strands)
    for stain in stains:  # tissue has no sharp edges between its compartments
        cv2.GaussianBlur(stain, (0, 0), 1.6, dst=stain)
        np.maximum(stain, 0, out=stain)

    tumour_points = _grow(nuclei.TUMOUR, 0.93 * nests, rng)
    eosin *= 1 - 0.55 * _gaps(tumour_points, shape) * nests
    near = np.clip(1 - np.abs(depth) / 90, 0, 1)
    cells = [
        (nuclei.HISTIOCYTE, 0.75 * sinus + 0.12 * packed + 0.1 * centres),
        (
            nuclei.LYMPHOCYTE,
            0.95 * packed + 0.12 * sinus + 0.10 * centres + 0.08 * stroma + (0.02 + 0.05 * near) * nests,
        ),
        (nuclei.CENTROBLAST, 0.93 * centres + 0.10 * packed),
    ]
    for kind, density in cells:
        points = _grow(kind, density, rng)
        nuclei.stamp(stains, nuclei.draw_nuclei(kind, PICTURES, rng), points, _picks(points, rng))
    _draw_spindles(stains, stroma, direction, rng)
    nuclei.stamp(
        stains,
        nuclei.draw_nuclei(nuclei.TUMOUR, 2 * PICTURES, rng),
        tumour_points,
        rng.integers(0, 2 * PICTURES, len(tumour_points)),
    )
    mitoses = tumour_points[rng.random(len(tumour_points)) < 0.012]
    nuclei.stamp(stains, nuclei.draw_nuclei(nuclei.MITOSIS, PICTURES, rng), mitoses, _picks(mitoses, rng))
    for stain in stains:
        stain *= ~lumen


def _picks(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, PICTURES, len(points))


def _grow(kind: nuclei.Kind, density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    points = nuclei.scatter(kind.spacing, density.shape, rng)
    return points[rng.random(len(points)) < density[points[:, 1], points[:, 0]]]


def _gaps(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """0 at the cells, rising to 1 where neighbouring cells meet."""
    seeds = np.ones(shape, np.uint8)
    seeds[points[:, 1], points[:, 0]] = 0
    if not len(points):
        return np.zeros(shape, np.float32)
    return np.clip((cv2.distanceTransform(seeds, cv2.DIST_L2, 3) - 13) / 9, 0, 1)


def _draw_spindles(stains: np.ndarray, stroma: np.ndarray, direction: np.ndarray, rng: np.random.Generator) -> None:
    """Fibroblasts lie along the strands: pictures are drawn at 12 angles, the nearest is taken."""
    points = _grow(nuclei.FIBROBLAST, 0.6 * stroma, rng)
    angles = np.repeat(np.arange(12) * np.pi / 12, PICTURES // 12)
    pictures = nuclei.draw_nuclei(nuclei.FIBROBLAST, len(angles), rng, angles)
    step = np.rint(direction[points[:, 1], points[:, 0]] / (np.pi / 12)).astype(int) % 12
    picks = step * (PICTURES // 12) + rng.integers(0, PICTURES // 12, len(points))
    nuclei.stamp(stains, pictures, points, picks)


def _develop(stains: np.ndarray, cover: np.ndarray, stain: Stain, rng: np.random.Generator) -> np.ndarray:
    """Beer-Lambert: stain amounts (2, H, W) to RGB uint8 (H, W, 3), blurred and grainy as a scanner's."""
    blurred = [cv2.GaussianBlur(amount * cover, (0, 0), stain.blur) for amount in stains]
    grain = rng.normal(0, 0.012, (512, 512)).astype(np.float32)
    tiles = [-(-n // 512) for n in cover.shape]
    grain = np.tile(grain, tiles)[: cover.shape[0], : cover.shape[1]]
    picture = np.empty((*cover.shape, 3), np.uint8)
    for channel in range(3):
        density = blurred[0] * np.float32(stain.haematoxylin[channel]) + blurred[1] * np.float32(stain.eosin[channel])
        bright = np.float32(stain.white[channel]) * np.exp(-np.float32(1.25) * density + grain)
        picture[..., channel] = np.clip(bright + 0.5, 0, 255)
    return picture
