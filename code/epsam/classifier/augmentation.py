"""Augmentation of a batch of training patches."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from epsam.config.schema import Augment
from epsam.runtime.seeds import generator

LUMA = (0.299, 0.587, 0.114)
"""Red, green and blue in brightness (ITU-R BT.601)."""


RGB_TO_YIQ = torch.tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])


STAINS_TO_DENSITY = torch.tensor([(0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)])
"""Haematoxylin, eosin and residual in optical density of red, green and blue (Ruifrok & Johnston, Anal. Quant. Cytol. Histol.
23, 2001)."""


DARKEST = 1 / 255
"""Least intensity that a density is taken of."""


def augment(images: torch.Tensor, names: Sequence[str], settings: Augment, *seed: object) -> torch.Tensor:
    """Flip, rotate and recolour each of `images` (N, 3, H, W), float in [0, 1], by draws of its own.

    The draws depend on `seed` and the patch's name alone. A rotation by any angle mirrors the patch at its
    border. Brightness, contrast and saturation change by up to `jitter` of theirs, the hue by up to `jitter`
    of a turn; hue and saturation are changed in the YIQ colour space, which makes it one matrix per patch. Before,
    `stain` changes the amounts of the stains.
    """
    draws = _draws(images, names, *seed)
    return _change_colours(_move(images, _places(images, draws, settings), "bilinear"), draws, settings)


def augment_with_masks(
    images: torch.Tensor, masks: torch.Tensor, names: Sequence[str], settings: Augment, *seed: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `augment`, with the masks (N, H, W), float, of the images moved as they are: each pixel takes the value of one."""
    draws = _draws(images, names, *seed)
    places = _places(images, draws, settings)
    moved = _change_colours(_move(images, places, "bilinear"), draws, settings)
    return moved, _move(masks[:, None], places, "nearest").squeeze(1)


def _draws(images: torch.Tensor, names: Sequence[str], *seed: object) -> torch.Tensor:
    """(N, 14) in [0, 1): three for the place, five for the colours, six for the stains."""
    draws = np.stack([generator(*seed, name).random(14) for name in names]).astype(np.float32)
    return torch.from_numpy(draws).to(images.device)


def _change_colours(images: torch.Tensor, draws: torch.Tensor, settings: Augment) -> torch.Tensor:
    if settings.stain:
        images = _change_stains(images, draws[:, 8:], settings.stain)
    return _recolour(images, draws[:, 3:8], settings)


def _places(images: torch.Tensor, draws: torch.Tensor, settings: Augment) -> torch.Tensor:
    """Where each pixel (N, H, W, 2) comes from, in grid_sample's frame."""
    angle = torch.deg2rad(draws[:, 0] * settings.rotation_degrees)
    flips = 1 - 2 * ((draws[:, 1:] < 0.5) & settings.flips).float()
    ratio = images.shape[-1] / images.shape[-2]
    transform = images.new_zeros(len(images), 2, 3)
    transform[:, 0, 0] = angle.cos() * flips[:, 0]
    transform[:, 0, 1] = -angle.sin() * flips[:, 0] / ratio
    transform[:, 1, 0] = angle.sin() * flips[:, 1] * ratio
    transform[:, 1, 1] = angle.cos() * flips[:, 1]
    return functional.affine_grid(transform, list(images.shape), align_corners=False)


def _move(images: torch.Tensor, places: torch.Tensor, mode: str) -> torch.Tensor:
    return functional.grid_sample(images, places, mode, padding_mode="reflection", align_corners=False)


def _change_stains(images: torch.Tensor, draws: torch.Tensor, strength: float) -> torch.Tensor:
    """Each stain's amount s as a s + b, a and b by draws (N, 6) within `strength` of 1 and 0 (Tellez et al., IEEE Trans.
    Med. Imaging 37, 2018)."""
    change = (2 * draws - 1) * strength
    stains_to_density = STAINS_TO_DENSITY.to(images.device)
    density = -images.clamp_min(DARKEST).log()
    stains = torch.einsum("nchw,cs->nshw", density, torch.linalg.inv(stains_to_density))
    stains = stains * (1 + change[:, :3, None, None]) + change[:, 3:, None, None]
    return torch.einsum("nshw,sc->nchw", stains, stains_to_density).neg().exp().clamp_(0, 1)


def _recolour(images: torch.Tensor, draws: torch.Tensor, settings: Augment) -> torch.Tensor:
    change = (2 * draws[:, :4] - 1) * settings.jitter
    brightness, contrast, saturation = 1 + change[:, :3].T[..., None, None]
    hue = 2 * torch.pi * change[:, 3]
    saturation = saturation * (draws[:, 4, None, None] >= settings.grey)
    turn = torch.eye(3, device=images.device).repeat(len(images), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = hue.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -hue.sin(), hue.sin()
    turn[:, 1:] *= saturation
    to_yiq = RGB_TO_YIQ.to(images.device)
    matrix = brightness * (torch.linalg.inv(to_yiq) @ turn @ to_yiq)
    coloured = torch.einsum("nij,njhw->nihw", matrix, images)
    luma = torch.einsum("c,nchw->n", torch.tensor(LUMA, device=images.device), coloured) / images[0, 0].numel()
    mean = luma[:, None, None, None]
    return (mean + contrast[..., None] * (coloured - mean)).clamp_(0, 1)
