"""Prompts for SAM out of masks and class activation maps (method.md, section 3)."""

from dataclasses import dataclass, replace

import numpy as np
from skimage.measure import label, regionprops

from epsam.cam.activation_map import ActivationMap, around_half, resize_map
from epsam.cam.mask import cam_mask
from epsam.config.schema import Config, Prompts
from epsam.errors import DataError
from epsam.runtime.seeds import generator
from epsam.runtime.views import apply_view


@dataclass(frozen=True)
class PromptSet:
    """What SAM is told about one patch, in patch pixels (not SAM's input frame)."""

    points: np.ndarray
    """(K, 2) float32, positive points (x, y)."""
    boxes: np.ndarray
    """(B, 4) float32, x0 y0 x1 y1; x1 and y1 exclusive."""

    @property
    def is_empty(self) -> bool:
        """No prompt at all: the patch is to be predicted empty."""
        return not len(self.points) and not len(self.boxes)


@dataclass(frozen=True)
class PromptedPatch:
    """A patch with its CAM mask, and the prompts drawn from it."""

    cam_mask: np.ndarray
    """(H, W) bool."""
    cam: np.ndarray
    """(H, W) float32 in [0, 1]: the map, scaled so that its threshold lies at 0.5."""
    prompts: PromptSet


NO_POINTS = np.zeros((0, 2), np.float32)
NO_BOXES = np.zeros((0, 4), np.float32)


def points_from_mask(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw up to `count` different pixels of `mask` (H, W), each as likely as the others.

    Returns (K, 2) float32 points (x, y); K is less than `count` when the mask has fewer pixels.
    """
    candidates = np.flatnonzero(_as_mask(mask))
    chosen = rng.choice(candidates, min(count, len(candidates)), replace=False)
    return _as_points(chosen, mask.shape)


def points_from_cam(cam: np.ndarray, mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw up to `count` different pixels of `mask` with probability proportional to `cam`, both (H, W).

    Pixels where the map is 0 are never drawn. Returns (K, 2) float32 points (x, y). Raises DataError when
    the shapes differ or the map holds negative or non-finite values.
    """
    if cam.shape != mask.shape:
        raise DataError(f"a CAM of {cam.shape} and a mask of {mask.shape} do not belong together; resize the CAM")
    if not np.isfinite(cam).all() or cam.min(initial=0) < 0:
        raise DataError("the CAM holds negative or non-finite values; it must lie in [0, 1]")
    candidates = np.flatnonzero(_as_mask(mask) & (cam > 0))
    weights = cam.ravel()[candidates].astype(np.float64)
    # The `count` smallest of Exp(1)/weight are a draw in proportion to the weights without replacement
    # (Efraimidis & Spirakis, Information Processing Letters 97, 2006).
    order = np.argsort(rng.standard_exponential(len(candidates)) / weights, kind="stable")
    return _as_points(candidates[order[:count]], mask.shape)


def boxes_from_mask(mask: np.ndarray, min_px: int = 0) -> np.ndarray:
    """Bounding boxes of the 8-connected components of `mask` (H, W) that have at least `min_px` pixels.

    Returns (B, 4) float32 boxes x0 y0 x1 y1 (x1, y1 exclusive), the largest component first.
    """
    regions = [r for r in regionprops(label(_as_mask(mask), connectivity=2)) if r.area >= min_px]
    regions.sort(key=lambda region: -region.area)
    boxes = [(x0, y0, x1, y1) for y0, x0, y1, x1 in (region.bbox for region in regions)]
    return np.array(boxes, np.float32).reshape(-1, 4)


def some_points(prompts: PromptSet, rng: np.random.Generator) -> PromptSet:
    """The prompts with a random number of their points, from 1 to all, repeated to as many points as before.

    The number stays, so that prompts of different patches can still be one batch.
    """
    if not len(prompts.points):
        return prompts
    kept = prompts.points[: rng.integers(1, len(prompts.points) + 1)]
    return replace(prompts, points=np.resize(kept, prompts.points.shape))


def prompts_for(mask: np.ndarray, cam: np.ndarray | None, settings: Prompts, rng: np.random.Generator) -> PromptSet:
    """Prompts of one patch: points by `cam` inside `mask` (uniform where `cam` is None), boxes of `mask`.

    `mask` (H, W) bool and `cam` (H, W) float [0, 1] have the size of the patch.
    """
    points, boxes = NO_POINTS, NO_BOXES
    if settings.kind in ("points", "both"):
        if cam is None:
            points = points_from_mask(mask, settings.points, rng)
        else:
            points = points_from_cam(cam, mask, settings.points, rng)
    if settings.kind in ("boxes", "both"):
        boxes = boxes_from_mask(mask, settings.min_box_px)
    return PromptSet(points, boxes)


def prompt_patch(
    cam: ActivationMap, size: tuple[int, int], config: Config, rng: np.random.Generator, view: int = 0
) -> PromptedPatch:
    """CAM mask and prompts of a patch of `size` (H, W) px in a dihedral view (0: as it is), from its map."""
    # The mask is cut from the map before both are turned: opening is not symmetric for an even element.
    mask = apply_view(cam_mask(cam, config.cam, size), view)
    values = apply_view(resize_map(cam.values, size), view)
    return PromptedPatch(mask, around_half(values, cam.threshold), prompts_for(mask, values, config.prompts, rng))


def prompt_views(
    cam: ActivationMap, size: tuple[int, int], config: Config, name: str, views: int, draw: int = 0
) -> list[PromptedPatch]:
    """The patch `name` of `size` (H, W) px in its first `views` dihedral views, each with its draw of prompts."""
    seed = config.finetune.seed
    return [
        prompt_patch(cam, size, config, generator(seed, name, "predict", draw, *(("view", view) if view else ())), view)
        for view in range(views)
    ]


def _as_mask(mask: np.ndarray) -> np.ndarray:
    if mask.ndim != 2:
        raise DataError(f"a mask is an array of rows and columns, not of shape {mask.shape}")
    return np.asarray(mask, bool)


def _as_points(flat: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    rows, columns = np.unravel_index(flat.astype(np.intp), shape)
    return np.stack([columns, rows], axis=1).astype(np.float32)
