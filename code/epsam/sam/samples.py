"""Patches with their prompts, loaded for the decoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from epsam.cam.activation import ActivationMap, resize_map
from epsam.cam.mask import cam_mask
from epsam.cam.store import load_cams
from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.patches.patch import Patch
from epsam.prompts import PromptSet, prompts_for, some_points
from epsam.runtime.files import read_mask
from epsam.runtime.read_ahead import read_ahead
from epsam.runtime.seeds import generator, torch_generator
from epsam.sam.embeddings import Embeddings
from epsam.sam.views import apply_view
from epsam.workspace import Workspace


@dataclass(frozen=True)
class Example:
    """A patch that SAM works on."""

    patch: Patch
    position: int
    """Of its embedding in the split."""
    cam: ActivationMap
    target: Path | None = None
    """The mask to learn; None where there is only something to predict."""


@dataclass(frozen=True)
class Sample:
    """A patch in one view, ready for the decoder."""

    example: Example
    item: torch.Tensor
    """What `Embeddings.item` gave."""
    prompts: PromptSet
    size: tuple[int, int]
    """(H, W) of the patch in this view."""
    target: np.ndarray | None
    """(H, W) bool, in this view."""


def examples_of(workspace: Workspace, split: str, patches: Sequence[Patch]) -> list[Example]:
    """The patches of a split with their CAMs; `patches` as patches_for_sam gives them.

    Raises DataError when a patch has no CAM.
    """
    cams = load_cams(workspace.cams(split))
    without = [patch.name for patch in patches if patch.name not in cams]
    if without:
        raise DataError(
            f"{workspace.cams(split)}: no CAM of {without[0]} ({len(without)} of {len(patches)} patches); "
            "run the stage initial-masks again"
        )
    return [Example(patch, position, cams[patch.name]) for position, patch in enumerate(patches)]


def patch_size(patch: Patch) -> tuple[int, int]:
    """(H, W) of a patch, from the file's header; raises DataError when it is no image."""
    try:
        with Image.open(patch.path) as image:
            return image.height, image.width
    except OSError as error:
        raise DataError(f"{patch.path}: cannot be read as an image ({error})") from None


class Samples:
    """Samples of examples; the index (i, draw) says which example and which draw of its randomness.

    `purpose` names the draws. With `varied`, the view and the place of the prompts are those of training: any
    view, prompts from where the settings say. Without, the patch as it is, prompted by its CAM as in evaluation.
    """

    def __init__(
        self, examples: Sequence[Example], embeddings: Embeddings, config: Config, purpose: str, varied: bool = False
    ):
        self.examples, self.embeddings, self.config = examples, embeddings, config
        self.purpose, self.varied = purpose, varied

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        example, draw = self.examples[index[0]], index[1]
        rng = generator(self.config.finetune.seed, example.patch.name, self.purpose, draw)
        view = int(rng.integers(self.embeddings.views)) if self.varied else 0
        target = None
        if example.target is not None:
            target = apply_view(_read_target(example), view)
        prompts, size = self._prompts(example, target, view, rng)
        if self.varied and self.config.finetune.points == "some":
            prompts = some_points(prompts, rng)
        return Sample(example, self.embeddings.item(example.position, view), prompts, size, target)

    def _prompts(
        self, example: Example, target: np.ndarray | None, view: int, rng: np.random.Generator
    ) -> tuple[PromptSet, tuple[int, int]]:
        if self.varied and self.config.finetune.prompts_from == "mask":
            return prompts_for(target, None, self.config.prompts, rng), target.shape
        size = patch_size(example.patch)
        # The mask is cut from the map before both are turned: opening is not symmetric for an even element.
        mask = apply_view(cam_mask(example.cam, self.config.cam, size), view)
        cam = apply_view(resize_map(example.cam.values, size), view)
        return prompts_for(mask, cam, self.config.prompts, rng), mask.shape


def _read_target(example: Example) -> np.ndarray:
    mask, size = read_mask(example.target), patch_size(example.patch)
    if mask.shape != size:
        raise DataError(
            f"{example.target} is {mask.shape[1]} x {mask.shape[0]} px, its patch {size[1]} x {size[0]}; "
            "masks have the size of their patch"
        )
    return mask


class Batches:
    """Batch sampler: indices (i, draw), in an order of its own for each draw when `seed` is given."""

    def __init__(self, examples: int, batch: int, seed: int | None = None, draw: int = 0):
        self.examples, self.batch, self.seed, self.draw = examples, batch, seed, draw

    def __len__(self) -> int:
        return -(-self.examples // self.batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = torch.arange(self.examples)
        if self.seed is not None:
            order = torch.randperm(self.examples, generator=torch_generator(self.seed, "order", self.draw))
        for part in order.split(self.batch):
            yield [(index, self.draw) for index in part.tolist()]


def load_batches(samples: Samples, batches: Batches, threads: int) -> Iterator[list[Sample]]:
    """Lists of samples, batch by batch, read ahead by `threads`."""
    return read_ahead(lambda indices: [samples[index] for index in indices], batches, threads)


def by_size(samples: Sequence[Sample]) -> list[tuple[tuple[int, int], list[Sample]]]:
    """The samples grouped by patch size: one group for most data sets."""
    sizes = sorted({sample.size for sample in samples})
    return [(size, [sample for sample in samples if sample.size == size]) for size in sizes]
