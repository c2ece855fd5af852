"""Soft Dice and soft IoU losses on probabilities."""

import torch


def dice_loss(probability: torch.Tensor, target: torch.Tensor, smooth: float = 1e-3) -> torch.Tensor:
    """1 - soft Dice, mean over images; `probability` and `target` (N, H, W) float in [0, 1].

    Dice = (2 sum(p t) + s) / (sum(p) + sum(t) + s), Milletari et al., 3DV 2016, without the squares.
    """
    overlap, total = _sums(probability, target)
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


def iou_loss(probability: torch.Tensor, target: torch.Tensor, smooth: float = 1e-3) -> torch.Tensor:
    """1 - soft IoU, mean over images; `probability` and `target` (N, H, W) float in [0, 1].

    IoU = (sum(p t) + s) / (sum(p) + sum(t) - sum(p t) + s), Rahman & Wang, ISVC 2016.
    """
    overlap, total = _sums(probability, target)
    return 1 - ((overlap + smooth) / (total - overlap + smooth)).mean()


def _sums(probability: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    overlap = (probability * target).flatten(1).sum(1)
    return overlap, probability.flatten(1).sum(1) + target.flatten(1).sum(1)
