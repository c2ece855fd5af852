"""Attention-based dropout layer (ADL; Choe & Shim, CVPR 2019)."""

import torch
from torch import nn

from epsam.runtime.seeds import torch_generator


class ADL(nn.Module):
    """Hides or dims a feature map's strongest places while training, so that the network looks beyond them.

    Attention is the mean over channels. Each call multiplies the whole batch either, with probability
    `drop_rate`, by the drop mask (0 where attention reaches `threshold` times its maximum in the image) or
    by the importance map (sigmoid of attention). In evaluation the layer is the identity. It holds no
    parameters. Draws come from `generator` alone, one per call; on the CPU, as a draw on a GPU would have to be
    waited for.
    """

    def __init__(self, drop_rate: float = 0.75, threshold: float = 0.8):
        super().__init__()
        self.drop_rate = drop_rate
        self.threshold = threshold
        self.generator = torch.Generator()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) to the same shape."""
        if not self.training:
            return features
        attention = features.mean(dim=1, keepdim=True)
        if torch.rand((), generator=self.generator).item() < self.drop_rate:
            return features * self.drop_mask(attention)
        return features * self.importance(attention)

    def seed(self, *parts: object) -> None:
        """Draw from now on as `parts` say, whatever was drawn before, here or elsewhere."""
        self.generator = torch_generator(*parts)

    def drop_mask(self, attention: torch.Tensor) -> torch.Tensor:
        """1 where `attention` (N, 1, h, w) is below `threshold` times its maximum per image, else 0."""
        return (attention < self.threshold * attention.amax(dim=(1, 2, 3), keepdim=True)).to(attention.dtype)

    def importance(self, attention: torch.Tensor) -> torch.Tensor:
        """Sigmoid of `attention`, in (0, 1)."""
        return attention.sigmoid()

    def extra_repr(self) -> str:
        return f"drop_rate={self.drop_rate}, threshold={self.threshold}"
