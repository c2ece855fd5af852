"""The trained models together: patches in, tumour probability out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from segment_anything.modeling import Sam

from epsam.cam.activation import ActivationMap, compute_maps, resize_map
from epsam.cam.mask import cam_mask
from epsam.cam.threshold import fixed_threshold, otsu_threshold
from epsam.classifier.backbone import Backbone
from epsam.classifier.building import load_classifier
from epsam.config.schema import Config
from epsam.errors import CheckpointError
from epsam.prompts import prompts_for
from epsam.runtime.checkpoints import load_tensors
from epsam.runtime.device import Hardware
from epsam.runtime.finite import check_finite
from epsam.runtime.memory import BatchSize
from epsam.runtime.seeds import generator
from epsam.sam.checkpoint import load_decoder, load_sam
from epsam.sam.decoder import predict_masks
from epsam.sam.encoder import encode, to_input
from epsam.sam.postprocessing import components_touching, without_small_regions

Model = TypeVar("Model")


CPU_PIXELS = 2**19
"""Most input pixels of one call of a model on the CPU, where larger batches cost memory and gain no time."""


class Models:
    """Classifier and SAM with its trained decoder, on the device; `config` is that of the run that trained them."""

    def __init__(self, classifier: Backbone, sam: Sam, config: Config, hardware: Hardware):
        self.classifier, self.sam, self.config, self.hardware = classifier, sam, config, hardware
        self._classified = BatchSize("classifier", hardware.classifier_batch)
        self._segmented = BatchSize("SAM", hardware.decoder_batch)

    @torch.inference_mode()
    def classify(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probability that a patch holds tumour, float32 (N,), for RGB uint8 (N, H, W, 3).

        Raises DataError with the name of the first patch whose logit is not finite.
        """

        def step(size: int) -> np.ndarray:
            with self.hardware.autocast():
                logits = [
                    self.classifier(self._as_input(batch)).float().reshape(-1).cpu()
                    for batch in self._batches(images, size, images[0, ..., 0].size)
                ]
            # Logits, not probabilities: the sigmoid makes a plain 0 or 1 of an infinite one.
            check_finite(torch.cat(logits), names, "the classifier's logits")
            return torch.sigmoid(torch.cat(logits)).numpy()

        return self._classified.run(step)

    @torch.inference_mode()
    def segment(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Tumour probability of each pixel, float32 (N, H, W), for patches RGB uint8 (N, H, W, 3) said to hold it.

        `names` seed the prompts, so the answer for a patch does not depend on the others. A patch whose CAM gives
        no prompt is 0 everywhere, and so are islands that the CAM mask does not touch, where the settings drop them.
        Raises DataError with the name of the first patch whose map or logits are not finite.
        """

        def step(size: int) -> np.ndarray:
            return np.concatenate(
                [
                    self._segment_batch(images[start : start + size], names[start : start + size])
                    for start in range(0, len(images), size)
                ]
            )

        return self._segmented.run(step)

    def masks(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Masks bool (N, H, W) of patches, from `segment`, tidied as in training and evaluation."""
        return np.stack(
            [
                without_small_regions(probability > 0.5, self.config.sam.min_region_px)
                for probability in self.segment(images, names)
            ]
        )

    @torch.inference_mode()
    def cam_masks(self, images: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """CAM mask, bool (H, W), of each patch."""
        embeddings = self._embed(images) if self.config.cam.threshold == "auto" else None
        return [cam_mask(cam, self.config.cam, images.shape[1:3]) for cam in self._cams(images, names, embeddings)]

    def _segment_batch(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        size, embeddings = images.shape[1:3], self._embed(images)
        found = self._cams(images, names, embeddings)
        cams = [resize_map(cam.values, size) for cam in found]
        masks = [cam_mask(cam, self.config.cam, size) for cam in found]
        prompts = [
            prompts_for(mask, cam, self.config.prompts, generator(self.config.finetune.seed, name, "predict", 0))
            for name, cam, mask in zip(names, cams, masks, strict=True)
        ]
        logits = predict_masks(self.sam, embeddings, prompts, size)
        check_finite(logits, names, "SAM's logits")
        probabilities = torch.sigmoid(logits.float()).cpu().numpy()
        if self.config.sam.islands == "supported":
            for probability, mask in zip(probabilities, masks, strict=True):
                tumour = probability > 0.5
                probability[tumour & ~components_touching(tumour, mask)] = 0
        return probabilities

    def _embed(self, images: np.ndarray) -> torch.Tensor:
        """SAM's embeddings (N, C, h, w) float32 on the device, rounded as the store rounds them."""
        side = self.sam.image_encoder.img_size
        inputs = [to_input(image, side) for image in images]
        return torch.cat(
            [
                encode(self.sam, batch, self.hardware)
                for batch in self._batches(inputs, self.hardware.encoder_batch, side**2)
            ]
        ).float()

    def _cams(self, images: np.ndarray, names: Sequence[str], embeddings: torch.Tensor | None) -> list[ActivationMap]:
        """The map of each patch with its threshold; `embeddings` are needed where `cam.threshold` is auto."""
        size, settings = images.shape[1:3], self.config.cam
        turned_px = size[0] * size[1] * len(settings.rotations)
        with self.hardware.autocast():
            maps = [
                m
                for batch in self._batches(images, self.hardware.cam_batch, turned_px)
                for m in compute_maps(self.classifier, self._as_input(batch), settings.rotations, settings.layer)
                .float()
                .cpu()
                .numpy()
            ]
        check_finite(np.stack(maps), names, "the classifier's maps")
        if settings.threshold == "auto":
            thresholds = [
                otsu_threshold(values, embedding, image, settings)
                for values, embedding, image in zip(maps, embeddings.cpu().numpy(), images, strict=True)
            ]
        else:
            thresholds = [fixed_threshold(values, settings) for values in maps]
        return [ActivationMap(values, threshold) for values, threshold in zip(maps, thresholds, strict=True)]

    def _batches(self, items: Sequence | np.ndarray, size: int, pixels: int) -> list:
        """Runs of at most `size` items, of `pixels` each."""
        if self.hardware.device.type == "cpu":
            size = max(1, min(size, CPU_PIXELS // pixels))
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _as_input(self, images: np.ndarray) -> torch.Tensor:
        """RGB uint8 (N, H, W, 3) to float [0, 1] (N, 3, H, W) on the device."""
        tensor = torch.from_numpy(images).to(self.hardware.device).permute(0, 3, 1, 2).float() / 255
        return tensor.contiguous(memory_format=self.hardware.memory_format)


CLASSIFIER, WHOLE_SAM, DECODER = "a classifier", "a whole SAM", "a SAM mask decoder"


BELONGS = {CLASSIFIER: "RESNET_CHECKPOINT", WHOLE_SAM: "SAM_CHECKPOINT", DECODER: "SAM_DECODER_CHECKPOINT"}


def load_models(
    config: Config, hardware: Hardware, *, resnet: Path, sam: Path | None, decoder: Path, weights_dir: Path
) -> Models:
    """Load all three; raises CheckpointError, saying which belongs where when they were swapped."""
    classifier = _load(CLASSIFIER, resnet, lambda: load_classifier(config.classifier, resnet, hardware.device))
    model = _load(WHOLE_SAM, sam, lambda: load_sam(config.sam.model_type, sam, weights_dir, hardware.device))
    _load(DECODER, decoder, lambda: load_decoder(model, decoder))
    return Models(classifier, model, config, hardware)


def _load(wanted: str, path: Path | None, load: Callable[[], Model]) -> Model:
    try:
        return load()
    except CheckpointError as error:
        if path is None or not Path(path).is_file():
            raise
        found = kind_of(load_tensors(path))
        if found in (None, wanted):
            raise
        raise CheckpointError(
            f"{BELONGS[wanted]}={path} holds {found}, not {wanted}; set {BELONGS[found]} to it "
            f"and {BELONGS[wanted]} to the other file"
        ) from error


def kind_of(weights: Mapping) -> str | None:
    """What a file of weights holds, by its names; None when it is none of ours."""
    for value in weights.values():
        if isinstance(value, Mapping):
            return kind_of(value)
    names = [str(name) for name in weights]
    if any("image_encoder." in name for name in names):
        return WHOLE_SAM
    if any("mask_decoder." in name for name in names):
        return DECODER
    return CLASSIFIER if any(name.endswith(("conv1.weight", "stem.conv.weight")) for name in names) else None
