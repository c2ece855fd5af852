"""Which candidate windows of a split become patches (method.md, section 0)."""

from dataclasses import dataclass

import numpy as np

from epsam.config.schema import Config, Selection
from epsam.runtime.log import logger
from epsam.runtime.seeds import generator

EPSILON = 1e-9


@dataclass(frozen=True)
class Candidates:
    """All windows of one split, sorted by slide, y and x."""

    fraction: np.ndarray
    """(n,) float64 in [0, 1], NaN where only the label is known."""
    label: np.ndarray
    """(n,) int8: 1 holds tumour."""
    negatives_allowed: np.ndarray
    """(n,) bool: False where a window without tumour may hold some all the same."""
    by_hand: np.ndarray
    """(n,) bool: windows that labels.csv names; they are all taken."""


def select(candidates: Candidates, split: str, config: Config) -> np.ndarray:
    """(n,) of "", "all" or "classifier": what each window is cut for.

    Positives come from bins of tumour share over (0, 1], or at random; a bin holds its upper end and not its lower
    one, and so does positive_share. Those of unknown share are drawn as one bin more, of as many as all bins together,
    and SAM works on them. Windows labelled by hand are all taken, beside these. Draws are seeded by split and purpose,
    so they do not depend on each other.
    """
    wanted: Selection = getattr(config.patches, split)
    fraction = candidates.fraction
    in_range = _inside(fraction, config.patches.positive_share)
    if wanted.per_bin is not None:
        positives = _per_bin(fraction, wanted, split, config)
        positives = positives[in_range[positives]]
    else:
        positives = _draw(np.flatnonzero(in_range), wanted.at_random, config, split, "positives")
    drawn = ~candidates.by_hand
    unknown = np.flatnonzero(np.isnan(fraction) & (candidates.label == 1) & drawn)
    negatives = np.flatnonzero((candidates.label == 0) & candidates.negatives_allowed & drawn)
    extra = np.flatnonzero(_inside(fraction, config.classifier.positive_share) & ~in_range)
    purpose = np.full(len(fraction), "", dtype="<U10")
    purpose[candidates.by_hand] = "all"
    purpose[positives] = "all"
    purpose[_draw(unknown, _asked(wanted, config), config, split, "unknown share")] = "all"
    purpose[_draw(negatives, wanted.negatives, config, split, "negatives")] = "all"
    purpose[_draw(extra, wanted.classifier_extra, config, split, "classifier")] = "classifier"
    _report(split, wanted, positives, negatives, extra, int(candidates.by_hand.sum()))
    return purpose


def may_be_positive(fraction: np.ndarray, label: np.ndarray, config: Config) -> bool:
    """Whether any window has a tumour share that positives are chosen from, or an unknown one."""
    return bool(_inside(fraction, config.patches.positive_share).any() or (np.isnan(fraction) & (label == 1)).any())


def _asked(wanted: Selection, config: Config) -> int:
    """Positives that a split asks for at most."""
    if wanted.per_bin is not None:
        return wanted.per_bin * round(1 / config.patches.bin_width)
    return wanted.at_random or 0


def _inside(fraction: np.ndarray, share: tuple[float, float]) -> np.ndarray:
    low, high = share
    return (fraction > max(low + EPSILON, 0)) & (fraction <= high + EPSILON)


def _per_bin(fraction: np.ndarray, wanted: Selection, split: str, config: Config) -> np.ndarray:
    positive = np.flatnonzero(fraction > 0)
    bins = np.ceil(fraction[positive] / config.patches.bin_width - EPSILON).astype(int)
    drawn = [_draw(positive[bins == k], wanted.per_bin, config, split, "bin", k) for k in np.unique(bins)]
    chosen = np.concatenate(drawn) if drawn else positive
    if wanted.top_up is not None and len(chosen) < wanted.top_up:
        rest = np.setdiff1d(positive, chosen)
        chosen = np.concatenate([chosen, _draw(rest, wanted.top_up - len(chosen), config, split, "top-up")])
    return chosen


def _draw(among: np.ndarray, count: int | None, config: Config, *purpose: object) -> np.ndarray:
    """`count` of `among` at random, all of them when there are no more or no count is given."""
    if count is None or len(among) <= count:
        return among
    return generator(config.patches.seed, *purpose).choice(among, count, replace=False)


def _report(
    split: str,
    wanted: Selection,
    positives: np.ndarray,
    negatives: np.ndarray,
    extra: np.ndarray,
    by_hand: int,
) -> None:
    asked = f"{wanted.per_bin} a bin" if wanted.per_bin is not None else str(wanted.at_random)
    logger.info(
        f"{split}: {len(positives)} positives ({asked} asked), {min(len(negatives), wanted.negatives)} "
        f"negatives ({wanted.negatives} asked, {len(negatives)} there), "
        f"{min(len(extra), wanted.classifier_extra)} more positives for the classifier alone"
        + (f", {by_hand} windows of labels.csv" if by_hand else "")
    )
    if not len(negatives) and wanted.negatives and not by_hand:
        logger.warning(f"{split}: no window without tumour may be chosen, so there are no negatives")
