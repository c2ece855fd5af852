"""Stage initial-masks: the classifier's maps, their thresholds, and the masks that round 0 learns from."""

from collections.abc import Mapping, Sequence

import numpy as np

from epsam.cam.activation import ActivationMap, compute_split
from epsam.cam.mask import cam_mask
from epsam.cam.store import load_cams, save_cams
from epsam.cam.threshold import fixed_threshold, otsu_threshold
from epsam.classifier.building import load_classifier
from epsam.config.schema import Config
from epsam.patches.patch import Patch, patches_for_sam
from epsam.runtime.device import Hardware
from epsam.runtime.files import read_image, write_png
from epsam.runtime.log import logger, progress
from epsam.sam.samples import patch_size
from epsam.sam.session import SamSession
from epsam.visualization.contact_sheet import draw_cam_sheet
from epsam.workspace import SPLITS, Workspace


def make_initial_masks(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: maps of SAM's patches of every split, and the masks of the train split that round 0 learns from.

    A split whose maps are on disk is not computed again. An empty mask is written too and counted in the log. With
    `cam.threshold: auto` the thresholds come from SAM's embeddings.
    """
    context = SamSession(config, workspace, hardware) if config.cam.threshold == "auto" else None
    model = load_classifier(config.classifier, workspace.classifier, hardware.device)
    for split in SPLITS:
        patches = patches_for_sam(workspace, split)
        path = workspace.cams(split)
        if not (path.is_file() and list(load_cams(path)) == [patch.name for patch in patches]):
            maps = dict(compute_split(model, patches, config, hardware, split))
            save_cams(path, _fixed(maps, config) if context is None else _by_sam(maps, context, split, patches))
    _write_masks(config, workspace)


def _fixed(maps: Mapping[str, np.ndarray], config: Config) -> dict[str, ActivationMap]:
    return {name: ActivationMap(values, fixed_threshold(values, config.cam)) for name, values in maps.items()}


def _by_sam(
    maps: Mapping[str, np.ndarray], context: SamSession, split: str, patches: Sequence[Patch]
) -> dict[str, ActivationMap]:
    embeddings, step, cams = context.embeddings(split), context.hardware.encoder_batch, {}
    with progress(total=len(patches), desc=f"thresholds {split}", unit="patch") as bar:
        for start in range(0, len(patches), step):
            part = patches[start : start + step]
            batch = embeddings.batch([embeddings.item(start + i, 0) for i in range(len(part))]).cpu().numpy()
            for patch, embedding in zip(part, batch, strict=True):
                threshold = otsu_threshold(maps[patch.name], embedding, read_image(patch.path), context.config.cam)
                cams[patch.name] = ActivationMap(maps[patch.name], threshold)
            bar.update(len(part))
    return cams


def _write_masks(config: Config, workspace: Workspace) -> None:
    patches, folder = patches_for_sam(workspace, "train"), workspace.pseudo_labels(0)
    cams = load_cams(workspace.cams("train"))
    shares = []
    for patch in progress(patches, desc="initial masks", unit="patch"):
        mask = cam_mask(cams[patch.name], config.cam, patch_size(patch))
        write_png(folder / f"{patch.name}.png", mask)
        shares.append(mask.mean())
    for stale in [path for path in folder.glob("*.png") if path.stem not in cams]:
        stale.unlink()
    draw_cam_sheet(workspace.run / "cams" / "sheet.png", patches, cams, folder)
    _report(np.array(shares), np.array([cam.threshold for cam in cams.values()]))


def _report(shares: np.ndarray, thresholds: np.ndarray) -> None:
    if not len(shares):
        logger.warning("initial masks: the train split holds no patch for SAM")
        return
    empty = int((shares == 0).sum())
    low, middle, high = np.percentile(thresholds, (10, 50, 90))
    logger.info(
        f"initial masks: {len(shares)} patches, mean foreground {shares.mean():.1%}, {empty} empty; maps are cut "
        f"at {middle:.2f} (80 % of them between {low:.2f} and {high:.2f})"
    )
    if shares.mean() > 0.95 or shares.mean() < 0.02 or empty > len(shares) / 2:
        what = "nearly everything" if shares.mean() > 0.95 else "nearly nothing"
        logger.warning(
            f"initial masks: they cover {what}; look at runs/<name>/cams/sheet.png, and at cam.percentile, "
            "cam.threshold and cam.layer"
        )
