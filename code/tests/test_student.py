"""The student: what it learns, from what, and how its weights are kept."""

import dataclasses

import numpy as np
import pytest
import torch

from epsam.cam.activation_map import around_half, resize_map
from epsam.cam.mask import cam_mask
from epsam.cam.store import load_cams
from epsam.classifier.augmentation import augment, augment_with_masks
from epsam.classifier.building import build_classifier
from epsam.classifier.train_step import TrainStep
from epsam.config.paths import settings_for_weights
from epsam.config.schema import Augment, Classifier, Config, Inference
from epsam.config.schema import Student as StudentSettings
from epsam.errors import CheckpointError, DataError
from epsam.patches.patch import patches_for_classifier
from epsam.pseudo_labels import ids_score
from epsam.runtime.checkpoints import copy_weights, save_weights
from epsam.runtime.device import choose_hardware
from epsam.runtime.files import read_csv, read_image, read_mask, sha256, write_png
from epsam.stages.finetune import finetune
from epsam.stages.retrain import retrain
from epsam.student.data import targets_of
from epsam.student.labels import LEFT_OUT, LEFT_OUT_GREY, labels_folder, read_label, write_labels
from epsam.student.network import build_student, load_student
from epsam.student.segmenter import StudentSegmenter
from epsam.student.training import segmentation_loss, train_student
from epsam.workspace import Workspace
from tests.patch_factory import make_patches
from tests.sam_factory import make_config, predict_split
from tests.sam_factory import make_patches as make_prompted_patches

CPU = choose_hardware("cpu")
SETTINGS = Classifier(
    depth=18, high_frequency=False, adl=False, augment=Augment(rotation_degrees=90, jitter=0.05, grey=0)
)


def _config(epochs: int = 1, **classifier: object) -> Config:
    student = StudentSettings(epochs=epochs, batch=8, lr=5e-3, trunk_lr=1e-3)
    return Config(name="few", workers=0, classifier=SETTINGS.model_copy(update=classifier), student=student)


@pytest.fixture
def workspace(tmp_path):
    """Patches with a classifier of random weights."""
    workspace = Workspace(tmp_path, "few")
    make_patches(workspace, {"train": 12, "val": 4, "test": 2})
    torch.manual_seed(0)
    save_weights(workspace.classifier, build_classifier(SETTINGS).state_dict(), {})
    return workspace


def _train(workspace: Workspace, config: Config) -> None:
    labels = {split: workspace.split(split) / "mask" for split in ("train", "val")}
    train_student(config, workspace, CPU, "student", labels, workspace.student)


def _predict(workspace: Workspace, config: Config, split: str) -> dict[str, np.ndarray]:
    segmenter = StudentSegmenter(load_student(config.classifier, workspace.student), config, CPU)
    patches = patches_for_classifier(workspace, split)
    names = [patch.name for patch in patches]
    return dict(zip(names, segmenter.masks(np.stack([read_image(p.path) for p in patches]), names), strict=True))


def test_it_learns_where_tumour_is_and_leaves_normal_patches_empty(workspace):
    config = _config(epochs=12)
    _train(workspace, config)
    for name, mask in _predict(workspace, config, "val").items():
        if name.endswith("_1"):
            truth = read_mask(workspace.split("val") / "mask" / f"{name}.png")
            assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.8
        else:
            assert mask.mean() < 0.02
    rows = read_csv(workspace.run / "student_curves.csv", ["epoch", "train_loss", "val_loss", "val_pseudo_dice"])
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) / 2


