"""The drawn textures as training examples: kept on disk, and drawn into batches with prompts."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch

from demo_sam.drawing import draw_one
from epsam.runtime.files import atomic
from epsam.runtime.log import progress

MAX_POINTS = 50


@dataclass(frozen=True, eq=False)
class Examples:
    """Drawn images (N, S, S, 3) uint8 and their regions (N, S, S) uint8, numbered from 0."""

    images: np.ndarray
    regions: np.ndarray


@dataclass(frozen=True)
class Batch:
    """What one step learns from: N images and M prompts, some of them of the same image."""

    rows: torch.Tensor
    """(N,) which examples."""
    images: torch.Tensor
    """(N, 3, S, S) uint8."""
    regions: torch.Tensor
    """(N, S, S) uint8."""
    owners: torch.Tensor
    """(M,) the image of each prompt, counted within the batch."""
    masks: torch.Tensor
    """(M, S, S) bool: what the prompt means."""
    points: torch.Tensor | None
    """(M, K, 2) float, (x, y) in px."""
    boxes: torch.Tensor | None
    """(M, 4) float, x0 y0 x1 y1 in px."""


def load_examples(path: Path, count: int, purpose: str, seed: int, strands: bool = False) -> Examples:
    """Read the examples at `path`, drawing them first when they are not there."""
    if not path.is_file():
        draw = partial(draw_one, purpose, seed, strands=strands)
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            bar = progress(pool.map(draw, range(count), chunksize=32), total=count, desc=f"drawing: {purpose}")
            images, regions = (np.stack(part) for part in zip(*bar, strict=True))
        with atomic(path) as temporary:
            np.savez(temporary, images=images, regions=regions)
    with np.load(path) as saved:
        return Examples(saved["images"], saved["regions"])


def draw_batch(
    examples: Examples,
    rows: int | torch.Tensor,
    rng: np.random.Generator,
    *,
    points: int | None = None,
    prompts: int = 1,
    turned: bool = False,
    boxes: bool = False,
) -> Batch:
    """Prompt up to `prompts` regions of each of some examples (`rows`: which, or how many at random).

    A prompt is 1 to 50 points (or exactly `points`), the same number for all; with `boxes` sometimes a box around
    one connected part of the region, alone or with points. `turned` mirrors and turns the images.
    """
    if isinstance(rows, int):
        rows = torch.from_numpy(rng.choice(len(examples.images), rows, replace=False))
    images, regions = examples.images[rows.numpy()], examples.regions[rows.numpy()]
    if turned:
        images, regions = _turn(images, regions, rng)
    chosen = [rng.permutation(np.unique(one))[:prompts] for one in regions]
    masks = np.stack([one == region for one, some in zip(regions, chosen, strict=True) for region in some])
    kind = rng.choice(["points", "box", "both"], p=[0.75, 0.15, 0.1]) if boxes else "points"
    drawn_boxes = drawn_points = None
    if kind != "points":
        masks, drawn_boxes = (np.stack(part) for part in zip(*(_one_part(mask) for mask in masks), strict=True))
        drawn_boxes = torch.from_numpy(drawn_boxes)
    if kind != "box":
        count = points or int(np.exp(rng.uniform(0, np.log(MAX_POINTS + 1))))
        drawn_points = torch.from_numpy(np.stack([_points(mask, count, rng) for mask in masks]))
    images, regions = (torch.from_numpy(np.ascontiguousarray(array)) for array in (images, regions))
    owners = torch.repeat_interleave(torch.tensor([len(some) for some in chosen]))
    return Batch(rows, images.permute(0, 3, 1, 2), regions, owners, torch.from_numpy(masks), drawn_points, drawn_boxes)


def _turn(images: np.ndarray, regions: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    turns, mirrored = rng.integers(0, 4), rng.random() < 0.5
    images, regions = np.rot90(images, turns, (1, 2)), np.rot90(regions, turns, (1, 2))
    return (images[:, ::-1], regions[:, ::-1]) if mirrored else (images, regions)


def _points(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.divmod(rng.choice(np.flatnonzero(mask), count), mask.shape[1])
    return np.stack([x, y], -1).astype(np.float32)


def _one_part(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest connected part of a mask and its box."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    part = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    x, y, width, height = stats[part, :4]
    return labels == part, np.array([x, y, x + width, y + height], np.float32)
