"""Batch normalisation over the micro-batch of all processes, as one process with the whole micro-batch has it."""

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.functional import batch_norm

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
        normalised, mean, variance, places = _Normalise.apply(features, self.weight, self.bias, self.eps)
        self._track(mean, variance * places / (places - 1))
        return normalised

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Normalise(torch.autograd.Function):
    """Batch normalisation by mean and variance over all processes; each way they exchange one vector.

    Gives the normalised features, mean and variance (C,), and the places (N h w of all processes) behind them. torch's own
    loops do the passes over the features: in bfloat16 they are ten times as fast as arithmetic on whole tensors.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> Any:
        mean, variance, places = _shared_statistics(x, weight)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.places = places
        normalised = batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if len(x) else x.clone()
        ctx.mark_non_differentiable(mean, variance)
        return normalised, mean, variance, places

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, mean, scale = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        if not len(x):
            along, plain = torch.zeros_like(weight), torch.zeros_like(weight)
        else:
            _, along, plain = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, None, None, mean, scale, True, 0.0, [False, True, True]
            )
        total = torch.cat([along, plain])
        torch.distributed.all_reduce(total)
        total_along, total_plain = (total / ctx.places).split(len(weight))
        # d/dx = w s (g - mean(g) - x' mean(g x')), where x' = (x - mean) s is the normalised x: Ioffe & Szegedy, ICML 2015.
        by_x = -weight * scale.square() * total_along
        constant = -weight * scale * total_plain - by_x * mean
        result = _affine(gradient, weight * scale, constant)
        if len(x):
            result += _affine(x, by_x, torch.zeros_like(constant))
        return result, along, plain, None


def _shared_statistics(x: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean and variance (C,) of x (N, C, h, w) over all processes, of the type of `like`, and its places there."""
    mean, variance = torch.zeros_like(like), torch.zeros_like(like)
    places = x.numel() // x.shape[1]
    if places:
        mean, variance = torch.batch_norm_update_stats(x, mean, variance, 0.0)
    own = torch.cat([mean, variance, mean.new_tensor([places])])
    parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, own)
    means, variances, counts = torch.stack(parts).split([len(mean), len(mean), 1], dim=1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    # Spread within the parts and between them (Chan, Golub & LeVeque, 1979).
    return mean, (shares * (variances + (means - mean).square())).sum(0), float(counts.sum())


def _affine(x: torch.Tensor, factor: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """factor x + constant, both (C,), of x (N, C, h, w), in its type and in one pass."""
    if not len(x):
        return x.clone()
    return batch_norm(x, torch.zeros_like(factor), torch.ones_like(factor), factor, constant, False, 0.0, 0.0)
