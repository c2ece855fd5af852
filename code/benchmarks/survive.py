"""Kill, starve and double the training, let it finish, and compare with a run that was left alone.

    python code/benchmarks/survive.py [kills] [disk] [readonly] [clock] [twice] [--kills 20] [--seed 0]

`kills`: SIGKILL to the whole process group of ./train.sh at random moments, spread over its run time; started again
each time. `disk`: the disk (a small tmpfs) is filled to the brim at three random moments. `readonly`: checkpoints/ is
mounted read-only in the middle. `clock`: the clock of the processes jumps back by a day, and files of earlier come
from the future. `twice`: two runs at once in one folder. Every file of the finished run must then be equal, byte for
byte, to that of a run left alone. Without names all five are run: about ten minutes on two cores.

The mounts live in a mount namespace of this process's own (unshare), so they end with it.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

from trial import NAMES, Trial, compare, make_template, moment

JUMP = """
import time
_time, _time_ns, _begin = time.time, time.time_ns, time.monotonic()
time.time = lambda: _time() - 86400 * (time.monotonic() - _begin > 2)
time.time_ns = lambda: _time_ns() - 86400 * 10**9 * (time.monotonic() - _begin > 2)
"""


def kills(work: Path, seconds: dict[str, float], expected: dict[str, str], rng: random.Random, count: int) -> bool:
    """Kill `count` times, at sorted random moments of the run's life."""
    trial, hit, began = Trial(work / "killed", work / "template"), Counter(), time.monotonic()
    order = {stage: number for number, stage in enumerate(NAMES)}
    moments = sorted((moment(rng, seconds) for _ in range(count)), key=lambda m: (order[m[0]], m[1]))
    while moments:
        stage, into = moments.pop(0)
        trial.start()
        if not trial.wait_for_moment(stage, into):
            trial.finish()
            if not compare("finished before the kill", trial, expected):
                return False
            shutil.rmtree(trial.top)
            trial = Trial(trial.top, work / "template")
            moments.insert(0, (stage, into))
            continue
        place = trial.place()
        trial.kill()
        hit[place] += 1
        print(f"kill {sum(hit.values()):3d}: {into:5.1f} s after the stages before {stage}, in {place}", flush=True)
    trial.start()
    trial.finish()
    print("kills by stage: " + ", ".join(f"{place} {n}" for place, n in hit.most_common()))
    print(f"{time.monotonic() - began:.0f} s with {count} kills, {sum(seconds.values()):.0f} s without")
    return compare(f"{count} kills", trial, expected)


def disk(work: Path, seconds: dict[str, float], expected: dict[str, str], rng: random.Random, times: int = 3) -> bool:
    """Fill the disk at random moments; each time the run must say so, and go on when there is room again."""
    (work / "disk").mkdir()
    mount("-t", "tmpfs", "-o", "size=1g", "none", work / "disk")
    trial = Trial(work / "disk" / "top", work / "template", outputs=work / "disk_outputs")
    filler = work / "disk" / "filler"
    for _ in range(times):
        trial.start()
        # Only moments in which a stage has still something to write.
        if not trial.wait_for_moment(*moment(rng, seconds)):
            break
        place = trial.place()
        fill(filler)
        status, line = trial.wait(), last_error(trial)
        print(f"disk full in {place}: status {status}, \"{line}\"", flush=True)
        if status and "No space left" not in line:
            return False
        trial.start()
        if status and (not trial.wait() or "error] " not in trial.said()):
            print(f"the doctor did not see the full disk: {trial.output}")
            return False
        trial.process.wait()
        filler.unlink()
    trial.start()
    trial.finish()
    return compare("full disk", trial, expected)


