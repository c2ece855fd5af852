"""The epoch loop that the classifier and SAM's decoder share: best and last state, early stop, resume."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt

from epsam.errors import CheckpointError, EpsamError
from epsam.runtime.checkpoints import load_tensors, save_tensors
from epsam.runtime.files import write_csv
from epsam.runtime.log import logger
from epsam.runtime.ranks import ALONE, Ranks
from epsam.runtime.records import explain
from epsam.runtime.tensorboard import Scalars


class TrainingState(BaseModel):
    """The file that a training continues from, written after each epoch."""

    model_config = ConfigDict(extra="forbid", strict=True)

    parts: dict[str, Any]
    """state_dict() of each part."""
    history: list[dict[str, int | float]]
    best_epoch: PositiveInt
    best_score: float


def dice_name(on_true_masks: bool) -> str:
    """Name of the val split's Dice in curves and log: with pseudo masks it says nothing of how right predictions are."""
    return "val_dice" if on_true_masks else "val_pseudo_dice"


HOW_TO_START_AGAIN = "delete it, and this training starts again"


@dataclass
class TrainingHistory:
    """How a training went."""

    history: list[dict[str, float]] = field(default_factory=list)
    """One row per finished epoch: epoch (from 1), train_loss, val_loss and whatever else was measured."""
    best_epoch: int = 0
    best_score: float = math.inf


def run(
    what: str,
    run_epoch: Callable[[int], dict[str, float]],
    parts: Mapping[str, Any],
    best_weights: Callable[[], Mapping[str, Any]],
    *,
    epochs: int,
    early_stop: int,
    state: Path,
    best: Path,
    curves: Path,
    score: str = "val_loss",
    ranks: Ranks = ALONE,
) -> TrainingHistory:
    """Run epochs 1..`epochs`, stopping when `score` (lower is better) has not improved for `early_stop` epochs.

    `run_epoch(epoch)` trains and validates and returns figures that hold `score`. It must draw its randomness
    from seeds that depend on the epoch, so that a training resumed from `state` ends as an uninterrupted one does.
    `parts` are the objects with state_dict() that make up the training (model, optimiser, schedule).
    After each epoch `best` (if improved), `curves` (CSV), figures for TensorBoard in tensorboard/<what> beside it, and
    `state` are written, in this order; `state` is what a later call resumes from. Raises EpsamError when a figure is not
    finite: the last good state stays.
    Of several processes the first one's figures decide for all of them, and it alone writes.
    """
    done = _resume(what, parts, state)
    with Scalars(curves.parent / "tensorboard" / what) as scalars:
        for epoch in range(len(done.history) + 1, epochs + 1):
            if done.best_epoch and epoch - 1 - done.best_epoch >= early_stop:
                logger.info(f"{what}: early stop, no better {score} for {early_stop} epochs")
                break
            figures = {"epoch": epoch, **ranks.gather(run_epoch(epoch))[0]}
            if not math.isfinite(figures[score]):
                raise EpsamError(
                    f"{what}, epoch {epoch}: {score} is {figures[score]}; the state of epoch {epoch - 1} is "
                    "kept. Lower classifier.lr (with --from train-classifier) or finetune.lr (with --from finetune)"
                )
            done.history.append(figures)
            is_better = figures[score] < done.best_score
            if is_better:
                done.best_epoch, done.best_score = epoch, figures[score]
            if not ranks.is_first:
                continue
            if is_better:
                save_tensors(best, best_weights())
            write_csv(curves, done.history, list(done.history[0]))
            shown = {name: value for name, value in figures.items() if name != "epoch"}
            scalars.write(epoch, shown)
            save_tensors(state, _state_of(parts, done))
            texts = (f"{key}={value:g}" if key == "lr" else f"{key}={value:.4f}" for key, value in shown.items())
            mark = " *" if is_better else ""
            logger.info(f"{what}: epoch {epoch}/{epochs} {' '.join(texts)}{mark}")
    ranks.wait()
    logger.info(f"{what}: best epoch {done.best_epoch}, {score} {done.best_score:.4f}")
    return done


def _state_of(parts: Mapping[str, Any], done: TrainingHistory) -> dict[str, Any]:
    """What `TrainingState` reads back."""
    return {
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "history": done.history,
        "best_epoch": done.best_epoch,
        "best_score": done.best_score,
    }


def _resume(what: str, parts: Mapping[str, Any], state: Path) -> TrainingHistory:
    if not state.is_file():
        return TrainingHistory()
    try:
        saved = TrainingState.model_validate(load_tensors(state))
        if not saved.best_epoch <= len(saved.history):
            raise ValueError(f"its best epoch is {saved.best_epoch} of {len(saved.history)}")
        for name, part in parts.items():
            part.load_state_dict(saved.parts[name])
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {HOW_TO_START_AGAIN}") from None
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:  # of load_state_dict
        reason = explain(error)
        raise CheckpointError(f"{state}: is not a state of this training ({reason}); {HOW_TO_START_AGAIN}") from None
    logger.info(f"{what}: continuing after epoch {len(saved.history)}")
    return TrainingHistory(saved.history, saved.best_epoch, saved.best_score)
