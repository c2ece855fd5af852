"""Thresholds by Otsu's criterion on the classifier's features: they find the border, whatever the map's own scale."""

import cv2
import numpy as np
import pytest
import torch

from epsam.cam.activation_map import ActivationMap
from epsam.cam.mask import cam_mask
from epsam.cam.store import load_cams
from epsam.cam.threshold import otsu_threshold
from epsam.classifier.building import build_classifier
from epsam.config.schema import Cam, Classifier
from epsam.evaluation.metrics import dice
from epsam.patches.patch import patches_for_sam
from epsam.runtime.checkpoints import save_weights
from epsam.runtime.files import read_image, read_mask
from epsam.sam.checkpoint import load_sam
from epsam.segmenter import ImageSegmenter
from epsam.stages.embed import embed
from epsam.stages.initial_masks import make_initial_masks
from tests.sam_factory import CPU, make_config, make_patches

AUTO = Cam(layer="layer4", mask_px=64, percentile=None, threshold="auto", opening_px=0)
TRUTH = cv2.circle(np.zeros((128, 128), np.uint8), (50, 60), 30, 1, -1) > 0


def _features(truth: np.ndarray) -> np.ndarray:
    """Like the classifier's at stride 8: one direction inside, another outside, and noise."""
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=(2, 8))
    height, width = (length // 8 for length in truth.shape)
    share = cv2.resize(truth.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    features = inside[:, None, None] * share + outside[:, None, None] * (1 - share)
    return features + rng.normal(scale=0.1, size=features.shape)


def _image(size: tuple[int, int]) -> np.ndarray:
    return np.full((*size, 3), 150, np.uint8)


@pytest.mark.parametrize("power", [3, 4, 5])
@pytest.mark.parametrize("truth", [TRUTH, TRUTH[:96], TRUTH[:, :96]], ids=["square", "wide", "high"])
def test_the_border_is_found_whatever_the_scale_of_the_map(power, truth):
    blurred = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 12)
    values = cv2.resize(blurred / blurred.max(), (32, 32), interpolation=cv2.INTER_AREA) ** power
    threshold = otsu_threshold(values, _features(truth), _image(truth.shape), AUTO)
    assert dice(cam_mask(ActivationMap(values, threshold), AUTO, truth.shape), truth) > 0.88


def test_glass_beside_the_tissue_is_not_taken_for_the_border():
    image, features = _image(TRUTH.shape), _features(TRUTH)
    image[:, 90:], features[:, :, 12:] = 240, 20  # glass from column 96 on looks like nothing else
    values = cv2.resize(cv2.GaussianBlur(TRUTH.astype(np.float32), (0, 0), 12), (32, 32), interpolation=cv2.INTER_AREA)
    values = values**2
    threshold = otsu_threshold(values, features, image, AUTO)
    assert dice(cam_mask(ActivationMap(values, threshold), AUTO, TRUTH.shape), TRUTH) > 0.88
    misled = otsu_threshold(values, features, _image(TRUTH.shape), AUTO)
    assert dice(cam_mask(ActivationMap(values, misled), AUTO, TRUTH.shape), TRUTH) < 0.8


def test_no_map_is_cut_above_the_setting():
    at_most = AUTO.model_copy(update={"max_threshold": 0.2})
    values = cv2.resize(cv2.GaussianBlur(TRUTH.astype(np.float32), (0, 0), 12), (32, 32), interpolation=cv2.INTER_AREA)
    assert otsu_threshold(values, _features(TRUTH), _image(TRUTH.shape), AUTO) > 0.2
    assert otsu_threshold(values, _features(TRUTH), _image(TRUTH.shape), at_most) == 0.2
    assert otsu_threshold(values**4, _features(TRUTH), _image(TRUTH.shape), at_most) < 0.2


def test_a_map_of_zeros_stays_without_a_mask():
    values = np.zeros((8, 8), np.float32)
    threshold = otsu_threshold(values, _features(TRUTH), _image(TRUTH.shape), AUTO)
    assert not cam_mask(ActivationMap(values, threshold), AUTO, TRUTH.shape).any()


def test_training_and_inference_cut_the_same_masks(tmp_path):
    workspace = make_patches(tmp_path)
    config = make_config(tmp_path, cam={"threshold": "auto"})
    config = config.model_copy(update={"classifier": Classifier(depth=18), "workers": 0})
    torch.manual_seed(0)
    classifier = build_classifier(config.classifier).eval()
    save_weights(workspace.classifier, classifier.state_dict(), {"classifier": config.classifier.model_dump()})
    for split in ("train", "val", "test"):
        workspace.cams(split).unlink()
    embed(config, workspace, CPU)
    make_initial_masks(config, workspace, CPU)
    thresholds = {cam.threshold for cam in load_cams(workspace.cams("train")).values()}
    assert len(thresholds) > 1
    sam = load_sam("demo", config.sam.checkpoint, workspace.checkpoints, CPU.device)
    models = ImageSegmenter(classifier, sam, config, CPU)
    for patch in patches_for_sam(workspace, "train"):
        (mask,) = models.cam_masks(read_image(patch.path)[None], [patch.name])
        np.testing.assert_array_equal(mask, read_mask(workspace.pseudo_labels(0) / f"{patch.name}.png"))
