"""Postprocessing of the masks that SAM predicts: components without a prompt and small regions are removed."""

import numpy as np
from segment_anything.utils.amg import remove_small_regions
from skimage.measure import label

from epsam.config.schema import Postprocess


def keep_components(mask: np.ndarray, cam: np.ndarray, settings: Postprocess) -> np.ndarray:
    """The components of SAM's `mask` that the settings keep; `cam`: the CAM mask of its prompts; all (H, W) bool."""
    return components_touching(mask, cam) if settings.components == "touching_cam" else mask


def components_touching(mask: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """The 8-connected components of `mask` that have a pixel in common with `cam`, both (H, W) bool."""
    components = label(mask, connectivity=2)
    return np.isin(components, np.unique(components[mask & cam]))


def without_small_regions(mask: np.ndarray, min_px: int) -> np.ndarray:
    """`mask` (H, W) bool with its components of fewer than `min_px` pixels removed, then such holes filled.

    As SAM's own mask generator does: regions are 8-connected, and where all components are small the largest stays. An
    empty mask stays empty, even where the complete patch is a small hole.
    """
    if not mask.any():
        return mask
    for mode in ("islands", "holes"):
        mask, _ = remove_small_regions(mask, min_px, mode)
    return mask
