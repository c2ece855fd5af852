"""Kill the training again and again, let it finish, and compare with a run that was left alone.

    python code/benchmarks/survive.py [--kills 20] [--seed 0] [--work FOLDER]

Each kill is SIGKILL to the whole process group of ./train.sh at a random moment of its run time. Printed: how many
kills hit each stage, and every file that differs from the uninterrupted run's (goal: none).
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "code"))

from epsam.runtime.files import sha256  # noqa: E402
from tests.tiny import make_tiny  # noqa: E402

COMPARED = ("checkpoints/*.pth", "dataset/tiny/*.csv", "dataset/tiny/*/image/*.png", "dataset/tiny/*/mask/*.png",
            "dataset/tiny/train/initial_mask/*.png", "dataset/tiny/train/iter_*/*.png", "runs/tiny/metrics.csv",
            "runs/tiny/*_curves.csv", "runs/tiny/cams/*.npz")


def make_top(folder: Path) -> Path:
    """A top level of its own with the tiny slides."""
    folder.mkdir(parents=True)
    for name in ("train.sh", "requirements.txt"):
        shutil.copy(TOP / name, folder)
    (folder / "code").symlink_to(TOP / "code")
    (folder / ".venv").symlink_to(TOP / ".venv")
    (folder / "checkpoints").mkdir()
    shutil.copy(TOP / "checkpoints" / "sam_demo.pth", folder / "checkpoints")
    make_tiny(folder)
    return folder


def start(top: Path, log: Path) -> subprocess.Popen:
    """./train.sh in a process group of its own."""
    with log.open("a") as stream:
        return subprocess.Popen(["./train.sh", "tiny.yaml"], cwd=top, stdout=stream, stderr=subprocess.STDOUT,
                                start_new_session=True)


def stage_at_work(log: Path) -> str:
    """The stage that the log says was under way last."""
    found = re.findall(r"--- ([a-z-]+):|\n([a-z-]+): done", log.read_text(errors="replace"))
    return next((name for name, _ in reversed(found) if name), "before preprocess")


def fingerprints(top: Path) -> dict[str, str]:
    """SHA-256 of all files that must be equal, by relative name."""
    files = (f for pattern in COMPARED for f in top.glob(pattern))
    return {f.relative_to(top).as_posix(): sha256(f) for f in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=None)
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="survive_"))

    whole = make_top(work / "whole")
    began = time.monotonic()
    if start(whole, work / "whole.log").wait():
        sys.exit(f"the uninterrupted run failed: see {work / 'whole.log'}")
    seconds = time.monotonic() - began
    expected = fingerprints(whole)
    print(f"uninterrupted: {seconds:.0f} s, {len(expected)} files to compare; seed {args.seed}")

    rng = random.Random(args.seed)
    top, hit, kills = make_top(work / "killed"), Counter(), 0
    while kills < args.kills:
        log = work / f"killed_{kills:02d}.log"
        # Spread over the whole run: early kills leave most of it to the runs that follow.
        wait = rng.uniform(1, max(3.0, seconds * 2 / args.kills))
        process = start(top, log)
        try:
            code = process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            hit[stage_at_work(log)] += 1
            print(f"kill {kills:2d} after {wait:5.1f} s in {stage_at_work(log)}", flush=True)
            continue
        if code:
            sys.exit(f"a run that went on failed: see {log}")
        shutil.rmtree(top)
        top = make_top(top)
        print("finished before the kill: started over", flush=True)
    if start(top, work / "last.log").wait():
        sys.exit(f"the last run failed: see {work / 'last.log'}")
    found = fingerprints(top)
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print("kills by stage: " + ", ".join(f"{stage} {n}" for stage, n in hit.most_common()))
    print(f"{len(found)} files compared, {len(different)} differ: {', '.join(different[:10]) or 'nothing was lost'}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