def test_stopped_and_continued_it_ends_as_uninterrupted(workspace, monkeypatch):
    config = _config(epochs=3)
    _train(workspace, config)
    whole = sha256(workspace.student)
    for path in (*workspace.state.glob("student*"), workspace.student):
        path.unlink()

    class Stop(Exception):
        pass

    steps, step = [], TrainStep.step

    def stop_in_the_second_epoch(*arguments):
        steps.append(1)
        if len(steps) == 5:
            raise Stop
        return step(*arguments)

    monkeypatch.setattr(TrainStep, "step", stop_in_the_second_epoch)
    with pytest.raises(Stop):
        _train(workspace, config)
    monkeypatch.setattr(TrainStep, "step", step)
    torch.manual_seed(99)
    _train(workspace, config)
    assert sha256(workspace.student) == whole


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS.model_copy(update={"high_frequency": True, "adl": True}),
        SETTINGS.model_copy(update={"layer3_stride": 1, "padding": "reflect"}),
        Classifier(backbone="efficientnet_lite0", padding="reflect"),
    ],
)
def test_it_starts_as_the_classifier_and_segments_patches_of_any_shape(tmp_path, settings):
    torch.manual_seed(0)
    classifier = build_classifier(settings).eval()
    save_weights(tmp_path / "c.pth", classifier.state_dict(), {})
    student = build_student(settings, tmp_path / "c.pth").eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        *fine, coarse = student.trunk.pyramid(images)
        torch.testing.assert_close(coarse, classifier.features(images, "layer4"), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(fine[-1], classifier.fine_features(images), rtol=1e-3, atol=1e-4)
        assert [64 / level.shape[2] for level in fine] == [2, 4, 8]
        assert student(images).shape == (2, 64, 96)
        assert student(images[:, :, :51, :83]).shape == (2, 51, 83)


def test_over_all_views_a_turned_patch_has_the_turned_mask():
    torch.manual_seed(0)
    network = build_student(SETTINGS).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    exact = dataclasses.replace(CPU, precision=torch.float32, prediction_precision=torch.float32)
    with torch.no_grad():  # so that about half of the pixels are marked
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        network.last.bias -= logits.median()
    for views in (1, 8):
        config = _config().model_copy(update={"inference": Inference(student_views=views)})
        segmenter = StudentSegmenter(network, config, exact)
        as_it_is = segmenter.masks(images, ["a", "b"])
        turned = segmenter.masks(np.rot90(images, 1, (1, 2)).copy(), ["a", "b"])
        mirrored = segmenter.masks(images[:, :, ::-1].copy(), ["a", "b"])
        apart = max((np.rot90(turned, -1, (1, 2)) != as_it_is).mean(), (mirrored[:, :, ::-1] != as_it_is).mean())
        assert 0 < as_it_is.mean() < 1
        assert (apart < 1e-3) == (views == 8)


def test_normal_patches_are_learnt_from_by_cross_entropy_alone():
    empty, disc = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    disc[:, 2:6, 2:6] = 1
    sure = torch.full((1, 8, 8), 9.0)
    unsure = torch.full((1, 8, 8), 3.0)
    # Soft Dice of either against an empty mask is nearly 1; the loss tells them apart.
    assert segmentation_loss(sure, empty) > 2 * segmentation_loss(unsure, empty)
    assert segmentation_loss(20 * disc - 10, disc) < 1e-3
    # Half of a batch normal, half right: the mean over patches.
    both = segmentation_loss(torch.cat([unsure, 20 * disc - 10]), torch.cat([empty, disc]))
    assert both == pytest.approx(segmentation_loss(unsure, empty).item() / 2, rel=1e-3)


def test_a_heavier_normal_patch_counts_as_that_many():
    targets = torch.zeros(3, 8, 8)
    targets[0, 2:6, 2:6] = 1
    logits = torch.linspace(-2, 2, 3 * 64).reshape(3, 8, 8)
    one_by_one = [segmentation_loss(logits[i : i + 1], targets[i : i + 1]).item() for i in range(3)]
    weighted = segmentation_loss(logits, targets, normal_weight=2).item()
    assert weighted == pytest.approx((one_by_one[0] + 2 * one_by_one[1] + 2 * one_by_one[2]) / 3)


def test_pixels_that_are_left_out_change_no_loss():
    logits = torch.linspace(-3, 3, 64).reshape(1, 8, 8)
    targets = (logits > 1).float()
    expected = segmentation_loss(logits[:, :6], targets[:, :6])
    targets[:, 6:] = LEFT_OUT
    logits[:, 6:] = -50
    assert segmentation_loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_mask_moves_with_its_image():
    settings = Augment(rotation_degrees=360, jitter=0, grey=0)
    masks = torch.zeros(4, 32, 32)
    masks[:, 5:20, 9:17] = 1
    images = masks[:, None].repeat(1, 3, 1, 1)
    names = ["a", "b", "c", "d"]
    moved, moved_masks = augment_with_masks(images, masks, names, settings, 1)
    assert torch.equal(moved, augment(images, names, settings, 1))
    assert set(moved_masks.unique().tolist()) == {0, 1}
    assert not torch.equal(moved_masks, masks)
    assert (moved_masks - moved[:, 0]).abs().mean() < 0.03


def test_its_labels_are_the_last_rounds_predictions_and_cam_masks_where_the_filter_drops_them(tmp_path):
    workspace = make_prompted_patches(tmp_path)
    config = make_config(tmp_path, sam={"embeddings": "off"}, finetune={"epochs": 1}, classifier={"depth": 18})
    finetune(config, workspace, CPU)
    copy_weights(workspace.decoder(0), workspace.decoder(1))
    retrain(config, workspace, CPU)  # records which round is used
    predicted = predict_split(config, workspace, CPU, "train", workspace.decoder(1))
    cams = load_cams(workspace.cams("train"))
    in_cam = {name: cam_mask(cam, config.cam, predicted[name].shape) for name, cam in cams.items()}
    scores = {name: ids_score(in_cam[name], mask) for name, mask in predicted.items()}
    threshold = float(np.median(list(scores.values())))
    config = config.model_copy(update={"retrain": config.retrain.model_copy(update={"ids": threshold})})
    write_labels(config, workspace, CPU)
    for name, score in scores.items():
        label = read_mask(labels_folder(workspace, "train") / f"{name}.png")
        np.testing.assert_array_equal(label, predicted[name] if score >= threshold else in_cam[name])
    assert 0 < sum(score >= threshold for score in scores.values()) < len(scores)
    assert len(list(labels_folder(workspace, "val").glob("*.png"))) == 3

    config = config.model_copy(update={"student": StudentSettings(labels="cam")})
    write_labels(config, workspace, CPU)
    for name, mask in in_cam.items():
        np.testing.assert_array_equal(read_mask(labels_folder(workspace, "train") / f"{name}.png"), mask)

    config = config.model_copy(update={"student": StudentSettings(labels="cam", left_out=(0.4, 0.7))})
    write_labels(config, workspace, CPU)
    for name, mask in in_cam.items():
        path = labels_folder(workspace, "train") / f"{name}.png"
        label = read_label(path)
        scaled = around_half(resize_map(cams[name].values, mask.shape), cams[name].threshold)
        np.testing.assert_array_equal(label == LEFT_OUT, (scaled >= 0.4) & (scaled <= 0.7))
        np.testing.assert_array_equal(label[label != LEFT_OUT], mask[label != LEFT_OUT])
        assert 0 < (label == LEFT_OUT).mean() < 1
    write_png(path, np.where(label == 1, 200, 0).astype(np.uint8))
    with pytest.raises(DataError, match=rf"{name}.png: not a label of the student \(0, {LEFT_OUT_GREY} and 255\)"):
        read_label(path)


def test_empty_masks_of_positives_are_left_out_and_missing_ones_are_named(workspace, caplog):
    folder = workspace.split("val") / "mask"
    first, second, *_ = sorted(folder.glob("*.png"))
    write_png(first, np.zeros((64, 64), bool))
    found = targets_of(workspace, "val", folder, read_mask)
    assert sum(target.mask is None for target in found) == 4
    assert first.stem not in {target.patch.name for target in found}
    assert "1 of 4 masks are empty and are left out" in caplog.text
    second.unlink()
    with pytest.raises(DataError, match=r"_1\.png is missing \(1 of 4 masks\)"):
        targets_of(workspace, "val", folder, read_mask)


def test_weights_that_are_not_a_students_are_refused(tmp_path):
    path = tmp_path / "student.pth"
    weights = build_student(SETTINGS).state_dict()
    save_weights(path, weights, settings_for_weights(_config(), None))
    load_student(SETTINGS, path)
    with pytest.raises(CheckpointError, match=r"classifier.depth is 18 there, 34 here"):
        load_student(SETTINGS.model_copy(update={"depth": 34}), path)
    name = "last.weight"
    save_weights(path, weights | {name: torch.full_like(weights[name], torch.nan)}, {})
    with pytest.raises(CheckpointError, match=r"the entry last.weight holds values that are not finite"):
        load_student(SETTINGS, path)
    save_weights(path, build_classifier(SETTINGS).state_dict(), {})
    with pytest.raises(CheckpointError, match=r"not the weights of a student on ResNet-18 with 3 input channels"):
        load_student(SETTINGS, path)
    path.write_bytes(b"no weights")
    (tmp_path / "student.pth.json").unlink()
    with pytest.raises(CheckpointError, match="is no file of torch.save"):
        load_student(SETTINGS, path)
