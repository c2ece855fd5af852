"""./train.sh in a folder of its own, watched and disturbed from outside: what survive.py is made of."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "code"))

from epsam.pipeline import STAGES  # noqa: E402
from epsam.runtime.files import sha256  # noqa: E402
from tests.tiny import make_tiny  # noqa: E402

NAMES = [stage.name for stage in STAGES]
SETTINGS = ("classifier.epochs=4", "finetune.epochs=4", "retrain.rounds=2", "sam.views=4")
"""A little more to do than in the tests, so that not all time goes into starting Python."""
DIFFERENT = re.compile(r"runs/tiny/(state/[a-z-]+\.json|environment\.json|report\.html|\.?lock.*)")
"""Files that hold times of day, durations or process numbers; every other one must be equal byte for byte."""
PATIENCE_S = 600


def make_template(folder: Path) -> Path:
    """A top level with the tiny slides, nothing trained yet."""
    folder.mkdir(parents=True)
    for name in ("train.sh", "requirements.txt"):
        shutil.copy(TOP / name, folder)
    (folder / "code").symlink_to(TOP / "code")
    (folder / ".venv").symlink_to(TOP / ".venv")
    (folder / "checkpoints").mkdir()
    shutil.copy(TOP / "checkpoints" / "sam_demo.pth", folder / "checkpoints")
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

    def start(self, python_path: Path | None = None) -> None:
        """./train.sh in a process group of its own, its output into a new file."""
        self.launches += 1
        paths = [str(path) for path in (python_path, self.top / "code") if path]
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(
                ["./train.sh", "tiny.yaml", *SETTINGS], cwd=self.top, stdout=stream, stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, start_new_session=True)

    @property
    def output(self) -> Path:
        """What the launch says."""
        return self.outputs / f"{self.launches:02d}.log"

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self) -> int:
        """Exit status of the launch; a traceback in its output ends the benchmark."""
        status = self.process.wait(timeout=PATIENCE_S)
        if "Traceback" in self.said():
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

    def ended(self) -> bool:
        return self.process.poll() is not None

    def is_done(self, stage: str) -> bool:
        """Whether this launch has said that a stage is done, now or already."""
        return f"\n{stage}: done" in self.said()

    def wait_for_moment(self, stage: str, seconds: float) -> bool:
        """Wait until the stages before `stage` are done and `seconds` have passed; False when the launch ends first."""
        before = NAMES[NAMES.index(stage) - 1] if stage != NAMES[0] else None
        while before and not self.is_done(before):
            if self.ended():
                return False
            time.sleep(0.02)
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def place(self) -> str:
        """Where the launch is: in a stage, or starting one."""
        marks = re.findall(r"--- ([a-z-]+):|\n([a-z-]+): done", self.said())
        begun, done = marks[-1] if marks else ("", "")
        if begun:
            return begun
        following = NAMES[NAMES.index(done) + 1:] if done else NAMES
        return f"(starting {following[0]})" if following else "(ending)"

    def measure(self) -> dict[str, float]:
        """Run without disturbance; seconds of each stage, starting Python included."""
        began, ends = time.monotonic(), {}
        self.start()
        while not self.ended():
            for stage in NAMES:
                if stage not in ends and self.is_done(stage):
                    ends[stage] = time.monotonic() - began
            time.sleep(0.02)
        self.finish()
        starts = [0.0, *list(ends.values())[:-1]]
        return {stage: end - start for (stage, end), start in zip(ends.items(), starts, strict=True)}

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of all files that a run makes and that must be equal, by relative name."""
        files = (f for folder in ("dataset", "checkpoints", "runs") for f in (self.top / folder).rglob("*") if f.is_file())
        names = {f.relative_to(self.top).as_posix(): f for f in files}
        return {name: sha256(f) for name, f in sorted(names.items()) if not DIFFERENT.fullmatch(name)}


def moment(rng, seconds: dict[str, float]) -> tuple[str, float]:
    """A stage and seconds into it, uniform over a whole run."""
    at = rng.uniform(0, sum(seconds.values()))
    for stage, length in seconds.items():
        if at < length:
            return stage, at
        at -= length
    return NAMES[-1], seconds[NAMES[-1]]


def compare(what: str, trial: Trial, expected: dict[str, str]) -> bool:
    """Print whether the files of a finished trial are the expected ones."""
    found = trial.fingerprints()
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(f"{what}: {len(found)} files compared, {len(wrong)} differ: {', '.join(wrong[:10]) or 'nothing was lost'}",
          flush=True)
    return not wrong
