"""Embeddings of patches: encoded once per view into a store, or anew for every use."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import torch
from segment_anything.modeling import Sam

from epsam.config import Config
from epsam.errors import EpsamError
from epsam.inventory import hashes_of
from epsam.patches import Patch, patches_for_sam
from epsam.runtime.device import Hardware
from epsam.runtime.files import read_image, size_text
from epsam.runtime.log import logger, progress
from epsam.runtime.memory import BatchSize
from epsam.runtime.read_ahead import read_ahead
from epsam.sam.checkpoint import load_sam
from epsam.sam.encoder import encode, encoder_hash, to_input
from epsam.sam.store import EmbeddingStore, Layout
from epsam.sam.views import apply_view
from epsam.workspace import SPLITS, Workspace

RESERVE = 0.1
"""What must be left of the disk beside the stores, as a share of them."""


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
    """Embeddings of patches_for_sam(split), in that order, from the store or recomputed as the settings say.

    Raises StateError when the store is missing, broken or was made from other weights, patches or views.
    """
    patches = patches_for_sam(workspace, split)
    if config.sam.embeddings == "off":
        return RecomputedEmbeddings(sam, patches, views_of(config, split), hardware)
    store = EmbeddingStore.open(workspace.embeddings(split), signature_of(config, workspace, sam, split, patches))
    store.check()
    return StoredEmbeddings(store, hardware)


def views_of(config: Config, split: str) -> int:
    """Views of each patch: only training patches have more than one."""
    return config.sam.views if split == "train" else 1


def signature_of(
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


def embed(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: encode every positive patch once, training patches in `sam.views` views.

    Goes on after the last whole shard. Raises StateError for a store of something else, EpsamError when the disk
    has no room even for one view.
    """
    if config.sam.embeddings == "off":
        logger.info("embed: sam.embeddings is off, nothing to store")
        return
    sam = load_sam(config.sam.model_type, config.sam.checkpoint, workspace.checkpoints, hardware.device)
    patches = {split: patches_for_sam(workspace, split) for split in SPLITS}
    stores = _create_stores(config, workspace, sam, patches)
    for split, store in stores.items():
        _fill(store, config, hardware, sam, split, patches[split])


def _create_stores(
    config: Config, workspace: Workspace, sam: Sam, patches: dict[str, list[Patch]]
) -> dict[str, EmbeddingStore]:
    signatures = {split: signature_of(config, workspace, sam, split, patches[split]) for split in SPLITS}
    shape = (sam.prompt_encoder.embed_dim, *sam.prompt_encoder.image_embedding_size)
    new = [split for split in SPLITS if not EmbeddingStore.exists(workspace.embeddings(split))]

    def layout(split: str, views: int) -> Layout:
        return Layout(signatures[split], min(views, signatures[split]["views"]), shape)

    views = config.sam.views
    if new:
        views = views_that_fit(views, lambda n: sum(layout(split, n).bytes for split in new), workspace.run)
    return {split: EmbeddingStore.create(workspace.embeddings(split), layout(split, views)) for split in SPLITS}


def views_that_fit(wanted: int, need: Callable[[int], int], folder: Path) -> int:
    """The most views, up to `wanted`, whose `need(views)` bytes the disk of `folder` has to spare.

    Raises EpsamError when there is no room for one.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = psutil.disk_usage(str(existing)).free
    fitting = next((views for views in range(wanted, 0, -1) if (1 + RESERVE) * need(views) <= free), 0)
    room = f"{size_text(free)} of the disk are free"
    if not fitting:
        raise EpsamError(f"{folder}: the embeddings need {size_text((1 + RESERVE) * need(1))}, {room}; make room, or set "
                         "sam.embeddings=off (slow: the encoder then runs again in every epoch)")
    if fitting < wanted:
        logger.warning(f"embed: {wanted} views need {size_text((1 + RESERVE) * need(wanted))}, {room}; going on with "
                       f"{fitting}, so there is less augmentation")
    logger.info(f"embed: the embeddings take {size_text(need(fitting))}; {room}")
    return fitting


def _fill(
    store: EmbeddingStore, config: Config, hardware: Hardware, sam: Sam, split: str, patches: Sequence[Patch]
) -> None:
    layout, missing = store.layout, store.missing()
    todo = [patches[position] for shard in missing for position in layout.shards[shard]]
    logger.info(f"embed: {split}: {len(patches)} patches, {layout.views} view(s) each; {len(todo)} patches to do")
    inputs = [(patch, view) for patch in todo for view in range(layout.views)]
    batches = [inputs[start : start + hardware.encoder_batch] for start in range(0, len(inputs), hardware.encoder_batch)]
    size = BatchSize("embed", hardware.encoder_batch)
    ready: list[np.ndarray] = []
    with progress(total=len(inputs), desc=f"embed {split}", unit="view") as bar:
        for images in read_ahead(partial(_load_inputs, sam.image_encoder.img_size), batches,
                                 reading_threads(config, hardware)):
            encoded = size.run(partial(_encode_in_parts, sam, images, hardware))
            for embedding in encoded.cpu().numpy():
                ready.append(embedding)
                if len(ready) == len(layout.shards[missing[0]]) * layout.views:
                    store.write(missing.pop(0), np.stack(ready).reshape(-1, layout.views, *layout.shape))
                    ready = []
            bar.update(len(images))


def _load_inputs(side: int, inputs: Sequence[tuple[Patch, int]]) -> list[torch.Tensor]:
    return [load_input(patch, view, side) for patch, view in inputs]
