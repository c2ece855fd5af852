"""Feed every reader of files with damaged and hostile ones, as many as asked for.

    OMP_NUM_THREADS=1 python code/benchmarks/fuzz.py [--inputs 500000] [--seed 0] [--kinds KIND ...] [--first 0]

Each input is a whole file (tests/fuzz_kinds.py) with something changed (tests/mutations.py). A reader may succeed or
raise an EpsamError whose message is short and names the file; anything else is a fault: it is printed with the options
that make it again (`--first N --inputs 1`, which also prints the bytes). At the end: inputs, faults, the slowest input
and the largest growth of memory. Status 1 after faults.
"""

import argparse
import faulthandler
import logging
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from epsam.runtime.log import logger, progress
from tests.fuzz_kinds import KINDS
from tests.fuzzing import limited_memory

PATIENCE_S = 30
"""An input that takes longer is a fault; one that hangs outside Python ends the program after four times this."""
SHOWN = 2
"""Faults of one sort that are printed."""


class HangError(BaseException):
    """Raised by the timer; no Exception, so that no reader takes it for one of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND", help=", ".join(KINDS)
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    args = parser.parse_args()
    prepare()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fuzz_", dir=memory if memory.is_dir() else None) as scratch:
        sys.exit(run(Path(scratch), args.kinds, args.seed, args.first, args.inputs))


def prepare() -> None:
    """Stop what hangs, and keep the readers' own warnings off the screen."""

    def stop(*_: object) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, stop)
    faulthandler.enable()
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    warnings.simplefilter("ignore")


def run(scratch: Path, names: list[str], seed: int, first: int, count: int) -> int:
    """Try `count` inputs and print what came of them; 1 after faults."""
    kinds = {name: KINDS[name](scratch / name) for name in names}
    seconds, tried, faults = Counter(), Counter(), Counter()
    slowest, largest = (0.0, ""), (0, "")
    began = time.monotonic()
    with limited_memory(), progress(total=count, desc="fuzz", unit="input") as bar:
        number = first
        while sum(tried.values()) < count:
            for name, kind in kinds.items():
                if number % kind.one_in and len(kinds) > 1:
                    continue
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                start = time.process_time()
                kind.write(name, seed, number)
                fault = attempt(kind)
                took = time.process_time() - start
                label = f"--kinds {name} --seed {seed} --first {number} --inputs 1"
                if fault:
                    sort = f"{name}: {fault.partition(': ')[0]}"
                    faults[sort] += 1
                    if faults[sort] <= SHOWN:
                        bar.write(f"fault: {name}: {fault}\n       {label}")
                if count == 1:
                    bar.write(repr(kind.path.read_bytes()[:4000]) if kind.path.is_file() else "the file is gone")
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
                slowest, largest = max(slowest, (took, label)), max(largest, (grown, label))
                seconds[name] += took
                tried[name] += 1
                bar.update()
            number += 1
    for name, n in tried.items():
        bad = sum(times for sort, times in faults.items() if sort.startswith(f"{name}: "))
        print(f"{name:17} {n:8,} inputs {bad:6,} faults {1000 * seconds[name] / n:7.2f} ms each")
    for sort, times in faults.most_common():
        print(f"{times:6,} x {sort}")
    total = sum(tried.values())
    print(
        f"{total:,} inputs, {sum(faults.values()):,} faults in {len(faults)} places, "
        f"{time.monotonic() - began:.0f} s; slowest {slowest[0]:.2f} s of a processor ({slowest[1]}); largest growth of memory "
        f"{largest[0] / 1024:.0f} MiB ({largest[1]})"
    )
    return int(bool(faults))


def attempt(kind) -> str:
    """The fault of what was written, a hang among them."""
    faulthandler.dump_traceback_later(4 * PATIENCE_S, exit=True)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    try:
        return kind.fault()
    except HangError:
        return f"more than {PATIENCE_S} s"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
