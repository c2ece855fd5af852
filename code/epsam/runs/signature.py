"""What a stage's result depends on: settings of its own and of the stages before it, data, program version."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from epsam import __version__
from epsam.config.schema import Config
from epsam.errors import SlideError
from epsam.runtime.hashes import hashes_of
from epsam.runtime.seeds import seed_of
from epsam.runtime.sidecar import flatten
from epsam.slides.formats import files_below, is_slide_name, slide_stamp
from epsam.workspace import SPLITS, Workspace

SLIDES = "slides"


PATCHES = "patches"


MASKS = "masks"


def data_of(workspace: Workspace, *kinds: str) -> dict[str, str]:
    """What a run is made from, e.g. {PATCHES: "12 files, 5f3a..."}, of all kinds or of those asked for.

    Slides count by name, size, time and a hash of parts of them (see `slide_stamp`); annotations, slides.csv, labels.csv
    and patches in class folders by name and content, and so do patches (with patches.csv, which says what each is for)
    and true masks. Slow where they are many and not yet in the cache of hashes.
    """
    find = {
        SLIDES: lambda: _sources(workspace),
        PATCHES: lambda: _by_content(workspace, "image", workspace.patches_csv),
        MASKS: lambda: _by_content(workspace, "mask"),
    }
    return {kind: find[kind]() for kind in kinds or find}


def signature(settings: Iterable[str], config: Config, data: Mapping[str, str]) -> dict[str, Any]:
    """Values of `settings` (keys or whole sections), the data, and the program's version."""
    prefixes = tuple(settings)
    flat = flatten(config.model_dump(mode="json"))
    kept = {key: value for key, value in flat.items() if any(key == p or key.startswith(p + ".") for p in prefixes)}
    return kept | dict(data) | {"epsam": __version__}


def has_sources(workspace: Workspace) -> bool:
    """Whether there is anything that patches are made of: slides, or patches in class folders."""
    return has_files(workspace.slides) or bool(workspace.class_folders())


def has_files(folder: Path) -> bool:
    """Whether there is a file in `folder`, hidden ones aside."""
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def _sources(workspace: Workspace) -> str:
    slides: list[Path] = []
    others = [workspace.slide_table, workspace.labels_csv]
    for folder in (workspace.slides, workspace.annotations, *workspace.class_folders()):
        for path in files_below(folder):
            (slides if folder == workspace.slides and is_slide_name(path) else others).append(path)
    others = [path for path in others if path.is_file()]
    hashes = hashes_of(workspace, others)
    files = [(path, _stamp(path)) for path in slides] + [(path, hashes.get(path, "")) for path in others]
    parts = [(path.relative_to(workspace.dataset).as_posix(), stamp) for path, stamp in files]
    return f"{len(files)} files, {seed_of(*parts):x}"


def _stamp(path: Path) -> str:
    try:
        return slide_stamp(path)
    except SlideError:
        return ""  # a link that leads nowhere; its stage says what becomes of it


def _by_content(workspace: Workspace, kind: str, *tables: Path) -> str:
    files = [path for split in SPLITS for path in _files(workspace.split(split) / kind)]
    hashes = hashes_of(workspace, [*files, *tables])
    parts = [(path.parent.parent.name, path.name, hashes.get(path, "")) for path in [*files, *tables]]
    return f"{len(files)} files, {seed_of(*parts):x}"


def _files(folder: Path) -> list[Path]:
    """Entries of a folder, hidden ones aside, in order; none where there is no folder."""
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")] if folder.is_dir() else []
