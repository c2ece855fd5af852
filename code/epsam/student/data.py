"""What the student learns from: patches with masks, and normal patches, whose masks are empty."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from epsam.classifier.data import IN_MEMORY_BYTES, PatchImages
from epsam.errors import DataError
from epsam.patches.patch import Patch, patches_for_classifier, patches_for_sam
from epsam.runtime.log import logger
from epsam.runtime.read_ahead import read_ahead
from epsam.workspace import Workspace


@dataclass(frozen=True)
class Target:
    """A patch with the mask to learn."""

    patch: Patch
    mask: Path | None
    """None for a normal patch."""


Reader = Callable[[Path], np.ndarray]
"""Of a mask, (H, W): bool, or uint8 of 0, 1 and LEFT_OUT."""


def targets_of(workspace: Workspace, split: str, folder: Path, read: Reader) -> list[Target]:
    """The positives of a split with the masks of `folder`, which `read` reads, and its normal patches.

    A positive whose mask is empty is left out: its label says that it holds tumour. Raises DataError when a mask is
    missing or damaged, or when no positive is left.
    """
    positives = [(patch, folder / f"{patch.name}.png") for patch in patches_for_sam(workspace, split)]
    missing = [path for _, path in positives if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]} is missing ({len(missing)} of {len(positives)} masks)")
    kept = [Target(patch, path) for patch, path in positives if (read(path) == 1).any()]
    if not kept:
        raise DataError(f"{folder}: all {len(positives)} masks are empty or missing; there is nothing to learn")
    if len(kept) < len(positives):
        logger.warning(f"{folder}: {len(positives) - len(kept)} of {len(positives)} masks are empty and are left out")
    negatives = [Target(patch, None) for patch in patches_for_classifier(workspace, split) if patch.label == 0]
    return kept + negatives


class SegmentationData:
    """Images and masks of targets, all of one size; kept in memory where they are few."""

    def __init__(self, targets: Sequence[Target], threads: int, read: Reader):
        self.targets, self.read = list(targets), read
        self.images = PatchImages([target.patch for target in targets], threads)
        self.kept: torch.Tensor | None = None
        height, width, _ = self.images.shape
        if len(targets) * height * width <= IN_MEMORY_BYTES:
            self.kept = torch.empty(len(targets), height, width, dtype=torch.uint8)
            for index, mask in enumerate(read_ahead(self._read, range(len(targets)), threads)):
                self.kept[index] = torch.from_numpy(mask)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def names(self) -> list[str]:
        return self.images.names

    def batches(
        self, index_batches: Sequence[list[int]], threads: int
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Each entry of `index_batches` with its images, (N, 3, H, W) uint8, and masks, (N, H, W) uint8 of 0, 1 and LEFT_OUT.

        Raises DataError, in the place of its batch, for an image or a mask that cannot be used.
        """
        masks = read_ahead(self._masks, index_batches, 0 if self.kept is not None else threads)
        for (indices, images), batch in zip(self.images.batches(index_batches, threads), masks, strict=True):
            yield indices, images, batch

    def _masks(self, indices: list[int]) -> torch.Tensor:
        if not indices:  # of a process whose share is empty
            return torch.empty(0, *self.images.shape[:2], dtype=torch.uint8)
        if self.kept is not None:
            return self.kept[indices]
        return torch.from_numpy(np.stack([self._read(index) for index in indices]))

    def _read(self, index: int) -> np.ndarray:
        """(H, W) uint8 of 0, 1 and LEFT_OUT."""
        path, size = self.targets[index].mask, self.images.shape[:2]
        if path is None:
            return np.zeros(size, np.uint8)
        mask = self.read(path)
        if mask.shape != size:
            raise DataError(
                f"{path} is {mask.shape[1]} x {mask.shape[0]} px, its patch {size[1]} x {size[0]}; masks have the "
                "size of their patch"
            )
        return mask.astype(np.uint8)
