"""Postprocessing of the masks that SAM predicts: components without a prompt and small regions are removed."""

import numpy as np
from segment_anything.utils.amg import remove_small_regions
from skimage.measure import label

from epsam.config.schema import Sam


def postprocess(mask: np.ndarray, cam: np.ndarray, settings: Sam) -> np.ndarray:
    """SAM's `mask` as the settings want it; `cam` is the CAM mask that its prompts come from; all (H, W) bool."""
    if settings.islands == "supported":
        mask = components_touching(mask, cam)
    return without_small_regions(mask, settings.min_region_px)


def components_touching(mask: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """The 8-connected islands of `mask` that have a pixel in common with `cam`, both (H, W) bool."""
    islands = label(mask, connectivity=2)
    return np.isin(islands, np.unique(islands[mask & cam]))


def without_small_regions(mask: np.ndarray, min_px: int) -> np.ndarray:
    """`mask` (H, W) bool with its islands of fewer than `min_px` pixels removed, then such holes filled.

    As SAM's own mask generator tidies its masks: regions are 8-connected, and where all islands are small the largest
    stays. An empty mask stays empty, even where the whole patch is a small hole.
    """
    if not mask.any():
        return mask
    for mode in ("islands", "holes"):
        mask, _ = remove_small_regions(mask, min_px, mode)
    return mask
