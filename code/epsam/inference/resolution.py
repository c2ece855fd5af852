"""At which resolution slides are read: that of the patches that the models were trained on."""

from epsam.config.schema import Patches
from epsam.errors import CheckpointError, SlideError
from epsam.runtime.log import logger
from epsam.runtime.model_file import WeightsSource
from epsam.runtime.sidecar import read_metadata, trained_mpp
from epsam.slides.slide import Slide, differing_mpp

USUAL_MPP = 0.25
"""um/px of level 0 of most scanners at 40 times, and of the published patches."""
SAME = 0.1
"""Share by which resolutions may differ and still count as one, as for the slides of a training."""


def model_mpp(patches: Patches, *checkpoints: WeightsSource) -> float | None:
    """um per px of the patches of the training: its setting, or what lies beside the checkpoints; None if unknown.

    Logs a warning where the setting counts and the checkpoints say something else or nothing. Raises CheckpointError when
    what lies there is no resolution, or when no setting says it and the checkpoints contradict each other.
    """
    known: dict[WeightsSource, float] = {}
    for path in checkpoints:
        try:
            mpp = trained_mpp(read_metadata(path))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        if mpp is not None:
            known[path] = mpp
    listed = ", ".join(f"{path.name} at {mpp:g}" for path, mpp in known.items())
    if patches.target_mpp is not None:
        if not known:
            logger.warning(
                f"patches.target_mpp={patches.target_mpp:g} is used; the checkpoints do not say at which um/px they were trained"
            )
        elif not all(same_resolution(mpp, patches.target_mpp) for mpp in known.values()):
            logger.warning(
                f"patches.target_mpp={patches.target_mpp:g} is used, but the checkpoints were trained at other um/px: {listed}"
            )
        return patches.target_mpp
    if known and not same_resolution(min(known.values()), max(known.values())):
        raise CheckpointError(f"the checkpoints were trained at different resolutions (um/px): {listed}; give one pair")
    return next(iter(known.values()), None)


def same_resolution(a: float, b: float) -> bool:
    """Whether two resolutions differ by no more than slides of one training may."""
    return abs(a - b) <= SAME * min(a, b) * (1 + 1e-9)


def set_resolution(slide: Slide, in_table: float | None, for_unknown: float | None) -> str:
    """Give `slide` the um/px of slides.csv, or, when its file says none, that of --mpp; returns a warning or "".

    `in_table` replaces what the file says.
    """
    said = slide.mpp and sum(slide.mpp) / 2
    if in_table is not None:
        warning = differing_mpp(in_table, slide.mpp)
        slide.mpp = (in_table, in_table)
        return warning
    if said is None and for_unknown is not None:
        slide.mpp = (for_unknown, for_unknown)
    elif said is not None and for_unknown is not None and not same_resolution(said, for_unknown):
        return (
            f"its file says {said:.4g} um/px, which is used, not --mpp {for_unknown:g}; to replace it, give the slide's "
            "mpp in slides.csv beside it"
        )
    return ""


def tile_px(slide: Slide, patches: Patches, trained_at: float | None) -> int:
    """Side of a tile in level-0 px: what covers a patch at the resolution of the training, `trained_at` um/px.

    Raises SlideError when that is known and the slide's is not.
    """
    if trained_at is None:
        return patches.size_px
    if slide.mpp is None:
        raise SlideError(
            f"{slide.path}: does not say its resolution, and the models were trained at {trained_at:g} um/px; give it: "
            "./infer.sh --mpp UM_PER_PX, or the column mpp of a slides.csv (slide,mpp) beside the slides"
        )
    mpp = sum(slide.mpp) / 2
    if patches.target_mpp is None and same_resolution(mpp, trained_at):
        return patches.size_px
    return max(1, round(patches.size_px * trained_at / mpp))


def px2_of(um2: float, slide: Slide) -> float:
    """An area in level-0 px2; a slide of unknown resolution is taken to have that of most scanners at 40 times."""
    mpp_x, mpp_y = slide.mpp or (USUAL_MPP, USUAL_MPP)
    return um2 / (mpp_x * mpp_y)


def resolution_warning(slide: Slide, patches: Patches, read_px: int, trained_at: float | None) -> str:
    """What to know of the resolution that a slide was predicted at, in tiles of `read_px` level-0 px; "" if nothing."""
    if slide.mpp is None:
        return (
            "its file does not say its resolution, so sizes are in pixels, it was read as it is (level 0), and small foci "
            "are dropped as on a scan at 40 times"
        )
    if trained_at is None:
        return f"it was read as it is, at {slide.mpp[0]:.4g} um/px; the models do not say what they were trained at"
    if read_px < patches.size_px:
        return f"{slide.mpp[0]:.4g} um/px is coarser than the {trained_at:.4g} of the training; it was enlarged"
    return ""
