"""One optimiser step of a network, in parts that fit the device."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from epsam.runtime.device import Hardware
from epsam.runtime.memory import BatchSize

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class TrainStep(Generic[Model]):
    """A model and what it learns with."""

    model: Model
    optimiser: torch.optim.Optimizer
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Of the model's outputs and their targets, both on the device: the mean over patches."""
    hardware: Hardware
    name: str = "classifier"
    """Of the network, for messages."""

    def __post_init__(self) -> None:
        self.micro_batch = BatchSize(self.name, self.hardware.classifier_batch)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Learn from images (N, 3, H, W) and targets (N, ...); returns the mean loss of the batch.

        Gradients add up to those of the whole batch; batch normalisation and ADL see one micro-batch at a time.
        Nothing is learned from a batch whose loss is not finite.
        """
        total = self.micro_batch.run(lambda size: self._gradients(images, labels, size))
        if math.isfinite(total):
            self.optimiser.step()
        return total

    def _gradients(self, images: torch.Tensor, labels: torch.Tensor, size: int) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        parts = math.ceil(len(images) / size)
        total = 0.0
        for micro, targets in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            with self._precision():
                logits = self.model(micro)
            loss = self.loss(logits, targets.to(logits.device)) * (len(micro) / len(images))
            loss.backward()
            total += loss.item()
        return total

    def _precision(self) -> AbstractContextManager[object]:
        """The device's best precision; float32 for depthwise convolutions on a CPU.

        Their backward pass takes longer in bfloat16 there: EfficientNet-Lite0 at 128 px 53 ms a patch, in float32 36 ms.
        """
        depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in self.model.modules())
        on_cpu = self.hardware.device.type == "cpu"
        return nullcontext() if depthwise and on_cpu else self.hardware.autocast()


@dataclass(frozen=True)
class LabelLoss:
    """Mean binary cross-entropy of logits (N,) against labels (N,) in {0, 1}, float32."""

    positive_weight: torch.Tensor | None
    """Weight of the positives, a scalar; None for 1."""

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight = None if self.positive_weight is None else self.positive_weight.to(logits.device)
        return binary_cross_entropy_with_logits(logits.float(), labels, pos_weight=weight)
