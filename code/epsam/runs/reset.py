"""Starting over: ./train.sh --fresh and --from STAGE forget a stage and those that depend on it."""

from collections.abc import Sequence
from pathlib import Path

from epsam.config.schema import Config
from epsam.runs.inventory import forget_files
from epsam.runs.lock import lock
from epsam.runs.runner import clear
from epsam.runs.signature import has_sources
from epsam.runs.stage import Stage, depending_on, find_stage
from epsam.runtime.files import read_csv, remove, remove_temporaries
from epsam.runtime.log import logger
from epsam.workspace import SPLITS, Workspace

MADE_OF_PATCHES = ("image", "mask", "initial_mask", "iter_*", "distill")
"""Folders of a split whose files have the names of patches."""


def reset(stages: Sequence[Stage], config: Config, workspace: Workspace, first: str) -> None:
    """Forget the stage `first` of the pipeline `stages` and all that depend on it; kept embeddings are used if they fit.

    The last stage is forgotten first: a run killed in the middle has not kept a stage whose input is gone. Files that
    `first` reads are taken as they are from now on: those of the stages it needs, patches and true masks (of which the
    signatures of the stages that stay tell whether they suit them).
    """
    start = find_stage(stages, first)
    forgotten = [start, *depending_on(stages, start)]
    with lock(workspace.run):
        for stage in reversed(forgotten):
            remove([workspace.state / f"{stage.name}.json", workspace.results(stage.name)])
            clear(stage, config, workspace)
        forget_files(workspace, [*forgotten, *start.all_needed()])
        if not start.needs:
            _remove_patches(workspace)
    logger.info(f"{workspace.name}: {', '.join(stage.name for stage in forgotten)} will run again")


def _remove_patches(workspace: Workspace) -> None:
    """Remove the patches that patches.csv records, as they can be cut again; files of others stay, with a warning.

    Patches that somebody brought have no patches.csv. A split folder may be a link: what is recorded is removed
    behind it, too.
    """
    if not workspace.patches_csv.is_file():
        return
    if not has_sources(workspace):
        logger.warning(
            f"{workspace.dataset} holds no slides to cut the patches from again: the patches that are there stay"
        )
        return
    recorded: dict[str, set[str]] = {}
    for row in read_csv(workspace.patches_csv, ["name", "split"]):
        recorded.setdefault(row["split"], set()).add(f"{row['name']}.png")
    removed = 0
    for split in SPLITS:
        folders = [folder for pattern in MADE_OF_PATCHES for folder in sorted(workspace.split(split).glob(pattern))]
        removed += sum(_remove_recorded(folder, recorded.get(split, set())) for folder in folders if folder.is_dir())
        _remove_empty(workspace.split(split))
    logger.info(f"{workspace.dataset}: {removed} images and masks removed, to be cut again")
    remove([workspace.slides_csv, workspace.patches_csv])


def _remove_recorded(folder: Path, names: set[str]) -> int:
    """Remove files of `names` from a folder, and the folder when nothing is left; gives how many were removed."""
    own = [path for path in folder.iterdir() if path.name in names and (path.is_file() or path.is_symlink())]
    for path in own:
        path.unlink()
    remove_temporaries(folder)
    if left := sorted(path.name for path in folder.iterdir()):
        logger.warning(f"{folder}: {len(left)} files that patches.csv does not record stay, e.g. {left[0]}")
    _remove_empty(folder)
    return len(own)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()
