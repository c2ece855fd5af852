"""Training on patch labels: what it learns, how it goes on after a stop, and what it says of bad input."""

import dataclasses
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from epsam.classifier import training
from epsam.classifier.adl import ADL
from epsam.classifier.augmentation import augment
from epsam.classifier.batchnorm import recalibrate_batchnorm
from epsam.classifier.building import build_classifier, load_classifier
from epsam.classifier.data import PatchImages, as_float, shuffled_batches
from epsam.classifier.train_step import LabelLoss, TrainStep
from epsam.config.schema import Augment, Classifier, Config
from epsam.errors import DataError, EpsamError
from epsam.results import read_results
from epsam.runtime.checkpoints import load_tensors
from epsam.runtime.device import choose_hardware
from epsam.runtime.files import read_csv, write_png
from epsam.runtime.seeds import seed_of
from epsam.stages.train_classifier import train_classifier
from epsam.workspace import Workspace
from tests.patch_factory import make_patches, patch_list

# The same figures on every machine.
CPU = dataclasses.replace(choose_hardware("cpu"), precision=torch.float32, prediction_precision=torch.float32)


def _config(**classifier) -> Config:
    defaults = {"depth": 18, "lr": 1e-3, "epochs": 2, "batch": 4}
    return Config(name="few", workers=0, classifier=Classifier(**(defaults | classifier)))


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path, "few")
    make_patches(workspace, {"train": 5, "val": 3, "test": 2})
    return workspace


def test_it_learns_to_tell_the_classes_apart_and_says_how_well(tmp_path, caplog):
    caplog.set_level("INFO", logger="epsam")
    workspace = Workspace(tmp_path, "few")
    make_patches(workspace, {"train": 8, "val": 3, "test": 2}, size=48)
    train_classifier(_config(epochs=12, adl=False, lr=3e-4), workspace, CPU)
    results = {row["split"]: row for row in read_results(workspace)}
    assert float(results["val"]["auc"]) > 0.85
    assert set(results["test"]) >= {"auc", "accuracy", "sensitivity_at_90_specificity", "patches"}
    assert "[result] split=test method=classifier auc=" in caplog.text
    rows = read_csv(workspace.run / "classifier_curves.csv", ["epoch", "train_loss", "val_loss", "val_auc"])
    assert float(rows[-1]["train_loss"]) < 0.5 * float(rows[0]["train_loss"])
    assert cv2.imread(str(workspace.run / "classifier_curves.png")) is not None
    saved = json.loads((workspace.checkpoints / "few_resnet_adl.pth.json").read_text())
    assert saved["settings"]["classifier.depth"] == 18


def test_the_kept_weights_are_those_of_the_least_validation_loss_on_logits(workspace):
    config = _config(epochs=3)
    train_classifier(config, workspace, CPU)
    rows = read_csv(workspace.run / "classifier_curves.csv", ["val_loss"])
    model = load_classifier(config.classifier, workspace.classifier)
    val = training.load_labelled(workspace, "val", 0)
    logits = training.predict_logits(model, val.images, CPU)
    # Through probabilities, in double precision: a sigmoid applied twice would give another figure.
    loss = torch.nn.functional.binary_cross_entropy(logits.double().sigmoid(), val.labels.double()).item()
    assert loss == pytest.approx(min(float(row["val_loss"]) for row in rows), rel=1e-4)


def test_chosen_on_true_masks_the_log_says_so_and_masks_are_needed(workspace, caplog):
    caplog.set_level("INFO", logger="epsam")
    train_classifier(_config(epochs=2, select_on="val_masks"), workspace, CPU)
    assert "chosen on the true masks of the val split" in caplog.text
    rows = read_csv(workspace.run / "classifier_curves.csv", ["epoch", "val_map_error"])
    assert all(0 < float(row["val_map_error"]) < 1 for row in rows)
    best = min(rows, key=lambda row: float(row["val_map_error"]))["epoch"]
    assert f"best epoch {best}, val_map_error" in caplog.text
    next((workspace.split("val") / "mask").iterdir()).unlink()
    with pytest.raises(DataError, match=r"1 of 3 masks are missing.*set classifier.select_on=labels"):
        train_classifier(_config(epochs=3, select_on="val_masks"), workspace, CPU)


