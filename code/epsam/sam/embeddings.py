"""Embeddings of patches: read from a store, or computed for every use."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from segment_anything.modeling import Sam

from epsam.config.schema import Config
from epsam.patches.patch import Patch, normal_patches_for_sam, patches_for_sam
from epsam.runtime.device import Hardware
from epsam.runtime.files import read_image
from epsam.runtime.hashes import hashes_of
from epsam.runtime.memory import BatchSize
from epsam.runtime.views import apply_view
from epsam.sam.encoder import encode, encoder_hash, to_input
from epsam.sam.store import EmbeddingStore
from epsam.workspace import Workspace


class Embeddings(Protocol):
    """Where the decoder's input comes from: `item` runs in a thread that reads ahead, `batch` where the model is."""

    views: int

    def item(self, position: int, view: int) -> torch.Tensor:
        """What is loaded for one patch (its position in the split) in one view."""

    def batch(self, items: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embeddings (N, C, h, w) float32, on the device, of what `item` gave."""


class StoredEmbeddings:
    """Embeddings out of a store."""

    def __init__(self, store: EmbeddingStore, hardware: Hardware):
        self.store, self.device, self.views = store, hardware.device, store.layout.views

    def item(self, position: int, view: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.store.read(position, view)))

    def batch(self, items: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(items)).to(self.device).float()


class RecomputedEmbeddings:
    """Embeddings encoded whenever they are asked for, rounded as the store rounds them."""

    def __init__(self, sam: Sam, patches: Sequence[Patch], views: int, hardware: Hardware):
        self.sam, self.patches, self.views, self.hardware = sam, patches, views, hardware
        self.side = sam.image_encoder.img_size
        self.size = BatchSize("SAM's encoder", hardware.encoder_batch)

    def item(self, position: int, view: int) -> torch.Tensor:
        return load_input(self.patches[position], view, self.side)

    def batch(self, items: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.size.run(partial(_encode_in_parts, self.sam, items, self.hardware)).float()


def _encode_in_parts(sam: Sam, images: Sequence[torch.Tensor], hardware: Hardware, size: int) -> torch.Tensor:
    return torch.cat([encode(sam, images[start : start + size], hardware) for start in range(0, len(images), size)])


def load_input(patch: Patch, view: int, side: int) -> torch.Tensor:
    """SAM's input (3, h, w) uint8 of a patch in a view."""
    return to_input(apply_view(read_image(patch.path), view), side)


def open_embeddings(config: Config, workspace: Workspace, hardware: Hardware, sam: Sam, split: str) -> Embeddings:
    """Embeddings of encoded_patches(split), in that order, from the store or recomputed as the settings say.

    Raises StateError when the store is missing, broken or was made from other weights, patches or views.
    """
    patches = encoded_patches(config, workspace, split)
    if config.sam.embeddings == "off":
        return RecomputedEmbeddings(sam, patches, views_of(config, split), hardware)
    store = EmbeddingStore.open(workspace.embeddings(split), store_signature(config, workspace, sam, split, patches))
    hardware.ranks.decide(store.check)
    return StoredEmbeddings(store, hardware)


def encoded_patches(config: Config, workspace: Workspace, split: str) -> list[Patch]:
    """What SAM works on: the positive patches of a split, then the normal ones that its decoder learns to leave empty."""
    normal = normal_patches_for_sam(workspace, split) if config.finetune.normal_weight else []
    return patches_for_sam(workspace, split) + normal


def views_of(config: Config, split: str) -> int:
    """Views of each patch: training patches are augmented by them, all are predicted in `postprocess.views`."""
    return config.sam.views if split == "train" else config.postprocess.views


def store_signature(
    config: Config, workspace: Workspace, sam: Sam, split: str, patches: Sequence[Patch]
) -> dict[str, Any]:
    """What the embeddings of a split depend on."""
    hashes = hashes_of(workspace, [patch.path for patch in patches])
    return {
        "model_type": config.sam.model_type,
        "encoder": encoder_hash(sam),
        "input_px": sam.image_encoder.img_size,
        "views": views_of(config, split),
        "patches": {patch.name: hashes.get(patch.path, "")[:32] for patch in patches},
    }


def reading_threads(config: Config, hardware: Hardware) -> int:
    """Threads that read beside the model: none on the CPU, where the model itself takes every core."""
    return 0 if hardware.device.type == "cpu" else config.worker_count


def _load_inputs(side: int, inputs: Sequence[tuple[Patch, int]]) -> list[torch.Tensor]:
    return [load_input(patch, view, side) for patch, view in inputs]
