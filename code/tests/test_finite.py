"""Weights and values that are not finite are refused by name: they used to come out as "no tumour", status 0."""

import dataclasses
import re
import shutil

import pytest
import torch

from epsam.cam.computation import compute_split
from epsam.classifier.building import build_classifier
from epsam.classifier.pretrained import initialise
from epsam.config.schema import Classifier
from epsam.errors import CheckpointError, DataError, EpsamError
from epsam.inference.run import infer
from epsam.runtime.checkpoints import load_tensors, load_weights, save_tensors, save_weights
from epsam.runtime.files import read_csv
from epsam.sam.checkpoint import load_sam
from epsam.sam.demo_model import build_sam_demo
from epsam.sam.session import SamSession
from epsam.segmenter import segment_stored
from epsam.stages.embed import embed
from tests.patch_factory import patch_list
from tests.sam_factory import CPU, make_config, make_patches
from tests.test_inference_run import WEIGHTS, hardware, patch_folder, settings, trained  # noqa: F401  fixtures


def _damage(path, entry, value):
    weights = load_tensors(path)
    weights[entry].view(-1)[0] = value
    save_tensors(path, weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("resnet.pth", "layer2.0.conv1.weight"),
        ("resnet.pth", "bn1.running_var"),
        ("sam.pth", "image_encoder.pos_embed"),
        ("decoder.pth", "mask_decoder.iou_token.weight"),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_every_prediction(
    settings,  # noqa: F811  the fixtures imported above
    patch_folder,  # noqa: F811
    hardware,  # noqa: F811
    tmp_path,
    file,
    entry,
    value,
):
    shutil.copy(WEIGHTS / "sam_demo.pth", tmp_path / "sam.pth")
    for name in ("resnet.pth", "decoder.pth"):
        shutil.copy(settings.resnet_checkpoint.parent / name, tmp_path / name)
    changed = dataclasses.replace(
        settings,
        test_dataset_dir=patch_folder,
        resnet_checkpoint=tmp_path / "resnet.pth",
        sam_checkpoint=tmp_path / "sam.pth",
        sam_decoder_checkpoint=tmp_path / "decoder.pth",
    )
    _damage(tmp_path / file, entry, value)
    with pytest.raises(
        CheckpointError, match=rf"{re.escape(file)}: the entry {re.escape(entry)} holds values .*NaN"
    ) as caught:
        infer(changed, hardware)
    assert "\n" not in str(caught.value)
    assert not (settings.output_dir / "mask").exists()


def test_first_weights_and_wrapped_ones_are_checked_and_counters_are_not(tmp_path):
    model = build_classifier(Classifier(depth=18))
    save_tensors(tmp_path / "resnet18.pth", model.state_dict())
    assert load_tensors(tmp_path / "resnet18.pth")["bn1.num_batches_tracked"] == 0
    _damage(tmp_path / "resnet18.pth", "conv1.weight", float("nan"))
    with pytest.raises(CheckpointError, match=r"resnet18.pth: the entry conv1.weight"):
        initialise(model, tmp_path / "resnet18.pth", tmp_path)
    weights = build_sam_demo().state_dict()
    weights["mask_decoder.iou_token.weight"][0, 0] = float("inf")
    save_tensors(tmp_path / "wrapped.pth", {"epoch": 3, "model_state": weights})
    with pytest.raises(CheckpointError, match=r"wrapped.pth: the entry model_state\.mask_decoder\.iou_token\.weight"):
        load_sam("demo", tmp_path / "wrapped.pth")


@pytest.fixture
def overflowing(settings, tmp_path):  # noqa: F811
    """Settings with a classifier whose weights are finite and whose answers are not."""
    path = tmp_path / "large.pth"
    weights = load_weights(settings.resnet_checkpoint)
    weights["fc.weight"] = torch.full_like(weights["fc.weight"], 3e38)
    save_weights(path, weights, {})
    return dataclasses.replace(settings, resnet_checkpoint=path)


def test_a_probability_that_is_not_finite_fails_its_patch_by_name(overflowing, patch_folder, hardware):  # noqa: F811
    with pytest.raises(DataError, match=r"3 of 3 patches failed \(a_1, b_1, c_0\)"):
        infer(dataclasses.replace(overflowing, test_dataset_dir=patch_folder), hardware)
    rows = read_csv(overflowing.output_dir / "predictions.csv", ["patch", "status", "reason"])
    assert all("the classifier's logits are not finite" in row["reason"] for row in rows)


def test_a_probability_that_is_not_finite_stops_with_the_name_of_the_slide(overflowing, hardware):  # noqa: F811
    with pytest.raises(EpsamError, match=r"tumor_001_x\d+_y\d+: the classifier's logits are not finite"):
        infer(overflowing, hardware)
    assert not (overflowing.output_dir / "tumor_001_mask.tif").exists()


def test_a_map_that_is_not_finite_stops_with_the_name_of_its_patch(tmp_path):
    patches = patch_list(tmp_path)
    model = build_classifier(Classifier(depth=18)).eval()
    with torch.no_grad():
        model.fc.weight.fill_(3e38)
    with pytest.raises(DataError, match=rf"{patches[0].name}: the classifier's maps are not finite"):
        list(compute_split(model, patches, make_config(), CPU))


def test_logits_of_a_decoder_that_are_not_finite_stop_with_the_name_of_the_patch(tmp_path):
    workspace, config = make_patches(tmp_path), make_config(tmp_path)
    embed(config, workspace, CPU)
    context = SamSession(config, workspace, CPU)
    for head in context.sam.mask_decoder.output_hypernetworks_mlps:
        with torch.no_grad():
            head.layers[-1].weight.fill_(3e38)
    with pytest.raises(DataError, match=r"val_x0_y0_1: SAM's logits are not finite"):
        list(segment_stored(context, "val", context.examples("val")))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8])
def test_weights_of_another_type_of_numbers_are_refused(tmp_path, dtype):
    weights = build_sam_demo().state_dict()
    weights["mask_decoder.iou_token.weight"] = weights["mask_decoder.iou_token.weight"].to(dtype)
    save_tensors(tmp_path / "other.pth", weights)
    with pytest.raises(CheckpointError, match=rf"other types: mask_decoder\.iou_token\.weight is {dtype} there"):
        load_sam("demo", tmp_path / "other.pth")
