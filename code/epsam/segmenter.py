"""The one path from patch to mask: map -> threshold -> CAM mask -> prompts -> SAM's decoder -> postprocessing.

Pseudo-labels, evaluation and inference all take it. What differs is where embeddings and maps come from: stored for the
patches of a run (`segment_stored`), or computed for the images at hand (`ImageSegmenter`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from segment_anything.modeling import Sam

from epsam.cam.activation_map import ActivationMap
from epsam.cam.computation import find_cams
from epsam.cam.mask import cam_mask
from epsam.classifier.backbone import Backbone
from epsam.config.schema import Config, Postprocess
from epsam.prompts import PromptedPatch, prompt_views
from epsam.runtime.device import Hardware
from epsam.runtime.finite import check_finite
from epsam.runtime.log import logger, progress
from epsam.runtime.memory import BatchSize
from epsam.runtime.ranks import ALONE, Ranks
from epsam.runtime.views import apply_view, undo_view
from epsam.sam.decoder import predict_masks
from epsam.sam.embeddings import Embeddings, reading_threads
from epsam.sam.encoder import encode, to_input
from epsam.sam.postprocessing import keep_components, without_small_regions
from epsam.sam.samples import Batches, Example, PredictionSamples, Sample, by_size, load_batches
from epsam.sam.session import SamSession

CPU_PIXELS = 2**19
"""Most input pixels of one call of a model on the CPU, where larger batches cost memory and gain no time."""


@dataclass(frozen=True)
class Segmentation:
    """What SAM makes of a prompted patch."""

    probability: np.ndarray
    """(H, W) float32: of tumour, at each pixel, averaged as the settings say; 0 in components that they remove."""
    mask: np.ndarray
    """(H, W) bool, after postprocessing."""


def segment(
    sam: Sam,
    embeddings: Iterable[torch.Tensor],
    prompted: Sequence[Sequence[PromptedPatch]],
    names: Sequence[str],
    settings: Postprocess,
) -> list[Segmentation]:
    """Decode and postprocess N patches of one size, averaged over views and, by `cam_weight`, with their maps.

    `embeddings`: those of each view, (N, C, h, w) float32 on SAM's device; `prompted`: each patch in these views. A
    patch without prompts is empty. Raises DataError with the name of the first patch whose logits are not finite.
    """
    total: np.ndarray | float = 0.0
    for view, (inputs, patches) in enumerate(zip(embeddings, zip(*prompted, strict=True), strict=True)):
        with torch.no_grad():
            logits = predict_masks(sam, inputs, [patch.prompts for patch in patches], patches[0].cam_mask.shape)
        check_finite(logits, names, "SAM's logits")
        probabilities = torch.sigmoid(logits.float()).cpu().numpy()
        total = total + np.stack([undo_view(probability, view) for probability in probabilities])
    found = []
    for (patch, *others), summed in zip(prompted, np.asarray(total), strict=True):
        probability = summed / (1 + len(others))
        if settings.cam_weight and not patch.prompts.is_empty:
            probability = (probability + settings.cam_weight * patch.cam) / (1 + settings.cam_weight)
        mask = probability > 0.5
        kept = keep_components(mask, patch.cam_mask, settings)
        probability[mask & ~kept] = 0
        found.append(Segmentation(probability, without_small_regions(kept, settings.min_region_px)))
    return found


def segment_stored(
    session: SamSession, split: str, examples: Sequence[Example], draw: int = 0, ranks: Ranks = ALONE
) -> Iterator[tuple[Sample, np.ndarray]]:
    """Each example of a split as a sample, with the mask (H, W) bool that the session's decoder predicts for it.

    `draw` numbers the draw of prompts. Samples come in order unless patch sizes differ within a batch. Patches without
    prompts, whose masks are empty, are warned of. Given `ranks`, several processes call this with the same examples, and
    each predicts a share of them.
    """
    config, hardware, embeddings = session.config, session.hardware, session.embeddings(split)
    examples = ranks.part_of_batches(examples, hardware.decoder_batch)
    samples = PredictionSamples(examples, embeddings, config)
    batches = Batches(len(examples), hardware.decoder_batch, draw=draw)
    size = BatchSize("SAM", hardware.decoder_batch)
    unprompted: list[str] = []
    with progress(total=len(examples), desc=f"predict {split}", unit="patch") as bar:
        for batch in load_batches(samples, batches, reading_threads(config, hardware)):
            for group in by_size(batch):
                found = size.run(partial(_segment_samples, session, embeddings, group))
                unprompted += [sample.example.patch.name for sample in group if sample.prompts.is_empty]
                yield from ((sample, one.mask) for sample, one in zip(group, found, strict=True))
            bar.update(len(batch))
    unprompted = ranks.gather_list(unprompted)
    if unprompted and draw == 0:
        more = " ..." if len(unprompted) > 3 else ""
        logger.warning(
            f"{split}: {len(unprompted)} patches have no prompt, as their CAM mask is empty, and are predicted empty: "
            f"{', '.join(unprompted[:3])}{more}"
        )


def _segment_samples(
    session: SamSession, embeddings: Embeddings, samples: Sequence[Sample], size: int
) -> list[Segmentation]:
    """Segment samples of one shape, `size` at a time."""
    found = []
    for start in range(0, len(samples), size):
        some = samples[start : start + size]
        names = [sample.example.patch.name for sample in some]
        inputs = (embeddings.batch(items) for items in zip(*(sample.items for sample in some), strict=True))
        found += segment(session.sam, inputs, [sample.views for sample in some], names, session.config.postprocess)
    return found


class ImageSegmenter:
    """Classifier and SAM with its decoder, for images at hand; `config` is that of the run that trained them."""

    uses_classifier = True
    usual_overlap = 0.5

    def __init__(self, classifier: Backbone, sam: Sam, config: Config, hardware: Hardware):
        self.classifier, self.sam, self.config, self.hardware = classifier, sam, config, hardware
        self._classifier_batch = BatchSize("classifier", hardware.classifier_batch)
        self._sam_batch = BatchSize("SAM", hardware.decoder_batch)

    @torch.inference_mode()
    def classify(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probability that a patch holds tumour, float32 (N,), for RGB uint8 (N, H, W, 3).

        Raises DataError with the name of the first patch whose logit is not finite.
        """

        def step(size: int) -> np.ndarray:
            with self.hardware.autocast_prediction():
                logits = torch.cat(
                    [
                        self.classifier(self._as_input(batch)).float().reshape(-1).cpu()
                        for batch in self._batches(images, size, images[0, ..., 0].size)
                    ]
                )
            # Logits, not probabilities: the sigmoid makes a plain 0 or 1 of an infinite one.
            check_finite(logits, names, "the classifier's logits")
            return torch.sigmoid(logits).numpy()

        return self._classifier_batch.run(step)

    def segment(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Tumour probability of each pixel, float32 (N, H, W), for patches RGB uint8 (N, H, W, 3) that hold tumour.

        `names` seed the prompts, so the answer for a patch does not depend on the others. Raises DataError with the
        name of the first patch whose map or logits are not finite.
        """
        return np.stack([found.probability for found in self._segment(images, names)])

    def masks(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Masks bool (N, H, W) of patches RGB uint8 (N, H, W, 3), postprocessed as in training and evaluation."""
        return np.stack([found.mask for found in self._segment(images, names)])

    @torch.inference_mode()
    def cam_masks(self, images: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """CAM mask, bool (H, W), of each patch."""
        return [cam_mask(cam, self.config.cam, images.shape[1:3]) for cam in self._cams(images, names)]

    @torch.inference_mode()
    def _segment(self, images: np.ndarray, names: Sequence[str]) -> list[Segmentation]:
        def step(size: int) -> list[Segmentation]:
            starts = range(0, len(images), size)
            return [found for i in starts for found in self._segment_batch(images[i : i + size], names[i : i + size])]

        return self._sam_batch.run(step)

    def _segment_batch(self, images: np.ndarray, names: Sequence[str]) -> list[Segmentation]:
        size, views = images.shape[1:3], self.config.postprocess.views
        prompted = [
            prompt_views(cam, size, self.config, name, views)
            for name, cam in zip(names, self._cams(images, names), strict=True)
        ]
        embeddings = (self._embed(images, view) for view in range(views))
        return segment(self.sam, embeddings, prompted, names, self.config.postprocess)

    def _embed(self, images: np.ndarray, view: int) -> torch.Tensor:
        """SAM's embeddings (N, C, h, w) float32 of a view, on the device, rounded as the store rounds them."""
        side = self.sam.image_encoder.img_size
        inputs = [to_input(apply_view(image, view), side) for image in images]
        batches = self._batches(inputs, self.hardware.encoder_batch, side**2)
        return torch.cat([encode(self.sam, batch, self.hardware) for batch in batches]).float()

    def _cams(self, images: np.ndarray, names: Sequence[str]) -> list[ActivationMap]:
        """The map of each patch with its threshold."""
        settings, size = self.config.cam, self.hardware.cam_batch_at(self.config.cam.scales)
        turned_px = images[0, ..., 0].size * len(settings.rotations) * max(settings.scales) ** 2
        batches = zip(self._batches(images, size, turned_px), self._batches(names, size, turned_px), strict=True)
        return [
            cam
            for batch, part in batches
            for cam in find_cams(
                self.classifier, torch.from_numpy(batch).permute(0, 3, 1, 2), part, settings, self.hardware
            )
        ]

    def _batches(self, items: Sequence | np.ndarray, size: int, pixels: float) -> list:
        """Runs of at most `size` items, of `pixels` each."""
        if self.hardware.device.type == "cpu":
            size = max(1, min(size, int(CPU_PIXELS // pixels)))
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _as_input(self, images: np.ndarray) -> torch.Tensor:
        """RGB uint8 (N, H, W, 3) to float [0, 1] (N, 3, H, W) on the device."""
        tensor = torch.from_numpy(images).to(self.hardware.device).permute(0, 3, 1, 2).float() / 255
        return tensor.contiguous(memory_format=self.hardware.memory_format)
