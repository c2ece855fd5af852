"""Small patch folders for tests: "tumour" is a disc of coarse dark dots, normal tissue has none."""

from pathlib import Path

import cv2
import numpy as np

from epsam.patches.patch import Patch, list_patches
from epsam.runtime.files import write_png
from epsam.runtime.seeds import generator
from epsam.workspace import SPLITS, Workspace


def draw_patch(rng: np.random.Generator, tumour: bool, size: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB uint8 (size, size, 3) and the bool mask of its tumour (size, size)."""
    image = np.clip(rng.normal((225, 185, 215), 10, (size, size, 3)), 0, 255).astype(np.uint8)
    mask = np.zeros((size, size), np.uint8)
    if tumour:
        centre = rng.integers(size // 4, 3 * size // 4, 2)
        cv2.circle(mask, tuple(int(c) for c in centre), size // 3, 1, -1)
    for x, y in rng.integers(0, size, (size * size // 60, 2)):
        inside = mask[y, x]
        cv2.circle(image, (int(x), int(y)), 4 if inside else 1, (90, 40, 130) if inside else (110, 60, 150), -1)
    return image, mask > 0


def make_patches(workspace: Workspace, counts: dict[str, int] | None = None, size: int = 64) -> None:
    """Write as many positive as negative patches, with masks, into each split of `workspace`."""
    for split in SPLITS:
        for number in range((counts or {}).get(split, 4)):
            for label in (0, 1):
                image, mask = draw_patch(generator(split, number, label), bool(label), size)
                name = f"slide_x{number}_y0_{label}.png"
                write_png(workspace.split(split) / "image" / name, image)
                if label:
                    write_png(workspace.split(split) / "mask" / name, mask)


def patch_list(root: Path, count: int = 3, size: int = 64) -> list[Patch]:
    """Patches of the train split of a small folder under `root`."""
    workspace = Workspace(root, "few")
    make_patches(workspace, {"train": count, "val": 0, "test": 0}, size)
    return list_patches(workspace.split("train"))
