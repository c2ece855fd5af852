"""Choice of the round whose decoder predicts: the last one, or the last that the CAM masks of the val split agree with.

No true mask is looked at, so a round can be chosen where there are none. On real tissue the masks of a small SAM get worse
from round to round (docs/RESULTS.md), which shows in their agreement with the CAM masks that round 0 learned from.
"""

from collections.abc import Sequence
from statistics import fmean

from epsam.evaluation.metrics import dice
from epsam.rounds import RoundAgreement
from epsam.runtime.files import write_csv
from epsam.runtime.log import logger
from epsam.sam.session import SamSession
from epsam.segmenter import segment_stored

TOLERANCE = 0.01
"""Dice with the CAM masks by which a round may be behind round 0."""


def choose_round(session: SamSession) -> int:
    """Measure the agreement of every round, log and record it, and give the round that is used.

    `retrain.use: last` takes the last one, whatever the agreement is.
    """
    config, workspace = session.config, session.workspace
    agreements = [_agreement(session, round_) for round_ in range(config.retrain.rounds + 1)]
    used = last_in_agreement(agreements) if config.retrain.use == "agreement" else config.retrain.rounds
    rows = [RoundAgreement(round=n, agreement=value, used=n == used) for n, value in enumerate(agreements)]
    columns = list(RoundAgreement.model_fields)
    session.hardware.ranks.decide(lambda: write_csv(workspace.rounds_csv, (row.model_dump() for row in rows), columns))
    shown = ", ".join(f"{value:.3f} after round {n}" for n, value in enumerate(agreements))
    logger.info(f"rounds: Dice of the val predictions with the CAM masks: {shown}")
    logger.info(f"rounds: round {used} is used (retrain.use is {config.retrain.use})")
    return used


def last_in_agreement(agreements: Sequence[float]) -> int:
    """The last round before one that is more than TOLERANCE behind round 0; `agreements` are those of round 0 on."""
    too_far = (n for n, value in enumerate(agreements) if value < agreements[0] - TOLERANCE)
    return next(too_far, len(agreements)) - 1


def _agreement(session: SamSession, round_: int) -> float:
    """Mean Dice of what a round predicts for the val patches with their CAM masks; several processes share the patches."""
    ranks = session.hardware.ranks
    session.use_decoder(session.workspace.decoder(round_))
    own = [
        (sample.example.position, dice(mask, sample.prompted.cam_mask))
        for sample, mask in segment_stored(session, "val", session.examples("val"), ranks=ranks)
    ]
    return fmean(value for _, value in sorted(ranks.gather_list(own)))
