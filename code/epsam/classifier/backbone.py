"""What the classifier's networks have in common: RGB in, one logit out, features for the maps."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import nn

from epsam.classifier.adl import ADL
from epsam.classifier.frequency import with_high_frequency
from epsam.errors import DataError

Padding = Literal["zeros", "reflect"]


class Backbone(nn.Module, ABC):
    """A network for one logit; `fc` weighs the channels of `features(images, "layer4")`, averaged over the patch."""

    title: str
    """Which network it is, for messages."""
    needs_side_above: int
    """Side (px) of the largest patch that reflecting padding has no mirror image for, somewhere in the network."""
    padding: Padding
    high_frequency: bool
    frequency_block_px: int
    fc: nn.Linear
    pyramid_channels: tuple[int, ...]
    """Channels of each entry of `pyramid`."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N,) of RGB `images` (N, 3, H, W), float in [0, 1]; positive means tumour."""
        return self.fc(self.features(images, "layer4").mean(dim=(2, 3))).squeeze(1)

    @abstractmethod
    def features(self, images: torch.Tensor, layer: str = "layer4.0") -> torch.Tensor:
        """Features (N, C, h, w) after `layer` (`cam.layer`), C as many as `fc` has weights."""

    @abstractmethod
    def fine_features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, C, H / 8, W / 8): of the last layer at an eighth of the patch's resolution."""

    @abstractmethod
    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features (N, C, H / s, W / s), the last ones at each stride s = 2, 4, 8 and that of `features`, finest first."""

    @abstractmethod
    def input_weight(self) -> torch.Tensor:
        """Weight (C, 3 or 4, h, w) of the first convolution."""

    def seed_adl(self, *parts: object) -> None:
        """Have each ADL draw from now on as `parts` and its place in the network say."""
        for name, module in self.named_modules():
            if isinstance(module, ADL):
                module.seed(*parts, name)

    def _as_input(self, images: torch.Tensor) -> torch.Tensor:
        """RGB `images` (N, 3, H, W) with the high-frequency channel where it is on, in the weights' memory format.

        Raises DataError for another shape, and for patches too small for reflecting padding.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"the classifier takes RGB images (N, 3, H, W), not an array of {tuple(images.shape)}")
        if self.padding == "reflect" and min(images.shape[-2:]) <= self.needs_side_above:
            raise DataError(
                f"patches of {images.shape[-1]} x {images.shape[-2]} px are too small for classifier.padding: "
                f"reflect, which takes more than {self.needs_side_above} px on a side; set it to zeros"
            )
        if self.high_frequency:
            images = with_high_frequency(images, self.frequency_block_px)
        channels_last = self.input_weight().is_contiguous(memory_format=torch.channels_last)
        return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
