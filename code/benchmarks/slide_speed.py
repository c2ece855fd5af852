"""Tiles a second on the CPU: the student against classifier, maps, prompts and SAM, on tiles that all hold tumour.

    python code/benchmarks/slide_speed.py [--tiles 4] [NAME ...]

NAME: shipped settings whose networks are built, with random weights; the default is `demo` (ResNet-18 and the small SAM at
128 px) and `own` (ResNet-50 and ViT-B at 512 px). Times are those of this process on all its threads, so that whatever
else runs on the machine counts little; run it with OMP_NUM_THREADS=1 for one core. Reading and writing slides is not
in it: it is the same for both.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from epsam.classifier.building import build_classifier
from epsam.config.loading import find_config, load_config
from epsam.runtime.device import choose_hardware
from epsam.runtime.seeds import generator
from epsam.sam.checkpoint import build_sam
from epsam.segmenter import ImageSegmenter
from epsam.student.network import build_student
from epsam.student.segmenter import StudentSegmenter

GOAL = 10
"""Times as fast, at 512 px with ViT-B."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=4, help="of each measurement")
    parser.add_argument("names", nargs="*", default=["demo", "own"], metavar="NAME")
    arguments = parser.parse_args()
    for name in arguments.names:
        measure(name, arguments.tiles)


def measure(name: str, count: int) -> None:
    """Print tiles a second of both routes for the networks of shipped settings."""
    config, hardware = load_config(find_config(name)), choose_hardware("cpu")
    torch.manual_seed(0)
    classifier = build_classifier(config.classifier).to(memory_format=torch.channels_last).eval()
    sam = build_sam(config.sam.model_type).requires_grad_(False).eval()
    student = build_student(config.classifier).to(memory_format=torch.channels_last).eval()
    side = config.patches.size_px
    tiles = generator("slide_speed").integers(0, 256, (count, side, side, 3), np.uint8)
    names = [f"tile{number}" for number in range(count)]
    chain, alone = ImageSegmenter(classifier, sam, config, hardware), StudentSegmenter(student, config, hardware)
    slow = seconds(lambda: (chain.classify(tiles, names), chain.segment(tiles, names)))
    fast = seconds(lambda: alone.segment(tiles, names))
    print(
        f"{name}, {side} px, {config.sam.model_type}: classifier and SAM {count / slow:.3f} tiles a second, student "
        f"{count / fast:.3f}: {slow / fast:.1f} times (goal for ViT-B: {GOAL})"
    )


def seconds(work: Callable[[], object]) -> float:
    """Processor time of `work`, the best of two calls after one to warm up."""
    work()
    times = []
    for _ in range(2):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
