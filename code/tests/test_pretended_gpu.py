"""The stages and both kinds of inference on a device that is not the CPU, so that a forgotten tensor is noticed.

The device is pretended (pretended_gpu.py): it runs on every machine, in a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

from epsam.demo.slides import make_demo
from epsam.runtime.files import read_csv
from epsam.workspace import Workspace
from tests.gpu_cases import CARDS, CASES
from tests.patch_factory import make_patches

CODE = Path(__file__).parents[1]
STAGES = ("train-classifier", "embed", "initial-masks", "finetune", "retrain", "distill", "evaluate")
MODELS = ("sam", "student")
INPUTS = {"patches": "dataset/small/test", "slide": "slides/images/tumor_001.tif"}
INFERENCE = ("inference.classifier_probability=0", "inference.overlap=0")
SETTINGS = {
    "T4": """\
name: small
workers: 0
patches: {size_px: 64}
classifier: {depth: 18, epochs: 1, batch: 8, lr: 1.0e-3, bn_recalibration_batches: 1}
cam: {layer: layer4, percentile: null, threshold: 0.2, mask_px: 64, opening_px: 0}
prompts: {points: 5}
sam: {model_type: demo, views: 1}
finetune: {lr: 1.0e-4, epochs: 1}
retrain: {rounds: 1, ids: 0.0}
student: {epochs: 1, batch: 8}
evaluate: {bootstrap: 100}
""",
    # Whatever else has tensors of its own.
    "A100": """\
name: small
workers: 2
patches: {size_px: 64}
classifier: {backbone: efficientnet_lite0, padding: reflect, epochs: 1, batch: 8, select_on: val_masks, balance: true,
  augment: {stain: 0.1}}
cam: {layer: layer4, percentile: null, threshold: auto, scales: [1, 2], mask_px: 64, opening_px: 0}
prompts: {points: 5, kind: both, min_box_px: 10}
sam: {model_type: demo, views: 2, embeddings: "off"}
finetune: {lr: 1.0e-4, epochs: 1, select_on: val_masks}
retrain: {rounds: 1, ids: 0.0}
student: {epochs: 1, batch: 8}
postprocess: {views: 2, cam_weight: 0.5}
evaluate: {bootstrap: 100}
""",
}

# CPUs without bfloat16, which these play GPUs on, take minutes.
pytestmark = [
    pytest.mark.timeout(1000),
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="this PyTorch has no backends written in Python",
    ),
]


def _run(kind: str, *arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(CODE)}
    command = [sys.executable, "-m", "tests.on_pretended_gpu", kind, *arguments]
    return subprocess.run(command, env=env, cwd=CODE, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(scope="module", params=["T4", "A100"])
def trained(request, tmp_path_factory):
    """The folder of a run whose stages and predictions ran on the pretended GPU, the card it stands for, and what was logged."""
    top = tmp_path_factory.mktemp(request.param)
    make_patches(Workspace(top, "small"), {"train": 4, "val": 2, "test": 2})
    make_demo(top / "slides", tumour=1, normal=0, size_px=192, workers=1)
    (top / "checkpoints").mkdir()
    shutil.copy(CODE.parent / "checkpoints" / "sam_demo.pth", top / "checkpoints")
    (top / "small.yaml").write_text(SETTINGS[request.param])
    root = ["--root", str(top)]
    commands = [[stage, "--config", str(top / "small.yaml"), *root] for stage in ("preprocess", *STAGES)]
    for model in MODELS:
        for name, source in INPUTS.items():
            command = ["infer", str(top / source), "--model", "small", "--output", str(top / model / name), *root]
            commands.append([*command, f"inference.model={model}", *INFERENCE])
    done = _run("commands", request.param, json.dumps(commands))
    assert done.returncode == 0, done.stdout + done.stderr
    return top, request.param, done.stdout


def test_the_stages_run_on_it(trained):
    top, card, log = trained
    run = Workspace(top, "small").run
    for stage in STAGES:
        record = json.loads((run / "state" / f"{stage}.json").read_text())
        assert record["done"]
        assert record["device"] == "pretended_gpu:0"
    for network in ("classifier", "student"):
        assert f"{network}: batches of 8 in micro-batches of 4, {CARDS[card][0]}" in log
    methods = {row["method"] for row in read_csv(run / "metrics.csv", ["method"])}
    assert {"cam", "sam", "round0", "round1", "student"} <= methods


@pytest.mark.parametrize("model", MODELS)
def test_patches_and_slides_are_predicted_on_it(trained, model):
    folder = trained[0] / model
    assert {row["status"] for row in read_csv(folder / "patches" / "predictions.csv", ["status"])} == {"ok"}
    assert len(list((folder / "patches" / "mask").iterdir())) == 4
    assert (folder / "slide" / "tumor_001_probability.tif").is_file()


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """What failed in each case, by its name."""
    done = _run("cases", str(tmp_path_factory.mktemp("cases")))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_on_it(failures, name):
    assert failures[name] == ""
