"""Kill, starve and double the training, let it finish, and compare with a run that was left alone.

    python code/benchmarks/survive.py [kills] [disk] [log] [readonly] [clock] [twice] [--kills 3] [--seed 0]

`kills`: SIGKILL to the whole process group of ./train.sh at random moments inside each stage (after the line that says
that it starts, before the one that says that it is done), `--kills` times each. `disk`: the disk (a small tmpfs) is
filled to the brim inside each stage. `log`: the log file is /dev/full. `readonly`: dataset/, checkpoints/ and runs/ are
mounted read-only while a stage writes there. `clock`: the clock of the processes jumps back by a day, and files of
earlier come from the future. `twice`: a second run in the same folder, on the same host, in another PID namespace and
under another host name. Every file of the finished run must then be equal, byte for byte, to that of a run left alone.
Without names all are run: about fifteen minutes on two cores.

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

from trial import NAMES, Trial, compare, make_template

JUMP = """
import time
_time, _time_ns, _begin = time.time, time.time_ns, time.monotonic()
time.time = lambda: _time() - 86400 * (time.monotonic() - _begin > 2)
time.time_ns = lambda: _time_ns() - 86400 * 10**9 * (time.monotonic() - _begin > 2)
"""
CHAINS = 8
"""Most runs that kills are spread over, where stages end before their kill."""
WRITERS = {"dataset": "preprocess", "checkpoints": "train-classifier", "runs": "evaluate"}
"""A stage that writes into each folder."""
WAYS = {
    "same host": (),
    "other PID namespace": ("unshare", "-p", "-f", "--mount-proc", "--kill-child"),
    "other host name": ("unshare", "-u", "sh", "-c", 'hostname other; exec "$@"', "sh"),
}
"""How the second run is started."""


def kills(work: Path, seconds: dict[str, float], expected: dict[str, str], rng: random.Random, count: int) -> bool:
    """Kill inside every stage until each had `count` kills; what a run cannot take any more, the next one does."""
    began, hit, missed = time.monotonic(), Counter(), Counter()
    for chain in range(1, CHAINS + 1):
        trial = Trial(work / f"killed_{chain}", work / "template")
        left = seconds.copy()  # of each stage's work, at least
        while True:
            trial.start()
            stage = trial.wait_for_stage([name for name in NAMES if hit[name] < count and left[name] > 0])
            if not stage:
                break
            moment = rng.uniform(0, 0.9) * left[stage]
            if trial.is_inside_after(stage, moment):
                trial.kill()
                if trial.stage() == stage:
                    hit[stage] += 1
                    left[stage] -= moment
                    print(f"kill {hit.total():3d}: {moment:5.2f} s inside {stage}", flush=True)
                    continue
            missed[stage] += 1
            left[stage] = 0
            if not trial.has_ended():
                trial.kill()
        trial.finish()
        if not compare(f"run {chain}, {hit.total()} kills by now", trial, expected):
            return False
        if all(hit[name] >= count for name in NAMES):
            break
    print(
        f"{hit.total()} kills inside stages ({', '.join(f'{name} {hit[name]}' for name in NAMES)}), {missed.total()} "
        f"between them; {time.monotonic() - began:.0f} s, {sum(seconds.values()):.0f} s inside stages without kills"
    )
    return all(hit[name] >= count for name in NAMES)


def disk(work: Path, seconds: dict[str, float], expected: dict[str, str], rng: random.Random) -> bool:
    """Fill the disk inside each stage; each time the run must name it, and go on when there is room again."""
    (work / "disk").mkdir()
    mount("-t", "tmpfs", "-o", "size=1g", "none", work / "disk")
    trial = Trial(work / "disk" / "top", work / "template", outputs=work / "disk_outputs")
    filler, good = work / "disk" / "filler", True
    for stage in NAMES:
        trial.start()
        if not trial.wait_for_stage([stage]):
            print(f"{stage} was done before its turn: see {trial.output}")
            return False
        time.sleep(rng.uniform(0, 0.5) * seconds[stage])
        fill(filler)
        place, status = trial.stage(), trial.wait()
        line = last_error(trial)
        print(f'disk full inside {place or "(between stages)"}: status {status}, "{line}"', flush=True)
        good = good and place == stage and status != 0 and "No space left" in line
        if stage == NAMES[0]:
            trial.start()
            if not trial.wait() or "error] " not in trial.printed():
                print(f"the doctor did not see the full disk: {trial.output}")
                good = False
        filler.unlink()
    trial.start()
    trial.finish()
    return compare("full disk", trial, expected) and good


def log(work: Path, seconds: dict[str, float], expected: dict[str, str], rng: random.Random) -> bool:
    """Let the log file be one that takes nothing."""
    trial = Trial(work / "log", work / "template")
    (trial.top / "logging_tiny.txt").symlink_to("/dev/full")
    trial.start()
    trial.finish()
    lines = [line for line in trial.printed().splitlines() if "lines are missing" in line]
    print(f'log to /dev/full: {len(lines)} times said, "{lines[0] if lines else ""}"')
    return compare("log to /dev/full", trial, expected) and bool(lines)


def readonly(work: Path, seconds: dict[str, float], expected: dict[str, str], rng: random.Random) -> bool:
    """Make folders read-only while a stage writes into them."""
    trial, good = Trial(work / "readonly", work / "template"), True
    for name in sorted(WRITERS, key=lambda name: NAMES.index(WRITERS[name])):
        stage, folder = WRITERS[name], trial.top / name
        trial.start()
        trial.wait_for_stage([stage])
        time.sleep(rng.uniform(0, 0.4) * seconds[stage])
        mount("--bind", folder, folder)
        mount("-o", "remount,ro,bind", folder)
        place, status = trial.stage(), trial.wait()
        line = last_error(trial)
        print(f'{name}/ read-only inside {place or "(between stages)"}: status {status}, "{line}"', flush=True)
        trial.start()
        again, second = trial.wait(), last_error(trial)
        print(f'started again: status {again}, "{second}"', flush=True)
        subprocess.run(["umount", folder], check=True)
        good = good and place == stage and bool(status and again) and "Read-only file system" in line
    trial.start()
    trial.finish()
    return compare("read-only folders", trial, expected) and good


def clock(work: Path, seconds: dict[str, float], expected: dict[str, str], rng: random.Random) -> bool:
    """Let time jump back in every process, kill, and let all files come from the future before going on."""
    trial, path = Trial(work / "clock", work / "template"), work / "clock_path"
    path.mkdir()
    (path / "sitecustomize.py").write_text(JUMP)
    trial.start(path)
    stage = trial.wait_for_stage([rng.choice(NAMES[2:])])
    time.sleep(rng.uniform(0, 0.8) * seconds[stage])
    trial.kill()
    print(f"clock set back a day in every process, killed inside {trial.stage() or '(between stages)'}", flush=True)
    tomorrow = time.time() + 86400
    for pattern in ("checkpoints/*", "runs/tiny/**/*", "dataset/tiny/*/image/*", "dataset/tiny/*.csv"):
        for file in trial.top.glob(pattern):
            os.utime(file, (tomorrow, tomorrow))
    trial.start(path)
    trial.finish()
    return compare("clock jumping back", trial, expected)


def twice(work: Path, seconds: dict[str, float], expected: dict[str, str], rng: random.Random) -> bool:
    """Start a second run in the same folder, in three ways: the first goes on, the second names who is at work."""
    first, second = (
        Trial(work / "twice", work / "template"),
        Trial(work / "twice", outputs=work / "twice_second_outputs"),
    )
    first.start()
    good = True
    for way, within in WAYS.items():
        place = first.wait_for_stage(NAMES)
        second.start(within=within)
        status, line = second.wait(), last_error(second)
        while_running = not first.has_ended()
        print(f'second run ({way}) while the first is inside {place}: status {status}, "{line}"', flush=True)
        good = good and while_running and status == 1 and "is in use by" in second.printed()
    first.finish()
    good = compare("a second run in three ways", first, expected) and good
    for way, within in WAYS.items():
        second.start(within=within)
        status = second.wait()
        print(f'after the first has ended ({way}): status {status}, "{last_error(second)}"', flush=True)
        good = good and status == 0
    return compare("started again in three ways", first, expected) and good


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
    lines = [line for line in trial.printed().splitlines() if "error: " in line]
    return lines[-1][lines[-1].index("error: ") :] if lines else "no error line"


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
    scenarios = {scenario.__name__: scenario for scenario in (kills, disk, log, readonly, clock, twice)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"some of {', '.join(scenarios)}")
    parser.add_argument("--kills", type=int, default=3, help="inside each stage")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := set(args.scenarios) - set(scenarios):
        parser.error(f"no scenario {', '.join(unknown)}")
    chosen = args.scenarios or list(scenarios)
    if not in_own_namespace():
        print("mounting is not allowed here: without disk, readonly and twice")
        chosen = [name for name in chosen if name not in ("disk", "readonly", "twice")]

    work = Path(tempfile.mkdtemp(prefix="survive_"))
    print(f"outputs of all launches in {work}, seed {args.seed}", flush=True)
    whole = Trial(work / "whole", make_template(work / "template"))
    seconds = whole.measure()
    expected = whole.fingerprints()
    print(
        f"left alone: {sum(seconds.values()):.0f} s inside stages, {len(expected)} files to compare; "
        + ", ".join(f"{stage} {length:.1f} s" for stage, length in seconds.items()),
        flush=True,
    )
    scenarios["kills"] = partial(kills, count=args.kills)
    good = {name: scenarios[name](work, seconds, expected, random.Random(f"{args.seed} {name}")) for name in chosen}
    print(", ".join(f"{name}: {'survived' if well else 'NOT survived'}" for name, well in good.items()))
    sys.exit(not all(good.values()))


if __name__ == "__main__":
    main()
