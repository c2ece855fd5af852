"""CPU seconds of a training step, as ratios of before to after each change, with the difference of the losses.

    python code/benchmarks/training_step.py [--rounds 5] [--steps 4] [--size 128] [--depth 18] [--model demo]

One thread's CPU seconds, in one process: the variants take turns, each going on from the same weights over the same
batches, so that their losses must be equal but for rounding. Ratios are medians over the rounds.

allocator   glibc keeps what is freed (epsam.runtime.allocator) against its own defaults
fused       the optimiser's update in one kernel
padding     convolutions that reflect pad in bfloat16, against torch's own, which autocast has pad in float32
contiguous  the layout in memory that the decoder's transformer and its upscaling go through in order
bfloat16    the decoder in bfloat16, where the CPU has instructions for it; else left out
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from epsam.classifier.building import build_classifier
from epsam.classifier.padding import ReflectingConv2d
from epsam.classifier.train_step import LabelLoss, TrainStep
from epsam.config.schema import Classifier
from epsam.runtime.allocator import M_MMAP_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory, set_options
from epsam.runtime.device import choose_hardware
from epsam.sam.checkpoint import build_sam
from epsam.sam.decoder import decode_batch
from epsam.sam.losses import dice_loss, iou_loss

GLIBC = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}
"""What glibc's thresholds grow to by themselves."""
TOLERANCE = 2e-2
"""Of a loss after some steps, relative to the loss: bfloat16 and Adam enlarge what rounding begins with."""

Steps = Callable[[set[str]], Callable[[], float]]
"""From the names of the changes to a step, which returns its loss; starts at the first weights."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="side of the classifier's patches, px")
    parser.add_argument("--depth", type=int, choices=[18, 34, 50], default=18)
    parser.add_argument("--model", choices=["demo", "vit_b"], default="demo", help="whose decoder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    has_bfloat16 = choose_hardware("cpu").precision == torch.bfloat16
    compare(
        f"classifier, ResNet-{arguments.depth}, 16 patches of {arguments.size} px",
        classifier_steps(arguments.depth, arguments.size),
        ("allocator", "fused", "padding"),
        arguments,
    )
    compare(
        f"decoder of {arguments.model}, 16 patches",
        decoder_steps(arguments.model),
        ("allocator", "fused", "contiguous", *(["bfloat16"] if has_bfloat16 else [])),
        arguments,
    )


def compare(title: str, steps: Steps, changes: tuple[str, ...], arguments: argparse.Namespace) -> None:
    """Print milliseconds, ratio and difference of the losses of each change alone and of all."""
    variants = {"before": set(), **{change: {change} for change in changes}, "all": set(changes)}
    seconds = {name: [] for name in variants}
    losses = {}
    for _ in range(arguments.rounds):
        for name, chosen in variants.items():
            keep_freed_memory() if "allocator" in chosen else set_options(GLIBC)
            step = steps(chosen)
            losses[name] = [step()]  # warm
            began = time.process_time()
            losses[name] += [step() for _ in range(arguments.steps)]
            seconds[name].append((time.process_time() - began) / arguments.steps)
    print(f"\n{title}, {torch.get_num_threads()} thread")
    for name in variants:
        ratio = statistics.median(a / b for a, b in zip(seconds["before"], seconds[name], strict=True))
        apart = max(abs(a - b) / abs(a) for a, b in zip(losses["before"], losses[name], strict=True))
        print(
            f"{name:10} {1e3 * statistics.median(seconds[name]):7.1f} ms/step   {ratio:.2f} times faster   "
            f"losses apart by {apart:.1e} of the loss{'' if apart < TOLERANCE else ', TOO MUCH'}"
        )


def classifier_steps(depth: int, size: int, batch: int = 16) -> Steps:
    """Steps of the classifier on random patches."""
    hardware = choose_hardware("cpu")
    torch.manual_seed(0)
    settings = Classifier(depth=depth, adl=False, padding="reflect")
    model = build_classifier(settings).to(memory_format=hardware.memory_format)
    padded = [module for module in model.modules() if isinstance(module, ReflectingConv2d)]
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, labels = torch.rand(batch, 3, size, size), torch.tensor([0.0, 1.0]).repeat(batch // 2)

    def start(changes: set[str]) -> Callable[[], float]:
        model.load_state_dict(first)
        for module in padded:
            module.padding_mode = "reflect"
            module.__class__ = ReflectingConv2d if "padding" in changes else torch.nn.Conv2d
        optimiser = torch.optim.Adam(
            model.parameters(), settings.lr, weight_decay=settings.weight_decay, fused="fused" in changes
        )
        learner = TrainStep(model, optimiser, LabelLoss(None), hardware)
        return lambda: learner.step(images, labels)

    return start


def decoder_steps(model: str, batch: int = 16) -> Steps:
    """Steps of SAM's decoder on random embeddings with ten points each."""
    torch.manual_seed(0)
    sam = build_sam(model).requires_grad_(False)
    decoder = sam.mask_decoder.requires_grad_(True)
    first = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    parts = [(part, dict(part._forward_pre_hooks)) for part in (decoder.transformer, decoder.output_upscaling)]
    side, input_px = (
        sam.image_encoder.img_size // sam.image_encoder.patch_embed.proj.stride[0],
        sam.image_encoder.img_size,
    )
    embeddings = torch.randn(batch, sam.prompt_encoder.embed_dim, side, side)
    points, labels = torch.rand(batch, 10, 2) * input_px, torch.ones(batch, 10, dtype=torch.int64)
    target = torch.zeros(batch, 4 * side, 4 * side)
    target[:, side : 2 * side, side : 3 * side] = 1

    def start(changes: set[str]) -> Callable[[], float]:
        decoder.load_state_dict(first)
        for part, hooks in parts:
            part._forward_pre_hooks.clear()
            if "contiguous" in changes:
                part._forward_pre_hooks.update(hooks)
        optimiser = torch.optim.AdamW(decoder.parameters(), 1e-4, fused="fused" in changes)

        def step() -> float:
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in changes):
                logits = decode_batch(sam, embeddings, points, labels)
            probability = logits.sigmoid()
            loss = dice_loss(probability, target, 1) + iou_loss(probability, target, 1)
            loss.backward()
            optimiser.step()
            return loss.item()

        return step

    return start


if __name__ == "__main__":
    main()
