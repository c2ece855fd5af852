"""What the embedding store saves: seconds per epoch with it and with the encoder run again for every patch.

    python code/benchmarks/sam.py [--device cuda] [--patches 4] [--model vit_b] [--batch 4] [--before]

Random weights, random patches of 512 px, points as prompts; both ways train the same patches in the same process. On
the GPU also: patches per second of the encoder in bfloat16 and float32, and the peak memory of each stage, with the
memory capped at 12 GB. On the CPU `--before` takes segment_anything's attention, glibc's own defaults and float32 for the
decoder. The last figures check that both ways end at the same decoder, on a small SAM.
"""

import argparse
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from encoder import GLIBC
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from epsam.cam.activation_map import ActivationMap
from epsam.cam.store import save_cams
from epsam.config.schema import Config
from epsam.patches.patch import patches_for_sam
from epsam.runtime.allocator import keep_freed_memory, set_options
from epsam.runtime.checkpoints import save_tensors
from epsam.runtime.device import Hardware, choose_hardware
from epsam.runtime.files import read_mask, write_png
from epsam.runtime.memory import peak_memory_mib
from epsam.runtime.seeds import generator
from epsam.sam import checkpoint
from epsam.sam.checkpoint import build_sam
from epsam.sam.encoder import encode, to_input
from epsam.sam.labels import with_labels
from epsam.sam.session import SamSession
from epsam.sam.training import DecoderTraining
from epsam.segmenter import segment_stored
from epsam.stages.embed import embed
from epsam.stages.finetune import finetune
from epsam.workspace import Workspace