def test_stopped_and_going_on_ends_as_uninterrupted(tmp_path, monkeypatch):
    config = _config(epochs=3, bn_recalibration_batches=2)
    workspaces = {how: Workspace(tmp_path / how, "few") for how in ("whole", "stopped")}
    for workspace in workspaces.values():
        make_patches(workspace, {"train": 4, "val": 2, "test": 2})
    train_classifier(config, workspaces["whole"], CPU)

    class Stop(Exception):
        pass

    taken = []

    def stop_in_the_second_epoch(*arguments):
        taken.append(1)
        if len(taken) == 3:
            raise Stop
        return step(*arguments)

    step = TrainStep.step
    monkeypatch.setattr(TrainStep, "step", stop_in_the_second_epoch)
    with pytest.raises(Stop):
        train_classifier(config, workspaces["stopped"], CPU)
    monkeypatch.setattr(TrainStep, "step", step)
    train_classifier(config, workspaces["stopped"], CPU)
    whole, stopped = (load_tensors(w.classifier) for w in workspaces.values())
    for name, tensor in whole.items():
        torch.testing.assert_close(stopped[name], tensor, atol=0, rtol=0, msg=name)
    for workspace in workspaces.values():
        optimiser = load_tensors(workspace.state / "classifier.pth")["parts"]["optimiser"]
        assert optimiser["param_groups"][0]["fused"]


def test_stopped_and_going_on_on_another_device_ends_as_on_the_first(tmp_path, caplog):
    caplog.set_level("INFO", logger="epsam")
    other = dataclasses.replace(CPU, classifier_batch=2, precision=torch.bfloat16)
    results = []
    for second in (CPU, other):
        workspace = Workspace(tmp_path / str(second.classifier_batch), "few")
        make_patches(workspace, {"train": 4, "val": 2, "test": 2})
        train_classifier(_config(epochs=1, bn_recalibration_batches=1), workspace, CPU)
        train_classifier(_config(epochs=2, bn_recalibration_batches=1), workspace, second)
        results.append(load_tensors(workspace.state / "classifier.pth")["parts"])
    for name, tensor in results[0]["model"].items():
        torch.testing.assert_close(results[1]["model"][name], tensor, atol=0, rtol=0, msg=name)
    assert results[1]["learner"] == {"micro_batch": 16, "precision": "float32"}
    assert "classifier: batches of 4 in micro-batches of 2, bfloat16" in caplog.text
    assert (
        "going on with micro-batches of 16 in float32, as before the stop; this device would take 2 in bfl"
        in caplog.text
    )


def test_going_on_without_the_precision_of_the_first_device_is_warned_of(workspace, caplog):
    train_classifier(_config(epochs=1), workspace, dataclasses.replace(CPU, precision=torch.bfloat16))
    train_classifier(_config(epochs=2), workspace, CPU)
    assert "classifier: was trained in bfloat16 so far and goes on in float32" in caplog.text
    assert load_tensors(workspace.state / "classifier.pth")["parts"]["learner"]["precision"] == "float32"


def test_micro_batches_add_up_to_the_batch():
    hardware = dataclasses.replace(CPU, classifier_batch=2)
    images, labels = torch.rand(6, 3, 32, 32), torch.tensor([0.0, 1, 0, 1, 1, 0])
    gradients = []
    for used in (CPU, hardware):
        torch.manual_seed(0)
        model = build_classifier(Classifier(depth=18, adl=False)).eval()  # no batch statistics
        TrainStep(model, torch.optim.SGD(model.parameters(), lr=0), LabelLoss(torch.tensor(3.0)), used).step(
            images, labels
        )
        gradients.append(model.conv1.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_recalibrated_statistics_are_those_of_the_network_in_use(workspace):
    as_they_are = Augment(flips=False, rotation_degrees=0, jitter=0, grey=0)
    settings = Classifier(depth=18, augment=as_they_are)
    images = training.load_labelled(workspace, "train", 0).images
    torch.manual_seed(0)
    model = build_classifier(settings)
    recalibrate_batchnorm(model, images, settings, CPU, 1, 0, 4, CPU.classifier_batch)
    seen = []
    model.layer4[2].bn1.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    with torch.inference_mode():
        model.eval()(as_float(images.kept))
    # All patches fit one batch: after recalibration, the features that follow ADL are normalised.
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.zeros(512), atol=0.05, rtol=0)
    torch.testing.assert_close(seen[0].var((0, 2, 3)), torch.ones(512), atol=0.1, rtol=0)


def test_recalibration_augments_in_float32_whatever_the_precision(workspace):
    settings = Classifier(depth=18)
    images = training.load_labelled(workspace, "train", 0).images
    seen = {}
    for precision in (torch.float32, torch.bfloat16):
        model = build_classifier(settings)
        model.register_forward_pre_hook(lambda module, inputs, key=precision: seen.update({key: inputs[0]}))
        recalibrate_batchnorm(model, images, settings, dataclasses.replace(CPU, precision=precision), 1, 0, 1, 16)
    torch.testing.assert_close(seen[torch.bfloat16], seen[torch.float32], atol=0, rtol=0)


