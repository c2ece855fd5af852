"""Train the demo's SAM from scratch on drawn pictures: `python -m demo_sam.train` in code/tools, about 45 minutes on 2 CPU cores.

1. The encoder alone: positions of the same region shall be alike, those of different regions shall not.
2. The decoder alone, on the frozen encoder's outputs; its view of the image predicts the mask as well. Trained
   from scratch together with the encoder, it ignores its prompts for a long time.
3. Both together, at a low rate.
4. Both on pictures that have bands of fibres across their regions: context decides.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor, nn

from demo_sam.initialisation import initial_sam
from demo_sam.measuring import measure
from demo_sam.samples import Batch, Examples, draw_batch, load_examples
from epsam.runtime.checkpoints import load_tensors, save_tensors
from epsam.runtime.device import Hardware, choose_hardware
from epsam.runtime.log import logger, progress, set_up_logging
from epsam.runtime.seeds import generator, seed_of
from epsam.runtime.training_loop import run
from epsam.sam.demo_model import WIDTH


@dataclass(frozen=True)
class Stage:
    """One part of the training; its state is kept after each epoch."""

    name: str
    epochs: int
    steps: int
    """Optimiser steps of one epoch."""
    batch: int
    lr: float
    strands: bool = False
    """Whether bands of fibres run across the regions of its pictures."""


STAGES = (
    Stage("encoder", 20, 100, 12, 1.5e-3),
    Stage("decoder", 12, 100, 32, 1e-3),
    Stage("both", 12, 100, 8, 5e-4),
    Stage("context", 12, 100, 8, 4e-4, strands=True),
)


COMPARED = 256
"""Positions of each image whose likeness is learnt in a step; all pairs of a thousand would cost more than encoding."""


class Likeness(nn.Module):
    """How surely two positions belong to one region, judged by the angle between their embeddings."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (N, P, P) of all pairs of positions from their embeddings (N, C, P)."""
        features = F.normalize(embeddings, dim=1)
        return self.scale * (features.mT @ features - self.threshold)


def region_shares(regions: Tensor, side: int) -> Tensor:
    """Share (N, R, side * side) of each cell that lies in each of R regions; `regions` (N, S, S) are their numbers."""
    shares = F.one_hot(regions.long()).permute(0, 3, 1, 2).float()
    return F.adaptive_avg_pool2d(shares, side).flatten(2)


@functools.cache
def cpu() -> Hardware:
    """The CPU, in the best precision it has."""
    return choose_hardware("cpu")


def encode(sam: Sam, images: Tensor) -> Tensor:
    """Embeddings (N, C, h, w) float of images (N, 3, INPUT_PX, INPUT_PX) uint8."""
    with cpu().autocast():
        return sam.image_encoder(sam.preprocess(images)).float()