def readonly(work: Path, seconds: dict[str, float], expected: dict[str, str], rng: random.Random) -> bool:
    """Make checkpoints/ read-only while the classifier is trained."""
    trial = Trial(work / "readonly", work / "template")
    folder = trial.top / "checkpoints"
    trial.start()
    trial.wait_for_moment("train-classifier", rng.uniform(0, seconds["train-classifier"]) / 2)
    mount("--bind", folder, folder)
    mount("-o", "remount,ro,bind", folder)
    status, line = trial.wait(), last_error(trial)
    print(f"read-only in the middle: status {status}, \"{line}\"", flush=True)
    trial.start()
    again, doctor = trial.wait(), last_error(trial)
    print(f"started again: status {again}, \"{doctor}\"", flush=True)
    subprocess.run(["umount", folder], check=True)
    trial.start()
    trial.finish()
    said = status and again and "Read-only file system" in line and "folders" in doctor
    return compare("read-only checkpoints/", trial, expected) and bool(said)


def clock(work: Path, seconds: dict[str, float], expected: dict[str, str], rng: random.Random) -> bool:
    """Let time jump back in every process, kill, and let all files come from the future before going on."""
    trial, path = Trial(work / "clock", work / "template"), work / "clock_path"
    path.mkdir()
    (path / "sitecustomize.py").write_text(JUMP)
    trial.start(path)
    if trial.wait_for_moment(*moment(rng, seconds)):
        print(f"clock set back a day in every process, killed in {trial.place()}", flush=True)
        trial.kill()
    tomorrow = time.time() + 86400
    for pattern in ("checkpoints/*", "runs/tiny/**/*", "dataset/tiny/*/image/*", "dataset/tiny/*.csv"):
        for file in trial.top.glob(pattern):
            os.utime(file, (tomorrow, tomorrow))
    trial.start(path)
    trial.finish()
    return compare("clock jumping back", trial, expected)


def twice(work: Path, seconds: dict[str, float], expected: dict[str, str], rng: random.Random) -> bool:
    """Start two runs in one folder at once: one goes on, the other says who is at work."""
    one, other = Trial(work / "twice", work / "template"), Trial(work / "twice", outputs=work / "twice_other_outputs")
    one.start()
    other.start()
    winner, loser = (one, other) if other.process.wait() else (other, one)
    status, line = loser.wait(), last_error(loser)
    print(f"second run: status {status}, \"{line}\"", flush=True)
    winner.finish()
    return compare("two runs at once", winner, expected) and status == 1 and "is in use by process" in line


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(2**20)):
                pass
        except OSError:
            return


def last_error(trial: Trial) -> str:
    """The line in which a launch says why it ended."""
    lines = [line for line in trial.said().splitlines() if "error: " in line]
    return lines[-1][lines[-1].index("error: "):] if lines else "no error line"


def in_own_namespace() -> bool:
    """Whether mounts may be made here: this program is run again in a mount namespace of its own."""
    if os.environ.get("SURVIVE_NAMESPACE"):
        return True
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if shutil.which("unshare") and subprocess.run([*unshare, "true"], check=False).returncode == 0:
        os.environ["SURVIVE_NAMESPACE"] = "1"
        os.execvp("unshare", [*unshare, sys.executable, *sys.argv])
    return False


def main() -> None:
    scenarios = {scenario.__name__: scenario for scenario in (kills, disk, readonly, clock, twice)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"some of {', '.join(scenarios)}")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := set(args.scenarios) - set(scenarios):
        parser.error(f"no scenario {', '.join(unknown)}")
    chosen = args.scenarios or list(scenarios)
    if not in_own_namespace():
        print("mounting is not allowed here: without disk and readonly")
        chosen = [name for name in chosen if name not in ("disk", "readonly")]

    work = Path(tempfile.mkdtemp(prefix="survive_"))
    print(f"outputs of all launches in {work}, seed {args.seed}", flush=True)
    whole = Trial(work / "whole", make_template(work / "template"))
    seconds = whole.measure()
    expected = whole.fingerprints()
    print(f"left alone: {sum(seconds.values()):.0f} s, {len(expected)} files to compare; "
          + ", ".join(f"{stage} {length:.0f} s" for stage, length in seconds.items()), flush=True)
    scenarios["kills"] = partial(kills, count=args.kills)
    good = {name: scenarios[name](work, seconds, expected, random.Random(f"{args.seed} {name}")) for name in chosen}
    print(", ".join(f"{name}: {'survived' if well else 'NOT survived'}" for name, well in good.items()))
    sys.exit(not all(good.values()))


if __name__ == "__main__":
    main()
