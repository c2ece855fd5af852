"""Checks of slides, annotations and weights of one run."""

from collections.abc import Iterable
from pathlib import Path

from epsam.config.schema import Config
from epsam.doctor import Check
from epsam.errors import CheckpointError, DataError
from epsam.patches.camelyon import PUBLISHED_SPLITS, canonical_name, kind_of, split_lists
from epsam.patches.manifest import SUFFIXES
from epsam.patches.patch import list_patches
from epsam.runtime.downloads import WEIGHTS, packaged_weights
from epsam.runtime.failures import printable
from epsam.runtime.files import sha256
from epsam.runtime.text import listed, size_text
from epsam.workspace import SPLITS, Workspace

BUCKET = "s3://camelyon-dataset"
COMMANDS = {
    "camelyon16": f"aws s3 cp --no-sign-request --recursive {BUCKET}/CAMELYON16/images/ {{images}} and "
    f"{BUCKET}/CAMELYON16/annotations/ {{annotations}}",
    "camelyon17": f"aws s3 cp --no-sign-request --recursive {BUCKET}/CAMELYON17/images/ {{images}} and "
    f"{BUCKET}/CAMELYON17/annotations/ {{annotations}}",
    "own": "put the slides into {images} and their ASAP XML files, by the same names, into {annotations}",
}


def check_slides(config: Config, workspace: Workspace) -> Check:
    """Slides and annotations are there and whole, as far as names and sizes tell."""
    files = _files(workspace.slides)
    slides = [path for path in files if path.suffix.lower() in SUFFIXES]
    annotations = [path for path in _files(workspace.annotations) if path.suffix.lower() == ".xml"]
    get = how_to_get(config, workspace)
    if not slides:
        return _check_patches_alone(workspace, get)
    if not annotations:
        return Check("slides", "error", f"{workspace.annotations} holds no XML, so nothing says where tumour is", get)
    message = (
        f"{len(slides)} slides ({size_text(_bytes(slides))}), {len(annotations)} annotations in {workspace.dataset}"
    )
    doubts = {what: names for what, names in _doubts(config, files, slides, annotations).items() if names}
    if doubts:
        found = "; ".join(f"{what}: {listed(names)}" for what, names in doubts.items())
        return Check("slides", "warning", f"{message}; {found}", f"go on without them, or: {get}")
    return Check("slides", "ok", message)


def _doubts(config: Config, files: list[Path], slides: list[Path], annotations: list[Path]) -> dict[str, list[str]]:
    """What is not as it should be, with the names of the files."""
    outlined, here = ({path.stem.casefold() for path in paths} for paths in (annotations, slides))
    bare = [path.name for path in slides if path.stem.casefold() not in outlined]
    return {
        "empty files": [path.name for path in slides + annotations if path.exists() and not path.stat().st_size],
        "names that are not UTF-8, to be renamed": [
            path.name for path in files + annotations if path.name != printable(path.name)
        ],
        "links that lead nowhere": [path.name for path in files if not path.exists()],
        "not slides by their names (downloads that broke off?)": [path.name for path in files if path not in slides],
        "annotations without a slide": [path.name for path in annotations if path.stem.casefold() not in here],
        "tumour slides without an annotation": [name for name in bare if kind_of(name) == "tumour"],
        "slides without an annotation, taken as normal ones": [name for name in bare if not kind_of(name)]
        if config.slides.collection == "own"
        else [],
    }


def check_split(config: Config, workspace: Workspace) -> Check:
    """Every slide that the published split names is there."""
    settings = config.slides
    here = {canonical_name(path.stem) for path in _files(workspace.slides)}
    if settings.split == "random" or not here or settings.collection not in PUBLISHED_SPLITS:
        return Check("split", "ok", f"{settings.split}, of the slides that can be used")
    lists = split_lists(settings.collection, settings.split)
    missing = {split: [name for name in names if name not in here] for split, names in lists.items()}
    absent = [split for split in SPLITS if len(missing[split]) == len(lists[split])]
    message = ", ".join(f"{s} {len(lists[s]) - len(missing[s])} of {len(lists[s])} slides" for s in SPLITS)
    if absent:
        return Check("split", "error", f"{message}: {', '.join(absent)} would be empty", how_to_get(config, workspace))
    if any(missing.values()):
        named = [name for names in missing.values() for name in names]
        return Check("split", "warning", f"{message}; missing: {listed(named)}", "download them, or go on without")
    return Check("split", "ok", message)


