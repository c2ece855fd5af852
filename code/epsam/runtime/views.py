"""Dihedral views of a patch: the augmentation that an embedding store can serve."""

import numpy as np

VIEWS = ((0, False), (0, True), (1, False), (1, True), (2, False), (2, True), (3, False), (3, True))
"""Quarter turns (counter-clockwise), then whether mirrored left to right; view 0 is the patch as it is."""


def apply_view(array: np.ndarray, view: int) -> np.ndarray:
    """`array` (H, W) or (H, W, C) in view 0..7, contiguous; height and width change places in odd quarter turns."""
    turns, mirrored = VIEWS[view]
    turned = np.rot90(array, turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


def undo_view(array: np.ndarray, view: int) -> np.ndarray:
    """The array (H, W) or (H, W, C), contiguous, of which `array` is the view 0..7."""
    turns, mirrored = VIEWS[view]
    return np.ascontiguousarray(np.rot90(array[:, ::-1] if mirrored else array, -turns))
