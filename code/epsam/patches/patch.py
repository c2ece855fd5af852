"""Patches on disk: the one place that knows the names and folders of cut patches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from epsam.errors import DataError
from epsam.runtime.records import Row, read_rows
from epsam.workspace import Workspace


@dataclass(frozen=True)
class Patch:
    """One patch: a PNG whose name ends in its label, `<slide>_x<X>_y<Y>_<label>` when cut by this program."""

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


class Purpose(Row):
    """What patches.csv says of a patch."""

    name: str
    purpose: Literal["", "all", "classifier"] = ""


def list_patches(folder: Path) -> list[Patch]:
    """All patches of `folder`/image, sorted by name.

    Raises DataError when there is no image/ folder or no PNG in it ends in _0 or _1.
    """
    images = Path(folder) / "image"
    if not images.is_dir():
        raise DataError(f"{folder}: no image/ folder; patches lie in image/, their masks in mask/")
    found = [
        Patch(path.stem, path, int(path.stem[-1]), Path(folder) / "mask" / path.name)
        for path in sorted(images.glob("*.png"))
        if path.stem[-2:] in ("_0", "_1") and not path.name.startswith(".")
    ]
    if not found:
        raise DataError(f"{images}: no patch; names end in _0.png (normal) or _1.png (holds tumour)")
    return found


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
