"""Patches that earlier runs cut."""

import re

from epsam.workspace import SPLITS, Workspace

CUT_HERE = re.compile(r"(.+)_x\d+_y\d+_[01]")
"""Names that this program gives; group 1 is the slide."""


def remove_patches(workspace: Workspace, slides: set[str], keep: set[tuple[str, str]]) -> int:
    """Remove images and masks cut from `slides` other than `keep`, pairs of split and name; gives how many images."""
    removed = 0
    for split in SPLITS:
        for kind in ("image", "mask"):
            for path in (workspace.split(split) / kind).glob("*.png"):
                match = CUT_HERE.fullmatch(path.stem)
                if match and match[1] in slides and (split, path.stem) not in keep:
                    path.unlink()
                    removed += kind == "image"
    return removed
