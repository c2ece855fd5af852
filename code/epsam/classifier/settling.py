"""Statistics of batch normalisation for the network as it is used: with its last weights and without ADL."""

import torch
from torch import nn

from epsam.classifier.adl import ADL
from epsam.classifier.data import PatchImages, as_float, augment, shuffled_batches
from epsam.classifier.resnet import ResNetADL
from epsam.config import Classifier
from epsam.runtime.device import Hardware

MOMENTUM = 0.1
"""Of the running averages of training (PyTorch's default)."""


def settle(
    model: ResNetADL, images: PatchImages, settings: Classifier, hardware: Hardware, epoch: int, workers: int
) -> None:
    """Replace the running averages of batch normalisation by the means over `settle_batches` augmented batches.

    The running averages of training lag behind the weights, and they are of features that ADL had dimmed or
    hidden; in evaluation ADL does neither. With `settle_batches` 0 they stay as they are.
    """
    batches = shuffled_batches(len(images), hardware.classifier_batch, settings.seed, "settle", epoch)
    batches = batches[: settings.settle_batches]
    if not batches:
        return
    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, ADL):
            module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    with torch.inference_mode(), hardware.autocast():
        for indices, batch in images.batches(batches, workers):
            names = [images.names[index] for index in indices]
            model(augment(as_float(batch, hardware.device), names, settings.augment, settings.seed, "settle", epoch))
    for norm in norms:
        norm.momentum = MOMENTUM
