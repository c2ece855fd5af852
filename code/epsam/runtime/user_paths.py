"""Paths that a user gives to a script: they count from where the script was called, not from where it lies."""

import os
from pathlib import Path

CALLED_FROM = "EPSAM_CALLED_FROM"
"""Environment variable in which ./train.sh and ./infer.sh, which change to their own folder, keep the user's."""


def from_user(path: str | Path) -> Path:
    """`path` with `~` as the home folder, absolute where relative ones count from another than the current folder."""
    called_from = os.environ.get(CALLED_FROM, "")
    if not called_from or Path(called_from).resolve() == Path.cwd():
        return expand_home(path)
    return called_from / expand_home(path)


def expand_home(path: str | Path) -> Path:
    """`path` with `~` at its start as the home folder; `~name` of no user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises where there is no such user
