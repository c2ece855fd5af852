"""The epoch loop that the classifier and SAM's decoder share: best and last state, early stop, resume."""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from epsam.errors import CheckpointError, EpsamError
from epsam.runtime.files import atomic, write_csv
from epsam.runtime.finite import first_non_finite
from epsam.runtime.log import logger


def save_tensors(path: Path, value: Mapping[str, Any]) -> None:
    """torch.save under a temporary name, then rename; the same tensors give the same bytes."""
    with atomic(path) as temporary:
        write_tensors(temporary, value)


def write_tensors(path: Path, value: Mapping[str, Any]) -> None:
    """torch.save by way of memory: given a path it would write that into the file, and a full disk it cannot name."""
    stream = io.BytesIO()
    torch.save(dict(value), stream)
    path.write_bytes(stream.getbuffer())


def load_tensors(path: Path) -> dict[str, Any]:
    """torch.load of tensors and plain values only; raises CheckpointError for anything else, and for NaN or infinity."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
        bad = first_non_finite(value) if isinstance(value, dict) else None
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:  # noqa: BLE001  torch raises many kinds for a damaged or hostile file
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: cannot be loaded as weights ({reason}); make or fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a dictionary of weights")
    if bad is not None:
        raise CheckpointError(f"{path}: the entry {bad} holds values that are not finite (NaN or infinite); these weights "
                              "are damaged or come from a training that failed. Copy or fetch them again, or train again")
    return value


@dataclass
class Fit:
    """How a training went."""

    history: list[dict[str, float]] = field(default_factory=list)
    """One row per finished epoch: epoch (from 1), train_loss, val_loss and whatever else was measured."""
    best_epoch: int = 0
    best_score: float = math.inf


def fit(
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
) -> Fit:
    """Run epochs 1..`epochs`, stopping when `score` (lower is better) has not improved for `early_stop` epochs.

    `run_epoch(epoch)` trains and validates and returns figures that hold `score`. It must draw its randomness
    from seeds that depend on the epoch, so that going on from `state` ends as an uninterrupted run does.
    `parts` are the objects with state_dict() that make up the training (model, optimiser, schedule).
    After each epoch `best` (if improved), `curves` (CSV) and `state` are written, in this order; `state` is
    what a later call goes on from. Raises EpsamError when a figure is not finite: the last good state stays.
    """
    done = _resume(what, parts, state)
    for epoch in range(len(done.history) + 1, epochs + 1):
        if done.best_epoch and epoch - 1 - done.best_epoch >= early_stop:
            logger.info(f"{what}: early stop, no better {score} for {early_stop} epochs")
            break
        figures = {"epoch": epoch, **run_epoch(epoch)}
        if not math.isfinite(figures[score]):
            raise EpsamError(f"{what}, epoch {epoch}: {score} is {figures[score]}; the state of epoch {epoch - 1} is "
                             "kept. Lower classifier.lr (with --from train-classifier) or finetune.lr (with --from finetune)")
        done.history.append(figures)
        if figures[score] < done.best_score:
            done.best_epoch, done.best_score = epoch, figures[score]
            save_tensors(best, best_weights())
        write_csv(curves, done.history, list(done.history[0]))
        save_tensors(state, {"parts": {name: part.state_dict() for name, part in parts.items()},
                             "history": done.history, "best_epoch": done.best_epoch,
                             "best_score": done.best_score})
        shown = " ".join(f"{key}={value:g}" if key == "lr" else f"{key}={value:.4f}"
                         for key, value in figures.items() if key != "epoch")
        mark = " *" if done.best_epoch == epoch else ""
        logger.info(f"{what}: epoch {epoch}/{epochs} {shown}{mark}")
    logger.info(f"{what}: best epoch {done.best_epoch}, {score} {done.best_score:.4f}")
    return done


def _resume(what: str, parts: Mapping[str, Any], state: Path) -> Fit:
    if not state.is_file():
        return Fit()
    saved = load_tensors(state)
    for name, part in parts.items():
        part.load_state_dict(saved["parts"][name])
    done = Fit(saved["history"], saved["best_epoch"], saved["best_score"])
    logger.info(f"{what}: going on after epoch {len(done.history)}")
    return done
