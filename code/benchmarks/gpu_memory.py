"""Peak memory of training and inference on a GPU, estimated without one: GiB of the tensors alive at once.

    python code/benchmarks/gpu_memory.py [--size 512] [--depth 50] [--model vit_b] [--scales 1 2] [PART ...]

PART: classifier, maps, encoder, decoder, student; all by default. Everything is computed on fake tensors (PyTorch's
FakeTensorMode), which have shapes and no values, so it takes seconds. What comes on top on a GPU: the CUDA context (0.3 to
0.5 GiB), workspaces of cuDNN and the rounding of the allocator. Micro-batches of runtime/device.py are chosen by it.
"""

import argparse
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from segment_anything.modeling.image_encoder import Attention
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from epsam.cam.activation import compute_maps
from epsam.classifier.adl import ADL
from epsam.classifier.building import build_classifier
from epsam.config.schema import Classifier
from epsam.sam.attention import attend
from epsam.sam.checkpoint import build_sam
from epsam.sam.losses import dice_loss, iou_loss
from epsam.student.network import build_student
from epsam.student.training import segmentation_loss

GIB = 2**30
BATCH = 16
"""Patches of an optimiser's step."""
POINTS = 10
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Work = Callable[[], object]


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the storages that operations made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, size))
            self.now += size

    def _forget(self, key: int, size: int) -> None:
        if self._alive.pop(key, None) is not None:
            self.now -= size


def peak_gib(prepare: Callable[[], Work]) -> float:
    """GiB alive at once, at most, in the second call of what `prepare` gives: optimisers have their state by then."""
    with FakeTensorMode(allow_non_fake_inputs=True), LiveTensors() as tensors:
        work = prepare()
        work()
        tensors.peak = 0
        work()
        return tensors.peak / GIB


def in_precision(precision: str) -> AbstractContextManager[object]:
    """The autocast that a device of this precision computes under."""
    return nullcontext() if precision == "float32" else torch.autocast("cpu", PRECISIONS[precision])


def train_classifier(options: argparse.Namespace, count: int, precision: str) -> Work:
    """A step of BATCH patches, `count` at a time."""
    model = build_classifier(Classifier(depth=options.depth)).train()
    for module in model.modules():
        if isinstance(module, ADL):
            module.forward = partial(_drop, module)  # of both branches; a fake tensor decides nothing
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    return partial(_train, model, torch.optim.Adam(model.parameters()), loss, (), options.size, count, precision)


def train_student(options: argparse.Namespace, count: int, precision: str) -> Work:
    """A step of BATCH patches, `count` at a time."""
    model = build_student(Classifier(depth=options.depth)).train()
    shape = (options.size, options.size)
    optimiser = torch.optim.AdamW(model.parameters())
    return partial(_train, model, optimiser, segmentation_loss, shape, options.size, count, precision)


def _drop(module: ADL, features: torch.Tensor) -> torch.Tensor:
    return features * module.drop_mask(features.mean(dim=1, keepdim=True))


def _train(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    shape: tuple[int, ...],
    size: int,
    count: int,
    precision: str,
) -> None:
    optimiser.zero_grad(set_to_none=True)
    images, targets = torch.rand(BATCH, 3, size, size), torch.rand(BATCH, *shape)
    for part, expected in zip(images.split(count), targets.split(count), strict=True):
        with in_precision(precision):
            logits = model(part)
        loss(logits.float(), expected).backward()
    optimiser.step()


def make_maps(options: argparse.Namespace, count: int, precision: str) -> Work:
    """Maps of `count` patches, each in four rotations at each of the scales."""
    model = build_classifier(Classifier(depth=options.depth)).eval()

    def work() -> None:
        with in_precision(precision):
            compute_maps(model, torch.rand(count, 3, options.size, options.size), scales=options.scales)

    return work


def run_encoder(options: argparse.Namespace, count: int, precision: str) -> Work:
    """SAM's encoder over `count` patches, with the attention that GPUs use."""
    encoder = build_sam(options.model).requires_grad_(False).image_encoder
    for module in encoder.modules():
        if isinstance(module, Attention) and module.use_rel_pos:
            module.forward = partial(attend, module, in_blocks=False)

    def work() -> None:
        with torch.no_grad(), in_precision(precision):
            encoder(torch.rand(count, 3, encoder.img_size, encoder.img_size)).half()

    return work


def train_decoder(options: argparse.Namespace, count: int, precision: str) -> Work:
    """A step of SAM's decoder on `count` patches with POINTS points each."""
    sam = build_sam(options.model).requires_grad_(False)
    optimiser = torch.optim.AdamW(sam.mask_decoder.requires_grad_(True).parameters())
    channels, side = sam.prompt_encoder.embed_dim, sam.image_encoder.img_size

    def work() -> None:
        # Without the prompt encoder, which picks points by value and is small.
        embeddings = torch.rand(count, channels, side // 16, side // 16, dtype=torch.float16).float()
        with in_precision(precision):
            masks, _ = sam.mask_decoder(
                image_embeddings=torch.zeros(1, channels, 1, 1),
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=torch.rand(count, POINTS + 1, channels),
                dense_prompt_embeddings=embeddings,
                multimask_output=False,
            )
        probability = sam.postprocess_masks(masks.float(), (side, side), (options.size, options.size))[:, 0].sigmoid()
        target = torch.rand(count, options.size, options.size)
        optimiser.zero_grad(set_to_none=True)
        (dice_loss(probability, target, 1) + iou_loss(probability, target, 1)).backward()
        optimiser.step()

    return work


PARTS: dict[str, tuple[Callable[[argparse.Namespace, int, str], Work], tuple[int, ...]]] = {
    "classifier": (train_classifier, (4, 8, 16)),
    "student": (train_student, (4, 8, 16)),
    "maps": (make_maps, (4, 8, 16)),
    "encoder": (run_encoder, (1, 2, 8)),
    "decoder": (train_decoder, (4, 8, 16, 32)),
}
"""What is computed, and for how many patches at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the patches, px")
    parser.add_argument("--depth", type=int, choices=[18, 34, 50], default=50, help="of the classifier")
    parser.add_argument("--model", choices=["vit_b", "vit_l", "vit_h", "demo"], default="vit_b", help="SAM's")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="cam.scales")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    print(f"patches of {options.size} px, ResNet-{options.depth}, SAM {options.model}; GiB, without the CUDA context\n")
    print(f"{'part':12}{'patches at a time':>20}" + "".join(f"{precision:>10}" for precision in PRECISIONS))
    for part in options.parts or PARTS:
        prepare, counts = PARTS[part]
        for count in counts:
            peaks = [peak_gib(partial(prepare, options, count, precision)) for precision in PRECISIONS]
            print(f"{part:12}{count:20}" + "".join(f"{peak:10.2f}" for peak in peaks), flush=True)


if __name__ == "__main__":
    main()
