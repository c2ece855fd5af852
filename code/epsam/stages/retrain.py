"""Stage retrain: rounds 1 to N, each on pseudo-labels of the decoder before."""

from collections.abc import Sequence

from epsam.config.schema import Config
from epsam.errors import DataError
from epsam.pseudo_labels import Candidate, RoundRow, make_pseudo_labels, prompt_sensitivity, summarise, warn_of_drift
from epsam.round_choice import choose_round
from epsam.runtime.checkpoints import copy_weights
from epsam.runtime.device import Hardware
from epsam.runtime.files import write_csv
from epsam.runtime.log import logger
from epsam.runtime.records import read_rows
from epsam.sam.labels import labels_folder, validation_examples, with_labels
from epsam.sam.session import SamSession
from epsam.sam.training import train_decoder
from epsam.segmenter import segment_stored
from epsam.visualization.contact_sheet import Row, evenly_spaced, sheet_path, write_sheet
from epsam.workspace import Workspace

FIX_ROUNDS = "run ./train.sh again with --from retrain"


def retrain(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: rounds 1..`retrain.rounds`, each into workspace.decoder(n); goes on after the last finished round.

    The one that is used (`retrain.use`) is copied to workspace.used_decoder. Raises DataError when a round keeps no pseudo-label.
    """
    rounds = range(1, config.retrain.rounds + 1)
    first = hardware.ranks.decide(lambda: next((n for n in rounds if not workspace.decoder(n).is_file()), None))
    session = SamSession(config, workspace, hardware)
    for round_ in rounds[first - 1 :] if first is not None else ():
        _run_round(session, round_)
    used = choose_round(session)
    hardware.ranks.decide(lambda: copy_weights(workspace.decoder(used), workspace.used_decoder))


def _run_round(session: SamSession, round_: int) -> None:
    workspace = session.workspace
    session.use_decoder(workspace.decoder(round_ - 1))
    folders = {split: labels_folder(workspace, split, round_) for split in ("train", "val")}
    candidates = make_pseudo_labels(session, "train", folders["train"])
    make_pseudo_labels(session, "val", folders["val"])
    session.hardware.ranks.decide(lambda: _describe(session, round_, candidates))
    kept = [candidate.example for candidate in candidates if candidate.kept]
    if not kept:
        best = max(candidates, key=lambda candidate: candidate.ids)
        raise DataError(
            f"round {round_} keeps none of {len(candidates)} pseudo-labels: the best IDS is "
            f"{best.ids:.4f}, retrain.ids asks for {session.config.retrain.ids}. {_how_to_keep(best)} Or "
            f"look at {sheet_path(workspace, round_)}: where SAM's masks reach far beyond the CAM masks, "
            "a lower cam.threshold (with --from initial-masks) or more finetune.epochs (with --from "
            "finetune) may help"
        )
    train_decoder(
        session,
        f"round{round_}",
        with_labels(kept, folders["train"]),
        validation_examples(session, round_),
        workspace.decoder(round_),
    )


def _describe(session: SamSession, round_: int, candidates: Sequence[Candidate]) -> None:
    """Write what people look at."""
    _write_sheet(session, round_, candidates)
    _record(session, summarise(round_, candidates, prompt_sensitivity(session, "train")))


def _how_to_keep(best: Candidate) -> str:
    """The setting that keeps the best pseudo-label, if any can; rounded down so that it does."""
    lower = int(best.ids * 1000) / 1000
    if lower == 0:
        return "Its mask misses the CAM mask."
    return f"Run ./train.sh again with --from retrain retrain.ids={lower:g}."


def _write_sheet(session: SamSession, round_: int, candidates: Sequence[Candidate]) -> None:
    shown = evenly_spaced(sorted(candidates, key=lambda candidate: candidate.ids))
    masks = {
        sample.example.patch.name: (sample, mask)
        for sample, mask in segment_stored(session, "train", [candidate.example for candidate in shown])
    }
    rows = []
    for candidate in shown:
        sample, mask = masks[candidate.example.patch.name]
        caption = f"IDS {candidate.ids:.2f} {'kept' if candidate.kept else 'dropped'}"
        rows.append(Row(candidate.example.patch, candidate.example.cam, sample.prompts, mask, caption))
    write_sheet(sheet_path(session.workspace, round_), rows)


def _record(session: SamSession, summary: RoundRow) -> None:
    """Log the summary but its shares, put all of it into runs/<name>/pseudo_labels.csv and warn of drifting masks."""
    path, round_, figures = session.workspace.run / "pseudo_labels.csv", summary.round, summary.model_dump()
    rows = read_rows(path, RoundRow, FIX_ROUNDS) if path.is_file() and round_ > 1 else []
    rows = [row for row in rows if row.round < round_]
    before = rows[-1].relative_size if rows else 1.0  # round 0 learned from the CAM masks themselves
    logger.info(
        "pseudo-labels: "
        + " ".join(
            f"{key}={value:.4f}" if isinstance(value, float) else f"{key}={value}"
            for key, value in figures.items()
            if not key.endswith("_share")
        )
    )
    warn_of_drift(before, summary.relative_size, round_)
    write_csv(path, [*(row.model_dump() for row in rows), figures], list(figures))
