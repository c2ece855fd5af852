"""ResNet with ADL and the high-frequency channel."""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from epsam.classifier.adl import ADL
from epsam.classifier.backbone import Backbone, Padding
from epsam.classifier.padding import set_reflecting

ARCHITECTURES = {18: (BasicBlock, (2, 2, 2, 2)), 34: (BasicBlock, (3, 4, 6, 3)), 50: (Bottleneck, (3, 4, 6, 3))}


class ResNetADL(Backbone):
    """ResNet for one logit, with stride 1 in layer4 and ADL after the first block of layer3 and of layer4
    and after the last block of layer4 (method.md, section 1).

    Takes RGB and adds the high-frequency channel itself. In layer3 and layer4 an ADL holds the index after
    its block (`layer3.0`, `layer3.2`, ...), also where `adl` is off and nothing is dropped; these are the
    names of the published checkpoints.
    """

    needs_side_above = 16
    """The four halvings before layer4 leave a single place of such a patch, which has no mirror image."""

    def __init__(
        self,
        depth: int = 50,
        *,
        layer3_stride: int = 2,
        padding: Padding = "zeros",
        high_frequency: bool = True,
        frequency_block_px: int = 2,
        adl: bool = True,
        adl_drop_rate: float = 0.75,
        adl_threshold: float = 0.8,
    ):
        super().__init__()
        block, counts = ARCHITECTURES[depth]
        self.depth = depth
        self.title = f"ResNet-{depth}"
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
        self.pyramid_channels = (64, *(width * block.expansion for width in (64, 128, 512)))
        _initialise(self)
        if padding == "reflect":
            set_reflecting(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N,) of RGB `images` (N, 3, H, W), float in [0, 1]; positive means tumour."""
        features = self.layer4(self.trunk(images))
        return self.fc(self.avgpool(features).flatten(1)).squeeze(1)

    def features(self, images: torch.Tensor, layer: str = "layer4.0") -> torch.Tensor:
        """Features (N, C, h, w) after `layer`: "layer4.0" (its first block) or "layer4" (all of it)."""
        trunk = self.trunk(images)
        return self.layer4[0](trunk) if layer == "layer4.0" else self.layer4(trunk)

    def trunk(self, images: torch.Tensor) -> torch.Tensor:
        """Features after layer3 of RGB `images` (N, 3, H, W). Raises DataError for another shape."""
        return self.layer3(self.fine_features(images))

    def fine_features(self, images: torch.Tensor) -> torch.Tensor:
        return self._fine_pyramid(images)[-1]

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        fine = self._fine_pyramid(images)
        return [*fine, self.layer4(self.layer3(fine[-1]))]

    def _fine_pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features at strides 2, 4 and 8."""
        stem = self.relu(self.bn1(self.conv1(self._as_input(images))))
        first = self.layer1(self.maxpool(stem))
        return [stem, first, self.layer2(first)]

    def input_weight(self) -> torch.Tensor:
        return self.conv1.weight


def _layer(
    block: type[BasicBlock] | type[Bottleneck], channels_in: int, width: int, count: int, stride: int
) -> nn.Sequential:
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