CAP_BYTES = 12e9
VIEWS, ROUNDS, EPOCHS = 4, 4, 20
TRAIN, VAL = 6068, 700
"""Positive patches of Camelyon17 as published."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--patches", type=int, help="training patches; 4 on the CPU, 512 on the GPU by default")
    parser.add_argument("--model", choices=["vit_b", "vit_l", "vit_h", "demo"], default="vit_b")
    parser.add_argument("--batch", type=int, default=4, help="effective batch of the decoder's training")
    parser.add_argument("--before", action="store_true", help="without what makes the CPU faster; see above")
    arguments = parser.parse_args()
    hardware = choose_hardware("cpu" if arguments.device == "cpu" else "12gb")
    if arguments.before:
        set_options(GLIBC)
        checkpoint.speed_up = lambda encoder: None
        hardware = replace(hardware, precision=torch.float32)  # of the decoder's training
    elif arguments.device == "cpu":
        keep_freed_memory()
    if arguments.device == "cuda":
        cap = CAP_BYTES / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap))
    patches = arguments.patches or (4 if arguments.device == "cpu" else 512)
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder) / "speed", hardware, arguments.model, patches, arguments.batch)
        same_decoder(Path(folder) / "same", hardware)


def speed(top: Path, hardware: Hardware, model: str, patches: int, batch: int) -> None:
    """Measure the parts, print them and the two ratios."""
    workspace, config = prepare(top, model, {"train": patches, "val": 1, "test": 1}, size_px=512, batch=batch)
    config = config.model_copy(update={"sam": config.sam.model_copy(update={"views": 1})})
    print(
        f"\n{model}, random weights, {patches} patches of 512 px, batch {batch}, {hardware.device}, "
        f"{torch.get_num_threads()} threads"
    )
    sam_images(config, workspace, hardware)
    with measured(hardware) as embedding:
        embed(config, workspace, hardware)
    encoded = patches + 2
    print(f"stage embed: {encoded / embedding.seconds:.3g} patches/s, peak memory {embedding.peak:.0f} MiB")

    seconds = {}
    for embeddings in ("on", "off"):
        set_up = config.model_copy(update={"sam": config.sam.model_copy(update={"embeddings": embeddings})})
        context = SamSession(set_up, workspace, hardware)
        examples = with_labels(context.examples("train"), workspace.pseudo_labels(0))
        training = DecoderTraining(context, "benchmark", examples, examples[:1], "val_dice")
        training.train_epoch(1)  # warm: page cache, memory pools
        with measured(hardware) as epoch:
            training.train_epoch(2)
        seconds[embeddings] = epoch.seconds
        print(
            f"training epoch, embeddings {embeddings}: {epoch.seconds:.3g} s, {patches / epoch.seconds:.3g} "
            f"patches/s, peak memory {epoch.peak:.0f} MiB"
        )
    if hardware.device.type == "cpu":
        share_of_peak(hardware, model, embedding.seconds / (patches + 2))
    context = SamSession(config, workspace, hardware)
    with measured(hardware) as prediction:
        list(segment_stored(context, "train", context.examples("train")))
    print(
        f"prediction from the store: {patches / prediction.seconds:.3g} patches/s, "
        f"peak memory {prediction.peak:.0f} MiB"
    )
    print(f"\nper epoch: {seconds['off'] / seconds['on']:.1f} times faster with the store (goal 50)")

    encode_s, train_s, predict_s = (embedding.seconds / encoded, seconds["on"] / patches, prediction.seconds / patches)
    epochs = ROUNDS * EPOCHS
    decoding = epochs * (TRAIN * train_s + VAL * predict_s) + (ROUNDS - 1) * TRAIN * predict_s
    store = (VIEWS * TRAIN + VAL) * encode_s + decoding
    again = (epochs * (TRAIN + VAL) + (ROUNDS - 1) * TRAIN) * encode_s + decoding
    print(
        f"full schedule, computed from these parts ({TRAIN} + {VAL} patches, {VIEWS} views, {ROUNDS} rounds of "
        f"{EPOCHS} epochs with validation): {again / 3600:.1f} h against {store / 3600:.1f} h, "
        f"{again / store:.1f} times faster (goal 15)"
    )


def share_of_peak(hardware: Hardware, model: str, seconds: float) -> None:
    """Print which share of what one thread multiplies at the most the encoder reaches, `seconds` an image.

    Counted is what segment_anything's own attention multiplies.
    """
    size, precision = 4096, hardware.prediction_precision
    first, second = torch.randn(2, size, size, dtype=precision)
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        first @ second
        best = min(best, time.process_time() - began)
    encoder = build_sam(model).image_encoder
    for module in encoder.modules():
        module.__dict__.pop("forward", None)
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 3, encoder.img_size, encoder.img_size))
    flops = counter.get_total_flops()
    peak, reached = 2 * size**3 / best, flops / seconds
    print(
        f"encoder: {flops / 1e9:.0f} GFLOP an image, {reached / 1e9:.0f} GFLOP/s in the stage embed; a product of matrices of "
        f"{size} x {size} in {str(precision).removeprefix('torch.')} reaches {peak / 1e9:.0f} by a thread: {reached / peak:.0%}"
    )


def sam_images(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Encoder alone, on inputs in memory, in each precision of the device."""
    sam = SamSession(config, workspace, hardware).sam
    image = to_input(np.zeros((512, 512, 3), np.uint8), sam.image_encoder.img_size)
    precisions = [hardware.prediction_precision] if hardware.device.type == "cpu" else [torch.bfloat16, torch.float32]
    for precision in precisions:
        variant = replace(hardware, prediction_precision=precision)
        images = [image] * min(hardware.encoder_batch, 2 if hardware.device.type == "cpu" else 64)
        repeats = 1 if hardware.device.type == "cpu" else 20
        encode(sam, images, variant)
        with measured(hardware) as encoding:
            for _ in range(repeats):
                encode(sam, images, variant)
        print(
            f"encoder alone, {str(precision).removeprefix('torch.')}, batch {len(images)}: "
            f"{repeats * len(images) / encoding.seconds:.3g} patches/s, peak memory {encoding.peak:.0f} MiB"
        )


