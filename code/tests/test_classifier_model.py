"""The classifier against golden arrays of the published implementation, and where its weights come from."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18, resnet50
from torchvision.transforms.functional import normalize

from epsam.classifier.adl import ADL
from epsam.classifier.building import build_classifier, load_classifier
from epsam.classifier.frequency import high_frequency
from epsam.classifier.pretrained import initialise
from epsam.classifier.resnet import ResNetADL
from epsam.config.schema import Classifier
from epsam.errors import CheckpointError, DataError
from epsam.runtime.checkpoints import save_tensors, save_weights

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    with np.load(GOLDEN / "reference.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def golden_weights() -> dict[str, torch.Tensor]:
    """The weights behind the golden logits and maps, under the published names (tests/golden/README.md)."""
    weights = {}
    for name, shape in json.loads((GOLDEN / "resnet50_adl_keys.json").read_text()).items():
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("num_batches_tracked"):
            x = np.zeros(shape, np.int64)
        elif name.endswith("running_var"):
            x = 1 + 0.1 * np.abs(x)
        elif name.endswith(("running_mean", "bias")):
            x = 0.05 * x
        elif len(shape) == 1:
            x = 0.6 + 0.1 * x
        else:
            x = x * np.sqrt(2 / np.prod(shape[1:]))
        x = torch.from_numpy(np.asarray(x))
        weights[name] = x if x.dtype == torch.int64 else x.float()
    return weights


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A checkpoint with the published names, loaded."""
    path = tmp_path_factory.mktemp("published") / "resnet50_adl.pth"
    save_tensors(path, golden_weights())
    return load_classifier(Classifier(), path)


def test_high_frequency_equals_the_published_one(golden):
    torch.testing.assert_close(high_frequency(golden["image"]), golden["high_frequency"], atol=1e-4, rtol=0)


def test_without_a_block_the_high_frequency_channel_is_the_image():
    images = torch.rand(1, 3, 33, 20)
    torch.testing.assert_close(high_frequency(images, 0), images, atol=1e-5, rtol=0)
    assert high_frequency(torch.full((1, 3, 33, 20), 0.7), 1).max() < 1e-5


