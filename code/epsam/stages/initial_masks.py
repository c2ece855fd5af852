"""Stage initial-masks: the classifier's maps, their thresholds, and the masks that round 0 learns from."""

from functools import partial

import numpy as np

from epsam.cam.computation import compute_split
from epsam.cam.mask import cam_mask
from epsam.cam.store import load_cams, save_cams
from epsam.classifier.building import load_classifier
from epsam.config.schema import Config
from epsam.patches.patch import patches_for_sam
from epsam.runtime.device import Hardware
from epsam.runtime.files import write_png
from epsam.runtime.log import logger, progress
from epsam.runtime.ranks import Ranks
from epsam.sam.embeddings import encoded_patches
from epsam.sam.samples import patch_size
from epsam.visualization.contact_sheet import draw_cam_sheet
from epsam.workspace import SPLITS, Workspace


def make_initial_masks(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: maps of SAM's patches of every split, and the masks of the train split that round 0 learns from.

    A split whose maps are on disk is not computed again. An empty mask is written too and counted in the log.
    """
    model = load_classifier(config.classifier, workspace.classifier, hardware.device)
    for split in SPLITS:
        patches = encoded_patches(config, workspace, split)
        path = workspace.cams(split)
        if not (path.is_file() and list(load_cams(path)) == [patch.name for patch in patches]):
            cams = dict(compute_split(model, patches, config, hardware, split))
            hardware.ranks.decide(partial(save_cams, path, cams))
    _write_masks(config, workspace, hardware.ranks)


def _write_masks(config: Config, workspace: Workspace, ranks: Ranks) -> None:
    patches, folder = patches_for_sam(workspace, "train"), workspace.pseudo_labels(0)
    of_all = load_cams(workspace.cams("train"))
    cams = {patch.name: of_all[patch.name] for patch in patches}
    shares = []
    for patch in progress(ranks.part(patches), desc="initial masks", unit="patch"):
        mask = cam_mask(cams[patch.name], config.cam, patch_size(patch))
        write_png(folder / f"{patch.name}.png", mask)
        shares.append(mask.mean())
    shares = ranks.interleave(shares)
    if not ranks.is_first:
        return
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
        f"at {middle:.2f} (80% of them between {low:.2f} and {high:.2f})"
    )
    if shares.mean() > 0.95 or shares.mean() < 0.02 or empty > len(shares) / 2:
        what = "nearly everything" if shares.mean() > 0.95 else "nearly nothing"
        logger.warning(
            f"initial masks: they cover {what}; look at runs/<name>/cams/sheet.png, and at cam.percentile, "
            "cam.threshold and cam.layer"
        )
