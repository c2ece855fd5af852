"""How much tissue a slide has, beside the tumour marked on it."""

from fractions import Fraction

import numpy as np

from epsam.inference.foci import Foci
from epsam.inference.painted import PaintedFoci

STRIP_ROWS = 256
"""Of the tissue, about, in which foci are painted at a time."""


def tissue_area(tissue: np.ndarray, downsample: float, foci: Foci) -> float:
    """Level-0 px2 that are tissue or marked as tumour; so the foci never cover more than this.

    tissue: (h, w) bool, the whole slide at `downsample`. It is found coarser than tumour is marked, so that a focus
    reaches beyond it at its border or where tissue is pale. The area of the foci is exact; beside them, a pixel of
    `tissue` counts where its middle lies in none.
    """
    painted, middle, beside = PaintedFoci(foci), int(downsample / 2), 0
    # A strip begins at a whole level-0 px, so that it shows the rows that a window of the whole slide would.
    whole = Fraction(downsample).denominator
    rows = whole * max(1, STRIP_ROWS // whole)
    for top in range(0, len(tissue), rows):
        strip = tissue[top : top + rows]
        marked = painted.mask(middle, middle + int(top * downsample), strip.shape[1], len(strip), downsample)
        beside += int((strip & ~marked).sum())
    return sum(focus.polygon.area for focus in foci) + float(beside) * downsample**2
