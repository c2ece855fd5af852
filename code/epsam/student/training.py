"""The student's training: loss, one epoch, validation, the best epoch."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from epsam.classifier.augmentation import augment_with_masks
from epsam.classifier.batchnorm import recalibrate_batchnorm
from epsam.classifier.data import as_float, shuffled_batches, split_batches
from epsam.classifier.shared_batchnorm import share_batchnorm
from epsam.classifier.train_step import TrainStep
from epsam.config.paths import settings_for_weights
from epsam.config.schema import Config
from epsam.errors import EpsamError
from epsam.models.initial import initial_model
from epsam.patches.resolution import patch_mpp
from epsam.runtime.checkpoints import load_tensors, save_weights
from epsam.runtime.device import Hardware
from epsam.runtime.files import read_mask
from epsam.runtime.log import logger, progress
from epsam.runtime.seeds import seed_of
from epsam.runtime.training_loop import dice_name, run
from epsam.student.data import SegmentationData, targets_of
from epsam.student.labels import LEFT_OUT, read_label
from epsam.student.network import Student, build_student, load_student
from epsam.workspace import Workspace

SMOOTH = 1.0
"""Pixels added to both parts of the soft Dice."""
WEIGHT_DECAY = 1e-2
RECALIBRATION_BATCHES = 16
"""Batches for the statistics of batch normalisation, which lag behind the weights in short trainings."""
WARM_UP = 0.15
"""Share of the steps in which the learning rate rises."""


def train_student(
    config: Config,
    workspace: Workspace,
    hardware: Hardware,
    name: str,
    labels: dict[str, Path],
    path: Path,
    *,
    on_true_masks: bool = False,
) -> None:
    """Train a student on the masks of `labels` (folders of train and val) and write the one best on val to `path`.

    `name` names the training state to go on from, runs/<name>/state/<name>.pth, and the curves.
    `on_true_masks`: the labels are true masks, not predicted ones. Raises DataError when
    masks are missing or all empty, EpsamError when the loss is not finite.
    """
    read = read_mask if on_true_masks else read_label
    data = {
        split: SegmentationData(targets_of(workspace, split, folder, read), config.worker_count, read)
        for split, folder in labels.items()
    }
    for split, one in data.items():
        normal = sum(target.mask is None for target in one.targets)
        logger.info(f"{name}: {split} has {len(one) - normal} patches with tumour, {normal} normal ones")
    training = StudentTraining(config, workspace, hardware, name, data, dice_name(on_true_masks))
    best = workspace.state / f"{name}_best.pth"
    run(
        name,
        training.run_epoch,
        {
            "model": training.model,
            "optimiser": training.optimiser,
            "schedule": training.schedule,
            "learner": training.learner,
        },
        training.model.state_dict,
        epochs=config.student.epochs,
        early_stop=config.student.early_stop,
        state=workspace.state / f"{name}.pth",
        best=best,
        curves=workspace.run / f"{name}_curves.csv",
        ranks=hardware.ranks,
    )
    mpp = patch_mpp(workspace)
    hardware.ranks.decide(lambda: save_weights(path, load_tensors(best), settings_for_weights(config, mpp), mpp=mpp))


class StudentTraining:
    """One training of a student: network, data, optimiser, schedule (one cycle, Smith & Topin 2019)."""

    def __init__(
        self,
        config: Config,
        workspace: Workspace,
        hardware: Hardware,
        name: str,
        data: dict[str, SegmentationData],
        score: str,
    ):
        hardware = dataclasses.replace(hardware, classifier_batch=hardware.student_batch)
        self.score = score  # name of the Dice with the labels of the val split
        self.config, self.settings, self.hardware, self.name = config, config.student, hardware, name
        self.train, self.val = data["train"], data["val"]
        torch.manual_seed(seed_of(self.settings.seed, "student"))
        self.model = first_student(config, workspace)
        self.model.to(hardware.device).to(memory_format=hardware.memory_format)
        self.model = share_batchnorm(self.model, hardware.ranks, hardware.device)
        rates = [self.settings.trunk_lr, self.settings.lr]
        groups = [{"params": parameters} for parameters in _parameter_groups(self.model)]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
        steps = self.settings.epochs * len(self._shuffled(1))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, rates, steps, pct_start=WARM_UP)
        self.loss = partial(segmentation_loss, normal_weight=self.settings.normal_weight)
        self.learner = TrainStep(self.model, self.optimiser, self.loss, hardware, name, self.settings.batch)
        self.learner.log(self.settings.batch)

    def run_epoch(self, epoch: int) -> dict[str, float]:
        """Train and validate once; figures for the curves."""
        loss = self._train_epoch(epoch)
        threads, settings = self.config.worker_count, self.config.classifier
        recalibrate_batchnorm(
            self.model,
            self.train.images,
            settings,
            self.learner.hardware,
            epoch,
            threads,
            RECALIBRATION_BATCHES,
            self.learner.micro_batch.size,
        )
        return {"train_loss": loss, **self._validate(), "lr": float(self.schedule.get_last_lr()[1])}

    def _shuffled(self, epoch: int) -> list[list[int]]:
        return shuffled_batches(len(self.train), self.settings.batch, self.settings.seed, "student order", epoch)

    def _train_epoch(self, epoch: int) -> float:
        """One pass over the patches; the mean loss."""
        self.model.train()
        batches, total = self._shuffled(epoch), 0.0
        shares = [self.learner.share(batch) for batch in batches]
        bar = progress(
            self.train.batches([share.indices for share in shares], self.config.worker_count),
            total=len(batches),
            desc=f"{self.name}, epoch {epoch}",
            unit="batch",
        )
        for batch, share, (indices, images, masks) in zip(batches, shares, bar, strict=True):
            names = [self.train.names[index] for index in indices]
            inputs = as_float(images, self.hardware.device)
            targets = masks.to(self.hardware.device).float()
            seed = (self.settings.seed, "student", epoch)
            if names:
                inputs, targets = augment_with_masks(inputs, targets, names, self.config.classifier.augment, *seed)
            loss = self.learner.step(inputs, targets, share)
            if not math.isfinite(loss):
                raise EpsamError(
                    f"{self.name}, epoch {epoch}: the loss is {loss} on the batch of {self.train.names[batch[0]]}; "
                    "the state of the last complete epoch is kept. Lower student.lr with --from distill"
                )
            self.schedule.step()
            total += loss * len(batch)
        return total / len(self.train)

    def _validate(self) -> dict[str, float]:
        """Mean loss over the val patches, and the Dice of all their pixels together, without those left out."""
        self.model.eval()
        loss, both, either = 0.0, 0, 0
        for logits, targets in self._predictions():
            loss += self.loss(logits, targets).item() * len(targets)
            tumour, true = (logits > 0) & (targets != LEFT_OUT), targets == 1
            both += int((tumour & true).sum())
            either += int(tumour.sum() + true.sum())
        loss, both, either = (
            sum(parts) for parts in zip(*self.hardware.ranks.gather((loss, both, either)), strict=True)
        )
        return {"val_loss": loss / len(self.val), self.score: 2 * both / either if either else 1.0}

    @torch.no_grad()
    def _predictions(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits and targets (N, H, W) of the val patches."""
        batches = split_batches(len(self.val), self.learner.hardware.classifier_batch)
        for _, images, masks in self.val.batches(self.hardware.ranks.part(batches), self.config.worker_count):
            with self.learner.hardware.autocast():
                logits = self.model(as_float(images, self.hardware.device))
            yield logits, masks.to(self.hardware.device).float()


