"""Masks predicted by SAM from CAM prompts, on patches as they are."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from epsam.cam.mask import cam_mask
from epsam.config.schema import Config
from epsam.runtime.device import Hardware
from epsam.runtime.finite import check_finite
from epsam.runtime.log import logger, progress
from epsam.sam.decoder import predict_masks
from epsam.sam.embeddings import reading_threads
from epsam.sam.postprocessing import postprocess
from epsam.sam.samples import Batches, Example, Sample, Samples, by_size, load_batches
from epsam.sam.session import SamSession
from epsam.workspace import Workspace


def predict_split(
    config: Config, workspace: Workspace, hardware: Hardware, split: str, decoder: Path | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and predicted mask (H, W) bool of every positive patch of a split, prompted by its CAM.

    `decoder` is a file of decoder weights; None takes SAM's own, untuned.
    """
    context = SamSession(config, workspace, hardware)
    context.use_decoder(decoder)
    unprompted = []
    for sample, mask in predict(context, split, context.examples(split)):
        unprompted += [sample.example.patch.name] * sample.prompts.is_empty
        yield sample.example.patch.name, mask
    warn_of_unprompted(split, unprompted)


def predict(
    context: SamSession, split: str, examples: Sequence[Example], draw: int = 0
) -> Iterator[tuple[Sample, np.ndarray]]:
    """Each example as a sample, with the mask (H, W) bool that the context's decoder predicts for it, tidied.

    `draw` numbers the draw of prompts. Samples come in order unless patch sizes differ within a batch. A sample
    without prompts has an empty mask. Raises DataError with the name of a patch whose logits are not finite.
    """
    hardware, embeddings = context.hardware, context.embeddings(split)
    samples = Samples(examples, embeddings, context.config, "predict")
    batches = Batches(len(examples), hardware.decoder_batch, draw=draw)
    with progress(total=len(examples), desc=f"predict {split}", unit="patch") as bar:
        for batch in load_batches(samples, batches, reading_threads(context.config, hardware)):
            for size, group in by_size(batch):
                with torch.no_grad():
                    inputs = embeddings.batch([sample.item for sample in group])
                    logits = predict_masks(context.sam, inputs, [sample.prompts for sample in group], size)
                check_finite(logits, [sample.example.patch.name for sample in group], "SAM's logits")
                masks = (logits > context.sam.mask_threshold).cpu().numpy()
                for sample, mask in zip(group, masks, strict=True):
                    yield (
                        sample,
                        postprocess(mask, cam_mask(sample.example.cam, context.config.cam, size), context.config.sam),
                    )
            bar.update(len(batch))


def warn_of_unprompted(split: str, names: Sequence[str]) -> None:
    """Warn of patches that are predicted empty because their CAM mask gives no prompt."""
    if names:
        logger.warning(
            f"{split}: {len(names)} patches have no prompt, as their CAM mask is empty, and are predicted "
            f"empty: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        )
