"""Batch normalisation over the micro-batch of all processes, as one process with the whole micro-batch has it."""

from typing import Any, TypeVar

import torch
from torch import nn

from epsam.runtime.ranks import Ranks

Model = TypeVar("Model", bound=nn.Module)


def share_batchnorm(model: Model, ranks: Ranks, device: torch.device) -> Model:
    """`model`, its batch normalisation over all processes while it is trained; entries of its state dict stay."""
    if ranks.count == 1:
        return model
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
    return model


class SharedBatchNorm(nn.BatchNorm2d):
    """What nn.SyncBatchNorm, which takes no tensors on the CPU, is on GPUs."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) to the same shape; N may be 0, where a micro-batch has fewer patches than there are processes."""
        if not self.training:
            return super().forward(features)
        x = features.float() if features.dtype in (torch.bfloat16, torch.float16) else features
        count = _summed(x.new_tensor([float(x.numel() // x.shape[1])]))
        mean = _summed(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _summed(centred.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), (variance * count / (count - 1)).detach())
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(features.dtype)

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Sum(torch.autograd.Function):
    """The sum over all processes; the gradient of a process's part is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor) -> torch.Tensor:
        total = part.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


def _summed(part: torch.Tensor) -> torch.Tensor:
    return _Sum.apply(part)
