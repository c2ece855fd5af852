"""A sparse slide of 60,000 x 50,000 px on the CPU: peak memory, and whether a killed run ends with the same bytes.

    python benchmarks/inference.py [FOLDER]

FOLDER (default: a temporary one) keeps the slide and the outputs. Uses the demo's SAM with a classifier of random
weights that calls everything tumour, so that every tile of tissue goes through all models.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import torch

from epsam.classifier.building import build_classifier
from epsam.config.loading import find_config, load_config
from epsam.demo.slides import make_demo
from epsam.inference.output import OUTPUTS
from epsam.inference.run import InferenceSettings
from epsam.runtime.checkpoints import save_weights
from epsam.sam.checkpoint import decoder_weights, load_sam
from epsam.slides.reader import open_slide

SIZE = (60_000, 50_000)
TILE = 256
ISLANDS = ((10_240, 5_120), (40_960, 38_400))
"""Corners (x, y) of the pieces of tissue on the glass."""
SIDE = 1_536
WEIGHTS = Path(__file__).parents[2] / "checkpoints"
WORKER = """
import pickle, resource, sys
from epsam.inference.run import infer
from epsam.runtime.device import choose_hardware
from epsam.runtime.log import set_up_logging
set_up_logging()
infer(pickle.load(open(sys.argv[1], "rb")), choose_hardware("cpu"))
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def make_slide(path: Path, tissue: np.ndarray) -> None:
    """A pyramid of glass with `tissue` (SIDE, SIDE, 3) on it, written tile by tile."""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, factor in enumerate((1, 4, 16)):
            width, height = SIZE[0] // factor, SIZE[1] // factor
            tiff.write(
                tiles(width, height, factor, tissue[::factor, ::factor]),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="lzw",
                subfiletype=min(number, 1),
                resolution=(40_000 / factor, 40_000 / factor),
                resolutionunit="CENTIMETER",
            )


def tiles(width: int, height: int, factor: int, tissue: np.ndarray):
    """Encoded tiles of one level; those of bare glass are encoded once."""
    glass = imagecodecs.lzw_encode(np.full((TILE, TILE, 3), 245, np.uint8))
    side = len(tissue)
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            tile = np.full((TILE, TILE, 3), 245, np.uint8)
            for left, top in ((a // factor - x, b // factor - y) for a, b in ISLANDS):
                x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, TILE), min(top + side, TILE)
                if x0 < x1 and y0 < y1:
                    tile[y0:y1, x0:x1] = tissue[y0 - top : y1 - top, x0 - left : x1 - left]
            yield glass if (tile == 245).all() else imagecodecs.lzw_encode(tile)


def prepare(folder: Path) -> InferenceSettings:
    """The slide, weights and settings."""
    slide = folder / "large.tif"
    if not slide.is_file():
        make_demo(folder / "demo", tumour=1, normal=0, size_px=2048, workers=1)
        with open_slide(folder / "demo" / "images" / "tumor_001.tif") as source:
            make_slide(slide, source.read(128, 128, SIDE, SIDE))
    config = load_config(find_config("demo"), ("inference.classifier_probability=0", "inference.threshold=0.2"))
    torch.manual_seed(0)
    weights = build_classifier(config.classifier).state_dict()
    weights["fc.bias"] += 5
    save_weights(folder / "resnet.pth", weights, {})
    save_weights(folder / "decoder.pth", decoder_weights(load_sam("demo", None, WEIGHTS)), {})
    return InferenceSettings(
        slide,
        folder / "resnet.pth",
        None,
        folder / "decoder.pth",
        folder / "whole",
        config,
        weights_dir=WEIGHTS,
        fresh=True,
    )


def start(folder: Path, settings: InferenceSettings) -> subprocess.Popen:
    path = folder / f"{settings.output_dir.name}.pickle"
    path.write_bytes(pickle.dumps(settings))
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TQDM_DISABLE": "1"},
    )


def peak_mib(process: subprocess.Popen) -> int:
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(text)
    return int(text.rpartition("peak ")[2])


def main(folder: Path) -> None:
    """Run all and print."""
    from dataclasses import replace

    settings = prepare(folder)
    began = time.monotonic()
    peak = peak_mib(start(folder, settings))
    print(f"whole run: {time.monotonic() - began:.0f} s, peak {peak} MiB ({peak / 2000:.2f} of 2 GB)")
    killed = replace(settings, output_dir=folder / "killed")
    process = start(folder, killed)
    written = folder / "killed" / "state" / "work" / "large" / "classified.f32"
    while not (written.is_file() and written.stat().st_size >= 4 * 64):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    peak = peak_mib(start(folder, replace(killed, fresh=False)))
    same = [
        (folder / "whole" / f"large{s}").read_bytes() == (folder / "killed" / f"large{s}").read_bytes() for s in OUTPUTS
    ]
    print(f"killed and started again: peak {peak} MiB; {sum(same)} of {len(same)} outputs equal byte for byte")
    foci = json.loads((folder / "whole" / "large.geojson").read_text())["features"]
    print(f"foci found: {len(foci)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
