"""Stages shared by processes that torchrun starts: the files of one process, an end for all when one fails."""

import csv
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from epsam.runtime import device
from epsam.runtime.log import logger
from epsam.workspace import Workspace
from tests.patch_factory import make_patches
from tests.ranks_worker import run_stages, train_steps

CODE = Path(__file__).parents[1]
WORKER = str(CODE / "tests" / "ranks_worker.py")
SETTINGS = """\
name: small
profile: cpu
patches: {size_px: 64}
classifier: {depth: 18, lr: 1.0e-3, epochs: 2, bn_recalibration_batches: 2}
cam: {layer: layer4, percentile: null, threshold: 0.4, mask_px: 64}
sam: {model_type: demo, views: 2}
finetune: {lr: 1.0e-4, batch: 4, epochs: 2, normal_weight: 0.25}
retrain: {rounds: 1, ids: 0.1}
student: {epochs: 1}
evaluate: {bootstrap: 20}
"""
SHARED = ("embed", "initial-masks", "finetune", "retrain", "distill", "evaluate")
OF_TRAINING = 1e-5
"""Losses that decoder and student may differ by, in float32, for gradients that were added in another order."""
OF_BATCHNORM = 1e-3
"""And those of the classifier, whose batch normalisation of few patches makes such differences greater."""


def start(processes: int, *command: str, cwd: Path) -> subprocess.Popen:
    """Start `-m epsam...` or a script in as many processes; its output is one text."""
    known = {k: v for k, v in os.environ.items() if k != "EPSAM_OWNER_PID"}
    temporary = cwd / "temporary"
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "epsam.torchrun", "--nproc-per-node", str(processes), *command],
        cwd=cwd,
        env=known | {"PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
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


@contextmanager
def _as_the_worker(log: Path) -> Iterator[None]:
    """Have this process compute as ranks_worker.py does, and log to a file."""
    threads, handler = torch.get_num_threads(), logging.FileHandler(log)
    torch.set_num_threads(1)
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device, "_cpu_computes_bfloat16", lambda: False)
            yield
    finally:
        torch.set_num_threads(threads)
        logger.removeHandler(handler)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run of which two processes trained the classifier until one was killed; their status and output."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "small.yaml").write_text(SETTINGS)
    make_patches(Workspace(folder, "small"), {"train": 5, "val": 2, "test": 2})
    shutil.copytree(CODE.parent / "checkpoints", folder / "checkpoints", ignore=lambda *_: ())
    run_stages(folder, ["preprocess"])
    training = start(2, WORKER, "killed", "train-classifier", "--config", "small.yaml", cwd=folder)
    return folder, *end_of(training, timeout=60)


@pytest.fixture(scope="module")
def runs(killed, tmp_path_factory):
    """Folders of that run as one process continued it, and as three did with the classifier of the one."""
    one, three = (tmp_path_factory.mktemp(name) for name in ("one", "three"))
    shutil.copytree(killed[0], one, dirs_exist_ok=True)
    with _as_the_worker(one / "log.txt"):
        run_stages(one, ["train-classifier"])
        shutil.copytree(one, three, dirs_exist_ok=True)
        (three / "log.txt").unlink()
        shutil.copytree(killed[0], three / "again")
        train_steps(one)
        run_stages(one, SHARED)
    status, output = end_of(start(3, WORKER, "share", str(three), "--again", str(three / "again"), *SHARED, cwd=three))
    assert status == 0, output
    return one, three


def _curves(path: Path) -> list[list[float]]:
    """The two losses of each epoch."""
    return [[float(row["train_loss"]), float(row["val_loss"])] for row in csv.DictReader(path.open())]


def _files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_a_killed_process_ends_all_with_one_line(killed):
    _, status, output = killed
    assert status == 1
    assert "Traceback" not in output
    assert output.count("run the same command again to continue") == 1


def test_any_number_of_processes_continues(runs):
    for folder in runs:
        assert "classifier: continuing after epoch 1" in (folder / "log.txt").read_text()
    one, three = (_curves(folder / "runs/small/classifier_curves.csv") for folder in (runs[0], runs[1] / "again"))
    for expected, row in zip(one, three, strict=True):
        assert row == pytest.approx(expected, rel=OF_BATCHNORM)


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
    one, three = (_curves(folder / f"runs/small/{curves}_curves.csv") for folder in runs)
    assert one
    for expected, row in zip(one, three, strict=True):
        assert row == pytest.approx(expected, rel=OF_TRAINING)


def test_the_log_is_that_of_one_process(runs):
    one, three = ((folder / "log.txt").read_text() for folder in runs)
    assert three.count("evaluate: done in") == one.count("evaluate: done in") == 1
    assert three.count("[result] split=test") == one.count("[result] split=test")


@pytest.mark.parametrize("number", [0, 1])
def test_an_error_of_one_process_ends_all_with_one_line(tmp_path, number):
    status, output = end_of(start(2, WORKER, "fail", str(tmp_path), str(number), cwd=tmp_path), timeout=60)
    assert (status, output) == (1, "error: the disk is on fire; put it out\n")
    assert (tmp_path / "log.txt").read_text().count("the disk is on fire") == 1
    assert list((tmp_path / "temporary").glob("*torch*")) == [], "nothing is left in the folder for temporary files"


@pytest.mark.parametrize("number", [0, 1])
def test_a_gpu_that_is_full_ends_all_with_the_setting_to_lower(tmp_path, number):
    status, output = end_of(start(2, WORKER, "memory", str(tmp_path), str(number), cwd=tmp_path), timeout=60)
    assert status == 1
    assert len(output.splitlines()) == 2, output
    device_line, line = output.splitlines()
    assert device_line.startswith("device: CPU")
    assert line.startswith(f"error: classifier: the GPU of process {number} of 2 does not hold ")
    assert "profile=8gb" in line