def first_student(config: Config, workspace: Workspace) -> Student:
    """The student before its first step: that of `init_from`, or one on the trunk of the run's classifier."""
    initial = initial_model(config, workspace)
    if initial and initial.student:
        logger.info(f"student: starts from {initial.student}")
        return load_student(config.classifier, initial.student)
    return build_student(config.classifier, workspace.classifier)


def segmentation_loss(logits: torch.Tensor, targets: torch.Tensor, normal_weight: float = 1.0) -> torch.Tensor:
    """Mean over patches of cross-entropy plus, where there is tumour, soft Dice; logits and targets (N, H, W) float32.

    Targets are 0, 1 and LEFT_OUT, whose pixels count in neither. What a patch without tumour adds is `normal_weight` times as
    much.

    Binary cross-entropy averaged over the pixels; 1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s), s = SMOOTH (Milletari et
    al., 3DV 2016, without the squares). The sum is nnU-Net's (Isensee et al., Nat. Methods 18, 2021). On an empty
    mask soft Dice says nothing of how far a prediction is from empty, so cross-entropy alone counts there.
    """
    known, targets = (targets != LEFT_OUT).float(), (targets == 1).float()
    probabilities = logits.sigmoid() * known
    entropy = binary_cross_entropy_with_logits(logits, targets, known, reduction="none").sum(dim=(1, 2))
    entropy = entropy / known.sum(dim=(1, 2)).clamp_min(1)
    overlap, true = (probabilities * targets).sum(dim=(1, 2)), targets.sum(dim=(1, 2))
    dice = (2 * overlap + SMOOTH) / (probabilities.sum(dim=(1, 2)) + true + SMOOTH)
    return torch.where(true > 0, entropy + 1 - dice, normal_weight * entropy).mean()


def _parameter_groups(model: Student) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The trunk, which is trained already, and the decoder."""
    trunk = list(model.trunk.parameters())
    return trunk, [p for name, p in model.named_parameters() if not name.startswith("trunk.")]
