"""Training of the classifier on patch labels (method.md, section 1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from epsam.classifier.backbone import Backbone
from epsam.classifier.batchnorm import recalibrate_batchnorm
from epsam.classifier.building import build_classifier
from epsam.classifier.choosing import map_error
from epsam.classifier.curves import draw_curves
from epsam.classifier.data import PatchImages, as_float, augment, shuffled_batches, split_batches
from epsam.classifier.learner import Learner
from epsam.classifier.pretrained import initialise
from epsam.config import Classifier, Config
from epsam.config_paths import settings_for_weights
from epsam.errors import DataError, EpsamError
from epsam.metrics import accuracy, auc, sensitivity_at_specificity
from epsam.patches import patches_for_classifier
from epsam.results import record_results
from epsam.runtime.checkpoints import save_weights
from epsam.runtime.device import Hardware
from epsam.runtime.finite import check_finite
from epsam.runtime.fitting import fit, load_tensors
from epsam.runtime.log import logger, progress
from epsam.runtime.memory import peak_memory_mib
from epsam.runtime.seeds import seed_of
from epsam.workspace import SPLITS, Workspace


@dataclass(frozen=True)
class LabelledImages:
    """Images of a split with their labels."""

    images: PatchImages
    labels: torch.Tensor
    """(N,) float32, 1 for tumour."""


def train_classifier(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: train on the labels of the train split, keep the best epoch (`select_on`), and measure it.

    Writes the weights, runs/<name>/classifier_curves.csv and .png, and results of val and test. Goes on from
    the last whole epoch after a stop, to the same result (on a GPU but for its rounding). Raises DataError
    for a split of one class or patches of unequal size, EpsamError when the loss is not finite.
    """
    settings = config.classifier
    train, val, test = (load_labelled(workspace, split, config.worker_count) for split in SPLITS)
    torch.manual_seed(seed_of(settings.seed, "classifier"))
    model = build_classifier(settings)
    initialise(model, settings.init, workspace.checkpoints)
    model.to(hardware.device, memory_format=hardware.memory_format)
    optimiser = torch.optim.Adam(
        _parameter_groups(model, settings), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, settings.lr_step, settings.lr_gamma)
    on_masks = settings.select_on == "val_masks"
    logger.info(f"classifier: the best epoch is chosen on the {'true masks' if on_masks else 'labels'} of the val split")
    learner = Learner(model, optimiser, _positive_weight(train, settings), hardware)

    def run_epoch(epoch: int) -> dict[str, float]:
        loss = _train_epoch(learner, train, config, epoch)
        schedule.step()
        recalibrate_batchnorm(model, train.images, settings, hardware, epoch, config.worker_count)
        logits = predict_logits(model, val.images, hardware, config.worker_count)
        val_loss = learner.loss(logits, val.labels).item()
        figures = {"train_loss": loss, "val_loss": val_loss, "val_auc": auc(val.labels.numpy(), logits.numpy())}
        return figures | ({"val_map_error": map_error(model, config, workspace, hardware)} if on_masks else {})

    best, curves = workspace.state / "classifier_best.pth", workspace.run / "classifier_curves.csv"
    done = fit(
        "classifier", run_epoch, {"model": model, "optimiser": optimiser, "schedule": schedule}, model.state_dict,
        epochs=settings.epochs, early_stop=settings.early_stop, state=workspace.state / "classifier.pth",
        best=best, curves=curves, score="val_map_error" if on_masks else "val_loss",
    )
    draw_curves(curves.with_suffix(".png"), done)
    model.load_state_dict(load_tensors(best))
    save_weights(workspace.classifier, model.state_dict(), settings_for_weights(config))
    logger.info(f"classifier: peak memory {peak_memory_mib(str(hardware.device)):.0f} MiB")
    record_results(workspace, "train-classifier", [
        {"split": split, "method": "classifier"} | figures(model, labelled, hardware, config.worker_count)
        for split, labelled in (("val", val), ("test", test))
    ])


def load_labelled(workspace: Workspace, split: str, workers: int) -> LabelledImages:
    """Images and labels of a split. Raises DataError when one of the two classes is missing."""
    patches = patches_for_classifier(workspace, split)
    labels = torch.tensor([float(patch.label) for patch in patches])
    positives = int(labels.sum())
    if positives in (0, len(patches)):
        found, missing = ("positive", "_0.png") if positives else ("negative", "_1.png")
        raise DataError(f"{workspace.split(split)}/image: all {len(patches)} patches are {found}; the classifier "
                        f"needs both classes, so add patches whose names end in {missing}")
    logger.info(f"classifier: {split} has {positives} positive, {len(patches) - positives} negative patches")
    return LabelledImages(PatchImages(patches, workers), labels)


def predict_logits(model: Backbone, images: PatchImages, hardware: Hardware, workers: int = 0) -> torch.Tensor:
    """Logits (N,) float32 on the CPU, in the order of `images`, in evaluation mode."""
    model.eval()
    batches = split_batches(len(images), hardware.classifier_batch)
    with torch.inference_mode(), hardware.autocast():
        return torch.cat([
            model(as_float(batch, hardware.device)).float().cpu() for _, batch in images.batches(batches, workers)
        ])


def figures(model: Backbone, labelled: LabelledImages, hardware: Hardware, workers: int = 0) -> dict[str, float]:
    """AUC, accuracy at probability 0.5, sensitivity at 90 % specificity, and the number of patches."""
    logits = predict_logits(model, labelled.images, hardware, workers).numpy()
    check_finite(logits, labelled.images.names, "the classifier's logits")
    labels = labelled.labels.numpy()
    return {"auc": auc(labels, logits), "accuracy": accuracy(labels, logits, 0.0),
            "sensitivity_at_90_specificity": sensitivity_at_specificity(labels, logits, 0.9), "patches": len(labels)}


def _train_epoch(learner: Learner, train: LabelledImages, config: Config, epoch: int) -> float:
    """One pass over the patches; returns the mean loss."""
    settings = config.classifier
    learner.model.seed_adl(settings.seed, "adl", epoch)
    learner.model.train()
    names = train.images.names
    batches = shuffled_batches(len(names), settings.batch, settings.seed, "order", epoch)
    total = 0.0
    bar = progress(train.images.batches(batches, config.worker_count), total=len(batches),
                   desc=f"classifier, epoch {epoch}", unit="batch")
    for indices, images in bar:
        batch_names = [names[index] for index in indices]
        inputs = as_float(images, learner.hardware.device)
        inputs = augment(inputs, batch_names, settings.augment, settings.seed, epoch)
        loss = learner.step(inputs, train.labels[indices])
        if not math.isfinite(loss):
            raise EpsamError(f"classifier, epoch {epoch}: the loss is {loss} on the batch {_shown(batch_names)}; the "
                             "state of the last whole epoch is kept. Look at these patches, or lower classifier.lr "
                             "with --from train-classifier")
        total += loss * len(indices)
    return total / len(names)


def _parameter_groups(model: Backbone, settings: Classifier) -> list[dict[str, Any]]:
    """The layers before the last one, with a learning rate of their own, and the last one."""
    head = list(model.fc.parameters())
    body = [parameter for name, parameter in model.named_parameters() if not name.startswith("fc.")]
    return [{"params": body, "lr": settings.body_lr or settings.lr}, {"params": head}]


def _positive_weight(train: LabelledImages, settings: Classifier) -> torch.Tensor | None:
    if not settings.balance:
        return None
    positives = train.labels.sum()
    return (len(train.labels) - positives) / positives


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
