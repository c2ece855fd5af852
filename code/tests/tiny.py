"""The whole chain at the smallest size that still is the whole chain: used by tests and benchmarks."""

import shutil
import subprocess
import sys
from pathlib import Path

from epsam.demo.slides import make_demo

TOP = Path(__file__).parents[2]
SETTINGS = """\
name: tiny
slides: {unannotated: normal, split_shares: [0.5, 0.25, 0.25]}
patches:
  size_px: 128
  train: {per_bin: 3, negatives: 30, classifier_extra: 16}
  val: {per_bin: 1, negatives: 10, classifier_extra: 4}
  test: {per_bin: 1, negatives: 8}
  tissue: {downsample: 8}
classifier: {depth: 18, positive_share: [0.2, 1.0], lr: 1.0e-3, epochs: 2, bn_recalibration_batches: 4}
cam: {layer: layer4, percentile: null, threshold: 0.4, mask_px: 128}
prompts: {points: 10}
sam: {model_type: demo, views: 2}
finetune: {lr: 1.0e-4, batch: 8, epochs: 2, normal_weight: 0.25}
retrain: {rounds: 1, ids: 0.1}
student: {epochs: 1}
evaluate: {bootstrap: 100, supervised: true, slides: true}
"""


def make_tiny(top: Path) -> Path:
    """Write `tiny.yaml` and the slides of dataset/tiny under `top`; gives the path of the settings."""
    make_demo(top / "dataset" / "tiny", tumour=4, normal=2, size_px=1024, workers=1)
    settings = top / "tiny.yaml"
    settings.write_text(SETTINGS)
    return settings


def make_top(top: Path) -> None:
    """Make the folder `top` like the project's top level: scripts, code and the shipped weights, nothing made yet."""
    for script in ("train.sh", "infer.sh", "requirements.txt"):
        shutil.copy(TOP / script, top / script)
    (top / "code").symlink_to(TOP / "code")
    (top / "checkpoints").mkdir()
    shutil.copy(TOP / "checkpoints" / "sam_demo.pth", top / "checkpoints")
    bin_ = top / ".venv" / "bin"
    bin_.mkdir(parents=True)
    # The interpreter that runs this stands in for the one that the scripts would install.
    (bin_ / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin_ / "python").chmod(0o755)
    wanted = subprocess.run(
        "cat requirements.txt code/pyproject.toml | cksum", shell=True, cwd=top, capture_output=True, check=True
    ).stdout
    (top / ".venv" / "installed").write_bytes(wanted)
