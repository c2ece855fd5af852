"""Pseudo-labels: masks that a decoder predicts for patches, kept where they agree with the CAM mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from epsam.evaluation.metrics import dice
from epsam.runtime.files import write_png
from epsam.runtime.log import logger
from epsam.runtime.records import Row
from epsam.runtime.seeds import generator
from epsam.sam.samples import Example
from epsam.sam.session import SamSession
from epsam.segmenter import segment_stored

SENSITIVITY_PATCHES = 64
"""Patches on which the sensitivity to the draw of prompts is measured."""


DRIFT = 1.25
"""Factor by which masks may grow or shrink from one round to the next before it is warned of."""


@dataclass(frozen=True)
class Candidate:
    """A predicted mask before and after the filter."""

    example: Example
    ids: float
    """Share of SAM's mask inside the CAM mask."""
    kept: bool
    cam_share: float
    """Foreground share of the CAM mask; of the patch, as the next."""
    sam_share: float


class RoundRow(Row):
    """A line of pseudo_labels.csv; shares are means over patches of their foreground."""

    round: PositiveInt
    patches: NonNegativeInt
    kept: NonNegativeInt
    mean_ids: NonNegativeFloat
    cam_share: NonNegativeFloat
    sam_share: NonNegativeFloat
    kept_share: NonNegativeFloat
    relative_size: NonNegativeFloat
    """Of all of SAM's masks to all CAM masks: the filter hides masks that grow."""
    sensitivity: NonNegativeFloat


def ids_score(cam: np.ndarray, sam: np.ndarray) -> float:
    """|CAM mask AND SAM mask| / (|SAM mask| + 1), masks (H, W) bool: arXiv 2410.13621. In [0, 1)."""
    return float((cam & sam).sum() / (sam.sum() + 1))


def make_pseudo_labels(session: SamSession, split: str, folder: Path) -> list[Candidate]:
    """Predict every patch of a split with the session's decoder and write the masks that pass the filter.

    `folder` then holds <name>.png of the kept masks, and of the patches no others. Several processes share the patches, and
    each gives the candidates of all.
    """
    candidates, ranks = [], session.hardware.ranks
    for sample, mask in segment_stored(session, split, session.examples(split), ranks=ranks):
        cam, path = sample.prompted.cam_mask, folder / f"{sample.example.patch.name}.png"
        ids = ids_score(cam, mask)
        kept = bool(mask.any()) and ids >= session.config.retrain.ids
        if kept:
            write_png(path, mask)
        else:
            path.unlink(missing_ok=True)  # of an earlier attempt at this round
        candidates.append(Candidate(sample.example, ids, kept, float(cam.mean()), float(mask.mean())))
    return sorted(ranks.gather_list(candidates), key=lambda candidate: candidate.example.position)


def summarise(round_: int, candidates: Sequence[Candidate], sensitivity: float) -> RoundRow:
    """One row on the pseudo-labels of a round."""
    kept = [candidate for candidate in candidates if candidate.kept]
    cam_share = _mean(candidate.cam_share for candidate in candidates)
    sam_share = _mean(candidate.sam_share for candidate in candidates)
    return RoundRow(
        round=round_,
        patches=len(candidates),
        kept=len(kept),
        mean_ids=_mean(candidate.ids for candidate in candidates),
        cam_share=cam_share,
        sam_share=sam_share,
        kept_share=_mean(candidate.sam_share for candidate in kept),
        relative_size=sam_share / (cam_share or 1),
        sensitivity=sensitivity,
    )


def _mean(values) -> float:
    values = list(values)
    return fmean(values) if values else 0.0


def prompt_sensitivity(session: SamSession, split: str) -> float:
    """How far masks move when the prompts are drawn again: mean 1 - Dice of two draws, over some patches."""
    examples = session.examples(split)
    rng = generator(session.config.finetune.seed, "sensitivity")
    chosen = rng.permutation(len(examples))[:SENSITIVITY_PATCHES]
    examples = [examples[index] for index in sorted(chosen)]
    draws = [
        {sample.example.patch.name: mask for sample, mask in segment_stored(session, split, examples, draw)}
        for draw in (0, 1)
    ]
    return _mean(1 - dice(mask, draws[1][name]) for name, mask in draws[0].items())


def warn_of_drift(before: float, now: float, round_: int) -> None:
    """Warn when SAM's masks, relative to the CAM masks, shrink or grow by more than DRIFT from round to round."""
    word = "shrink" if now < before / DRIFT else "grow" if now > before * DRIFT else None
    if word:
        logger.warning(
            f"round {round_}: SAM's masks {word}, from {before:.2f} to {now:.2f} times the size of the "
            f"CAM masks. IDS does not see what a mask misses, so look at labels_round{round_}.png"
        )
