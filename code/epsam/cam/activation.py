"""Class activation maps: where the classifier sees tumour in a patch (method.md, section 2)."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from epsam.classifier.backbone import Backbone
from epsam.errors import DataError

ROTATIONS = (0, 90, 180, 270)


FLAT = 1e-6
"""A map whose values differ by less has no place to show; it becomes 0 everywhere."""


def compute_maps(
    model: Backbone,
    images: torch.Tensor,
    rotations: Sequence[int] = ROTATIONS,
    layer: str = "layer4.0",
    scales: Sequence[float] = (1,),
) -> torch.Tensor:
    """Class activation maps (N, h, w), float32 in [0, 1], of `images` (N, 3, H, W), float in [0, 1].

    The mean over `scales` of the maps of the images resized by each (bicubic; as in the code of Ahn & Kwak, CVPR 2018),
    brought to the grid of the largest and scaled to [0, 1] again; a map of one scale is that of `_rotated_maps`. A map that
    is the same everywhere becomes 0; one of features that are not finite holds NaN. Everything stays on the images' device.
    """
    maps = [_rotated_maps(model, _resized(images, scale), rotations, layer) for scale in scales]
    if len(maps) == 1:
        return maps[0]
    grid = maps[scales.index(max(scales))].shape[-2:]
    with torch.inference_mode():
        same = [one if one.shape[-2:] == grid else _bilinear(one, grid) for one in maps]
        return _scaled(torch.stack(same).mean(0))


def _rotated_maps(model: Backbone, images: torch.Tensor, rotations: Sequence[int], layer: str) -> torch.Tensor:
    """Maps (N, h, w) of `images` as they are, over `rotations`.

    Features after `layer`, weighted by the last layer's weights (Zhou et al., CVPR 2016), their negative part
    cut off, scaled to [0, 1]; the mean over `rotations` (degrees, counter-clockwise), turned back, is scaled
    to [0, 1] again. All rotations of all images are one call of the model (two, where images are not square).
    """
    _check_rotations(rotations)
    quarters = [degrees // 90 for degrees in rotations]
    groups = (
        [quarters]
        if images.shape[-1] == images.shape[-2]
        else [group for group in ([k for k in quarters if k % 2 == 0], [k for k in quarters if k % 2]) if group]
    )
    turned_back: list[torch.Tensor] = []
    with torch.inference_mode():
        for group in groups:
            turned = torch.cat([torch.rot90(images, k, (2, 3)) for k in group])
            features = model.features(turned, layer)
            with torch.autocast(images.device.type, enabled=False):
                maps = torch.einsum("nchw,c->nhw", features.float(), model.fc.weight[0].float())
                maps = torch.where(maps.isfinite(), maps, torch.nan).relu()
            for k, part in zip(group, _scaled(maps).chunk(len(group)), strict=True):
                turned_back.append(torch.rot90(part, -k, (1, 2)))
        return _scaled(torch.stack(turned_back).mean(0))


def _resized(images: torch.Tensor, scale: float) -> torch.Tensor:
    """`images` (N, 3, H, W) in [0, 1], `scale` times as large."""
    if scale == 1:
        return images
    size = [round(side * scale) for side in images.shape[-2:]]
    return functional.interpolate(images, size, mode="bicubic", antialias=scale < 1).clamp(0, 1)


def _bilinear(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`maps` (N, h, w) at `size`."""
    return functional.interpolate(maps[:, None], tuple(size), mode="bilinear").squeeze(1)


def _check_rotations(rotations: Sequence[int]) -> None:
    if not rotations or any(degrees not in ROTATIONS for degrees in rotations):
        raise DataError(f"rotations {tuple(rotations)}: give some of {ROTATIONS}")


def _scaled(maps: torch.Tensor) -> torch.Tensor:
    """Each of `maps` (N, h, w) from its minimum and maximum to 0 and 1; flat ones to 0, NaN stays."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    span = high - low
    return torch.where(span <= FLAT, 0, (maps - low) / span.clamp_min(FLAT))


def compute_cams(
    model: Backbone, images: torch.Tensor, rotations: Sequence[int] = ROTATIONS, layer: str = "layer4.0"
) -> torch.Tensor:
    """As `compute_maps`, resized (bilinear) to the images: (N, H, W), float32 in [0, 1]."""
    return _bilinear(compute_maps(model, images, rotations, layer), images.shape[-2:])
