"""What each stage wrote, by content: a file that changed between two stages is found before it is used.

`runs/<name>/state/<stage>.files.json` keeps the SHA-256 of the files of a stage when it is done. Files that are gone are
reported by the stage that needs them; files that were added are allowed, and part of the signature where they count.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from epsam.errors import StateError
from epsam.runs.stage import Stage
from epsam.runtime.files import remove, sha256
from epsam.runtime.hashes import Sha256, hashes_of
from epsam.runtime.records import Record, read_record, write_record
from epsam.workspace import SPLITS, Workspace


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


def record_files(workspace: Workspace, stage: Stage) -> None:
    """Record the content of what `stage` wrote."""
    if stage.files:
        hashes = hashes_of(workspace, stage.recorded_paths(workspace))
        files = {path.relative_to(workspace.root).as_posix(): digest for path, digest in hashes.items()}
        write_record(_record(workspace, stage), FilesRecord(files=files))


def recorded_files(workspace: Workspace, stage: Stage) -> dict[str, str]:
    """SHA-256 of the files of a stage when it was done, by path relative to the top level; empty without a record."""
    path = _record(workspace, stage)
    if not path.is_file():
        return {}
    advice = f"delete it to take the files of {stage.name} as they are, or make them again with --from {stage.name}"
    return dict(read_record(path, FilesRecord, advice).files)


def forget_files(workspace: Workspace, stages: Iterable[Stage]) -> None:
    """Take the files of `stages` as they are from now on."""
    remove(_record(workspace, stage) for stage in stages)


def difference(workspace: Workspace, stage: Stage) -> Difference:
    """Compare the files of a stage that is done with its record; without a record, they are recorded as they are."""
    if not stage.files:
        return Difference([], [], 0)
    if not _record(workspace, stage).is_file():
        record_files(workspace, stage)
    recorded = {workspace.root / name: digest for name, digest in recorded_files(workspace, stage).items()}
    hashes = hashes_of(workspace, recorded)
    # Those that differ are read again: a wrong entry of the cache must not refuse a file that is unchanged.
    changed = [path for path, digest in hashes.items() if digest != recorded[path] and sha256(path) != recorded[path]]
    return Difference(changed, [path for path in recorded if path not in hashes], len(recorded))


def check_files(workspace: Workspace, stage: Stage, following: str, *, true_masks: bool) -> None:
    """Raise StateError naming the first file of `stage`, which is done, that has changed since.

    `following` names the stage that reads it. True masks count where `true_masks` is set: no other stage reads them.
    """
    found = difference(workspace, stage)
    masks = {workspace.split(split) / "mask" for split in SPLITS}
    changed = [path for path in found.changed if true_masks or path.parent not in masks]
    if not changed:
        return
    first = changed[0]
    if first.parent in masks:
        following = "evaluate"
    cut_here = stage.needs or workspace.patches_csv.is_file()  # patches that people brought cannot be made again
    remake = f"or make it again (--from {stage.name}), " if cut_here else ""
    raise StateError(
        f"{first} has changed since the stage {stage.name} was done ({len(changed)} of {found.recorded} files). Put "
        f"it back as it was, {remake}or, where the change is meant, take it as it is (--from {following})"
    )


def _record(workspace: Workspace, stage: Stage) -> Path:
    return workspace.state / f"{stage.name}.files.json"
