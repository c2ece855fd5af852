"""Stages shared by processes that torchrun starts: the files of one process, an end for all when one fails."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from epsam.config.loading import load_config
from epsam.pipeline import STAGES, TRAIN_CLASSIFIER
from epsam.runs.runner import run_stage
from epsam.workspace import Workspace
from tests.patch_factory import make_patches

CODE = Path(__file__).parents[1]
SETTINGS = """\
name: small
profile: cpu
patches: {size_px: 64}
classifier: {depth: 18, lr: 1.0e-3, epochs: 1, bn_recalibration_batches: 2}
cam: {layer: layer4, percentile: null, threshold: 0.4, mask_px: 64}
sam: {model_type: demo, views: 2}
finetune: {lr: 1.0e-4, batch: 4, epochs: 2}
retrain: {rounds: 1, ids: 0.1}
student: {epochs: 1}
evaluate: {bootstrap: 20}
"""
SHARED = ("embed", "initial-masks", "finetune", "retrain", "distill", "evaluate")
OF_TRAINING = 1e-5
"""Losses that decoder and student may differ by, in float32, for gradients that were added in another order."""


def start(processes: int, *command: str, cwd: Path) -> subprocess.Popen:
    """Start `-m epsam...` or a script in as many processes; its output is one text."""
    known = {k: v for k, v in os.environ.items() if k != "EPSAM_OWNER_PID"}
    return subprocess.Popen(
        [sys.executable, "-m", "epsam.torchrun", "--nproc-per-node", str(processes), *command],
        cwd=cwd,
        env=known | {"PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end_of(process: subprocess.Popen, timeout: int = 300) -> tuple[int, str]:
    """Status and output."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of one run: its classifier made by one process, the stages after it by one and by three."""
    one, three = (tmp_path_factory.mktemp(name) for name in ("one", "three"))
    (one / "small.yaml").write_text(SETTINGS)
    config, workspace = load_config(one / "small.yaml"), Workspace(one, "small")
    make_patches(workspace, {"train": 7, "val": 3, "test": 3})
    shutil.copytree(CODE.parent / "checkpoints", one / "checkpoints", ignore=lambda *_: ())
    for stage in STAGES[: STAGES.index(TRAIN_CLASSIFIER) + 1]:
        run_stage(STAGES, stage, config, workspace)
    shutil.copytree(one, three, dirs_exist_ok=True)
    for folder, processes in ((one, 1), (three, 3)):
        status, output = end_of(
            start(processes, str(CODE / "tests" / "ranks_worker.py"), "share", str(folder), *SHARED, cwd=folder)
        )
        assert status == 0, output
    return one, three


def _files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_steps_of_the_classifier_are_those_of_one_process(runs):
    one, three = (torch.load(folder / "steps.pth", weights_only=True) for folder in runs)
    assert one.keys() == three.keys()
    for name, expected in one.items():
        torch.testing.assert_close(three[name], expected, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize(
    "pattern",
    [
        "runs/small/embeddings/*/*",
        "runs/small/cams/*.npz",
        "dataset/small/*/initial_mask/*.png",
        "dataset/small/*/iter_1/*.png",
        "dataset/small/*/distill/*.png",
        "runs/small/state/predictions/*.csv",
        "runs/small/state/predictions/*/*.png",
    ],
)
def test_files_are_those_of_one_process(runs, pattern):
    one, three = (_files(folder, pattern) for folder in runs)
    assert one
    assert one.keys() == three.keys()
    assert [name for name in one if one[name] != three[name]] == []


@pytest.mark.parametrize("curves", ["round0", "round1", "student"])
def test_losses_are_those_of_one_process(runs, curves):
    one, three = (list(csv.DictReader((f / f"runs/small/{curves}_curves.csv").open())) for f in runs)
    assert len(one) == len(three) > 0
    for expected, row in zip(one, three, strict=True):
        for name in ("train_loss", "val_loss"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=OF_TRAINING)


def test_the_log_is_that_of_one_process(runs):
    one, three = ((folder / "log.txt").read_text() for folder in runs)
    assert three.count("evaluate: done in") == one.count("evaluate: done in") == 1
    assert three.count("[result] split=test") == one.count("[result] split=test")


@pytest.mark.parametrize("number", [0, 1])
def test_an_error_of_one_process_ends_all_with_one_line(tmp_path, number):
    worker = str(CODE / "tests" / "ranks_worker.py")
    status, output = end_of(start(2, worker, "fail", str(tmp_path), str(number), cwd=tmp_path), timeout=60)
    assert (status, output) == (1, "error: the disk is on fire; put it out\n")
    assert (tmp_path / "log.txt").read_text().count("the disk is on fire") == 1


def _wait_for(text: str, log: Path, process: subprocess.Popen) -> None:
    while not (log.is_file() and text in log.read_text()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_a_killed_process_ends_all_and_any_number_of_processes_continues(runs, tmp_path):
    shutil.copytree(runs[0] / "dataset", tmp_path / "dataset")
    shutil.rmtree(tmp_path / "dataset/small/train/initial_mask")
    (tmp_path / "small.yaml").write_text(SETTINGS.replace("epochs: 1,", "epochs: 500, early_stop: 500,"))
    run_stage(STAGES, STAGES[0], load_config(tmp_path / "small.yaml"), Workspace(tmp_path, "small"))
    log = tmp_path / "logging_small.txt"
    for processes, wanted in ((2, "epoch 1/"), (1, "continuing after epoch"), (3, "continuing after epoch")):
        log.unlink(missing_ok=True)
        training = start(processes, "-m", "epsam", "train-classifier", "--config", "small.yaml", cwd=tmp_path)
        _wait_for(f"classifier: {wanted}", log, training)
        last = max(psutil.Process(training.pid).children(), key=lambda child: child.pid)
        last.send_signal(signal.SIGKILL)
        status, output = end_of(training, timeout=60)
        assert status == 1
        assert "Traceback" not in output
        if processes > 1:
            assert output.count("run the same command again to continue") == 1
