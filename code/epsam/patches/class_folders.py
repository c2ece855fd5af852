"""Patches that come in a folder per class: they are written into image/ by the names that carry their label."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from epsam.config.schema import Config
from epsam.errors import DataError, SlideError
from epsam.patches.extraction import write_stored_png
from epsam.patches.patch import SUFFIXES
from epsam.patches.tables import PATCH_COLUMNS
from epsam.runtime.failures import check_name, printable
from epsam.runtime.files import read_image, write_csv
from epsam.runtime.log import logger, progress
from epsam.runtime.records import Row, read_rows
from epsam.slides.formats import files_below, match_key
from epsam.workspace import SPLITS, Workspace

Kind = Literal["tumour", "normal"]
ClassNames = Mapping[Kind, Sequence[str]]
"""Names of folders by class; see patches.class_folders."""
LABEL_OF = {"normal": 0, "tumour": 1}
THREADS = 4


@dataclass(frozen=True)
class ClassPatch:
    """A picture in a class folder."""

    path: Path
    split: str
    name: str
    """Of its patch: its path in the class folder, joined by `_`, and its label."""
    label: int


class ImportedRow(Row):
    """What patches.csv says of a patch."""

    name: str
    split: str
    slide: str = ""


def has_class_folders(workspace: Workspace, names: ClassNames) -> bool:
    """Whether any split has a class folder of one of `names` (patches.class_folders)."""
    known = {match_key(name) for found in names.values() for name in found}
    return any(match_key(folder.name) in known for folder in workspace.class_folders())


def find_class_patches(workspace: Workspace, names: ClassNames) -> tuple[list[ClassPatch], list[str]]:
    """The pictures of all class folders, and warnings about what is no patch there."""
    kind_of = {match_key(name): kind for kind, found in names.items() for name in found}
    patches: dict[tuple[str, str], ClassPatch] = {}
    warnings = []
    for folder in workspace.class_folders():
        if match_key(folder.name) not in kind_of:
            warnings.append(f"{folder}: names no class and is not used (patches.class_folders names those that do)")
            continue
        label = LABEL_OF[kind_of[match_key(folder.name)]]
        split, not_used = folder.parent.name, []
        for path in files_below(folder):
            name = "_".join(path.relative_to(folder).with_suffix("").parts)
            patch = ClassPatch(path, split, name if name.endswith(f"_{label}") else f"{name}_{label}", label)
            if path.suffix.lower() not in SUFFIXES:
                not_used.append(path)
            elif (split, patch.name) in patches:
                warnings.append(f"{path} is not used: {patches[split, patch.name].path} has the same name; rename one")
            else:
                patches[split, patch.name] = patch
        if not_used:
            shown = ", ".join(printable(path.name) for path in not_used[:3])
            warnings.append(f"{folder}: {len(not_used)} files end in none of {', '.join(SUFFIXES)}: {shown}")
    return list(patches.values()), warnings


def import_patches(config: Config, workspace: Workspace) -> None:
    """Write the pictures of the class folders as PNG into image/, and patches.csv that lists them.

    Pictures that cannot be read are left out, with a warning. Raises DataError when a split has none of a class.
    """
    found, warnings = find_class_patches(workspace, config.patches.class_folders)
    for warning in warnings:
        logger.warning(warning)
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(lambda patch: _import(patch, workspace), found)
        done = [
            p
            for p, ok in zip(found, progress(results, total=len(found), desc="patches", unit="patch"), strict=True)
            if ok
        ]
    _remove_stale(done, workspace)
    rows = ({"name": p.name, "split": p.split, "label": p.label, "chosen": 1, "purpose": "all"} for p in done)
    write_csv(workspace.patches_csv, rows, PATCH_COLUMNS)
    for split in SPLITS:
        counts = [sum(p.label == label for p in done if p.split == split) for label in (1, 0)]
        logger.info(f"{split}: {counts[0]} positive and {counts[1]} negative patches of class folders")
        if not all(counts):
            kind: Kind = "tumour" if not counts[0] else "normal"
            folders = " or ".join(config.patches.class_folders.get(kind, [])) or "none, see patches.class_folders"
            raise DataError(f"{workspace.split(split)}: no patch of the class {kind}; its folder is called {folders}")


def _import(patch: ClassPatch, workspace: Workspace) -> bool:
    target = workspace.split(patch.split) / "image" / f"{patch.name}.png"
    try:
        check_name(target)
        if not target.is_file():
            write_stored_png(target, read_image(patch.path))
    except (DataError, SlideError) as error:
        logger.warning(f"left out: {error}")
        return False
    return True


def _remove_stale(done: Sequence[ClassPatch], workspace: Workspace) -> None:
    """Remove patches that an earlier call wrote and whose pictures are gone."""
    if not workspace.patches_csv.is_file():
        return
    keep = {(patch.split, patch.name) for patch in done}
    for row in read_rows(workspace.patches_csv, ImportedRow, "run ./train.sh again with --from preprocess"):
        if not row.slide and row.split in SPLITS and (row.split, row.name) not in keep:
            (workspace.split(row.split) / "image" / f"{Path(row.name).name}.png").unlink(missing_ok=True)
