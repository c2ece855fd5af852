"""Patches as batches of tensors."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from epsam.errors import DataError
from epsam.patches.patch import Patch
from epsam.runtime.files import read_image
from epsam.runtime.read_ahead import read_ahead
from epsam.runtime.seeds import torch_generator

IN_MEMORY_BYTES = 2**30
"""Decoded patches are kept up to this size; larger sets are decoded as they are needed."""


class PatchImages:
    """RGB images of patches of one size. Raises DataError for one that cannot be decoded or differs in size."""

    def __init__(self, patches: Sequence[Patch], threads: int = 4):
        self.patches = list(patches)
        self.shape = read_image(self.patches[0].path).shape
        self.kept = None
        if len(self.patches) * int(np.prod(self.shape)) <= IN_MEMORY_BYTES:
            self.kept = torch.empty(len(self.patches), 3, *self.shape[:2], dtype=torch.uint8)
            for index, image in enumerate(read_ahead(self._decode, range(len(self.patches)), threads)):
                self.kept[index] = torch.from_numpy(image)

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def names(self) -> list[str]:
        return [patch.name for patch in self.patches]

    def batches(self, index_batches: Sequence[list[int]], threads: int) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Each entry of `index_batches` with its images, (N, 3, H, W) uint8; those not kept are decoded ahead.

        Raises DataError, in the place of its batch, for a patch that cannot be decoded.
        """
        yield from zip(
            index_batches, read_ahead(self._batch, index_batches, 0 if self.kept is not None else threads), strict=True
        )

    def _batch(self, indices: list[int]) -> torch.Tensor:
        if not indices:  # of a process whose share is empty
            return torch.empty(0, 3, *self.shape[:2], dtype=torch.uint8)
        if self.kept is not None:
            return self.kept[indices]
        return torch.from_numpy(np.stack([self._decode(index) for index in indices]))

    def _decode(self, index: int) -> np.ndarray:
        """(3, H, W) uint8, a view of the decoded (H, W, 3)."""
        path = self.patches[index].path
        image = read_image(path)
        if image.shape != self.shape:
            first = self.patches[0].path.name
            raise DataError(
                f"{path}: {image.shape[1]} x {image.shape[0]} px, but {first} has {self.shape[1]} x "
                f"{self.shape[0]} px; the patches of a split must be of one size, cut them again"
            )
        return image.transpose(2, 0, 1)


def split_batches(count: int, size: int) -> list[list[int]]:
    """0..count - 1 in batches of `size`, in order."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def shuffled_batches(count: int, size: int, *seed: object) -> list[list[int]]:
    """0..count - 1 in random batches of `size`; a last batch of one joins the batch before it, because batch
    normalisation learns nothing good from a single patch."""
    order = torch.randperm(count, generator=torch_generator(*seed)).tolist()
    batches = [order[start : start + size] for start in range(0, count, size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2].extend(batches.pop())
    return batches


def as_float(images: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """uint8 (N, 3, H, W) to float32 in [0, 1] on `device`."""
    return images.to(device, non_blocking=True).float().div_(255)
