"""Training of SAM's mask decoder."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch.nn.functional import binary_cross_entropy_with_logits

from epsam.config.paths import settings_for_weights
from epsam.errors import DataError
from epsam.patches.resolution import patch_mpp
from epsam.runtime.checkpoints import load_tensors, save_weights
from epsam.runtime.device import name_of
from epsam.runtime.log import logger, progress
from epsam.runtime.memory import BatchSize
from epsam.runtime.precision import PrecisionName, resumed_precision
from epsam.runtime.training_loop import dice_name, run
from epsam.sam.checkpoint import decoder_weights
from epsam.sam.decoder import predict_masks
from epsam.sam.embeddings import Embeddings, reading_threads
from epsam.sam.encoder import encoder_hash
from epsam.sam.labels import with_labels, with_true_masks
from epsam.sam.losses import dice_loss, iou_loss
from epsam.sam.samples import (
    Batches,
    LabelledExample,
    LabelledSample,
    LabelledSamples,
    by_size,
    load_batches,
)
from epsam.sam.session import SamSession


def train_supervised(session: SamSession) -> None:
    """Train the original decoder on the true masks of the train split: the upper bound of the method.

    The settings are those of a round; the best epoch is chosen by the true masks of the val split. Writes
    workspace.decoder("supervised"). Raises DataError when true masks are missing.
    """
    workspace = session.workspace
    train = with_labels(session.examples("train"), workspace.split("train") / "mask")
    val = with_true_masks(session)
    train_decoder(session, "supervised", train, val, workspace.decoder("supervised"), supervised=True)


def train_decoder(
    session: SamSession,
    name: str,
    train: Sequence[LabelledExample],
    val: Sequence[LabelledExample],
    path: Path,
    *,
    supervised: bool = False,
) -> None:
    """Train SAM's original decoder, or that of `init_from`, on `train` and write the one that is best on `val` to `path`.

    With `finetune.normal_weight` normal patches, which it learns to leave empty, take part in both.
    `name` (`round0`, ...) names the training state to go on from, runs/<name>/state/<name>.pth, and the curves.
    `supervised`: the masks of `val` are true ones, whatever finetune.select_on says.
    """
    config, workspace = session.config, session.workspace
    settings = config.finetune
    on_true_masks = supervised or settings.select_on == "val_masks"
    normal = {
        split: [LabelledExample.of(e, None) for e in session.normal_examples(split)] for split in ("train", "val")
    }
    logger.info(
        f"{name}: {_counted(train, normal['train'])} training patches, {_counted(val, normal['val'])} validation patches; "
        "the best epoch is chosen by "
        f"{'true' if on_true_masks else 'pseudo'} masks of the val split"
    )
    session.use_initial_decoder()
    trainer = DecoderTraining(
        session, name, [*train, *normal["train"]], [*val, *normal["val"]], dice_name(on_true_masks)
    )
    state, best = workspace.state / f"{name}.pth", workspace.state / f"{name}_best.pth"
    run(
        name,
        trainer.run_epoch,
        {
            "decoder": session.sam.mask_decoder,
            "optimizer": trainer.optimizer,
            "schedule": trainer.schedule,
            "trainer": trainer,
        },
        lambda: decoder_weights(session.sam),
        epochs=settings.epochs,
        early_stop=settings.early_stop,
        state=state,
        best=best,
        curves=workspace.run / f"{name}_curves.csv",
        ranks=session.hardware.ranks,
    )
    session.sam.mask_decoder.requires_grad_(False)
    mpp, encoder = patch_mpp(workspace), encoder_hash(session.sam)
    settings_of_weights = settings_for_weights(config, mpp)
    session.hardware.ranks.decide(lambda: save_weights(path, load_tensors(best), settings_of_weights, encoder, mpp))


def _counted(positive: Sequence[LabelledExample], normal: Sequence[LabelledExample]) -> str:
    return f"{len(positive)} + {len(normal)} normal" if normal else str(len(positive))


class DecoderState(BaseModel):
    """How steps were computed, in the state that a training continues from."""

    model_config = ConfigDict(extra="forbid", strict=True)

    precision: PrecisionName


class DecoderTraining:
    """One training of the decoder that is in the session's SAM: data, optimiser, schedule."""

    def __init__(
        self,
        session: SamSession,
        name: str,
        train: Sequence[LabelledExample],
        val: Sequence[LabelledExample],
        score: str,
    ):
        self.score = score  # name of the Dice with the masks of `val`
        config, self.ranks = session.config, session.hardware.ranks
        self.sam, self.hardware, self.settings, self.name = session.sam, session.hardware, config.finetune, name
        parameters = list(self.sam.mask_decoder.requires_grad_(True).parameters())
        self.optimizer = torch.optim.AdamW(
            parameters, self.settings.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.settings.epochs)
        self.part = BatchSize(f"{name}, decoder", self.hardware.decoder_batch)
        self.threads = reading_threads(config, self.hardware)
        self.embeddings = session.embeddings("train")
        self.val_embeddings = session.embeddings("val")
        self.batches = Batches(len(train), self.settings.batch, self.settings.seed)
        self.train = LabelledSamples(train, self.embeddings, config, "train", augmented=True)
        self.val = LabelledSamples(val, self.val_embeddings, config, "val")
        self.val_batches = Batches(len(val), self.hardware.decoder_batch)

    def state_dict(self) -> dict[str, Any]:
        """The precision of the steps, for the state of the training."""
        return {"precision": name_of(self.hardware.precision)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on in the precision of a state, see `resumed_precision`. Raises ValueError for another state."""
        own = self.hardware.precision
        precision = resumed_precision(self.name, DecoderState.model_validate(saved).precision, own)
        if precision != own:
            logger.info(
                f"{self.name}: going on in {name_of(precision)}, as before the stop; this device would take {name_of(own)}"
            )
            self.hardware = dataclasses.replace(self.hardware, precision=precision)

    def run_epoch(self, epoch: int) -> dict[str, float]:
        """Train and validate once; figures for the curves."""
        rate = float(self.schedule.get_last_lr()[0])
        loss = self.train_epoch(epoch)
        self.schedule.step()
        return {"train_loss": loss, **self._validate(), "lr": rate}

    def train_epoch(self, epoch: int) -> float:
        """One step per batch of all training patches, at the schedule's present rate; the mean loss."""
        self.batches.draw = epoch
        bar = progress(
            load_batches(self.train, map(self.ranks.part, self.batches), self.threads),
            total=len(self.batches),
            desc=f"{self.name} epoch {epoch}",
            unit="batch",
        )
        losses = self.ranks.gather_list(
            loss for batch in bar for loss in self._step([sample for sample in batch if not sample.prompts.is_empty])
        )
        if not losses:
            raise DataError(f"{self.name}: no training patch gives a prompt; see prompts.kind and prompts.min_box_px")
        return float(np.mean(losses))

    def _step(self, batch: list[LabelledSample]) -> list[float]:
        """One step of the optimiser on the `batch` of all processes; the losses of this one's patches."""
        if self.ranks.count > 1:
            return self._shared_step(batch)
        if not batch:
            return []
        losses = self.part.run(lambda part: self._accumulate(batch, part, len(batch)))
        self.optimizer.step()
        return losses

    def _shared_step(self, batch: list[LabelledSample]) -> list[float]:
        most = self.settings.batch
        losses = self.part.run(lambda part: self._accumulate(batch, part, most))
        parameters = list(self.sam.mask_decoder.parameters())
        (whole,) = self.ranks.sum_gradients(parameters, len(batch))
        if whole:  # fewer than `most` in the last batch, and where patches have no prompts
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad *= most / whole
            self.optimizer.step()
        return losses

    def _accumulate(self, batch: list[LabelledSample], part: int, whole: int) -> list[float]:
        """Gradients of the sum of the losses of `batch` over `whole`, `part` patches at a time."""
        losses = []
        self.optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(batch), part):
            for group in _by_size_and_label(batch[start : start + part]):
                loss = self._loss(self._logits(group, self.embeddings), group)
                (loss * len(group) / whole).backward()
                losses += [loss.item()] * len(group)
        return losses

    def _validate(self) -> dict[str, float]:
        own: list[tuple[float, float | None]] = []
        for batch in load_batches(self.val, self.ranks.part(list(self.val_batches)), self.threads):
            # A normal patch without prompts is empty whatever the decoder learns.
            prompted = [sample for sample in batch if not (_is_normal(sample) and sample.prompts.is_empty)]
            own += self.part.run(partial(self._figures, prompted))
        losses, dices = zip(*self.ranks.gather_list(own), strict=True)
        known = [dice for dice in dices if dice is not None]
        return {"val_loss": float(np.mean(losses)), self.score: float(np.mean(known))}

    @torch.no_grad()
    def _figures(self, batch: list[LabelledSample], part: int) -> list[tuple[float, float | None]]:
        """Loss of each of `batch`, and Dice of those with tumour: the means over those that are decoded at once.

        `part` patches are decoded at a time, normal ones by themselves.
        """
        figures: list[tuple[float, float | None]] = []
        for start in range(0, len(batch), part):
            for group in _by_size_and_label(batch[start : start + part]):
                logits = self._logits(group, self.val_embeddings)
                dice = None if _is_normal(group[0]) else self._dice(logits, group)
                figures += [(self._loss(logits, group).item(), dice)] * len(group)
        return figures

    def _dice(self, logits: torch.Tensor, group: list[LabelledSample]) -> float:
        return 1 - dice_loss((logits > 0).float(), _targets(group, logits)).item()

    def _logits(self, group: list[LabelledSample], embeddings: Embeddings) -> torch.Tensor:
        """Logits (N, H, W) float32 of patches of one size, by the decoder in the device's best precision."""
        inputs = embeddings.batch([sample.item for sample in group])
        with self.hardware.autocast():
            return predict_masks(self.sam, inputs, [sample.prompts for sample in group], group[0].size)

    def _loss(self, logits: torch.Tensor, group: list[LabelledSample]) -> torch.Tensor:
        """Mean loss of patches that all hold tumour or are all normal."""
        if _is_normal(group[0]):  # soft Dice and IoU are flat on an empty mask
            return self.settings.normal_weight * binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
        probability, target, smooth = logits.sigmoid(), _targets(group, logits), self.settings.smooth
        return dice_loss(probability, target, smooth) + iou_loss(probability, target, smooth)


def _is_normal(sample: LabelledSample) -> bool:
    return sample.example.target is None


def _by_size_and_label(batch: list[LabelledSample]) -> list[list[LabelledSample]]:
    """Groups that are decoded at once: of one size, and with one loss."""
    parts = [[sample for sample in batch if _is_normal(sample) is normal] for normal in (False, True)]
    return [group for part in parts for group in by_size(part)]


def _targets(group: list[LabelledSample], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample.target for sample in group])).to(like.device, like.dtype)
