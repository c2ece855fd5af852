"""What a stage's result depends on: settings of its own and of the stages before it, data, program version."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from epsam import __version__
from epsam.config import Config
from epsam.runtime.seeds import seed_of
from epsam.runtime.settings import flatten
from epsam.workspace import SPLITS, Workspace

SLIDES = "slides"
PATCHES = "patches"
MASKS = "masks"


def data_of(workspace: Workspace) -> dict[str, str]:
    """Slides, patches and true masks of a run by names and sizes, e.g. `12 files, 5f3a...`; slow where they are many."""
    return {
        SLIDES: _digest(workspace.slides, workspace.annotations),
        PATCHES: _digest(*(workspace.split(split) / "image" for split in SPLITS)),
        MASKS: _digest(*(workspace.split(split) / "mask" for split in SPLITS)),
    }


def signature(settings: Iterable[str], config: Config, data: Mapping[str, str]) -> dict[str, Any]:
    """Values of `settings` (keys or whole sections), the data, and the program's version."""
    prefixes = tuple(settings)
    flat = flatten(config.model_dump(mode="json"))
    kept = {key: value for key, value in flat.items() if any(key == p or key.startswith(p + ".") for p in prefixes)}
    return kept | dict(data) | {"epsam": __version__}


def has_files(folder: Path) -> bool:
    """Whether there is a file in `folder`, hidden ones aside."""
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def _digest(*folders: Path) -> str:
    files = [(path.name, _size(path)) for folder in folders if folder.is_dir()
             for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return f"{len(files)} files, {seed_of(*files):x}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # a link that leads nowhere; its stage says what becomes of it
