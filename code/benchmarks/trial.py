"""./train.sh in a folder of its own, watched and disturbed from outside: what survive.py is made of."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from epsam.pipeline import STAGES
from tests.tiny import make_tiny, make_top

NAMES = [stage.name for stage in STAGES]
SETTINGS = (
    "classifier.epochs=4",
    "classifier.bn_recalibration_batches=20",
    "finetune.epochs=4",
    "retrain.rounds=2",
    "sam.views=4",
)
"""A little more to do than in the tests, so that not all time goes into starting Python; maps that are not empty."""
DIFFERENT = re.compile(r"runs/tiny/(state/[a-z-]+\.json|environment\.json|report\.html|tensorboard/.*|\.?lock.*)")
"""Files that hold times of day, durations or process numbers; every other one must be equal byte for byte."""
PATIENCE_S = 900
WATCH_S = 0.01


def make_template(folder: Path) -> Path:
    """A top level with the tiny slides, nothing trained yet."""
    folder.mkdir(parents=True)
    make_top(folder)
    make_tiny(folder)
    return folder


class Trial:
    """One top level and the launches of ./train.sh in it, one after the other."""

    def __init__(self, top: Path, template: Path | None = None, outputs: Path | None = None):
        self.top, self.launches, self.process = top, 0, None
        self.outputs = outputs or top.with_name(f"{top.name}_outputs")
        self.outputs.mkdir(exist_ok=True)
        if template:
            shutil.copytree(template, top, symlinks=True)

    def start(self, python_path: Path | None = None, within: Sequence[str] = ()) -> None:
        """./train.sh in a process group of its own, its output into a new file; `within`: a command that starts it."""
        self.launches += 1
        paths = [str(path) for path in (python_path, self.top / "code") if path]
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(
                [*within, "./train.sh", "tiny.yaml", *SETTINGS],
                cwd=self.top,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )

    @property
    def output(self) -> Path:
        """What the launch prints."""
        return self.outputs / f"{self.launches:02d}.log"

    def printed(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self) -> int:
        """Exit status of the launch; a traceback in its output ends the benchmark."""
        status = self.process.wait(timeout=PATIENCE_S)
        if "Traceback" in self.printed():
            sys.exit(f"a traceback in {self.output}")
        return status

    def finish(self) -> None:
        """Let the launch come to its end; anything but success ends the benchmark."""
        if self.wait():
            sys.exit(f"a run that should have finished failed: see {self.output}")

    def kill(self) -> None:
        """SIGKILL to the process group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def stage(self) -> str:
        """The stage that the launch is inside of: it has logged its start and not its end; empty between stages."""
        marks = re.findall(r"^(?:--- ([a-z-]+):|([a-z-]+): done)", self.printed(), re.MULTILINE)
        return marks[-1][0] if marks else ""

    def wait_for_stage(self, stages: Sequence[str]) -> str:
        """Wait until the launch is inside one of `stages`; empty when it ends before."""
        while not self.has_ended():
            if (stage := self.stage()) in stages:
                return stage
            time.sleep(WATCH_S)
        return ""

    def is_inside_after(self, stage: str, seconds: float) -> bool:
        """Let a launch that is inside `stage` go on for `seconds`: whether it still is inside then."""
        time.sleep(seconds)
        return not self.has_ended() and self.stage() == stage

    def measure(self) -> dict[str, float]:
        """Run without disturbance; seconds inside each stage."""
        self.start()
        seconds = dict.fromkeys(NAMES, 0.0)
        for name in NAMES:
            self.wait_for_stage([name])
            began = time.monotonic()
            while not self.has_ended() and self.stage() == name:
                time.sleep(WATCH_S)
            seconds[name] = time.monotonic() - began
        self.finish()
        return seconds

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of all files that a run makes and that must be equal, by relative name."""
        files = (
            f for folder in ("dataset", "checkpoints", "runs") for f in (self.top / folder).rglob("*") if f.is_file()
        )
        names = {f.relative_to(self.top).as_posix(): f for f in files}
        return {
            name: hashlib.sha256(f.read_bytes()).hexdigest()
            for name, f in sorted(names.items())
            if not DIFFERENT.fullmatch(name)
        }


def compare(what: str, trial: Trial, expected: dict[str, str]) -> bool:
    """Print whether the files of a finished trial are the expected ones."""
    found = trial.fingerprints()
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(
        f"{what}: {len(found)} files compared, {len(wrong)} differ: {', '.join(wrong[:10]) or 'nothing was lost'}",
        flush=True,
    )
    return not wrong
