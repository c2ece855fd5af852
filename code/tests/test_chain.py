"""./train.sh and ./infer.sh from slides to figures, at tiny size, as a user runs them."""

import csv
import re

import pytest

from epsam.runtime.files import sha256
from tests.tiny import make_tiny

RESULT = re.compile(r"\[result\] split=test method=(\w+) dice=([\d.]+) iou=([\d.]+) patches=(\d+)")


def _files(top):
    kept = (
        p for p in top.rglob("*") if p.is_file() and not p.is_symlink() and p.suffix != ".txt" and "lock" not in p.name
    )
    return {p.relative_to(top).as_posix(): (sha256(p), p.stat().st_mtime_ns) for p in kept if "code" not in p.parts}


@pytest.mark.timeout(1200)
def test_train_infer_train_again(run_in, top, installed_epsam):
    make_tiny(top)
    first = run_in("./train.sh", "tiny.yaml")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "%|" not in first.stderr, "progress bars are for terminals alone"
    log = (top / "logging_tiny.txt").read_text()
    assert "%|" not in log
    methods = [m[1] for m in RESULT.finditer(log)]
    assert methods == [
        *("ones", "colour", "cam", "sam", "round0", "round1"),
        *("student", "supervised", "student_supervised"),
    ]

    assert (
        max(len(line) for line in first.stdout.splitlines() if line.startswith(("[result]", "pseudo-labels:"))) <= 110
    )
    assert " lr=5e-05" in first.stdout
    assert "student: epoch 1/1" in first.stdout
    assert first.stdout.count("val_pseudo_dice=") == 5, "round 0 and 1 have two epochs each, the student has one"
    with (top / "runs/tiny/metrics.csv").open() as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream) if row["method"]}
    for line in RESULT.finditer(log):
        assert abs(float(rows[line[1]]["dice"]) - float(line[2])) < 1e-4

    assert re.search(r"evaluate: \d whole slides: pooled Dice [\d.]+, precision", log)
    with (top / "runs/tiny/slide_metrics.csv").open() as stream:
        assert {row["slide"] for row in csv.DictReader(stream)} == {
            path.name.removesuffix("_mask.tif") for path in (top / "runs/tiny/slides").glob("*_mask.tif")
        }
    assert "Figures of each whole test slide" in (top / "runs/tiny/report.html").read_text()

    made = _files(top)
    for wanted in (
        "checkpoints/tiny_resnet_adl.pth",
        "checkpoints/tiny_sam_pre_decoder.pth",
        "checkpoints/tiny_decoder_iter1.pth",
        "checkpoints/tiny_sam_decoder.pth",
        "checkpoints/tiny_student.pth",
        "runs/tiny/report.html",
        "runs/tiny/config.yaml",
        "runs/tiny/environment.json",
        "dataset/tiny/patches.csv",
        "runs/tiny/slides.csv",
    ):
        assert wanted in made
    assert any(name.startswith("dataset/tiny/train/initial_mask/") for name in made)
    assert any(name.startswith("dataset/tiny/train/iter_1/") for name in made)
    assert not [name for name in made if ".epsam-tmp" in name]

    second = run_in("./train.sh", "tiny.yaml", PYTHONPROFILEIMPORTTIME="1")
    assert second.returncode == 0
    assert second.stdout.count("done already") == 9
    loaded = [line.rpartition("|")[2].strip() for line in second.stderr.splitlines()]
    assert loaded.count("epsam.cli") == 2, "one process for the doctor, one that finds that all stages are done"
    assert "torch" not in loaded
    assert _files(top) == made

    installed = installed_epsam("train", "tiny.yaml", cwd=top)
    assert installed.stdout.count("done already") == 9, installed.stdout + installed.stderr
    assert _files(top) == made
    page = installed_epsam("train", "tiny.yaml", "--from", "report", cwd=top)
    assert "report: done in" in page.stdout
    assert page.stdout.count("done already") == 8
    assert not (top / "runs/tiny/lock").exists()
    made = _files(top)

    changed = run_in("./train.sh", "tiny.yaml", "cam.threshold=0.6")
    assert changed.returncode == 1
    assert "stage initial-masks was run with something else: cam.threshold was 0.4, is 0.6" in changed.stdout
    assert _files(top) == made

    mask = next((top / "dataset/tiny/test/mask").iterdir())
    away = mask.rename(top / "away.png")
    without = run_in("./train.sh", "tiny.yaml")
    assert without.returncode == 1
    assert "stage evaluate was run with something else: masks was" in without.stdout
    away.rename(mask)
    assert _files(top) == made

    inferred = run_in(
        "./infer.sh",
        TEST_DATASET_DIR="dataset/tiny/test",
        OUTPUT_DIR="out",
        RESNET_CHECKPOINT="checkpoints/tiny_resnet_adl.pth",
        SAM_DECODER_CHECKPOINT="checkpoints/tiny_decoder_iter1.pth",
    )
    assert inferred.returncode == 0, inferred.stdout + inferred.stderr
    figures = re.search(r"\[result\].* dice=([\d.]+)", (top / "logging_inference.txt").read_text())
    assert figures, inferred.stdout

    student = run_in(
        "./infer.sh",
        OUTPUT_DIR="out2",
        TEST_DATASET_DIR="dataset/tiny/test",
        RESNET_CHECKPOINT="checkpoints/tiny_resnet_adl.pth",
    )
    assert student.returncode == 0, student.stdout + student.stderr
    assert "predicting with the student, checkpoints/tiny_student.pth" in student.stdout
    row = next(iter(csv.DictReader((top / "out2/predictions.csv").open())))
    assert row["classifier_probability"] == ""

    slide = "dataset/tiny/images/tumor_001.tif"
    whole = run_in("./infer.sh", slide, "--model", "tiny")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert (top / "runs/inference/tiny/tumor_001/tumor_001_overlay.png").is_file()
    assert "predictions are written to runs/inference/tiny/tumor_001" in whole.stdout
    said = run_in("./infer.sh", slide, "--model", "tiny", "inference.model=sam", SAM_MODEL_TYPE="vit_b")
    assert (
        "SAM_MODEL_TYPE=vit_b, but checkpoints/tiny_sam_decoder.pth was trained with sam.model_type demo" in said.stdout
    )


def test_train_by_two_processes(run_in, top):
    make_tiny(top)
    less = ("classifier.epochs=1", "finetune.epochs=1", "evaluate.supervised=false", "evaluate.slides=false")
    done = run_in("./train.sh", "tiny.yaml", "--gpus", "2", *less)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "classifier: batches of 16 in one piece" in done.stdout
    assert "shared by 2 processes" in done.stdout
    assert [m[1] for m in RESULT.finditer((top / "logging_tiny.txt").read_text())] == [
        *("ones", "colour", "cam", "sam", "round0", "round1", "student")
    ], "the first process alone logs"
    again = run_in("./train.sh", "tiny.yaml", *less)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("done already") == 9, "one process takes what two have made"
