"""Batch-norm recalibration: statistics for the network as it is used, with its last weights and without ADL."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from epsam.classifier.adl import ADL
from epsam.classifier.augmentation import augment
from epsam.classifier.data import PatchImages, as_float, shuffled_batches
from epsam.config.schema import Classifier
from epsam.runtime.device import Hardware


def recalibrate_batchnorm(
    model: nn.Module,
    images: PatchImages,
    settings: Classifier,
    hardware: Hardware,
    epoch: int,
    threads: int,
    count: int,
    batch: int,
) -> None:
    """Replace the running averages of batch normalisation by the means over `count` augmented batches of `batch` patches.

    The running averages of training lag behind the weights, and they are of features that ADL had dimmed or
    hidden; in evaluation ADL does neither. Several processes share each batch. With a `count` of 0 they stay as they
    are. Otherwise the model is left in evaluation mode.
    """
    seed = (settings.seed, "bn_recalibration", epoch)
    batches = shuffled_batches(len(images), batch, *seed)[:count]
    mine = [hardware.ranks.part(whole) for whole in batches]

    def inputs() -> Iterator[torch.Tensor]:
        # In float32, outside of autocast: in bfloat16 the places that a rotation reads from jump by up to a pixel.
        for indices, part in images.batches(mine, threads):
            names = [images.names[index] for index in indices]
            inputs = as_float(part, hardware.device)
            yield augment(inputs, names, settings.augment, *seed) if names else inputs

    if batches:
        update_bn(inputs(), _AsUsed(model, hardware).eval())


class _AsUsed(nn.Module):
    """The network in the device's precision, its ADL off whatever the mode."""

    def __init__(self, model: nn.Module, hardware: Hardware):
        super().__init__()
        self.model, self.hardware = model, hardware

    def train(self, mode: bool = True) -> "_AsUsed":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, ADL):
                module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self.hardware.autocast():
            return self.model(images)
