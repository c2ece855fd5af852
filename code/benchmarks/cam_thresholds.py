"""Where to cut the maps: fixed values against `cam.threshold: auto`, by the true masks of a split, on finished runs.

    python code/benchmarks/cam_thresholds.py [TOP ...] [--name demo] [--split val] [--fixed 0.2]

Every TOP is a top level whose run `name`, with cam.threshold: auto, has gone through the stage initial-masks
(benchmarks/seeds.py makes several, one per seed); the default is this project's own. For each run: mean Dice of the CAM
masks, and their size as a multiple of the true masks', with the thresholds of the run, with one fixed value, and with
the fixed value that the true masks like best, which nobody without outlines can know.
"""

import argparse
from pathlib import Path

import numpy as np

from epsam.cam.activation_map import ActivationMap
from epsam.cam.mask import cam_mask
from epsam.cam.threshold import THRESHOLDS
from epsam.config.loading import load_config
from epsam.config.schema import Config
from epsam.evaluation.metrics import dice
from epsam.runtime.device import Hardware, choose_hardware
from epsam.runtime.files import read_mask
from epsam.runtime.log import progress, set_up_logging
from epsam.sam.session import SamSession
from epsam.workspace import SPLITS, Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tops", nargs="*", type=Path, default=[Path(__file__).parents[2]], metavar="TOP")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--split", choices=SPLITS, default="val")
    parser.add_argument("--fixed", type=float, default=0.2)
    arguments = parser.parse_args()
    set_up_logging()
    hardware = choose_hardware()
    print("| run | auto: Dice, size | fixed: Dice, size | best fixed: Dice, size, value |\n|---|---|---|---|")
    rows = []
    for top in arguments.tops:
        workspace = Workspace(top, arguments.name)
        rows.append(measure(load_config(workspace.run / "config.yaml"), workspace, hardware, arguments))
        print_row(str(top), rows[-1])
    print_row("mean", np.mean(rows, axis=0))


def measure(config: Config, workspace: Workspace, hardware: Hardware, arguments: argparse.Namespace) -> np.ndarray:
    """Dice and size by auto, fixed, best fixed, and the best fixed value: (7,)."""
    context = SamSession(config, workspace, hardware)
    fixed = [arguments.fixed, *THRESHOLDS]
    dices, areas = [], []
    for example in progress(context.examples(arguments.split), desc=str(workspace.root), unit="patch"):
        truth, values = read_mask(example.patch.mask), example.cam.values
        thresholds = [example.cam.threshold, *fixed]
        masks = [cam_mask(ActivationMap(values, threshold), config.cam, truth.shape) for threshold in thresholds]
        dices.append([dice(mask, truth) for mask in masks])
        areas.append([truth.sum(), *(mask.sum() for mask in masks)])
    mean, area = np.mean(dices, axis=0), np.sum(areas, axis=0)
    best = 2 + int(mean[2:].argmax())
    return np.array([value for i in (0, 1, best) for value in (mean[i], area[1 + i] / area[0])] + [fixed[best - 1]])


def print_row(name: str, row: np.ndarray) -> None:
    """One line of the table."""
    by_auto, fixed, best = (f"{row[i]:.3f}, {row[i + 1]:.2f}" for i in (0, 2, 4))
    print(f"| {name} | {by_auto} | {fixed} | {best}, {row[6]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
