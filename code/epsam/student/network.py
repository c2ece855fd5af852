"""The student's network: a U-Net (Ronneberger et al., MICCAI 2015) whose contracting half is the trained classifier.

The decoder is a page of our own: libraries of segmentation networks bring encoders of their own, with clients for servers
of weights, where this one has to be the classifier, its high-frequency channel and its padding included.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from epsam.classifier.backbone import Backbone
from epsam.classifier.building import MODEL_SETTINGS, build_classifier, load_classifier
from epsam.classifier.padding import set_reflecting
from epsam.config.schema import Classifier
from epsam.errors import CheckpointError
from epsam.runtime.checkpoints import load_weights, mismatch
from epsam.runtime.model_file import WeightsSource

WIDTHS = (48, 48, 24)
"""Channels of the decoder at strides 8, 4 and 2. Where places are many, few do: they cost the most there."""


class Student(nn.Module):
    """One logit per pixel from RGB: the trunk's features at strides 2 to 16, joined from coarse to fine.

    Takes `trunk` over: its last layer, which weighs whole patches, is taken off, and its ADL should be off.
    """

    def __init__(self, trunk: Backbone):
        super().__init__()
        del trunk.fc
        self.trunk = trunk
        *fine, coarse = trunk.pyramid_channels
        self.top = _conv_norm(coarse, WIDTHS[0], 1)
        self.joins = nn.ModuleList(
            nn.Sequential(_conv_norm(channels + above, width, 3), _conv_norm(width, width, 3))
            for channels, above, width in zip(reversed(fine), (WIDTHS[0], *WIDTHS[:-1]), WIDTHS, strict=True)
        )
        self.last = nn.Conv2d(WIDTHS[-1], 1, 1)
        if trunk.padding == "reflect":
            set_reflecting(self.joins)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, H, W), float32, of `images` (N, 3, H, W), float in [0, 1]; positive means tumour.

        Raises DataError for another shape, and for patches too small for reflecting padding.
        """
        *fine, coarse = self.trunk.pyramid(images)
        features = self.top(coarse)
        for level, join in zip(reversed(fine), self.joins, strict=True):
            features = join(torch.cat([level, _resized(features, level.shape[-2:])], dim=1))
        return _resized(self.last(features).float(), images.shape[-2:]).squeeze(1)


def build_student(settings: Classifier, classifier: Path | None = None) -> Student:
    """The student of the classifier that `settings` describe; its decoder is drawn from torch's global generator.

    The trunk has the weights of `classifier`, or is drawn too. Raises CheckpointError when they do not fit.
    """
    # ADL has no weights, and a mask needs the places that it hides.
    settings = settings.model_copy(update={"adl": False})
    return Student(build_classifier(settings) if classifier is None else load_classifier(settings, classifier))


def load_student(settings: Classifier, path: WeightsSource, device: torch.device | str = "cpu") -> Student:
    """The student with the weights of `path`, in evaluation mode on `device`.

    Raises CheckpointError when the file is missing, damaged, not finite, or of another network.
    """
    weights = load_weights(path, {f"classifier.{name}": getattr(settings, name) for name in MODEL_SETTINGS})
    model = build_student(settings)
    if differences := mismatch(weights, model.state_dict()):
        raise CheckpointError(
            f"{path}: not the weights of a student on {model.trunk.title} with "
            f"{model.trunk.input_weight().shape[1]} input channels: {differences}. Set "
            "classifier.backbone, depth and high_frequency as it was trained"
        )
    model.load_state_dict(weights)
    return model.to(device).to(memory_format=torch.channels_last).eval()


def _conv_norm(channels: int, width: int, side: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _resized(features: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return functional.interpolate(features, size=size, mode="bilinear", align_corners=False)