def check_weights(config: Config, folder: Path) -> Check:
    """SAM's weights, and the classifier's where it does not start at random."""
    checks = [check_sam(config, folder)]
    if config.classifier.init == "imagenet" and config.classifier.backbone == "efficientnet_lite0":
        checks.append(_check_packaged())
    elif config.classifier.init == "imagenet":
        checks.append(_check_published(f"resnet{config.classifier.depth}", folder))
    elif config.classifier.init != "random":
        checks.append(_check_own(config.classifier.init, "classifier.init"))
    worst = max(checks, key=lambda check: ("ok", "warning", "error").index(check.status))
    return Check("weights", worst.status, "; ".join(check.message for check in checks), worst.fix)


def check_sam(config: Config, folder: Path) -> Check:
    """SAM's weights are there and whole, or can be fetched."""
    if config.sam.checkpoint is not None:
        return _check_own(config.sam.checkpoint, "sam.checkpoint")
    if config.sam.model_type != "demo":
        return _check_published(config.sam.model_type, folder)
    path = folder / "sam_demo.pth"
    if path.is_file():
        return _with_hash(path)
    return Check("weights", "error", f"{path} is missing; it belongs to the project", f"git checkout {path}")


def _check_own(path: Path, setting: str) -> Check:
    if path.is_file():
        return _with_hash(path)
    return Check("weights", "error", f"{setting} {path} is missing", "put it there or correct the path")


def _check_packaged() -> Check:
    try:
        return Check("weights", "ok", f"{packaged_weights()}, SHA-256 as published")
    except CheckpointError as error:
        what, _, how = str(error).partition("; ")
        return Check("weights", "error", what, how)


def _check_published(name: str, folder: Path) -> Check:
    path = folder / WEIGHTS[name].file
    if not path.is_file():
        return Check(
            "weights",
            "warning",
            f"{path} is missing and will be fetched",
            f"without a network: .venv/bin/python -m epsam fetch {name} elsewhere, and copy it here",
        )
    if not sha256(path).startswith(WEIGHTS[name].sha256):
        return Check(
            "weights",
            "error",
            f"{path} is not the published file (other SHA-256)",
            "delete it and fetch it again, or name your own weights in the settings",
        )
    return Check("weights", "ok", f"{path}, SHA-256 as published")


def _with_hash(path: Path) -> Check:
    return Check("weights", "ok", f"{path}, SHA-256 {sha256(path)[:12]}")


def how_to_get(config: Config, workspace: Workspace) -> str:
    """Where slides must lie and how they get there."""
    command = COMMANDS[config.slides.collection].format(images=workspace.slides, annotations=workspace.annotations)
    return f"{command}; dataset/README.md has the whole story"


def _check_patches_alone(workspace: Workspace, get: str) -> Check:
    """Somebody may bring patches that are cut already, or take the slides away once they are."""
    there = "is empty" if workspace.slides.is_dir() else "does not exist"
    if not any((workspace.split(split) / "image").is_dir() for split in SPLITS):
        return Check("slides", "error", f"{workspace.slides} {there}", get)
    try:
        counts = {split: len(list_patches(workspace.split(split))) for split in SPLITS}
    except DataError as error:
        return Check("slides", "error", f"{workspace.slides} {there}, and of the patches: {error}", get)
    return Check("slides", "ok", "none, but patches: " + ", ".join(f"{s} {n}" for s, n in counts.items()))


def _files(folder: Path) -> list[Path]:
    """Files and links in a folder, hidden ones aside."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]


def _bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())
