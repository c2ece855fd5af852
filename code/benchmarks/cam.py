"""Patches per second of maps in batches, against one image and one rotation at a time; on a GPU also the peak memory.

    python benchmarks/cam.py [--device cuda] [--patches 32] [--repeats 3]

On the CPU at the demo's size (ResNet-18, 128 px), on the GPU at the published one (ResNet-50, 512 px). Both ways
start from the same arrays in memory and end with the same maps in memory; the better of the repeats counts. On the
GPU the process may use 12 GB, and the peaks of training at an effective batch of 16 and of the maps are shown.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from epsam.cam.activation import ROTATIONS, compute_maps
from epsam.classifier.building import build_classifier
from epsam.classifier.data import as_float
from epsam.classifier.resnet import ResNetADL
from epsam.classifier.train_step import LabelLoss, TrainStep
from epsam.config.schema import Classifier
from epsam.runtime.device import Hardware, choose_hardware
from epsam.runtime.memory import peak_memory_mib

CAP_BYTES = 12e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--patches", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    gpu = arguments.device == "cuda"
    hardware = choose_hardware("12gb" if gpu else "cpu")
    depth, size = (50, 512) if gpu else (18, 128)
    if gpu:
        share = CAP_BYTES / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    torch.manual_seed(0)
    model = build_classifier(Classifier(depth=depth)).to(hardware.device, memory_format=hardware.memory_format).eval()
    images = torch.randint(0, 256, (arguments.patches, 3, size, size), dtype=torch.uint8)
    print(
        f"ResNet-{depth}, {size} px, {arguments.patches} patches in 4 rotations, {arguments.device}, "
        f"{torch.get_num_threads()} threads, {hardware.precision}"
    )
    one_by_one, slow = timed(lambda: maps_one_by_one(model, images, hardware), arguments)
    batched, fast = timed(lambda: maps_in_batches(model, images, hardware), arguments)
    print(f"largest difference of the maps: {np.abs(one_by_one - batched).max():.2g}")
    print(
        f"one by one {slow:.2f} patches/s, in batches of {hardware.cam_batch} {fast:.2f} patches/s: "
        f"{fast / slow:.2f} times"
    )
    if gpu:
        print(f"peak memory of maps {peak_memory_mib(str(hardware.device)):.0f} MiB")
        torch.cuda.reset_peak_memory_stats()
        train_a_few_steps(model, size, hardware)
        print(f"peak memory of training, batch 16, {peak_memory_mib(str(hardware.device)):.0f} MiB")


def timed(compute: Callable[[], np.ndarray], arguments: argparse.Namespace) -> tuple[np.ndarray, float]:
    """The maps, and patches per second of the fastest repeat after one to warm up."""
    maps, seconds = compute(), []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        maps = compute()
        seconds.append(time.perf_counter() - start)
    return maps, arguments.patches / min(seconds)


def maps_in_batches(model: ResNetADL, images: torch.Tensor, hardware: Hardware) -> np.ndarray:
    """Maps (N, h, w) as the stage makes them."""
    maps = []
    for batch in images.split(hardware.cam_batch):
        with hardware.autocast():
            maps.append(compute_maps(model, as_float(batch, hardware.device)).cpu())
    return torch.cat(maps).numpy()


def maps_one_by_one(model: ResNetADL, images: torch.Tensor, hardware: Hardware) -> np.ndarray:
    """The same maps from one call of the model per image and rotation, put together on the CPU."""
    maps = []
    for image in images:
        turned = []
        for quarters in range(len(ROTATIONS)):
            rotated = torch.rot90(as_float(image[None], hardware.device), quarters, (2, 3))
            with hardware.autocast():
                cam = compute_maps(model, rotated, (0,))[0].cpu().numpy()
            turned.append(np.rot90(cam, -quarters))
        mean = np.mean(turned, axis=0)
        maps.append((mean - mean.min()) / max(mean.max() - mean.min(), 1e-6))
    return np.stack(maps)


def train_a_few_steps(model: ResNetADL, size: int, hardware: Hardware, steps: int = 3) -> None:
    learner = TrainStep(model, torch.optim.Adam(model.train().parameters(), lr=1e-5), LabelLoss(None), hardware)
    labels = torch.tensor([0.0, 1.0]).repeat(8)
    for _ in range(steps):
        learner.step(torch.rand(16, 3, size, size, device=hardware.device), labels)


if __name__ == "__main__":
    main()