def test_what_adl_drops_does_not_depend_on_what_else_draws(workspace, monkeypatch):
    train = training.load_labelled(workspace, "train", 0)
    config, weights = _config(), []

    def disturbed(images, *rest):
        torch.rand(3)
        return augment(images, *rest)

    for augmentation in (augment, disturbed):
        monkeypatch.setattr(training, "augment", augmentation)
        torch.manual_seed(0)
        model = build_classifier(config.classifier)
        learner = TrainStep(model, torch.optim.SGD(model.parameters(), lr=1e-2), LabelLoss(None), CPU)
        training.train_epoch(learner, train, config, 1)
        weights.append(model.conv1.weight.detach())
    assert any(isinstance(module, ADL) for module in model.modules())
    torch.testing.assert_close(*weights, atol=0, rtol=0)


def test_balance_weighs_the_rarer_class_up(workspace):
    for path in (workspace.split("train") / "image").glob("*_1.png"):
        if path.name != "slide_x0_y0_1.png":
            path.unlink()
    train = training.load_labelled(workspace, "train", 0)
    assert training.positive_weight(train, Classifier(balance=True)) == 5
    assert training.positive_weight(train, Classifier()) is None
    train_classifier(_config(epochs=1, balance=True), workspace, CPU)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 33])
def test_every_patch_is_in_one_batch_and_none_is_alone(count):
    batches = shuffled_batches(count, 16, "seed", 1)
    assert sorted(index for batch in batches for index in batch) == list(range(count))
    assert count == 1 or min(len(batch) for batch in batches) > 1
    assert batches == shuffled_batches(count, 16, "seed", 1)


def test_a_nan_loss_names_the_batch_and_keeps_the_last_whole_epoch(workspace, monkeypatch):
    config = _config(epochs=2)
    train_classifier(_config(epochs=1), workspace, CPU)
    before = load_tensors(workspace.state / "classifier.pth")

    monkeypatch.setattr(training, "augment", lambda images, *rest: images * torch.nan)
    with pytest.raises(EpsamError, match=r"epoch 2: the loss is nan on the batch slide_x\d_y0_[01], slide_x"):
        train_classifier(config, workspace, CPU)
    after = load_tensors(workspace.state / "classifier.pth")
    assert after["history"] == before["history"]
    assert torch.isfinite(after["parts"]["model"]["conv1.weight"]).all()


@pytest.mark.parametrize(("label", "missing"), [(1, "_0.png"), (0, "_1.png")])
def test_a_split_of_one_class_is_refused(workspace, label, missing):
    for path in (workspace.split("val") / "image").glob(f"*_{1 - label}.png"):
        path.unlink()
    with pytest.raises(DataError, match=f"both classes, so add patches whose names end in {missing}"):
        train_classifier(_config(), workspace, CPU)


def test_patches_of_unequal_size_are_refused_by_name(workspace):
    odd = workspace.split("train") / "image" / "slide_x3_y0_0.png"
    write_png(odd, np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(DataError, match=r"slide_x3_y0_0.png: 64 x 32 px, but slide_x0_y0_0.png has 64 x 64 px"):
        train_classifier(_config(), workspace, CPU)


def test_a_png_that_cannot_be_decoded_is_named(workspace):
    bad = workspace.split("train") / "image" / "slide_x3_y0_0.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(DataError, match=r"slide_x3_y0_0.png: cannot be"):
        train_classifier(_config(), workspace, CPU)


READ_AHEAD = """
import sys
import epsam.classifier.data
from epsam.cli import cli, main
epsam.classifier.data.IN_MEMORY_BYTES = 0  # all sets are too large to keep
where = ["--root", sys.argv[1], "--config", sys.argv[1] + "/few.yaml"]
cli.main(["preprocess", *where], standalone_mode=False)  # takes the patches as they are
sys.argv[1:] = ["train-classifier", *where]
main()
"""
SETTINGS = "name: few\nworkers: 2\nclassifier: {depth: 18, epochs: 1, batch: 8}\n"
LITTLE = ["unshare", "-m", "bash", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "little"]


def _train_with_read_ahead(root, *wrapper):
    (root / "few.yaml").write_text(SETTINGS)
    return subprocess.run(
        [*wrapper, sys.executable, "-c", READ_AHEAD, str(root)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*LITTLE, "true"], check=False, capture_output=True).returncode != 0,
    reason="needs the right to mount",
)
def test_a_small_dev_shm_does_not_stop_the_training(tmp_path):
    workspace = Workspace(tmp_path, "few")
    make_patches(workspace, {"train": 8, "val": 4, "test": 2}, size=256)  # 1.5 MiB a batch
    run = _train_with_read_ahead(tmp_path, *LITTLE)
    assert run.returncode == 0, run.stdout + run.stderr
    assert workspace.classifier.is_file()


