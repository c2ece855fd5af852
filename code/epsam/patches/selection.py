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
    """(n,) float64 in [0, 1]."""
    negatives_allowed: np.ndarray
    """(n,) bool: False where a window without tumour may hold some all the same."""


def select(candidates: Candidates, split: str, config: Config) -> np.ndarray:
    """(n,) of "", "all" or "classifier": what each window is cut for.

    Positives come from bins of tumour share over (0, 1], or at random; a bin holds its upper end and not its lower
    one, and so does positive_share. Draws are seeded by split and purpose, so they do not depend on each other.
    """
    wanted: Selection = getattr(config.patches, split)
    fraction = candidates.fraction
    in_range = _inside(fraction, config.patches.positive_share)
    if wanted.per_bin is not None:
        positives = _per_bin(fraction, wanted, split, config)
        positives = positives[in_range[positives]]
    else:
        positives = _draw(np.flatnonzero(in_range), wanted.at_random, config, split, "positives")
    negatives = np.flatnonzero((fraction == 0) & candidates.negatives_allowed)
    extra = np.flatnonzero(_inside(fraction, config.classifier.positive_share) & ~in_range)
    purpose = np.full(len(fraction), "", dtype="<U10")
    purpose[positives] = "all"
    purpose[_draw(negatives, wanted.negatives, config, split, "negatives")] = "all"
    purpose[_draw(extra, wanted.classifier_extra, config, split, "classifier")] = "classifier"
    _report(split, wanted, positives, negatives, extra)
    return purpose


def may_be_positive(fraction: np.ndarray, config: Config) -> bool:
    """Whether any window has a tumour share that positives are chosen from."""
    return bool(_inside(fraction, config.patches.positive_share).any())


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


def _draw(among: np.ndarray, count: int, config: Config, *purpose: object) -> np.ndarray:
    """`count` of `among` at random, all of them when there are no more."""
    if len(among) <= count:
        return among
    return generator(config.patches.seed, *purpose).choice(among, count, replace=False)


def _report(split: str, wanted: Selection, positives: np.ndarray, negatives: np.ndarray, extra: np.ndarray) -> None:
    asked = f"{wanted.per_bin} a bin" if wanted.per_bin is not None else str(wanted.at_random)
    logger.info(
        f"{split}: {len(positives)} positives ({asked} asked), {min(len(negatives), wanted.negatives)} "
        f"negatives ({wanted.negatives} asked, {len(negatives)} there), "
        f"{min(len(extra), wanted.classifier_extra)} more positives for the classifier alone"
    )
    if not len(negatives) and wanted.negatives:
        logger.warning(f"{split}: no window without tumour may be chosen, so there are no negatives")
