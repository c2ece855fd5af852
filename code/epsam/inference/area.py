"""How much tissue a slide has, beside the tumour marked on it."""

import numpy as np

from epsam.inference.foci import Foci
from epsam.inference.painted import PaintedFoci


def tissue_area(tissue: np.ndarray, downsample: float, foci: Foci) -> float:
    """Level-0 px2 that are tissue or marked as tumour; so the foci never cover more than this.

    tissue: (h, w) bool, the whole slide at `downsample`. It is found coarser than tumour is marked, so that a focus
    reaches beyond it at its border or where tissue is pale. The area of the foci is exact; beside them, a pixel of
    `tissue` counts where its middle lies in none.
    """
    height, width = tissue.shape
    middle = int(downsample / 2)
    beside = tissue & ~PaintedFoci(foci).mask(middle, middle, width, height, downsample) if foci else tissue
    return sum(focus.polygon.area for focus in foci) + float(beside.sum()) * downsample**2
