"""Class activation maps and their masks: where they point, their frame, and what a flat one does."""

import dataclasses
import re

import cv2
import numpy as np
import pytest
import torch

from epsam.cam.activation import compute_cams, compute_maps
from epsam.cam.activation_map import ActivationMap, resize_map
from epsam.cam.computation import compute_split
from epsam.cam.mask import cam_mask
from epsam.cam.store import load_cams, save_cams
from epsam.cam.threshold import fixed_threshold
from epsam.classifier.building import build_classifier
from epsam.classifier.resnet import ResNetADL
from epsam.config.loading import load_config
from epsam.config.schema import Cam, Classifier, Config
from epsam.errors import ConfigError, DataError
from epsam.patches.patch import patches_for_sam
from epsam.runtime.checkpoints import load_tensors, save_weights
from epsam.runtime.device import choose_hardware
from epsam.runtime.files import read_mask, write_csv
from epsam.stages.initial_masks import make_initial_masks
from epsam.workspace import Workspace
from tests.patch_factory import make_patches
from tests.test_classifier_model import golden, published  # noqa: F401  fixtures

CAMELYON16 = Cam(mask_px=512, percentile=10, opening_px=21)
CAMELYON17 = Cam(mask_px=32, percentile=30, opening_px=5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return ResNetADL(18).eval()


def _scaled(maps: np.ndarray) -> np.ndarray:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / (high - low)


@pytest.mark.parametrize("layer", ["layer4.0", "layer4"])
def test_a_published_checkpoint_gives_the_golden_maps(published, golden, layer):  # noqa: F811
    expected = _scaled(np.maximum(golden["cam_" + layer.replace(".", "_")].numpy(), 0))
    maps = compute_maps(published, golden["image"], rotations=(0,), layer=layer)
    np.testing.assert_allclose(maps.numpy(), expected, atol=1e-4)


def test_batch_and_rotations_in_one_call_are_the_mean_of_single_ones(model):
    images = torch.rand(3, 3, 64, 64)
    together = compute_maps(model, images)
    for image, expected in zip(images, together, strict=True):
        turned = [
            torch.rot90(compute_maps(model, torch.rot90(image[None], k, (2, 3)), (0,)), -k, (1, 2)) for k in range(4)
        ]
        alone = torch.stack(turned).mean(0).numpy()
        np.testing.assert_allclose(expected.numpy(), _scaled(alone)[0], atol=1e-4)


class Brightness(torch.nn.Module):
    """A model whose only feature is the mean brightness of each 8 x 8 block."""

    fc = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(fc.weight)

    def features(self, images, layer):
        return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8)


def test_maps_lie_where_the_features_are():
    images = torch.zeros(1, 3, 64, 96)
    images[:, :, 8:24, 60:90] = 1
    cams = compute_cams(Brightness(), images)
    assert cams.shape == (1, 64, 96)
    y, x = np.unravel_index(int(cams[0].argmax()), (64, 96))
    assert 8 <= y < 24
    assert 60 <= x < 90
    assert compute_maps(Brightness(), images).shape == (1, 8, 12)
    flat = compute_maps(Brightness(), images * 0 + 0.5)
    assert (flat == 0).all()


def test_a_patch_seen_at_twice_its_size_shows_smaller_spots():
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, 20:24, 40:44] = 1  # half of the side of a block
    assert compute_maps(Brightness(), images).shape == (1, 8, 8)
    maps = compute_maps(Brightness(), images, scales=(1, 2))[0]
    assert maps.shape == (16, 16)
    assert (maps.min(), maps.max()) == (0, 1)
    assert np.unravel_index(int(maps.argmax()), maps.shape) == (5, 10)
    swapped = compute_maps(Brightness(), images, scales=(2, 1))[0]
    torch.testing.assert_close(maps, swapped)


@pytest.mark.parametrize("scales", ["[]", "[1, 1]", "[0.1]", "[9]"])
def test_scales_of_maps_are_checked(scales, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: own-small\nname: mine\ncam: {{scales: {scales}}}\n")
    with pytest.raises(ConfigError, match="scales"):
        load_config(path)


def test_maps_are_floats_from_0_to_1_in_the_precision_of_the_device(model):
    images = torch.rand(2, 3, 64, 64)
    maps = compute_maps(model, images)
    assert maps.dtype == torch.float32
    assert maps.amin((1, 2)).tolist() == [0, 0]
    assert maps.amax((1, 2)).tolist() == [1, 1]
    assert len(maps.unique()) > 16  # not quantised
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_maps(model, images).dtype == torch.float32


@pytest.mark.parametrize("rotations", [(), (45,)])
def test_rotations_are_quarter_turns(model, rotations):
    with pytest.raises(DataError, match="rotations"):
        compute_maps(model, torch.rand(1, 3, 64, 64), rotations)


def _bump(size=32, y=10, x=20, spread=5.0):
    rows, columns = np.mgrid[:size, :size]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * spread**2)).astype(np.float32)


