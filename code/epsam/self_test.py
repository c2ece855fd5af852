"""Whether a device computes what the CPU does: the networks, small and with random weights, on both."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from epsam.cam.activation import compute_maps
from epsam.classifier.building import build_classifier
from epsam.classifier.data import as_float
from epsam.config.schema import Classifier
from epsam.prompts import PromptSet
from epsam.runtime.device import Hardware
from epsam.sam.checkpoint import build_sam
from epsam.sam.decoder import predict_masks
from epsam.student.network import build_student

Model = TypeVar("Model", bound=nn.Module)

PATCH_PX = 64
PROMPTS = [
    PromptSet(np.array([[20, 30], [40, 12]], np.float32), np.array([[8, 8, 50, 40]], np.float32)),
    PromptSet(np.array([[5, 50]], np.float32), np.empty((0, 4), np.float32)),
]
CLASSIFIERS = (Classifier(depth=18), Classifier(backbone="efficientnet_lite0", padding="reflect"))


def difference_from_cpu(hardware: Hardware) -> float:
    """The largest difference of the device's results from the CPU's, in standard deviations of each kind of result.

    Features and maps of both classifiers, the student's logits, SAM's embeddings and logits, as predictions compute them.
    NaN when a result is not finite. Raises what the device raises: RuntimeError or TypeError for what it cannot compute.
    """
    cpu = dataclasses.replace(hardware, device=torch.device("cpu"))
    with torch.inference_mode():
        both = zip(_results(hardware), _results(cpu), strict=True)
        differences = [(there - here).abs().max() / here.std() for there, here in both]
    return torch.stack(differences).max().item()


def _results(hardware: Hardware) -> list[torch.Tensor]:
    """What the networks give on a device, the same random weights and patches on each; on the CPU."""
    generator = torch.Generator().manual_seed(0)
    found = [
        one for settings in CLASSIFIERS for one in _of_classifier(settings, _images(PATCH_PX, generator), hardware)
    ]
    sam = _drawn(lambda: build_sam("demo")).to(hardware.device)
    pictures = _images(sam.image_encoder.img_size, generator).to(hardware.device)
    with hardware.autocast_prediction():
        embeddings = sam.image_encoder(sam.preprocess(pictures.float())).float()
    found += [embeddings, predict_masks(sam, embeddings, PROMPTS, (PATCH_PX, PATCH_PX))]
    return [one.float().cpu() for one in found]


def _of_classifier(settings: Classifier, patches: torch.Tensor, hardware: Hardware) -> list[torch.Tensor]:
    """Features and maps, and the logits of the student on the same network."""
    classifier, student = _drawn(lambda: build_classifier(settings)), _drawn(lambda: build_student(settings))
    mean = classifier.eval().features(as_float(patches)).mean((0, 2, 3))
    classifier.fc.weight.copy_(mean / mean.square().sum())  # maps of random weights may be empty, these are about 1
    images = as_float(patches, hardware.device)
    for model in (classifier, student):
        model.eval().to(hardware.device).to(memory_format=hardware.memory_format)
    with hardware.autocast_prediction():
        return [classifier.fine_features(images), compute_maps(classifier, images), student(images)]


def _images(side: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), generator=generator, dtype=torch.uint8)


def _drawn(build: Callable[[], Model]) -> Model:
    """A model with the weights of a fixed seed; whatever else is drawn stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()
