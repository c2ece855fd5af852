"""Patches as batches of tensors, and the augmentation of a batch."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional

from epsam.config import Augment
from epsam.errors import DataError
from epsam.patches import Patch
from epsam.runtime.files import read_image
from epsam.runtime.read_ahead import read_ahead
from epsam.runtime.seeds import generator, torch_generator

IN_MEMORY_BYTES = 2**30
"""Decoded patches are kept up to this size; larger sets are decoded as they are needed."""
LUMA = (0.299, 0.587, 0.114)
"""Red, green and blue in brightness (ITU-R BT.601)."""
RGB_TO_YIQ = torch.tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
STAINS_TO_DENSITY = torch.tensor([(0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)])
"""Haematoxylin, eosin and residual in optical density of red, green and blue (Ruifrok & Johnston, Anal. Quant. Cytol. Histol.
23, 2001)."""
DARKEST = 1 / 255
"""Least intensity that a density is taken of."""


class PatchImages:
    """RGB images of patches of one size. Raises DataError for one that cannot be decoded or differs in size."""

    def __init__(self, patches: Sequence[Patch], threads: int = 4):
        self.patches = list(patches)
        self.shape = read_image(self.patches[0].path).shape
        self.kept = None
        if len(self.patches) * int(np.prod(self.shape)) <= IN_MEMORY_BYTES:
            self.kept = torch.empty(len(self.patches), 3, *self.shape[:2], dtype=torch.uint8)
            for index, image in enumerate(read_ahead(self._decode, range(len(self.patches)), threads)):
                self.kept[index] = torch.from_numpy(image)

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def names(self) -> list[str]:
        return [patch.name for patch in self.patches]

    def batches(self, index_batches: Sequence[list[int]], threads: int) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Each entry of `index_batches` with its images, (N, 3, H, W) uint8; those not kept are decoded ahead.

        Raises DataError, in the place of its batch, for a patch that cannot be decoded.
        """
        yield from zip(index_batches, read_ahead(self._batch, index_batches, 0 if self.kept is not None else threads),
                       strict=True)

    def _batch(self, indices: list[int]) -> torch.Tensor:
        if self.kept is not None:
            return self.kept[indices]
        return torch.from_numpy(np.stack([self._decode(index) for index in indices]))

    def _decode(self, index: int) -> np.ndarray:
        """(3, H, W) uint8, a view of the decoded (H, W, 3)."""
        path = self.patches[index].path
        image = read_image(path)
        if image.shape != self.shape:
            first = self.patches[0].path.name
            raise DataError(
                f"{path}: {image.shape[1]} x {image.shape[0]} px, but {first} has {self.shape[1]} x "
                f"{self.shape[0]} px; the patches of a split must be of one size, cut them again"
            )
        return image.transpose(2, 0, 1)


def split_batches(count: int, size: int) -> list[list[int]]:
    """0..count - 1 in batches of `size`, in order."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def shuffled_batches(count: int, size: int, *seed: object) -> list[list[int]]:
    """0..count - 1 in random batches of `size`; a last batch of one joins the batch before it, because batch
    normalisation learns nothing good from a single patch."""
    order = torch.randperm(count, generator=torch_generator(*seed)).tolist()
    batches = [order[start : start + size] for start in range(0, count, size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2].extend(batches.pop())
    return batches


def as_float(images: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """uint8 (N, 3, H, W) to float32 in [0, 1] on `device`."""
    return images.to(device, non_blocking=True).float().div_(255)


def augment(images: torch.Tensor, names: Sequence[str], settings: Augment, *seed: object) -> torch.Tensor:
    """Flip, rotate and recolour each of `images` (N, 3, H, W), float in [0, 1], by draws of its own.

    The draws depend on `seed` and the patch's name alone. A rotation by any angle mirrors the patch at its
    border. Brightness, contrast and saturation change by up to `jitter` of theirs, the hue by up to `jitter`
    of a turn; hue and saturation are changed in the YIQ colour space, which makes it one matrix per patch. Before,
    `stain` changes the amounts of the stains.
    """
    draws = np.stack([generator(*seed, name).random(14) for name in names]).astype(np.float32)
    draws = torch.from_numpy(draws).to(images.device)
    moved = _move(images, draws[:, :3], settings)
    if settings.stain:
        moved = _restain(moved, draws[:, 8:], settings.stain)
    return _recolour(moved, draws[:, 3:8], settings)


def _move(images: torch.Tensor, draws: torch.Tensor, settings: Augment) -> torch.Tensor:
    angle = torch.deg2rad(draws[:, 0] * settings.rotation_degrees)
    flips = 1 - 2 * ((draws[:, 1:] < 0.5) & settings.flips).float()
    ratio = images.shape[-1] / images.shape[-2]
    transform = images.new_zeros(len(images), 2, 3)
    transform[:, 0, 0] = angle.cos() * flips[:, 0]
    transform[:, 0, 1] = -angle.sin() * flips[:, 0] / ratio
    transform[:, 1, 0] = angle.sin() * flips[:, 1] * ratio
    transform[:, 1, 1] = angle.cos() * flips[:, 1]
    places = functional.affine_grid(transform, list(images.shape), align_corners=False)
    return functional.grid_sample(images, places, "bilinear", padding_mode="reflection", align_corners=False)


def _restain(images: torch.Tensor, draws: torch.Tensor, strength: float) -> torch.Tensor:
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
