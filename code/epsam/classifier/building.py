"""The classifier that settings describe, and how its weights are loaded."""

from collections.abc import Mapping

import torch

from epsam.classifier.backbone import Backbone
from epsam.classifier.efficientnet import EfficientNetLite0
from epsam.classifier.resnet import ResNetADL
from epsam.config.schema import Classifier
from epsam.errors import CheckpointError
from epsam.runtime.checkpoints import load_weights, mismatch
from epsam.runtime.model_file import WeightsSource

MODEL_SETTINGS = ("backbone", "depth", "layer3_stride", "padding", "high_frequency", "frequency_block_px")
"""Settings that must be those of the training when a checkpoint is used."""


def build_classifier(settings: Classifier) -> Backbone:
    """The classifier that `settings` describe, randomly initialised from torch's global generator."""
    common = settings.model_dump(
        include={"padding", "high_frequency", "frequency_block_px", "adl", "adl_drop_rate", "adl_threshold"}
    )
    if settings.backbone == "efficientnet_lite0":
        return EfficientNetLite0(**common)
    return ResNetADL(settings.depth, layer3_stride=settings.layer3_stride, **common)


def load_classifier(settings: Classifier, path: WeightsSource, device: torch.device | str = "cpu") -> Backbone:
    """The classifier of `settings` with the weights of `path`, in evaluation mode on `device`.

    Raises CheckpointError when the file is missing, damaged, or of another network, depth or number of channels.
    """
    expected = {f"classifier.{name}": getattr(settings, name) for name in MODEL_SETTINGS}
    weights = load_weights(path, expected)
    model = build_classifier(settings)
    check_fit(model, weights, path)
    model.load_state_dict(weights)
    return model.to(device).to(memory_format=torch.channels_last).eval()


def check_fit(model: Backbone, weights: Mapping[str, torch.Tensor], source: WeightsSource | str) -> None:
    """Raise CheckpointError, in one line, when `weights` are not those of `model`."""
    if differences := mismatch(weights, model.state_dict()):
        channels = model.input_weight().shape[1]
        raise CheckpointError(
            f"{source}: not the weights of {model.title} with ADL and {channels} input channels: "
            f"{differences}. Set classifier.backbone, depth and high_frequency as it was trained"
        )
