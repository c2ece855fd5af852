"""CPU seconds of SAM's image encoder, as ratios of before to after, with the difference of the embeddings.

    python code/benchmarks/encoder.py [--model vit_b] [--rounds 3] [--precision bfloat16 float32]

One thread's CPU seconds, random weights, one image, in one process: the variants take turns. Ratios are medians over the
rounds.

before     segment_anything's attention, glibc's own defaults
allocator  glibc keeps what is freed (epsam.runtime.allocator)
both       and attention and memory layout as in epsam.sam.attention; goal: 2.5 times
"""

import argparse
import copy
import statistics
import time

import torch
from segment_anything.modeling.image_encoder import Attention

from epsam.runtime.allocator import M_MMAP_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory, set_options
from epsam.sam.checkpoint import build_sam

GLIBC = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}
"""What glibc's thresholds grow to by themselves."""
GOAL = 2.5
VARIANTS = {"before": (False, False), "allocator": (True, False), "both": (True, True)}
"""Name: whether freed memory is kept, whether the attention is ours."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["vit_b", "vit_l", "vit_h", "demo"], default="vit_b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours = build_sam(arguments.model).image_encoder.requires_grad_(False)
    for name, parameter in ours.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs = copy.deepcopy(ours)
    theirs.patch_embed._forward_hooks.clear()
    for module in theirs.modules():
        if isinstance(module, Attention):
            module.__dict__.pop("forward", None)
    image = torch.randn(1, 3, ours.img_size, ours.img_size)
    for precision in arguments.precision:
        compare(arguments, getattr(torch, precision), {True: ours, False: theirs}, image)


def compare(arguments: argparse.Namespace, precision: torch.dtype, encoders: dict, image: torch.Tensor) -> None:
    """Print the seconds, ratio and difference of each variant in one precision."""
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    embeddings: dict[str, torch.Tensor] = {}
    for _ in range(arguments.rounds):
        for name, (keep, fast) in VARIANTS.items():
            keep_freed_memory() if keep else set_options(GLIBC)
            with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
                if keep:
                    encoders[fast](image)  # after a change of the allocator, memory is new once
                began = time.process_time()
                embeddings[name] = encoders[fast](image).float()
            seconds[name].append(time.process_time() - began)
    print(f"\n{arguments.model}, 1 image, {str(precision).removeprefix('torch.')}, 1 thread")
    for name in VARIANTS:
        ratio = statistics.median(a / b for a, b in zip(seconds["before"], seconds[name], strict=True))
        apart = (embeddings[name] - embeddings["before"]).abs().mean() / embeddings["before"].std()
        goal = f" (goal {GOAL})" if name == "both" else ""
        print(
            f"{name:10} {statistics.median(seconds[name]):7.3f} s   {ratio:.2f} times faster{goal}   "
            f"embeddings apart by {apart:.1e} of their deviation",
            flush=True,
        )


if __name__ == "__main__":
    main()
