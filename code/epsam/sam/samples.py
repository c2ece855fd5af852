"""Patches with their prompts, loaded for the decoder."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch

from epsam.cam.activation_map import ActivationMap
from epsam.cam.store import load_cams
from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.patches.patch import Patch
from epsam.prompts import PromptedPatch, PromptSet, prompt_patch, prompt_views, prompts_for, some_points
from epsam.runtime.files import read_mask
from epsam.runtime.image_formats import image_size
from epsam.runtime.read_ahead import read_ahead
from epsam.runtime.seeds import generator, torch_generator
from epsam.runtime.views import apply_view
from epsam.sam.embeddings import Embeddings
from epsam.workspace import Workspace


@dataclass(frozen=True)
class Example:
    """A patch that SAM works on."""

    patch: Patch
    position: int
    """Of its embedding in the split."""
    cam: ActivationMap


@dataclass(frozen=True)
class LabelledExample(Example):
    """A patch with the mask that the decoder learns, or is validated by."""

    target: Path | None
    """None for a normal patch, whose mask is empty."""

    @classmethod
    def of(cls, example: Example, target: Path | None) -> "LabelledExample":
        """`example` with its mask."""
        return cls(example.patch, example.position, example.cam, target)


@dataclass(frozen=True)
class Sample:
    """A patch prompted by its CAM, ready for the decoder, in the views that it is predicted in."""

    example: Example
    items: list[torch.Tensor]
    """What `Embeddings.item` gave for each view."""
    views: list[PromptedPatch]
    """With its prompts in each view."""

    @property
    def prompted(self) -> PromptedPatch:
        """The patch as it is."""
        return self.views[0]

    @property
    def prompts(self) -> PromptSet:
        """Those of the patch as it is."""
        return self.prompted.prompts

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the patch."""
        height, width = self.prompted.cam_mask.shape
        return height, width


@dataclass(frozen=True)
class LabelledSample:
    """A patch in one view with prompts and the mask to learn."""

    example: LabelledExample
    item: torch.Tensor
    prompts: PromptSet
    target: np.ndarray
    """(H, W) bool, in this view."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the patch in this view."""
        height, width = self.target.shape
        return height, width


AnySample = TypeVar("AnySample", Sample, LabelledSample)
AnySample_co = TypeVar("AnySample_co", Sample, LabelledSample, covariant=True)


class _ByIndex(Protocol[AnySample_co]):
    def __getitem__(self, index: tuple[int, int]) -> AnySample_co: ...


def examples_of(workspace: Workspace, split: str, patches: Sequence[Patch]) -> list[Example]:
    """The patches of a split with their CAMs; `patches` in the order of their embeddings.

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
    width, height = image_size(patch.path)
    return height, width


class PredictionSamples:
    """Samples of examples; the index (i, draw) says which example and which draw of prompts."""

    def __init__(self, examples: Sequence[Example], embeddings: Embeddings, config: Config):
        self.examples, self.embeddings, self.config = examples, embeddings, config

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        example, draw = self.examples[index[0]], index[1]
        # The store holds fewer views than asked for where the disk had no room; the stage embed warns of it.
        views = range(min(self.config.postprocess.views, self.embeddings.views))
        prompted = prompt_views(
            example.cam, patch_size(example.patch), self.config, example.patch.name, len(views), draw
        )
        return Sample(example, [self.embeddings.item(example.position, view) for view in views], prompted)


class LabelledSamples:
    """Samples with their masks; the index (i, draw) says which example and which draw of its randomness.

    `purpose` names the draws. With `augmented`, views and prompts are those of training: any view that is stored, prompts
    from where the settings take them. Without, the patch as it is, prompted by its CAM as in prediction.
    """

    def __init__(
        self,
        examples: Sequence[LabelledExample],
        embeddings: Embeddings,
        config: Config,
        purpose: str,
        augmented: bool = False,
    ):
        self.examples, self.embeddings, self.config = examples, embeddings, config
        self.purpose, self.augmented = purpose, augmented

    def __getitem__(self, index: tuple[int, int]) -> LabelledSample:
        example, draw = self.examples[index[0]], index[1]
        rng = generator(self.config.finetune.seed, example.patch.name, self.purpose, draw)
        view = int(rng.integers(self.embeddings.views)) if self.augmented else 0
        target = apply_view(_read_target(example), view)
        prompts = self._prompts(example, target, view, rng)
        return LabelledSample(example, self.embeddings.item(example.position, view), prompts, target)

    def _prompts(self, example: LabelledExample, target: np.ndarray, view: int, rng: np.random.Generator) -> PromptSet:
        settings = self.config.finetune
        if self.augmented and settings.prompts_from == "mask" and example.target is not None:
            prompts = prompts_for(target, None, self.config.prompts, rng)
        else:
            prompts = prompt_patch(example.cam, patch_size(example.patch), self.config, rng, view).prompts
        return some_points(prompts, rng) if self.augmented and settings.points == "some" else prompts


def _read_target(example: LabelledExample) -> np.ndarray:
    size = patch_size(example.patch)
    if example.target is None:
        return np.zeros(size, bool)
    mask = read_mask(example.target)
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


def load_batches(
    samples: "_ByIndex[AnySample]", batches: Iterable[list[tuple[int, int]]], threads: int
) -> Iterator[list[AnySample]]:
    """Lists of samples, batch by batch, read ahead by `threads`."""
    return read_ahead(lambda indices: [samples[index] for index in indices], batches, threads)


def by_size(samples: Sequence[AnySample]) -> list[list[AnySample]]:
    """The samples grouped by patch size: one group for most data sets."""
    sizes = sorted({sample.size for sample in samples})
    return [[sample for sample in samples if sample.size == size] for size in sizes]