def decode(sam: Sam, embeddings: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Mask logits (N, 4h, 4w), predicted IoU (N,) and the decoder's view of the image (N, hw, C).

    Unlike in `epsam.sam.decoder.decode_batch`, gradients reach everything.
    """
    points = None if batch.points is None else (batch.points, torch.ones(batch.points.shape[:2]))
    views = []
    hook = sam.mask_decoder.transformer.register_forward_hook(lambda module, given, result: views.append(result[1]))
    with cpu().autocast(), hook:
        sparse, dense = sam.prompt_encoder(points=points, boxes=batch.boxes, masks=None)
        masks, quality = sam.mask_decoder(
            image_embeddings=embeddings.new_zeros(1, embeddings.shape[1], 1, 1),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense + embeddings,
            multimask_output=False,
        )
    return masks[:, 0].float(), quality[:, 0].float(), views[0].float()


def mask_loss(logits: Tensor, quality: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, soft Dice, and the error of the predicted IoU; `target` (N, h, w) is each cell's share of mask."""
    share = logits.sigmoid()
    overlap = (share * target).sum((1, 2))
    total = share.sum((1, 2)) + target.sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    with torch.no_grad():
        guess, truth = logits > 0, target > 0.5
        iou = (guess & truth).sum((1, 2)) / (guess | truth).sum((1, 2)).clamp(min=1)
    return F.binary_cross_entropy_with_logits(logits, target) + dice.mean() + 0.1 * F.mse_loss(quality, iou)


def shrink(masks: Tensor, side: int) -> Tensor:
    """Masks (N, H, W) bool to each cell's share of mask (N, side, side) float."""
    return F.adaptive_avg_pool2d(masks[:, None].float(), side)[:, 0]


def train(work: Path, out: Path, seed: int, images: int, stages: Sequence[Stage] = STAGES) -> None:
    """Run the stages, continuing after the last complete epoch in `work`; the weights go to `out` (float16)."""
    sam, weights = initial_sam(seed), None
    for stage in stages:
        best, kind = work / f"{stage.name}.pth", "_strands" if stage.strands else ""
        training, held_out = (
            load_examples(
                work / f"{purpose}_{seed}_{images}{kind}.npz", count, purpose.replace("_", " "), seed, stage.strands
            )
            for purpose, count in (("training", images), ("held_out", max(8, images // 24)))
        )
        if weights is not None:
            sam.load_state_dict(load_tensors(weights))
        _train_stage(sam, stage, training, held_out, work, best, seed)
        weights = best
        save_tensors(out, {name: value.half() for name, value in load_tensors(best).items()})
        logger.info(f"{out}: weights after stage {stage.name}")


def _train_stage(sam: Sam, stage: Stage, training: Examples, held_out: Examples, work: Path, best: Path, seed: int):
    torch.manual_seed(seed_of("demo sam", seed, stage.name))
    likeness, readout = Likeness(), nn.Linear(WIDTH, 1)
    learning = {
        "encoder": [sam.image_encoder, likeness],
        "decoder": [sam.prompt_encoder, sam.mask_decoder, readout],
    }.get(stage.name, [sam])
    optimiser = torch.optim.AdamW([p for part in learning for p in part.parameters()], lr=stage.lr, weight_decay=1e-2)
    total = stage.epochs * stage.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * min(step / total, 1)))
    )
    encode_once = functools.cache(functools.partial(_encode_all, sam))

    def loss_of(examples: Examples, batch: Batch) -> Tensor:
        if stage.name == "encoder":
            embeddings = encode(sam, batch.images)
            compared = torch.randperm(embeddings[0, 0].numel())[:COMPARED]
            shares = region_shares(batch.regions, embeddings.shape[-1])[..., compared]
            # The chance that a pixel of one cell and a pixel of the other lie in one region.
            return F.binary_cross_entropy_with_logits(
                likeness(embeddings.flatten(2)[..., compared]), shares.mT @ shares
            )
        frozen = stage.name == "decoder"
        embeddings = encode_once(examples)[batch.rows].float() if frozen else encode(sam, batch.images)
        logits, quality, view = decode(sam, embeddings[batch.owners], batch)
        loss = mask_loss(logits, quality, shrink(batch.masks, logits.shape[-1]))
        if frozen:
            coarse = shrink(batch.masks, embeddings.shape[-1]).flatten(1)
            loss = loss + F.binary_cross_entropy_with_logits(readout(view)[..., 0], coarse)
        return loss

    def run_epoch(epoch: int) -> dict[str, float]:
        rng = generator("demo sam", seed, stage.name, epoch)
        losses = []
        for _ in progress(range(stage.steps), desc=f"{stage.name} {epoch}/{stage.epochs}", unit="step"):
            batch = draw_batch(
                training,
                stage.batch,
                rng,
                prompts=1 if stage.name == "decoder" else 3,
                turned=stage.name != "decoder",
                boxes=stage.name != "encoder",
            )
            loss = loss_of(training, batch)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for part in learning for p in part.parameters()], 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        return {"train_loss": sum(losses) / len(losses), "val_loss": _validate(loss_of, held_out)}

    with _same_every_time():
        run(
            f"demo SAM, {stage.name}",
            run_epoch,
            {"sam": sam, "likeness": likeness, "readout": readout, "optimiser": optimiser, "schedule": schedule},
            sam.state_dict,
            epochs=stage.epochs,
            early_stop=stage.epochs,
            state=work / f"{stage.name}_state.pth",
            best=best,
            curves=work / f"{stage.name}_curves.csv",
        )


@contextmanager
def _same_every_time() -> Iterator[None]:
    """Add up the gradients of indexing in a fixed order: threads do not, and a training that went on would end apart."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _validate(loss_of: Callable[[Examples, Batch], Tensor], held_out: Examples) -> float:
    """Mean loss with 8 points, the same ones each time."""
    rng = generator("demo sam", "validation")
    with torch.no_grad():
        batches = [draw_batch(held_out, rows, rng, points=8) for rows in torch.arange(len(held_out.images)).split(64)]
        return sum(loss_of(held_out, batch).item() for batch in batches) / len(batches)


@torch.no_grad()
def _encode_all(sam: Sam, examples: Examples) -> Tensor:
    images = torch.from_numpy(examples.images)
    bar = progress(images.split(64), desc="encoder outputs", unit="batch")
    return torch.cat([encode(sam, part.permute(0, 3, 1, 2)).half() for part in bar])


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("checkpoints/sam_demo.pth"), show_default=True)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("runs/sam_demo"),
    show_default=True,
    help="Drawn images and the state from which a stopped training continues.",
)
@click.option("--images", type=click.IntRange(64), default=6000, show_default=True, help="Images drawn for training.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--measure", "measuring", is_flag=True, help="Measure the weights at --out instead of training.")
@click.option(
    "--pairs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="Also measure on this folder: images/ and masks/ (or image/ and mask/), PNGs of the same names.",
)
def main(out: Path, work: Path, images: int, seed: int, measuring: bool, pairs: tuple[Path, ...]) -> None:
    set_up_logging()
    if not measuring:
        train(work, out, seed, images)
    measure(out, pairs)


if __name__ == "__main__":
    main()