def test_state_dict_names_and_shapes_are_the_published_ones():
    expected = json.loads((GOLDEN / "resnet50_adl_keys.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in ResNetADL(50).state_dict().items()} == expected


def test_a_published_checkpoint_gives_the_golden_logits_and_maps(published, golden):
    with torch.inference_mode():
        torch.testing.assert_close(published(golden["image"]), golden["logits"], atol=1e-4, rtol=0)
        for layer in ("layer4.0", "layer4"):
            maps = torch.einsum("nchw,c->nhw", published.features(golden["image"], layer), published.fc.weight[0])
            expected = golden["cam_" + layer.replace(".", "_")]
            torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)


def test_adl_equals_the_published_one(golden):
    adl, features = ADL(threshold=0.8), golden["adl_feature"]
    attention = features.mean(dim=1, keepdim=True)
    torch.testing.assert_close(adl.importance(attention), golden["adl_importance"], atol=1e-4, rtol=0)
    torch.testing.assert_close(adl.drop_mask(attention), golden["adl_drop_mask"], atol=0, rtol=0)
    drops, dims = ADL(drop_rate=1), ADL(drop_rate=0)
    torch.testing.assert_close(drops(features), features * golden["adl_drop_mask"])
    torch.testing.assert_close(dims(features), features * golden["adl_importance"], atol=1e-4, rtol=0)
    assert drops.eval()(features) is features


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_depth_gives_one_logit_and_a_map_of_the_stride(depth, stride):
    model = ResNetADL(depth, layer3_stride=stride, high_frequency=False).eval()
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 64, 64)).shape == (2,)
        assert model.features(torch.rand(2, 3, 64, 64)).shape[-2:] == (8 // stride, 8 // stride)


def test_anything_but_rgb_images_is_refused():
    with pytest.raises(DataError, match=r"RGB images \(N, 3, H, W\)"):
        ResNetADL(18)(torch.rand(2, 4, 64, 64))


def test_reflecting_padding_lets_a_place_look_alike_at_the_border_and_inside():
    stripes = torch.rand(1, 3, 64, 1).expand(1, 3, 64, 96)
    for padding, alike in (("reflect", True), ("zeros", False)):
        torch.manual_seed(0)
        model = ResNetADL(18, padding=padding, high_frequency=False).eval()
        with torch.inference_mode():
            features = model.features(stripes, "layer4")
        assert torch.allclose(features[..., :1], features[..., 2:3], atol=1e-3 * features.abs().max()) == alike


def test_reflecting_padding_refuses_patches_without_a_mirror_image():
    model = ResNetADL(18, padding="reflect").eval()
    assert model(torch.rand(1, 3, 17, 17)).shape == (1,)
    with pytest.raises(DataError, match="16 x 32 px are too small for classifier.padding"):
        model(torch.rand(1, 3, 32, 16))


def test_switching_adl_off_keeps_the_names_of_weights():
    assert list(ResNetADL(18, adl=False).state_dict()) == list(ResNetADL(18).state_dict())


@pytest.mark.parametrize(("depth", "source"), [(18, resnet18), (50, resnet50)])
def test_imagenet_weights_of_a_resnet_give_torchvisions_features_of_normalised_images(tmp_path, depth, source):
    torch.manual_seed(0)
    theirs = source(weights=None)
    path = tmp_path / "imagenet.pth"
    torch.save(theirs.state_dict(), path)
    four, ours = ResNetADL(depth), ResNetADL(depth, padding="reflect", high_frequency=False, adl=False)
    for model in (four, ours):
        initialise(model, path, tmp_path)
    torch.testing.assert_close(four.conv1.weight[:, 3], four.conv1.weight[:, :3].mean(dim=1))
    # With layer4's stride and the padding as ours, the features are the same.
    block = theirs.layer4[0]
    (block.conv2 if depth == 50 else block.conv1).stride = (1, 1)
    block.downsample[0].stride = (1, 1)
    for module in theirs.modules():
        if isinstance(module, torch.nn.Conv2d) and any(module.padding):
            module.padding_mode = "reflect"
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        features = normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        modules = dict(theirs.eval().named_children())
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            features = modules[name](features)
        # Folding the normalisation into the weights rounds differently, by a share of the largest features.
        tolerance = 2e-5 * features.abs().max().item()
        torch.testing.assert_close(ours.eval().features(images, "layer4"), features, atol=tolerance, rtol=0)


def test_imagenet_weights_of_another_depth_are_refused(tmp_path):
    path = tmp_path / "imagenet.pth"
    torch.save(resnet18(weights=None).state_dict(), path)
    with pytest.raises(CheckpointError, match="not the weights of ResNet-34"):
        initialise(ResNetADL(34), path, tmp_path)


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
    path = tmp_path / "mine.pth"
    save_tensors(path, build_classifier(Classifier(depth=18)).state_dict())
    with pytest.raises(CheckpointError, match="not the weights of ResNet-50") as error:
        load_classifier(Classifier(depth=50), path)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="3 input channels"):
        load_classifier(Classifier(depth=18, high_frequency=False), path)


def test_a_checkpoint_knows_the_settings_it_was_trained_with(tmp_path):
    path, settings = tmp_path / "mine.pth", Classifier(depth=18, layer3_stride=1)
    save_weights(path, build_classifier(settings).state_dict(), {"classifier": settings.model_dump()})
    load_classifier(settings, path)
    with pytest.raises(CheckpointError, match="layer3_stride is 1 there, 2 here"):
        load_classifier(Classifier(depth=18), path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "mine.pth"
    path.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="is no file of torch.save"):
        load_classifier(Classifier(), path)
