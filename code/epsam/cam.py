"""Class activation maps, and the masks cut from them (method.md, section 2)."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from epsam.cam_sheet import draw_cam_sheet
from epsam.classifier.activation import ROTATIONS, compute_maps, resize_map
from epsam.classifier.data import PatchImages, as_float, split_batches
from epsam.classifier.resnet import ResNetADL, load_classifier
from epsam.config import Cam, Config
from epsam.errors import DataError
from epsam.patches import Patch, patches_for_sam
from epsam.runtime.device import Hardware
from epsam.runtime.files import atomic, read_image, write_png
from epsam.runtime.log import logger, progress
from epsam.runtime.memory import BatchSize
from epsam.workspace import SPLITS, Workspace


def compute_cams(
    model: ResNetADL, images: torch.Tensor, rotations: Sequence[int] = ROTATIONS, layer: str = "layer4.0"
) -> torch.Tensor:
    """As `compute_maps`, resized (bilinear) to the images: (N, H, W), float32 in [0, 1]."""
    maps = compute_maps(model, images, rotations, layer)
    return torch.nn.functional.interpolate(maps[:, None], images.shape[-2:], mode="bilinear").squeeze(1)


def cam_mask(cam: np.ndarray, settings: Cam, size: tuple[int, int]) -> np.ndarray:
    """The mask (height, width) bool of `size` cut from a map (h, w), float in [0, 1].

    The map is resized to `mask_px` on a side, cut above the percentile of its non-zero values or above the
    threshold, opened, and resized to `size`. A map of zeros gives an empty mask. Raises DataError when the map
    is not finite.
    """
    if cam.ndim != 2 or not np.isfinite(cam).all():
        raise DataError(f"a CAM of shape {cam.shape} is not a finite map; compute it again")
    values = resize_map(cam, (settings.mask_px, settings.mask_px))
    positive = values[values > 0]
    if not len(positive):
        return np.zeros(size, bool)
    limit = settings.threshold if settings.percentile is None else np.percentile(positive, settings.percentile)
    mask = (values > limit).astype(np.uint8)
    if settings.opening_px > 1:
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((settings.opening_px, settings.opening_px), np.uint8))
    return cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5


def make_initial_masks(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: maps of SAM's patches of every split, and the masks of the train split that round 0 learns from.

    A split whose maps are on disk is not computed again. An empty mask is written too and counted in the log.
    """
    model = load_classifier(config.classifier, workspace.classifier, hardware.device)
    for split in SPLITS:
        patches = patches_for_sam(workspace, split)
        path = workspace.cams(split)
        if not (path.is_file() and list(load_cams(path)) == [patch.name for patch in patches]):
            save_cams(path, dict(compute_split(model, patches, config, hardware, split)))
    _write_masks(config, workspace)


def compute_split(
    model: ResNetADL, patches: Sequence[Patch], config: Config, hardware: Hardware, what: str = ""
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and maps (h, w) float32 of `patches`, in batches that fit the device, with a progress bar."""
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
            yield from zip((patches[index].name for index in indices), maps.cpu().numpy(), strict=True)
            bar.update(len(indices))


NOT_ZIP = (zipfile.BadZipFile, zlib.error)


def save_cams(path: Path, maps: Mapping[str, np.ndarray]) -> None:
    """Write maps by name, all of one shape (h, w), as npz with `names` and `maps`, atomically."""
    stacked = np.stack(list(maps.values())) if maps else np.zeros((0, 0, 0), np.float32)
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, names=np.array(list(maps), dtype=np.str_), maps=stacked.astype(np.float32))


def load_cams(path: Path) -> dict[str, np.ndarray]:
    """Maps (h, w) float32 in [0, 1] by patch name. Raises DataError when the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            return dict(zip(saved["names"].tolist(), saved["maps"], strict=True))
    except FileNotFoundError:
        raise DataError(f"{path}: no maps here; run the stage initial-masks") from None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, *NOT_ZIP) as error:
        raise DataError(f"{path}: not readable as maps ({error}); run initial-masks again with --from") from None


def _write_masks(config: Config, workspace: Workspace) -> None:
    patches, folder = patches_for_sam(workspace, "train"), workspace.pseudo_labels(0)
    maps = load_cams(workspace.cams("train"))
    size = read_image(patches[0].path).shape[:2] if patches else (0, 0)
    shares = []
    for patch in progress(patches, desc="initial masks", unit="patch"):
        mask = cam_mask(maps[patch.name], config.cam, size)
        write_png(folder / f"{patch.name}.png", mask)
        shares.append(mask.mean())
    names = {patch.name for patch in patches}
    for stale in [path for path in folder.glob("*.png") if path.stem not in names]:
        stale.unlink()
    draw_cam_sheet(workspace.run / "cams" / "sheet.png", patches, maps, folder)
    _report(np.array(shares))


def _report(shares: np.ndarray) -> None:
    if not len(shares):
        logger.warning("initial masks: the train split holds no patch for SAM")
        return
    empty = int((shares == 0).sum())
    logger.info(f"initial masks: {len(shares)} patches, mean foreground {shares.mean():.1%}, {empty} empty")
    if shares.mean() > 0.95 or shares.mean() < 0.02 or empty > len(shares) / 2:
        what = "nearly everything" if shares.mean() > 0.95 else "nearly nothing"
        logger.warning(f"initial masks: they cover {what}; look at runs/<name>/cams/sheet.png, and at cam.percentile, "
                       "cam.threshold and cam.layer")
