"""Patches on disk: the one place that knows the names and folders of cut patches."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from epsam.errors import DataError
from epsam.runtime.records import Row, read_rows
from epsam.runtime.seeds import seed_of
from epsam.workspace import Workspace

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Ends of names of patches and masks, in small letters."""
NUMBERED = re.compile(r"(.*)_(\d+)")


@dataclass(frozen=True)
class Patch:
    """One patch: a picture whose name ends in its label, `<slide>_x<X>_y<Y>_<label>.png` when cut by this program."""

    name: str
    """File name without suffix."""
    path: Path
    label: int
    """1: the patch holds tumour."""
    mask: Path
    """Where its true mask lies, if there is one."""

    @property
    def has_mask(self) -> bool:
        return self.mask.is_file()


@dataclass(frozen=True)
class Location:
    """Where a patch was cut."""

    slide: str
    x: int
    """Left edge in level-0 px."""
    y: int
    """Upper edge."""


LOCATION = re.compile(r"(?P<slide>.+)_x(?P<x>-?\d+)_y(?P<y>-?\d+)_[01]")


def location_of(name: str) -> Location | None:
    """The location that the name of a patch gives; None where it gives none."""
    found = LOCATION.fullmatch(name)
    return Location(found["slide"], int(found["x"]), int(found["y"])) if found else None


class Purpose(Row):
    """What patches.csv says of a patch."""

    name: str
    purpose: Literal["", "all", "classifier"] = ""


@dataclass(frozen=True)
class PatchFolder:
    """The folder of a split: its patches, and the files in image/ that are none."""

    patches: list[Patch]
    not_used: dict[str, list[str]]
    """Names of files by the reason why they are no patches."""


def read_folder(folder: Path) -> PatchFolder:
    """What lies in `folder`/image; its patches by name. Raises DataError for a folder without image/, and for two files
    of one name."""
    images = Path(folder) / "image"
    if not images.is_dir():
        raise DataError(f"{folder}: no image/ folder; patches lie in image/, their masks in mask/")
    entries = [path for path in sorted(images.iterdir()) if not path.name.startswith(".")]
    files = [path for path in entries if not path.is_dir()]
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    numbered = numberings(pictures)
    labelled = [path for path in pictures if path.stem[-2:] in ("_0", "_1") and path.stem[:-2] not in numbered]
    masks = _by_stem(Path(folder) / "mask")
    patches: dict[str, Patch] = {}
    for path in labelled:
        if path.stem in patches:
            raise DataError(
                f"{images}: {path.name} and {patches[path.stem].path.name} have one name; rename one of them"
            )
        mask = masks.get(_composed(path.stem), Path(folder) / "mask" / f"{path.stem}.png")
        patches[path.stem] = Patch(path.stem, path, int(path.stem[-1]), mask)
    used = {patch.path for patch in patches.values()}
    not_used: dict[str, list[str]] = defaultdict(list)
    for path in files:
        if path.suffix.lower() not in SUFFIXES:
            not_used[f"end in none of {', '.join(SUFFIXES)}"].append(path.name)
        elif path.stem[-2:] in ("_0", "_1") and path not in used:
            not_used["are numbers of a series (..._0, _1, _2), not labels"].append(path.name)
        elif path not in used:
            not_used["have names that end neither in _0 (normal) nor in _1 (holds tumour)"].append(path.name)
    if folders := [path.name for path in entries if path.is_dir()]:
        not_used["are folders, and patches lie in image/ itself"] = folders
    return PatchFolder([patches[name] for name in sorted(patches)], dict(not_used))


def numberings(pictures: Iterable[Path]) -> set[str]:
    """Beginnings of names that are numbered: an ending of 2 or more says that 0 and 1 are no labels there."""
    matches = [match for path in pictures if (match := NUMBERED.fullmatch(path.stem))]
    return {match[1] for match in matches if match[2] not in ("0", "1")}


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {_composed(path.stem): path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def _composed(name: str) -> str:
    """A name in composed Unicode: macOS writes an umlaut as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def unused_folders(workspace: Workspace) -> list[str]:
    """Warnings of folders of the splits that are neither image/ nor mask/, where patches lie in these."""
    return [
        f"{folder}: is not used; patches lie in image/, their masks in mask/, by these names"
        for folder in workspace.class_folders()
    ]


def list_patches(folder: Path) -> list[Patch]:
    """All patches of `folder`/image, sorted by name.

    Raises DataError when there is no image/ folder, no patch in it, or two of one name.
    """
    found = read_folder(folder)
    if not found.patches:
        more = "".join(f"; {line}" for line in lines_of_not_used(found))
        raise DataError(f"{folder}/image: no patch; names end in _0.png (normal) or _1.png (holds tumour){more}")
    return found.patches


def lines_of_not_used(folder: PatchFolder, most: int = 3) -> list[str]:
    """How many files are no patches and why, in words."""
    return [
        f"{len(names)} files {reason}: {', '.join(names[:most])}" + (" ..." if len(names) > most else "")
        for reason, names in folder.not_used.items()
    ]


def patches_for_classifier(workspace: Workspace, split: str) -> list[Patch]:
    """All patches of a split."""
    return list_patches(workspace.split(split))


def patches_for_sam(workspace: Workspace, split: str) -> list[Patch]:
    """Positive patches of a split that SAM works on, without those cut for the classifier alone."""
    extra = set()
    if workspace.patches_csv.is_file():
        rows = read_rows(workspace.patches_csv, Purpose, "run ./train.sh again with --from preprocess")
        extra = {row.name for row in rows if row.purpose == "classifier"}
    return [p for p in list_patches(workspace.split(split)) if p.label == 1 and p.name not in extra]


def normal_patches_for_sam(workspace: Workspace, split: str) -> list[Patch]:
    """Normal patches that SAM's decoder learns to leave empty: as many as there are positive ones, if there are.

    Which ones depends on their names alone. The test split has none: nothing is learned there.
    """
    if split == "test":
        return []
    normal = [patch for patch in list_patches(workspace.split(split)) if patch.label == 0]
    drawn = sorted(normal, key=lambda patch: seed_of(patch.name, "SAM"))
    chosen = {patch.name for patch in drawn[: len(patches_for_sam(workspace, split))]}
    return [patch for patch in normal if patch.name in chosen]
