"""Class activation maps, and the masks cut from them (method.md, section 2)."""

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from epsam.classifier.activation import ROTATIONS, compute_maps, resize_map
from epsam.classifier.backbone import Backbone
from epsam.classifier.data import PatchImages, as_float, split_batches
from epsam.config import Cam, Config
from epsam.errors import DataError
from epsam.patches import Patch
from epsam.runtime.device import Hardware
from epsam.runtime.files import atomic
from epsam.runtime.finite import check_finite
from epsam.runtime.log import progress
from epsam.runtime.memory import BatchSize


@dataclass(frozen=True)
class ActivationMap:
    """Where the classifier sees tumour in a patch, and from which value on it counts."""

    values: np.ndarray
    """(h, w) float32 in [0, 1]."""
    limit: float
    """In [0, 1]; the CAM mask is where the map is greater."""


def compute_cams(
    model: Backbone, images: torch.Tensor, rotations: Sequence[int] = ROTATIONS, layer: str = "layer4.0"
) -> torch.Tensor:
    """As `compute_maps`, resized (bilinear) to the images: (N, H, W), float32 in [0, 1]."""
    maps = compute_maps(model, images, rotations, layer)
    return torch.nn.functional.interpolate(maps[:, None], images.shape[-2:], mode="bilinear").squeeze(1)


def fixed_limit(values: np.ndarray, settings: Cam) -> float:
    """The limit of a map (h, w) in [0, 1] by settings alone: a fixed threshold, or the percentile of what is not zero.

    The percentile is that of the map as the network gives it, as published, not of the map resized to `mask_px`.
    Raises DataError when the map is not finite.
    """
    if settings.percentile is None:
        return settings.threshold
    _check_finite(values)
    positive = values[values > 0]
    return float(np.percentile(positive, settings.percentile)) if len(positive) else 1.0


def cam_mask(cam: ActivationMap, settings: Cam, size: tuple[int, int]) -> np.ndarray:
    """The CAM mask (height, width) bool of `size`. A map of zeros gives an empty one.

    The map is resized to `mask_px` on a side, cut above its limit, opened, and resized to `size`. Raises DataError
    when the map is not finite.
    """
    (mask,) = masks_at(cam.values, [cam.limit], settings)
    return cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5


def masks_at(values: np.ndarray, limits: Sequence[float], settings: Cam) -> Iterator[np.ndarray]:
    """The masks (mask_px, mask_px), uint8 0 or 1, cut from a map (h, w) at each of `limits` and opened."""
    resized = _at_mask_px(values, settings)
    kernel = np.ones((settings.opening_px, settings.opening_px), np.uint8)
    for limit in limits:
        mask = (resized > limit).astype(np.uint8)
        if settings.opening_px > 1:
            mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel)
        yield mask


def _at_mask_px(values: np.ndarray, settings: Cam) -> np.ndarray:
    _check_finite(values)
    return resize_map(values, (settings.mask_px, settings.mask_px))


def _check_finite(values: np.ndarray) -> None:
    if values.ndim != 2 or not np.isfinite(values).all():
        raise DataError(f"a CAM of shape {values.shape} is not a finite map; compute it again")


def compute_split(
    model: Backbone, patches: Sequence[Patch], config: Config, hardware: Hardware, what: str = ""
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and maps (h, w) float32 of `patches`, in batches that fit the device, with a progress bar.

    Raises DataError with the name of a patch whose map is not finite.
    """
    if not patches:
        return
    images = PatchImages(patches, config.worker_count)
    batches = split_batches(len(patches), hardware.cam_batch)
    size = BatchSize("maps", hardware.cam_batch)
    with progress(total=len(patches), desc=f"maps {what}".strip(), unit="patch") as bar:
        for indices, batch in images.batches(batches, config.worker_count):
            with hardware.autocast():
                maps = size.run(lambda n, batch=batch: torch.cat([
                    compute_maps(model, as_float(part, hardware.device), config.cam.rotations, config.cam.layer)
                    for part in batch.split(n)
                ]))
            names = [patches[index].name for index in indices]
            check_finite(maps, names, "the classifier's maps")
            yield from zip(names, maps.cpu().numpy(), strict=True)
            bar.update(len(indices))


NOT_ZIP = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError)
"""What NumPy lets through of a file that is no npz, or of an array whose header cannot be parsed."""


def save_cams(path: Path, cams: Mapping[str, ActivationMap]) -> None:
    """Write maps by name, all of one shape (h, w), as npz with `names`, `maps` and `limits`, atomically."""
    maps = np.stack([cam.values for cam in cams.values()]) if cams else np.zeros((0, 0, 0))
    limits = np.array([cam.limit for cam in cams.values()], np.float64)
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, names=np.array(list(cams), dtype=np.str_), maps=maps.astype(np.float32), limits=limits)


def load_cams(path: Path) -> dict[str, ActivationMap]:
    """Maps by patch name. Raises DataError when the file is missing, damaged or does not hold what `save_cams` writes."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            names, maps, limits = saved["names"], saved["maps"], saved["limits"]
        _check_columns(names, maps, limits)
        return {name: ActivationMap(values, limit)
                for name, values, limit in zip(names.tolist(), maps, limits.tolist(), strict=True)}
    except FileNotFoundError:
        raise DataError(f"{path}: no maps here; run the stage initial-masks") from None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, TypeError, *NOT_ZIP) as error:
        raise DataError(f"{path}: not readable as maps ({' '.join(str(error).split())[:160]}); the stage "
                        "initial-masks makes it anew (./train.sh with --from initial-masks)") from None


def _check_columns(names: np.ndarray, maps: np.ndarray, limits: np.ndarray) -> None:
    """Raise ValueError when the arrays of a file of maps are not what they should be."""
    if not all(isinstance(array, np.ndarray) for array in (names, maps, limits)):
        raise ValueError("a part of it is no array")
    count = len(names) if names.ndim == 1 else -1
    if (names.dtype.kind, maps.dtype, limits.dtype) != ("U", np.float32, np.float64):
        raise ValueError(f"types {names.dtype}, {maps.dtype}, {limits.dtype}; they should be text, float32, float64")
    if maps.ndim != 3 or len(maps) != count or limits.shape != (count,):
        raise ValueError(f"shapes {names.shape}, {maps.shape}, {limits.shape} of names, maps and limits do not fit")
    if len(set(names.tolist())) != count:
        raise ValueError("a name stands there twice")
    for what, values in (("maps", maps), ("limits", limits)):
        if not ((values >= 0) & (values <= 1)).all():  # NaN is neither
            raise ValueError(f"{what} are not from 0 to 1")
