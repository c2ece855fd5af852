"""What each stage wrote, by content: a file that changed between two stages is found before it is used.

`runs/<name>/state/<stage>.files.json` keeps the SHA-256 of the files of a stage when it is done. Files that are gone are
the business of the stage that needs them; files that were added are legal, and part of the signature where they count.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from epsam.errors import StateError
from epsam.runtime.files import remove, sha256
from epsam.runtime.hashes import Sha256, hash_files
from epsam.runtime.records import Record, read_record, write_record
from epsam.workspace import SPLITS, Workspace

PREPROCESS = "preprocess"


def _masks(workspace: Workspace, pattern: str) -> Iterable[Path]:
    return (path for split in SPLITS for path in workspace.split(split).glob(f"{pattern}/*.png"))


WRITTEN: dict[str, Callable[[Workspace], Iterable[Path]]] = {
    PREPROCESS: lambda w: [w.patches_csv, *_masks(w, "image"), *_masks(w, "mask")],
    "train-classifier": lambda w: [w.classifier, w.run / "classifier_curves.csv", w.results("train-classifier")],
    "initial-masks": lambda w: [*map(w.cams, SPLITS), *w.pseudo_labels(0).glob("*.png")],
    "embed": lambda w: (w.run / "embeddings").glob("*/shard_*.npy"),
    "finetune": lambda w: [w.decoder(0), w.run / "round0_curves.csv", *w.split("val").glob("initial_mask/*.png")],
    "retrain": lambda w: [
        *w.checkpoints.glob(f"{w.name}_decoder_iter*.pth"),
        w.run / "pseudo_labels.csv",
        *w.run.glob("round[1-9]*_curves.csv"),
        *_masks(w, "iter_*"),
    ],
    "evaluate": lambda w: [
        w.decoder("supervised"),
        w.results("evaluate"),
        *w.state.glob("predictions/*.csv"),
        *w.state.glob("predictions/*/*.png"),
    ],
}
"""Files of each stage that stages after it read; hidden ones (temporary files) do not count."""


def _inside(name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError("is no path below the top level")
    return name


class FilesRecord(Record):
    """<stage>.files.json."""

    files: dict[Annotated[str, AfterValidator(_inside)], Sha256]
    """By path relative to the top level."""


@dataclass(frozen=True)
class Difference:
    """How the files of a stage differ from when it was done."""

    changed: list[Path]
    missing: list[Path]
    recorded: int
    """How many files the stage has."""


def hashes_of(workspace: Workspace, paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of files of a run; see `hash_files`."""
    return hash_files(paths, workspace.root, workspace.state / "hashes.json")


def record_files(workspace: Workspace, stage: str) -> None:
    """Note the content of what `stage` wrote."""
    if stage in WRITTEN:
        paths = [path for path in WRITTEN[stage](workspace) if not path.name.startswith(".")]
        hashes = hashes_of(workspace, paths)
        files = {path.relative_to(workspace.root).as_posix(): digest for path, digest in hashes.items()}
        write_record(_record(workspace, stage), FilesRecord(files=files))


def forget_files(workspace: Workspace, stages: Iterable[str]) -> None:
    """Take the files of `stages` as they are from now on."""
    remove(_record(workspace, stage) for stage in stages)


def difference(workspace: Workspace, stage: str) -> Difference:
    """Compare the files of a stage that is done with its record; without a record, they are noted as they are."""
    path = _record(workspace, stage)
    if not path.is_file():
        record_files(workspace, stage)
    if stage not in WRITTEN:
        return Difference([], [], 0)
    saved = read_record(
        path, FilesRecord, f"delete it to take the files of {stage} as they are, or make them anew with --from {stage}"
    ).files
    recorded = {workspace.root / name: digest for name, digest in saved.items()}
    hashes = hashes_of(workspace, recorded)
    # Those that differ are read again: a wrong entry of the cache must not refuse a file that is whole.
    changed = [path for path, digest in hashes.items() if digest != recorded[path] and sha256(path) != recorded[path]]
    return Difference(changed, [path for path in recorded if path not in hashes], len(recorded))


def check_files(workspace: Workspace, stage: str, following: str, *, measures: bool) -> None:
    """Raise StateError naming the first file of `stage`, which is done, that has changed since.

    `following` is the stage after it. True masks count where `measures` is set: no other stage reads them.
    """
    found = difference(workspace, stage)
    masks = {workspace.split(split) / "mask" for split in SPLITS}
    changed = [path for path in found.changed if measures or path.parent not in masks]
    if not changed:
        return
    first = changed[0]
    if stage == PREPROCESS:
        following = "evaluate" if first.parent in masks else "train-classifier"
    anew = f"or make it anew (--from {stage}), " if stage != PREPROCESS or workspace.patches_csv.is_file() else ""
    raise StateError(
        f"{first} has changed since the stage {stage} was done ({len(changed)} of {found.recorded} files). Put "
        f"it back as it was, {anew}or, where the change is meant, take it as it is (--from {following})"
    )


def _record(workspace: Workspace, stage: str) -> Path:
    return workspace.state / f"{stage}.files.json"
