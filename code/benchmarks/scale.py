"""Two processes against one: preprocess, training of the classifier, embeddings, maps, whole slides.

    python code/benchmarks/scale.py [TOP] [--rounds 2] [section.key=value ...]

TOP is a top level whose demo is trained (./train.sh); the default is this project's own. Each round does the stages with one
process and with two on an empty folder with the demo's slides (one epoch of the classifier), then predicts the slides by one
job of `epsam infer` and by two that share an output folder. Each process computes with one thread. Prints the least seconds
of each over the rounds, start-up of Python included, and by Amdahl's law the share that stays serial and what 4 and 8 processes
would give, where each has a device of its own; what of that share is start-up does not grow with the work. Wants a machine of
two free cores.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

CODE = Path(__file__).parents[1]
STAGES = ("preprocess", "train-classifier", "embed", "initial-masks")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("top", nargs="?", type=Path, default=CODE.parent, metavar="TOP")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    seconds: dict[str, dict[int, float]] = defaultdict(dict)
    for _ in range(arguments.rounds):
        for processes in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                measured = _stages(arguments.top, Path(folder), processes, arguments.overrides)
                measured["slides"] = _slides(arguments.top, Path(folder), processes)
            for name, value in measured.items():
                seconds[name][processes] = min(value, seconds[name].get(processes, value))
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end; seconds of the best of {arguments.rounds} rounds"
    )
    for name, found in seconds.items():
        _print_row(name, found[1], found[2])


def _stages(top: Path, folder: Path, processes: int, overrides: list[str]) -> dict[str, float]:
    """Seconds of each stage in an empty folder; preprocess has worker processes, the others are shared by ranks."""
    dataset = folder / "dataset" / "demo"
    dataset.mkdir(parents=True)
    for name in ("images", "annotations"):
        (dataset / name).symlink_to((top / "dataset" / "demo" / name).resolve(), target_is_directory=True)
    (folder / "checkpoints").mkdir()
    shutil.copy(CODE.parent / "checkpoints" / "sam_demo.pth", folder / "checkpoints")
    settings = ["--config", "demo", "--root", str(folder), "classifier.epochs=1", f"workers={processes}", *overrides]
    found = {}
    for stage in STAGES:
        ranks = (
            ["-m", "epsam.torchrun", "--nproc-per-node", str(processes)] if processes > 1 and stage != STAGES[0] else []
        )
        found[stage] = _wall([[sys.executable, *ranks, "-m", "epsam", stage, *settings]])
    return found


def _slides(top: Path, folder: Path, jobs: int) -> float:
    """Seconds of predicting all slides by so many jobs at once."""
    command = ["-m", "epsam", "infer", str(top / "dataset" / "demo" / "images"), "--root", str(top), "--model", "demo"]
    return _wall([[sys.executable, *command, "--output", str(folder / "predictions")]] * jobs)


def _wall(commands: list[list[str]]) -> float:
    """Seconds until all commands, started together, have ended."""
    began = time.monotonic()
    running = [subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL) for command in commands]
    states = [process.wait() for process in running]  # all of them, before one ends the benchmark
    if any(states):
        sys.exit(f"failed: {' '.join(commands[0])}")
    return time.monotonic() - began


def _print_row(name: str, one: float, two: float) -> None:
    serial = min(max(2 * two / one - 1, 0.0), 1.0)  # one / two = 1 / (serial + (1 - serial) / 2)
    more = ", ".join(f"{count}: {1 / (serial + (1 - serial) / count):.1f}" for count in (4, 8))
    print(f"{name:17} {one:6.1f} s, {two:6.1f} s: {one / two:.2f} times; serial {serial:.0%}; by arithmetic {more}")


if __name__ == "__main__":
    main()
