"""Stage embed: SAM's image encoder, once over all patches."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from segment_anything.modeling import Sam

from epsam.config.schema import Config
from epsam.errors import EpsamError
from epsam.patches.patch import Patch
from epsam.runtime.device import Hardware
from epsam.runtime.log import logger, progress
from epsam.runtime.memory import BatchSize
from epsam.runtime.read_ahead import read_ahead
from epsam.runtime.text import size_text
from epsam.sam.checkpoint import load_sam
from epsam.sam.embeddings import _encode_in_parts, _load_inputs, encoded_patches, reading_threads, store_signature
from epsam.sam.store import EmbeddingStore, Layout
from epsam.workspace import SPLITS, Workspace

RESERVE = 0.1
"""What must be left of the disk beside the stores, as a share of them."""


def embed(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: encode every patch of SAM once, training patches in `sam.views` views, others in those that they are predicted in.

    Continues after the last complete shard. Raises StateError for a store of something else, EpsamError when the disk
    has no room even for one view.
    """
    if config.sam.embeddings == "off":
        logger.info("embed: sam.embeddings is off, nothing to store")
        return
    sam = load_sam(config.sam.model_type, config.sam.checkpoint, workspace.checkpoints, hardware.device)
    patches = {split: encoded_patches(config, workspace, split) for split in SPLITS}
    stores = hardware.ranks.decide(lambda: _create_stores(config, workspace, sam, patches))
    for split, store in stores.items():
        _fill(store, config, hardware, sam, split, patches[split])


def _create_stores(
    config: Config, workspace: Workspace, sam: Sam, patches: dict[str, list[Patch]]
) -> dict[str, EmbeddingStore]:
    signatures = {split: store_signature(config, workspace, sam, split, patches[split]) for split in SPLITS}
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
        raise EpsamError(
            f"{folder}: the embeddings need {size_text((1 + RESERVE) * need(1))}, {room}; make room, or set "
            "sam.embeddings=off (slow: the encoder then runs again in every epoch)"
        )
    if fitting < wanted:
        logger.warning(
            f"embed: {wanted} views need {size_text((1 + RESERVE) * need(wanted))}, {room}; continuing with "
            f"{fitting}, so there is less augmentation, and predictions average fewer"
        )
    logger.info(f"embed: the embeddings take {size_text(need(fitting))}; {room}")
    return fitting


def _fill(
    store: EmbeddingStore, config: Config, hardware: Hardware, sam: Sam, split: str, patches: Sequence[Patch]
) -> None:
    layout, missing, ranks = store.layout, hardware.ranks.decide(store.missing), hardware.ranks
    todo = sum(len(layout.shards[shard]) for shard in missing)
    logger.info(f"embed: {split}: {len(patches)} patches, {layout.views} view(s) each; {todo} patches to do")
    mine, batches = ranks.part(missing), []
    for shard in mine:  # by themselves, so that an embedding does not depend on which shards are missing
        inputs = [(patches[position], view) for position in layout.shards[shard] for view in range(layout.views)]
        batches += [
            inputs[start : start + hardware.encoder_batch] for start in range(0, len(inputs), hardware.encoder_batch)
        ]
    size = BatchSize("embed", hardware.encoder_batch)
    ready: list[np.ndarray] = []
    with progress(total=sum(map(len, batches)), desc=f"embed {split}", unit="view") as bar:
        for images in read_ahead(
            partial(_load_inputs, sam.image_encoder.img_size), batches, reading_threads(config, hardware)
        ):
            encoded = size.run(partial(_encode_in_parts, sam, images, hardware))
            for embedding in encoded.cpu().numpy():
                ready.append(embedding)
                if len(ready) == len(layout.shards[mine[0]]) * layout.views:
                    store.write(mine.pop(0), np.stack(ready).reshape(-1, layout.views, *layout.shape), ranks)
                    ready = []
            bar.update(len(images))
    if len(missing) % ranks.count > ranks.index or not len(missing) % ranks.count:
        return
    store.share_hashes(ranks)  # the others have written a shard more
