"""Parts of the classifier's training: data, one epoch, figures."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from epsam.classifier.augmentation import augment
from epsam.classifier.backbone import Backbone
from epsam.classifier.data import PatchImages, as_float, shuffled_batches, split_batches
from epsam.classifier.train_step import TrainStep
from epsam.config.schema import Classifier, Config
from epsam.errors import DataError, EpsamError
from epsam.evaluation.metrics import accuracy, auc, sensitivity_at_specificity
from epsam.patches.patch import patches_for_classifier
from epsam.runtime.device import Hardware
from epsam.runtime.finite import check_finite
from epsam.runtime.log import logger, progress
from epsam.runtime.memory import BatchSize
from epsam.runtime.text import listed
from epsam.workspace import Workspace


@dataclass(frozen=True)
class LabelledImages:
    """Images of a split with their labels."""

    images: PatchImages
    labels: torch.Tensor
    """(N,) float32, 1 for tumour."""


def load_labelled(workspace: Workspace, split: str, workers: int) -> LabelledImages:
    """Images and labels of a split. Raises DataError when one of the two classes is missing."""
    patches = patches_for_classifier(workspace, split)
    labels = torch.tensor([float(patch.label) for patch in patches])
    positives = int(labels.sum())
    if positives in (0, len(patches)):
        found, missing = ("positive", "_0.png") if positives else ("negative", "_1.png")
        raise DataError(
            f"{workspace.split(split)}/image: all {len(patches)} patches are {found}; the classifier "
            f"needs both classes, so add patches whose names end in {missing}"
        )
    logger.info(f"classifier: {split} has {positives} positive, {len(patches) - positives} negative patches")
    return LabelledImages(PatchImages(patches, workers), labels)


def predict_logits(model: Backbone, images: PatchImages, hardware: Hardware, workers: int = 0) -> torch.Tensor:
    """Logits (N,) float32 on the CPU, in the order of `images`, in evaluation mode."""
    model.eval()
    batches = split_batches(len(images), hardware.classifier_batch)
    size = BatchSize("classifier", hardware.classifier_batch)
    with torch.inference_mode(), hardware.autocast():
        return torch.cat(
            hardware.ranks.interleave(
                size.run(partial(_logits, model, batch, hardware))
                for _, batch in images.batches(hardware.ranks.part(batches), workers)
            )
        )


def _logits(model: Backbone, images: torch.Tensor, hardware: Hardware, size: int) -> torch.Tensor:
    """Logits of a batch, `size` images at a time, on the CPU."""
    return torch.cat([model(as_float(part, hardware.device)).float().cpu() for part in images.split(size)])


def figures(model: Backbone, labelled: LabelledImages, hardware: Hardware, workers: int = 0) -> dict[str, float]:
    """AUC, accuracy at probability 0.5, sensitivity at 90% specificity, and the number of patches."""
    logits = predict_logits(model, labelled.images, hardware, workers).numpy()
    check_finite(logits, labelled.images.names, "the classifier's logits")
    labels = labelled.labels.numpy()
    return {
        "auc": auc(labels, logits),
        "accuracy": accuracy(labels, logits, 0.0),
        "sensitivity_at_90_specificity": sensitivity_at_specificity(labels, logits, 0.9),
        "patches": len(labels),
    }


def train_epoch(learner: TrainStep[Backbone], train: LabelledImages, config: Config, epoch: int) -> float:
    """One pass over the patches; returns the mean loss."""
    settings = config.classifier
    learner.model.seed_adl(settings.seed, "adl", epoch)
    learner.model.train()
    names = train.images.names
    batches = shuffled_batches(len(names), settings.batch, settings.seed, "order", epoch)
    shares = [learner.share(batch) for batch in batches]
    total = 0.0
    bar = progress(
        train.images.batches([share.indices for share in shares], config.worker_count),
        total=len(batches),
        desc=f"classifier, epoch {epoch}",
        unit="batch",
    )
    for batch, share, (indices, images) in zip(batches, shares, bar, strict=True):
        own_names = [names[index] for index in indices]
        inputs = as_float(images, learner.hardware.device)
        if own_names:
            inputs = augment(inputs, own_names, settings.augment, settings.seed, epoch)
        loss = learner.step(inputs, train.labels[indices], share)
        if not math.isfinite(loss):
            raise EpsamError(
                f"classifier, epoch {epoch}: the loss is {loss} on the batch {listed([names[index] for index in batch])}; the "
                "state of the last complete epoch is kept. Look at these patches, or lower classifier.lr "
                "with --from train-classifier"
            )
        total += loss * len(batch)
    return total / len(names)


def parameter_groups(model: Backbone, settings: Classifier) -> list[dict[str, Any]]:
    """The layers before the last one, with a learning rate of their own, and the last one."""
    head = list(model.fc.parameters())
    body = [parameter for name, parameter in model.named_parameters() if not name.startswith("fc.")]
    return [{"params": body, "lr": settings.body_lr or settings.lr}, {"params": head}]


def positive_weight(train: LabelledImages, settings: Classifier) -> torch.Tensor | None:
    if not settings.balance:
        return None
    positives = train.labels.sum()
    return (len(train.labels) - positives) / positives