def same_decoder(top: Path, hardware: Hardware) -> None:
    """Train from the store and by encoding anew, same seeds and views; print the Dice of both on test patches."""
    counts = {"train": 24, "val": 8, "test": 16}
    scores = {}
    for embeddings in ("on", "off"):
        workspace, config = prepare(
            top / embeddings, "demo", counts, size_px=128, batch=4, embeddings=embeddings, epochs=10, lr=1e-3
        )
        embed(config, workspace, hardware)
        finetune(config, workspace, hardware)
        session = SamSession(config, workspace, hardware)
        session.use_decoder(workspace.decoder(0))
        found = segment_stored(session, "test", session.examples("test"))
        masks = {sample.example.patch.name: mask for sample, mask in found}
        true = {patch.name: read_mask(patch.mask) for patch in patches_for_sam(workspace, "test")}
        scores[embeddings] = np.mean([2 * (true[n] & masks[n]).sum() / (true[n].sum() + masks[n].sum()) for n in true])
    print(
        f"\nsmall SAM, Dice after {config.finetune.epochs} epochs: {scores['on']:.4f} from the store, "
        f"{scores['off']:.4f} encoding anew, difference {abs(scores['on'] - scores['off']):.4f} (goal 0.005)"
    )


class Measurement:
    """Seconds (of the processor, on the CPU: other work on the machine counts little) and peak memory in MiB (there of
    the process so far)."""

    seconds: float
    peak: float


@contextmanager
def measured(hardware: Hardware):
    """Measure the block; the GPU is waited for."""
    result = Measurement()
    if hardware.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    clock = time.perf_counter if hardware.device.type == "cuda" else time.process_time
    start = clock()
    yield result
    if hardware.device.type == "cuda":
        torch.cuda.synchronize()
    result.seconds, result.peak = clock() - start, peak_memory_mib(str(hardware.device))


def prepare(top: Path, model: str, counts: dict[str, int], size_px: int, **settings) -> tuple[Workspace, Config]:
    """Patches with an ellipse of tumour, their maps and initial masks, and random weights, under `top`."""
    workspace = Workspace(top, "benchmark")
    config = Config.model_validate(
        {
            "name": "benchmark",
            "cam": {"layer": "layer4", "percentile": None, "threshold": 0.5},
            "sam": {
                "model_type": model,
                "checkpoint": str(workspace.checkpoints / "random.pth"),
                "embeddings": settings.get("embeddings", "on"),
                "views": 2,
            },
            "finetune": {
                "batch": settings["batch"],
                "epochs": settings.get("epochs", EPOCHS),
                "lr": settings.get("lr", 5e-6),
            },
        }
    )
    torch.manual_seed(0)
    save_tensors(config.sam.checkpoint, build_sam(model).state_dict())
    for split, count in counts.items():
        cams = {}
        for number in range(count):
            name = f"{split}_x{number}_y0_1"
            image, mask = _draw(name, size_px)
            write_png(workspace.split(split) / "image" / f"{name}.png", image)
            write_png(workspace.split(split) / "mask" / f"{name}.png", mask)
            values = cv2.resize(cv2.dilate(mask.astype(np.float32), np.ones((9, 9))), (32, 32))
            cams[name] = ActivationMap(values, config.cam.threshold)
            if split == "train":
                write_png(workspace.pseudo_labels(0) / f"{name}.png", mask)
        save_cams(workspace.cams(split), cams)
    return workspace, config


def _draw(name: str, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    rng, mask = generator(name), np.zeros((size_px, size_px), np.uint8)
    centre, axes = (size_px * rng.uniform(0.3, 0.7, 2)).astype(int), (size_px * rng.uniform(0.15, 0.3, 2)).astype(int)
    cv2.ellipse(mask, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1, -1)
    colours = np.where(mask[..., None] > 0, (110, 60, 150), (220, 160, 190))
    return (colours + rng.integers(-30, 30, (size_px, size_px, 3))).clip(0, 255).astype(np.uint8), mask > 0


if __name__ == "__main__":
    main()
