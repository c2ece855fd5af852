"""How well the demo's SAM segments, untuned, with points from the true mask."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import Sam

from demo_sam.drawing import draw_one
from epsam.errors import DataError
from epsam.prompts import PromptSet, points_from_mask
from epsam.runtime.files import read_image, read_mask
from epsam.runtime.log import logger, progress
from epsam.runtime.seeds import generator
from epsam.sam.checkpoint import load_sam
from epsam.sam.decoder import predict_masks
from epsam.sam.demo_model import INPUT_PX

FRESH = 200
"""Textures drawn to measure on, none of them seen in training."""


def measure(checkpoint: Path, folders: Sequence[Path] = ()) -> None:
    """Log the mean Dice on fresh textures, and on crops of the pairs in each folder (see `crops`)."""
    sam = load_sam("demo", checkpoint)
    sets = {"fresh textures": list(fresh_textures(FRESH))}
    sets |= {str(folder): list(crops(folder)) for folder in folders}
    for name, pairs in sets.items():
        ones = np.mean([_dice(np.ones_like(mask), mask) for _, mask in pairs])
        figures = " ".join(f"points{count}={mean_dice(sam, pairs, count):.4f}" for count in (1, 8, 50))
        logger.info(f"demo SAM on {name}: {len(pairs)} patches, Dice {figures}, a mask of ones {ones:.4f}")


def fresh_textures(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Drawn images (S, S, 3) uint8, each with the mask (S, S) bool of one of its regions."""
    for number in range(count):
        image, regions = draw_one("fresh", 0, number)
        yield image, regions == generator("fresh", number).integers(0, regions.max() + 1)


def crops(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All windows of the model's size, side by side, whose mask covers 5 to 95 %.

    `folder` holds images/ and masks/, or image/ and mask/ as a split of patches does, with PNGs of the same names.
    """
    inside = ("images", "masks") if (folder / "images").is_dir() else ("image", "mask")
    images, masks = (folder / name for name in inside)
    paths = [path for path in sorted(images.glob("*.png")) if (masks / path.name).is_file()]
    if not paths:
        raise DataError(f"{folder}: no pairs images/*.png and masks/*.png (or image and mask) to measure on")
    for path in paths:
        image, mask = read_image(path), read_mask(masks / path.name)
        for y in range(0, mask.shape[0] - INPUT_PX + 1, INPUT_PX):
            for x in range(0, mask.shape[1] - INPUT_PX + 1, INPUT_PX):
                window = np.s_[y : y + INPUT_PX, x : x + INPUT_PX]
                if 0.05 <= mask[window].mean() <= 0.95:
                    yield image[window], mask[window]


@torch.inference_mode()
def mean_dice(sam: Sam, pairs: Sequence[tuple[np.ndarray, np.ndarray]], points: int) -> float:
    """Mean Dice of the predictions with `points` points drawn from each true mask."""
    scores = []
    for start in progress(range(0, len(pairs), 16), desc=f"{points} points", unit="batch"):
        images, masks = zip(*pairs[start : start + 16], strict=True)
        embeddings = sam.image_encoder(sam.preprocess(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)))
        prompts = [
            PromptSet(points_from_mask(mask, points, generator("measure", start + k, points)), np.zeros((0, 4)))
            for k, mask in enumerate(masks)
        ]
        logits = predict_masks(sam, embeddings, prompts, (INPUT_PX, INPUT_PX))
        scores += [_dice(guess, mask) for guess, mask in zip((logits > 0).numpy(), masks, strict=True)]
    return float(np.mean(scores))


def _dice(guess: np.ndarray, mask: np.ndarray) -> float:
    return 2 * np.count_nonzero(guess & mask) / (np.count_nonzero(guess) + np.count_nonzero(mask))
