"""At which resolution patches are: the same for all slides of a run, and kept beside the weights trained on them."""

import statistics
from collections.abc import Mapping

from epsam.errors import DataError
from epsam.patches.tables import read_summary
from epsam.workspace import Workspace

MAX_RATIO = 1.1
"""Of the coarsest to the finest um/px of slides that are cut without `patches.target_mpp`; one scanner's slides vary
by a few per cent, the next objective is a factor of 2."""


def check_resolutions(mpp: Mapping[str, float | None], target_mpp: float | None) -> None:
    """Raise DataError when patches of slides, by name, differ in um/px by more than MAX_RATIO and no target is set.

    The message proposes the coarsest: finer slides can be brought to it. Slides of unknown resolution do not count.
    """
    known = {name: value for name, value in mpp.items() if value}
    if target_mpp is not None or not known:
        return
    finest, coarsest = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if known[coarsest] > MAX_RATIO * known[finest]:
        raise DataError(
            f"the slides of this run differ in resolution: {finest} has {known[finest]:.3g} um/px, {coarsest} "
            f"{known[coarsest]:.3g}, so that a patch would show areas of different size. Set "
            f"patches.target_mpp={_rounded(known[coarsest]):g} to cut all at the coarsest of them, or exclude slides"
        )


def _rounded(mpp: float) -> float:
    """Two digits, where that is within 1 % of it, else three: 0.5 for 0.4990."""
    return next((value for digits in (2, 3) if abs((value := float(f"{mpp:.{digits}g}")) / mpp - 1) < 0.01), mpp)


def patch_mpp(workspace: Workspace) -> float | None:
    """um per pixel of the run's patches, the median of the slides that they were cut from.

    None where no slide says its resolution, or the patches were brought without slides.
    """
    known = [row.patch_mpp for row in read_summary(workspace) if row.status == "ok" and row.patch_mpp]
    return statistics.median(known) if known else None
