"""At which resolution patches are: the same for all slides of a run, and kept beside the weights trained on them."""

import statistics
from collections.abc import Collection, Mapping

from epsam.errors import DataError
from epsam.patches.tables import read_summary
from epsam.runtime.log import logger
from epsam.runtime.text import listed
from epsam.workspace import Workspace

MAX_RATIO = 1.1
"""Of the coarsest to the finest um/px of slides that are cut without `patches.target_mpp`; one scanner's slides vary
by a few per cent, the next objective is a factor of 2."""


def check_resolutions(mpp: Mapping[str, float | None], target_mpp: float | None, labelled: Collection[str]) -> None:
    """Raise DataError when patches of slides, by name, differ in um/px by more than MAX_RATIO, or from `target_mpp`.

    The message proposes the coarsest: finer slides can be brought to it, but for `labelled` ones, whose windows
    labels.csv gives. Slides of unknown resolution do not count; they are named in a warning.
    """
    if unknown := [name for name, value in mpp.items() if not value]:
        logger.warning(
            f"{len(unknown)} of {len(mpp)} slides do not say their resolution, and are taken to have that of the others: "
            f"{listed(unknown)}; give it in the column mpp of slides.csv"
        )
    known = {name: value for name, value in mpp.items() if value}
    if not known:
        return
    finest, coarsest = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if target_mpp is not None:
        _check_target(known, target_mpp)
    elif known[coarsest] > MAX_RATIO * known[finest]:
        target = _rounded(known[coarsest])
        advice = (
            f"Give the windows of {finest} in labels.csv a width of {target:g} um/px, or exclude slides"
            if finest in labelled
            else f"Set patches.target_mpp={target:g} to cut all at the coarsest of them, or exclude slides"
        )
        raise DataError(
            f"the slides of this run differ in resolution: {finest} has {known[finest]:.3g} um/px, {coarsest} "
            f"{known[coarsest]:.3g}, so that a patch would show areas of different size. {advice}"
        )


def _check_target(mpp: Mapping[str, float], target_mpp: float) -> None:
    """Raise DataError for slides whose patches are not at `target_mpp`: labels.csv gives their windows another size."""
    other = [name for name, value in mpp.items() if max(value, target_mpp) > MAX_RATIO * min(value, target_mpp)]
    if other:
        raise DataError(
            f"labels.csv gives windows that as patches have not patches.target_mpp={target_mpp:g} um/px, but: "
            + listed(f"{name} {mpp[name]:.3g}" for name in other)
            + ". Leave width, level and mpp out there where x and y are the corners of windows of that resolution, or set "
            "patches.target_mpp to theirs"
        )


def _rounded(mpp: float) -> float:
    """Two digits, where that is within 1% of it, else three: 0.5 for 0.4990."""
    return next((value for digits in (2, 3) if abs((value := float(f"{mpp:.{digits}g}")) / mpp - 1) < 0.01), mpp)


def warn_of_enlarged(mpp: Mapping[str, float | None], target_mpp: float | None) -> None:
    """Warn of slides, by name, whose um/px is coarser than `target_mpp`: their patches show less than the others'."""
    coarse = [name for name, value in mpp.items() if target_mpp and value and value > MAX_RATIO * target_mpp]
    if coarse:
        logger.warning(
            f"{len(coarse)} of {len(mpp)} slides are coarser than patches.target_mpp={target_mpp:g} and are enlarged, which "
            f"adds no detail: {listed(f'{name} {mpp[name]:.3g}' for name in coarse)}; set it to the coarsest of them, or "
            "exclude them"
        )


def patch_mpp(workspace: Workspace) -> float | None:
    """um per pixel of the run's patches, the median of the slides that they were cut from.

    None where no slide says its resolution, or the patches were brought without slides.
    """
    known = [row.patch_mpp for row in read_summary(workspace) if row.status == "ok" and row.patch_mpp]
    return statistics.median(known) if known else None