def test_a_patch_that_cannot_be_decoded_when_its_turn_comes_ends_the_stage_in_one_line(workspace):
    bad = workspace.split("train") / "image" / "slide_x3_y0_1.png"
    bad.write_bytes(bad.read_bytes()[:40])
    run = _train_with_read_ahead(workspace.root)
    assert run.returncode == 1
    assert "Traceback" not in run.stdout + run.stderr
    assert run.stdout.endswith(f"error: {bad}: cannot be decoded as an image; delete it and make it again\n")


def test_large_sets_are_read_ahead_and_give_the_same(tmp_path, monkeypatch):
    patches = patch_list(tmp_path, 5)
    kept = PatchImages(patches)
    monkeypatch.setattr("epsam.classifier.data.IN_MEMORY_BYTES", 0)
    streamed = PatchImages(patches)
    assert kept.kept is not None
    assert streamed.kept is None
    batches = [[3, 0, 7], [1, 2]]
    for (a, x), (b, y) in zip(kept.batches(batches, 0), streamed.batches(batches, 2), strict=True):
        assert a == b
        assert torch.equal(x, y)


def test_augmentation_depends_on_the_name_alone():
    images = torch.rand(3, 3, 48, 48)
    together = augment(images, ["a", "b", "c"], Augment(), 1, 2)
    torch.testing.assert_close(augment(images[1:2], ["b"], Augment(), 1, 2), together[1:2], atol=1e-5, rtol=0)
    assert not torch.allclose(augment(images[1:2], ["b"], Augment(), 1, 3), together[1:2])
    assert together.min() >= 0
    assert together.max() <= 1


def test_augmentation_can_be_switched_off_part_by_part():
    images = torch.rand(8, 3, 48, 48)
    names = [str(n) for n in range(8)]
    off = {"flips": False, "rotation_degrees": 0, "jitter": 0, "grey": 0}
    torch.testing.assert_close(augment(images, names, Augment(**off), 1), images, atol=1e-4, rtol=0)
    flipped = augment(images, names, Augment(**(off | {"flips": True})), 1)
    mirrors = torch.stack([images, images.flip(2), images.flip(3), images.flip(2, 3)])
    assert ((mirrors - flipped).abs().amax((2, 3, 4)) < 1e-4).any(dim=0).all()
    grey = augment(images, names, Augment(**(off | {"grey": 1})), 1)
    torch.testing.assert_close(grey[:, 0], grey[:, 2], atol=1e-3, rtol=0)


def test_rotation_keeps_a_disc_in_its_place():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    disc = ((x**2 + y**2).sqrt() < 0.6).float().expand(4, 3, 64, 64)
    off = Augment(flips=False, rotation_degrees=360, jitter=0, grey=0)
    turned = augment(disc, list("abcd"), off, 1)
    assert (turned - disc).abs().mean() < 0.02


def test_stain_jitter_changes_the_stains_and_keeps_white_white():
    images = torch.tensor([[0.4, 0.3, 0.7], [1.0, 1.0, 1.0]])[:, :, None, None].expand(2, 3, 32, 32).contiguous()
    off = Augment(flips=False, rotation_degrees=0, jitter=0, grey=0)
    torch.testing.assert_close(augment(images, ["a", "b"], off, 1), images, atol=1e-5, rtol=0)
    weak, strong = (augment(images, ["a", "b"], off.model_copy(update={"stain": s}), 1) for s in (1e-6, 0.1))
    torch.testing.assert_close(weak, images, atol=1e-4, rtol=0)
    assert 0.01 < (strong[0] - images[0]).abs().max() < 0.2
    assert (strong[1] - 1).abs().max() < 0.2
    torch.testing.assert_close(augment(images[:1], ["a"], off.model_copy(update={"stain": 0.1}), 1), strong[:1])


def test_the_body_learns_at_a_rate_of_its_own(workspace):
    config = _config(epochs=1, lr=1e-2, body_lr=1e-6)
    torch.manual_seed(seed_of(config.classifier.seed, "classifier"))
    before = build_classifier(config.classifier).state_dict()
    train_classifier(config, workspace, CPU)
    after = load_tensors(workspace.classifier)
    body, head = ((after[name] - before[name]).abs().max().item() for name in ("conv1.weight", "fc.weight"))
    assert body < 1e-4 < head
