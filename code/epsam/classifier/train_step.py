"""One optimiser step of a network, in parts that fit the device."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from epsam.errors import EpsamError
from epsam.runtime.device import Hardware, name_of
from epsam.runtime.failures import is_out_of_gpu_memory
from epsam.runtime.log import logger
from epsam.runtime.memory import BatchSize
from epsam.runtime.precision import PrecisionName, resumed_precision

Model = TypeVar("Model", bound=nn.Module)


class TrainStepState(BaseModel):
    """How steps were computed, in the state that a training continues from: results depend on it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    micro_batch: PositiveInt
    precision: PrecisionName


@dataclass
class TrainStep(Generic[Model]):
    """A model and what it learns with."""

    model: Model
    optimiser: torch.optim.Optimizer
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Of the model's outputs and their targets, both on the device: the mean over patches."""
    hardware: Hardware
    """As given, but that a step or a state may change micro-batch and precision: what else an epoch computes takes these."""
    name: str = "classifier"
    """Of the network, for messages."""
    batch: int = 0
    """Patches of a step, which several processes may fit at once where one could not."""

    def __post_init__(self) -> None:
        own, count = self.hardware.classifier_batch, self.hardware.ranks.count
        self.micro_batch = BatchSize(self.name, own if count == 1 else min(own * count, max(own, self.batch)))

    def share(self, batch: Sequence[int]) -> "Share":
        """What of `batch`, indices of patches, is for this process: a part of each micro-batch."""
        ranks, start = self.hardware.ranks, 0
        mine: list[int] = []
        sizes: list[int] = []
        for size in _sizes(len(batch), self.micro_batch.size):
            parts = [size // ranks.count + (index < size % ranks.count) for index in range(ranks.count)]
            first = start + sum(parts[: ranks.index])
            mine += batch[first : first + parts[ranks.index]]
            sizes.append(parts[ranks.index])
            start += size
        return Share(mine, sizes, len(batch))

    def step(self, images: torch.Tensor, labels: torch.Tensor, share: "Share | None" = None) -> float:
        """Learn from images (N, 3, H, W) and targets (N, ...); returns the mean loss of the batch.

        Of several processes each calls this with the images of its `share` of the batch. Gradients add up to those of the
        whole batch; batch normalisation and ADL see one micro-batch at a time, that of all processes. Nothing is learned
        from a batch whose loss is not finite. Raises EpsamError when the micro-batch does not fit and is shared.
        """
        if share is not None and self.hardware.ranks.count > 1:
            total = self._shared_gradients(images, labels, share)
        else:
            total = self.micro_batch.run(
                lambda size: self._gradients(images, labels, _sizes(len(images), size), len(images))
            )
        if self.micro_batch.size < self.hardware.classifier_batch and self.hardware.ranks.count == 1:
            self.hardware = dataclasses.replace(self.hardware, classifier_batch=self.micro_batch.size)
            logger.warning(
                f"{self.name}: batch normalisation and ADL see smaller micro-batches from here on, so results differ from "
                "those of a device with more memory"
            )
        if math.isfinite(total):
            self.optimiser.step()
        return total

    def state_dict(self) -> dict[str, Any]:
        """Micro-batch and precision, for the state of the training."""
        return {"micro_batch": self.micro_batch.size, "precision": name_of(self.hardware.precision)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on with the micro-batch and precision of a state, so that another device ends as the first would have.

        A micro-batch that does not fit is halved, as ever; see `resumed_precision`. Raises ValueError for another state.
        """
        state = TrainStepState.model_validate(saved)
        own = self.hardware.precision
        precision = resumed_precision(self.name, state.precision, own)
        if (state.micro_batch, precision) != (self.micro_batch.size, own):
            logger.info(
                f"{self.name}: going on with micro-batches of {state.micro_batch} in {name_of(precision)}, as before the "
                f"stop; this device would take {self.micro_batch.size} in {name_of(own)}"
            )
        self.micro_batch.size = state.micro_batch
        if self.hardware.ranks.count == 1:
            self.hardware = dataclasses.replace(self.hardware, classifier_batch=state.micro_batch)
        if precision != own:
            self.hardware = dataclasses.replace(self.hardware, precision=precision)

    def log(self, batch: int) -> None:
        """Say how steps of `batch` patches are computed."""
        size, precision = self.micro_batch.size, name_of(self.hardware.precision)
        parts = f"micro-batches of {size}" if size < batch else "one piece"
        count = self.hardware.ranks.count
        shared = f", shared by {count} processes" if count > 1 else ""
        logger.info(f"{self.name}: batches of {batch} in {parts}, {precision}{shared}")

    def _shared_gradients(self, images: torch.Tensor, labels: torch.Tensor, share: "Share") -> float:
        ranks = self.hardware.ranks
        try:
            loss = self._gradients(images, labels, share.sizes, share.whole)
        except RuntimeError as error:
            if not is_out_of_gpu_memory(error):
                raise
            # The others are inside the same micro-batch, and wait for this process in batch normalisation.
            raise EpsamError(
                f"{self.name}: the GPU of process {ranks.index} of {ranks.count} does not hold {max(share.sizes)} patches, "
                "and micro-batches that processes share are not halved on the way; set a smaller profile (profile=8gb), "
                "or start more processes, each with a GPU of its own"
            ) from None
        return ranks.sum_gradients(self.model.parameters(), loss)[0]

    def _gradients(self, images: torch.Tensor, labels: torch.Tensor, sizes: Sequence[int], whole: int) -> float:
        """Gradients of the images' part in the mean loss of `whole` patches, in micro-batches of `sizes`; gives that part."""
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for micro, targets in zip(images.split(list(sizes)), labels.split(list(sizes)), strict=True):
            with self.hardware.autocast():
                logits = self.model(micro)
            if len(micro):
                loss = self.loss(logits, targets.to(logits.device)) * (len(micro) / whole)
            else:  # it has to take part in batch normalisation nevertheless
                loss = logits.sum() * 0
            loss.backward()
            total += loss.item()
        return total


@dataclass(frozen=True)
class Share:
    """What of a batch one process learns from."""

    indices: list[int]
    sizes: list[int]
    """How many of them are of each micro-batch; 0 where that has fewer patches than there are processes."""
    whole: int
    """Patches of the batch."""


def _sizes(count: int, most: int) -> list[int]:
    """`count` in as few parts of at most `most` as there can be, as equal as they can be."""
    parts = math.ceil(count / most)
    return [count // parts + (index < count % parts) for index in range(parts)]


@dataclass(frozen=True)
class LabelLoss:
    """Mean binary cross-entropy of logits (N,) against labels (N,) in {0, 1}, float32."""

    positive_weight: torch.Tensor | None
    """Weight of the positives, a scalar; None for 1."""

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight = None if self.positive_weight is None else self.positive_weight.to(logits.device)
        return binary_cross_entropy_with_logits(logits.float(), labels, pos_weight=weight)