def _cut(values: np.ndarray, settings: Cam, size: tuple[int, int]) -> np.ndarray:
    return cam_mask(ActivationMap(values, fixed_threshold(values, settings)), settings, size)


@pytest.mark.parametrize("settings", [CAMELYON16, CAMELYON17])
def test_published_rules_cut_at_their_percentile_and_open(settings):
    cam = _bump()
    mask = _cut(cam, settings, (512, 512))
    assert mask.shape == (512, 512)
    assert mask.dtype == bool
    assert mask[160, 320]
    assert not mask[480, 20]
    assert mask.mean() == pytest.approx(1 - settings.percentile / 100, abs=0.06)
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((15, 15), np.uint8)) > 0
    assert (opened != mask).mean() < 0.01


def test_the_percentile_is_that_of_the_map_before_it_is_resized():
    values = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    assert fixed_threshold(values, CAMELYON16) == pytest.approx(np.percentile(values, 10))


def test_the_percentile_is_that_of_the_non_zero_values():
    cam = _bump()
    cam[cam < 0.3] = 0
    mask = _cut(cam, Cam(mask_px=32, percentile=50, opening_px=0), (32, 32))
    assert mask.sum() == pytest.approx((cam > 0).sum() / 2, rel=0.05)
    assert cam[mask].min() > cam[~mask].max() - 1e-6


def test_a_fixed_threshold_cuts_at_that_value():
    cam = _bump()
    mask = _cut(cam, Cam(mask_px=32, percentile=None, threshold=0.5, opening_px=0), (32, 32))
    np.testing.assert_array_equal(mask, cam > 0.5)


def test_opening_removes_specks():
    cam = np.zeros((32, 32), np.float32)
    cam[5:15, 5:15] = 1
    cam[25, 25] = 1
    mask = _cut(cam, Cam(mask_px=32, percentile=None, threshold=0.5, opening_px=5), (64, 64))
    assert mask[20, 20]
    assert not mask[40:, 40:].any()


def test_a_flat_map_gives_an_empty_mask_and_a_broken_one_an_error():
    assert not _cut(np.zeros((16, 16), np.float32), CAMELYON17, (64, 64)).any()
    with pytest.raises(DataError, match="not a finite map"):
        _cut(np.full((16, 16), np.nan, np.float32), CAMELYON17, (64, 64))


def test_resized_maps_keep_their_place_and_range():
    resized = resize_map(_bump(), (128, 64))
    assert resized.shape == (128, 64)
    assert np.unravel_index(resized.argmax(), resized.shape) == pytest.approx((42, 41), abs=2)
    assert 0 <= resized.min() <= resized.max() <= 1


def test_maps_on_disk_come_back(tmp_path):
    path = tmp_path / "cams" / "train.npz"
    cams = {"b_1": ActivationMap(_bump(16), 0.3), "ä_1": ActivationMap(_bump(16, 3, 3), 0.7)}
    save_cams(path, cams)
    loaded = load_cams(path)
    assert list(loaded) == list(cams)
    np.testing.assert_array_equal(loaded["ä_1"].values, cams["ä_1"].values)
    assert loaded["ä_1"].threshold == 0.7
    path.write_bytes(b"PK broken")
    with pytest.raises(DataError, match="not readable as maps"):
        load_cams(path)
    with pytest.raises(DataError, match="run the stage initial-masks"):
        load_cams(tmp_path / "none.npz")


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path, "few")
    make_patches(workspace, {"train": 5, "val": 2, "test": 2})
    settings = Classifier(depth=18)
    torch.manual_seed(0)
    save_weights(workspace.classifier, build_classifier(settings).state_dict(), {"classifier": settings.model_dump()})
    return workspace


def _config(**cam) -> Config:
    return Config(name="few", workers=0, classifier=Classifier(depth=18), cam=Cam(**cam))


