"""ResNet with ADL and the high-frequency channel, and how it is loaded."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from epsam.classifier.adl import ADL
from epsam.classifier.frequency import with_high_frequency
from epsam.config import Classifier
from epsam.errors import CheckpointError, DataError
from epsam.runtime.checkpoints import load_weights

ARCHITECTURES = {18: (BasicBlock, (2, 2, 2, 2)), 34: (BasicBlock, (3, 4, 6, 3)), 50: (Bottleneck, (3, 4, 6, 3))}

SMALLEST_MIRRORED = 16
"""Side (px) of a patch that the four halvings before layer4 leave a single place of, which has no mirror image."""


class ResNetADL(nn.Module):
    """ResNet for one logit, with stride 1 in layer4 and ADL after the first block of layer3 and of layer4
    and after the last block of layer4 (method.md, section 1).

    Takes RGB and adds the high-frequency channel itself. In layer3 and layer4 an ADL holds the index after
    its block (`layer3.0`, `layer3.2`, ...), also where `adl` is off and nothing is dropped; these are the
    names of the published checkpoints.
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        layer3_stride: int = 2,
        padding: str = "zeros",
        high_frequency: bool = True,
        frequency_block_px: int = 2,
        adl: bool = True,
        adl_drop_rate: float = 0.75,
        adl_threshold: float = 0.8,
    ):
        super().__init__()
        block, counts = ARCHITECTURES[depth]
        self.depth = depth
        self.padding = padding
        self.high_frequency = high_frequency
        self.frequency_block_px = frequency_block_px

        def dropout() -> nn.Module:
            return ADL(adl_drop_rate, adl_threshold) if adl else nn.Identity()

        self.conv1 = nn.Conv2d(4 if high_frequency else 3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(block, 64, 64, counts[0], stride=1)
        self.layer2 = _layer(block, 64 * block.expansion, 128, counts[1], stride=2)
        self.layer3 = _layer(block, 128 * block.expansion, 256, counts[2], stride=layer3_stride)
        self.layer3.insert(1, dropout())
        self.layer4 = _layer(block, 256 * block.expansion, 512, counts[3], stride=1)
        self.layer4.insert(1, dropout())
        self.layer4.append(dropout())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, 1)
        _initialise(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and any(module.padding):
                module.padding_mode = padding

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N,) of RGB `images` (N, 3, H, W), float in [0, 1]; positive means tumour."""
        features = self.layer4(self.trunk(images))
        return self.fc(self.avgpool(features).flatten(1)).squeeze(1)

    def seed_adl(self, *parts: object) -> None:
        """Have each ADL draw from now on as `parts` and its place in the network say."""
        for name, module in self.named_modules():
            if isinstance(module, ADL):
                module.seed(*parts, name)

    def features(self, images: torch.Tensor, layer: str = "layer4.0") -> torch.Tensor:
        """Features (N, C, h, w) after `layer`: "layer4.0" (its first block) or "layer4" (all of it)."""
        trunk = self.trunk(images)
        return self.layer4[0](trunk) if layer == "layer4.0" else self.layer4(trunk)

    def trunk(self, images: torch.Tensor) -> torch.Tensor:
        """Features after layer3 of RGB `images` (N, 3, H, W). Raises DataError for another shape."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"the classifier takes RGB images (N, 3, H, W), not an array of {tuple(images.shape)}")
        if self.padding == "reflect" and min(images.shape[-2:]) <= SMALLEST_MIRRORED:
            raise DataError(f"patches of {images.shape[-1]} x {images.shape[-2]} px are too small for classifier.padding: "
                            f"reflect, which takes more than {SMALLEST_MIRRORED} px on a side; set it to zeros")
        if self.high_frequency:
            images = with_high_frequency(images, self.frequency_block_px)
        images = images.contiguous(memory_format=_memory_format(self.conv1.weight))
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer3(self.layer2(self.layer1(stem)))


def build_classifier(settings: Classifier) -> ResNetADL:
    """The classifier that `settings` describe, randomly initialised from torch's global generator."""
    return ResNetADL(
        settings.depth,
        layer3_stride=settings.layer3_stride,
        padding=settings.padding,
        high_frequency=settings.high_frequency,
        frequency_block_px=settings.frequency_block_px,
        adl=settings.adl,
        adl_drop_rate=settings.adl_drop_rate,
        adl_threshold=settings.adl_threshold,
    )


MODEL_SETTINGS = ("depth", "layer3_stride", "padding", "high_frequency", "frequency_block_px")
"""Settings that must be those of the training when a checkpoint is used."""


def load_classifier(settings: Classifier, path: Path, device: torch.device | str = "cpu") -> ResNetADL:
    """The classifier of `settings` with the weights of `path`, in evaluation mode on `device`.

    Raises CheckpointError when the file is missing, damaged, or of another depth or number of channels.
    """
    expected = {f"classifier.{name}": getattr(settings, name) for name in MODEL_SETTINGS}
    weights = load_weights(Path(path), expected)
    model = build_classifier(settings)
    check_fit(model, weights, path)
    model.load_state_dict(weights)
    return model.to(device, memory_format=torch.channels_last).eval()


def check_fit(model: ResNetADL, weights: Mapping[str, torch.Tensor], source: Path | str) -> None:
    """Raise CheckpointError, in one line, when `weights` are not those of `model`."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    unequal = [name for name in expected if name in weights and expected[name].shape != weights[name].shape]
    if not missing and not unknown and not unequal:
        return
    reasons = [f"{len(names)} {what} (e.g. {names[0]})"
               for names, what in ((missing, "missing"), (unknown, "unknown"), (unequal, "of another shape")) if names]
    channels = expected["conv1.weight"].shape[1]
    raise CheckpointError(
        f"{source}: not the weights of a ResNet-{model.depth} with ADL and {channels} input channels: entries "
        f"{', '.join(reasons)}. Set classifier.depth and classifier.high_frequency as it was trained"
    )


def _layer(block: type, channels_in: int, width: int, count: int, stride: int) -> nn.Sequential:
    channels = width * block.expansion
    shortcut = None
    if stride != 1 or channels_in != channels:
        shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    rest = [block(channels, width) for _ in range(count - 1)]
    return nn.Sequential(block(channels_in, width, stride, shortcut), *rest)


def _initialise(model: nn.Module) -> None:
    """As torchvision's ResNet: He for convolutions; BatchNorm starts as the identity by itself."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _memory_format(weight: torch.Tensor) -> torch.memory_format:
    channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
