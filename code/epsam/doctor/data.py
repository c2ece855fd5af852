"""Checks of slides, annotations and weights of one run."""


from epsam.config import Config
from epsam.doctor import Check
from epsam.patches import list_patches
from epsam.runtime.files import sha256
from epsam.runtime.weights import WEIGHTS
from epsam.slides.camelyon import PUBLISHED_SPLITS
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
    if not workspace.slides.is_dir():
        return _check_patches_alone(config, workspace)
    slides = [f for f in sorted(workspace.slides.iterdir()) if f.is_file() and not f.name.startswith(".")]
    annotations = sorted(workspace.annotations.glob("*.xml")) if workspace.annotations.is_dir() else []
    if not slides:
        return Check("slides", "error", f"{workspace.slides} is empty", how_to_get(config, workspace))
    if not annotations:
        return Check("slides", "error", f"{workspace.annotations} holds no XML, so nothing says where tumour is",
                     how_to_get(config, workspace))
    message = f"{len(slides)} slides, {len(annotations)} annotations in {workspace.dataset}"
    empty = [f.name for f in slides + annotations if f.stat().st_size == 0]
    stems = {f.stem.lower() for f in slides}
    alone = [f.name for f in annotations if f.stem.lower() not in stems]
    if empty:
        return Check("slides", "warning", f"{message}; empty files: {_some(empty)}", "download them again")
    if alone:
        return Check("slides", "warning", f"{message}; annotations without a slide: {_some(alone)}",
                     "download the slides, or go on without them")
    return Check("slides", "ok", message)


def check_split(config: Config, workspace: Workspace) -> Check:
    """Every slide that the published split names is there."""
    if config.slides.split == "random" or not workspace.slides.is_dir():
        return Check("split", "ok", f"{config.slides.split}")
    published = PUBLISHED_SPLITS[config.slides.collection]
    lists = {split: [name for name, where in published.items() if where == split] for split in SPLITS}
    here = {f.stem for f in workspace.slides.iterdir()}
    missing = {split: [name for name in names if name not in here] for split, names in lists.items()}
    absent = [split for split in SPLITS if len(missing[split]) == len(lists[split])]
    message = ", ".join(f"{s} {len(lists[s]) - len(missing[s])} of {len(lists[s])} slides" for s in SPLITS)
    if absent:
        return Check("split", "error", f"{message}: {', '.join(absent)} would be empty", how_to_get(config, workspace))
    if any(missing.values()):
        named = [name for names in missing.values() for name in names]
        return Check("split", "warning", f"{message}; missing: {_some(named)}", "download them, or go on without")
    return Check("split", "ok", message)


def check_weights(config: Config, workspace: Workspace) -> Check:
    """SAM's weights are there and whole, or can be fetched."""
    model_type, path = config.sam.model_type, config.sam.checkpoint
    if path is not None:
        if not path.is_file():
            return Check("weights", "error", f"sam.checkpoint {path} is missing", "put it there or mend the path")
        return Check("weights", "ok", f"{path}")
    if model_type == "demo":
        path = workspace.checkpoints / "sam_demo.pth"
        if path.is_file():
            return Check("weights", "ok", f"{path}")
        return Check("weights", "error", f"{path} is missing; it belongs to the project", f"git checkout {path}")
    path = workspace.checkpoints / WEIGHTS[model_type].file
    if not path.is_file():
        return Check("weights", "warning", f"{path} is missing and will be fetched",
                     f"without a network: .venv/bin/python -m epsam fetch {model_type} elsewhere, and copy it here")
    if not sha256(path).startswith(WEIGHTS[model_type].sha256):
        return Check("weights", "error", f"{path} is not the published file (other SHA-256)",
                     "delete it and fetch it again, or name your own weights in sam.checkpoint")
    return Check("weights", "ok", f"{path}, hash as published")


def how_to_get(config: Config, workspace: Workspace) -> str:
    """Where slides must lie and how they get there."""
    command = COMMANDS[config.slides.collection].format(images=workspace.slides, annotations=workspace.annotations)
    return f"{command}; dataset/README.md has the whole story"


def _check_patches_alone(config: Config, workspace: Workspace) -> Check:
    """Somebody may bring patches that are cut already."""
    if not any((workspace.split(split) / "image").is_dir() for split in SPLITS):
        return Check("slides", "error", f"{workspace.slides} does not exist", how_to_get(config, workspace))
    counts = {split: len(list_patches(workspace.split(split))) for split in SPLITS}
    return Check("slides", "ok", "none, but patches: " + ", ".join(f"{s} {n}" for s, n in counts.items()))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more