def test_the_stage_writes_maps_of_every_split_and_masks_of_the_positives(workspace, caplog):
    caplog.set_level("INFO", logger="epsam")
    hardware = choose_hardware("cpu")
    make_initial_masks(_config(), workspace, hardware)
    names = [patch.name for patch in patches_for_sam(workspace, "train")]
    assert list(load_cams(workspace.cams("train"))) == names
    assert len(load_cams(workspace.cams("test"))) == 2
    masks = sorted(workspace.pseudo_labels(0).glob("*.png"))
    assert [path.stem for path in masks] == names
    assert read_mask(masks[0]).shape == (64, 64)
    assert cv2.imread(str(workspace.run / "cams" / "sheet.png")) is not None
    assert re.search(r"initial masks: 5 patches, mean foreground \d", caplog.text)


def test_maps_at_twice_the_size_take_no_more_memory_than_those_at_one(workspace):
    def most_pixels(*scales: float) -> int:
        model, pixels = build_classifier(Classifier(depth=18)).eval(), []
        model.maxpool.register_forward_hook(lambda _, inputs, __: pixels.append(inputs[0].numel()))
        config = _config(scales=scales, threshold=0.2, percentile=None)
        hardware = dataclasses.replace(choose_hardware("cpu"), cam_batch=4)
        patches = patches_for_sam(workspace, "train")
        assert len(list(compute_split(model, patches, config, hardware))) == len(patches)
        return max(pixels)

    assert most_pixels(1, 2) == most_pixels(1)


def test_the_stage_goes_on_with_the_splits_that_are_whole(workspace, caplog):
    hardware = choose_hardware("cpu")
    make_initial_masks(_config(), workspace, hardware)
    written = workspace.cams("train").stat().st_mtime_ns
    workspace.cams("test").unlink()
    (workspace.pseudo_labels(0) / "of_another_run_1.png").write_bytes(b"")
    make_initial_masks(_config(), workspace, hardware)
    assert workspace.cams("train").stat().st_mtime_ns == written
    assert workspace.cams("test").is_file()
    assert not (workspace.pseudo_labels(0) / "of_another_run_1.png").exists()


def test_patches_cut_for_the_classifier_alone_get_no_mask(workspace):
    rows = [{"name": "slide_x1_y0_1", "purpose": "classifier"}, {"name": "slide_x2_y0_1", "purpose": "all"}]
    write_csv(workspace.patches_csv, rows, ["name", "purpose"])
    make_initial_masks(_config(), workspace, choose_hardware("cpu"))
    assert not (workspace.pseudo_labels(0) / "slide_x1_y0_1.png").exists()
    assert (workspace.pseudo_labels(0) / "slide_x2_y0_1.png").exists()


@pytest.mark.parametrize(("weight", "words"), [(1, "nearly everything"), (-1, "nearly nothing")])
def test_masks_of_nearly_everything_or_nothing_are_warned_of(workspace, caplog, weight, words):
    weights = load_tensors(workspace.classifier)
    weights["fc.weight"].fill_(weight)
    save_weights(workspace.classifier, weights, {})
    make_initial_masks(_config(percentile=0, opening_px=0), workspace, choose_hardware("cpu"))
    assert f"they cover {words}" in caplog.text


def _columns():
    return {
        "names": np.array(["a_1", "b_1"]),
        "maps": np.full((2, 4, 4), 0.5, np.float32),
        "thresholds": np.array([0.2, 0.4]),
    }


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"names": np.array(["a_1", "a_1"])}, "twice"),
        ({"names": np.array([1, 2])}, "types"),
        ({"maps": np.zeros((2, 4, 4), np.int32)}, "types"),
        ({"maps": np.zeros((2, 16), np.float32)}, "shapes"),
        ({"thresholds": np.zeros(3)}, "shapes"),
        ({"thresholds": np.array([0.1, np.nan])}, "thresholds are not from 0 to 1"),
        ({"maps": np.full((2, 4, 4), np.inf, np.float32)}, "maps are not from 0 to 1"),
    ],
)
def test_a_file_of_maps_is_what_was_written_or_refused(tmp_path, change, why):
    np.savez_compressed(tmp_path / "train.npz", **(_columns() | change))
    if why is None:
        assert list(load_cams(tmp_path / "train.npz")) == ["a_1", "b_1"]
        return
    with pytest.raises(DataError, match=rf"train.npz: not readable as maps \(.*{why}.*--from initial-masks"):
        load_cams(tmp_path / "train.npz")
