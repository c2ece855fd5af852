"""Checks of slides, annotations and weights of one run."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from epsam.config.schema import Config
from epsam.doctor import Check
from epsam.errors import CheckpointError, ConfigError, DataError
from epsam.models.initial import initial_model
from epsam.patches.camelyon import PUBLISHED_SPLITS, canonical_name, split_lists
from epsam.patches.class_folders import find_class_patches, has_class_folders
from epsam.patches.manifest import SlideRecord, read_manifest
from epsam.patches.patch import lines_of_not_used, list_patches, read_folder, unused_folders
from epsam.patches.sources import find_sources
from epsam.patches.tables import read_summary
from epsam.runtime.downloads import WEIGHTS, packaged_weights
from epsam.runtime.failures import printable
from epsam.runtime.files import sha256
from epsam.runtime.text import listed, size_text
from epsam.shipped import find_demo_sam
from epsam.slides.formats import slide_name
from epsam.workspace import SPLITS, Workspace

BUCKET = "s3://camelyon-dataset"
COPY = "aws s3 cp --no-sign-request"
COMMANDS = {
    "camelyon16": f"{COPY} --recursive --exclude '*' --include 'tumor_*' {BUCKET}/CAMELYON16/images/ {{images}}/ && "
    f"{COPY} --recursive {BUCKET}/CAMELYON16/annotations/ {{annotations}}/",
    "camelyon17": f"{COPY} --recursive {BUCKET}/CAMELYON17/annotations/ {{annotations}}/ && "
    f'for xml in {{annotations}}/*.xml; do {COPY} "{BUCKET}/CAMELYON17/images/$(basename "$xml" .xml).tif" {{images}}/; done',
    "own": "put the slides into {images} and their annotations, by the same names, into {annotations}",
}
"""What gets the slides that the published splits need, to be pasted into a terminal; dataset/README.md shows the same."""
MORE = "  # see dataset/README.md"


def check_initial(config: Config, workspace: Workspace) -> list[Check]:
    """The model that training starts from is there and of the same networks; nothing where `init_from` is not set."""
    try:
        model = initial_model(config, workspace)
    except (CheckpointError, ConfigError) as error:
        return [Check("earlier model", "error", str(error), "correct init_from")]
    return [Check("earlier model", "ok", f"training starts from {model.classifier}")] if model else []


def check_slides(config: Config, workspace: Workspace) -> Check:
    """Slides, annotations and labels are there and complete, as far as names, sizes and tables tell."""
    get = how_to_get(config, workspace)
    try:
        manifest = read_manifest(workspace, config.slides)
    except (DataError, ConfigError) as error:
        return Check("slides", "error", str(error), "correct the table, or move it away")
    slides = [record for record in manifest.records if record.is_slide]
    if not slides:
        return _check_patches_alone(config, workspace, get)
    annotated = [record for record in slides if record.annotation]
    if not any(record.annotation or record.labels or record.all_tumour for record in slides):
        return Check(
            "slides", "error", f"{workspace.annotations} and {workspace.labels_csv} say nothing of where tumour is", get
        )
    message = (
        f"{len(slides)} slides ({size_text(_bytes(record.path for record in slides))}), {len(annotated)} annotations "
        f"in {workspace.dataset}"
    )
    warnings = [*manifest.warnings, *_failures(manifest.records)]
    warnings += _failed_before(manifest.records, workspace)
    if broken := {what: names for what, names in _broken_files(manifest.records).items() if names}:
        warnings += [f"{what}: {listed(names)}" for what, names in broken.items()]
    if warnings:
        return Check("slides", "warning", f"{message}; {'; '.join(warnings)}", f"continue without them, or: {get}")
    return Check("slides", "ok", message)


def _failures(records: list[SlideRecord]) -> list[str]:
    """Slides and annotations that cannot be used, by reason."""
    reasons: dict[str, list[str]] = {}
    for record in records:
        if record.status == "failed":
            reasons.setdefault(record.reason, []).append(printable(record.slide))
    return [f"{listed(names)}: {reason}" for reason, names in reasons.items()]


def _failed_before(records: list[SlideRecord], workspace: Workspace) -> list[str]:
    """Slides that failed in preprocess when they were opened, by its last run."""
    try:
        rows = read_summary(workspace)
    except DataError as error:
        return [str(error)]
    usable = {record.slide for record in records if record.status == "ok"}
    failed = [printable(row.slide) for row in rows if row.status == "failed" and row.slide in usable]
    if not failed:
        return []
    return [
        f"{len(failed)} slides failed in the last run of preprocess and are not used: {listed(failed)}; the reasons are "
        f"in {workspace.slides_csv} and {workspace.qa}/index.html"
    ]


def _broken_files(records: list[SlideRecord]) -> dict[str, list[str]]:
    """Files that are not complete, by what is wrong with them."""
    files = [path for record in records for path in {record.path, record.annotation} if path]
    return {
        "empty files": [printable(path.name) for path in files if path.exists() and not path.stat().st_size],
        "links that lead nowhere": [printable(path.name) for path in files if not path.exists()],
    }


def check_split(config: Config, workspace: Workspace) -> Check:
    """Every slide that the published split names is there."""
    settings = config.slides
    here = {canonical_name(slide_name(path)) for path in find_sources(workspace).slides}
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
        return Check("split", "warning", f"{message}; missing: {listed(named)}", "download them, or continue without")
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
    """SAM's weights are there and complete, or can be fetched."""
    if config.sam.checkpoint is not None:
        return _check_own(config.sam.checkpoint, "sam.checkpoint")
    if config.sam.model_type != "demo":
        return _check_published(config.sam.model_type, folder)
    path = find_demo_sam(folder)
    if path.is_file():
        return _with_hash(path)
    missing = folder / path.name
    return Check("weights", "error", f"{missing} is missing; it belongs to the project", f"git checkout {missing}")


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
    """A command for the terminal, or words: where slides must be and how they get there."""
    folders = {"images": workspace.slides, "annotations": workspace.annotations}
    command = COMMANDS[config.slides.collection]
    return command.format_map({name: shlex.quote(str(path)) for name, path in folders.items()}) + MORE


def _check_patches_alone(config: Config, workspace: Workspace, get: str) -> Check:
    """Somebody may bring patches that are cut already, or take the slides away once they are."""
    there = "is empty" if workspace.slides.is_dir() else "does not exist"
    if has_class_folders(workspace, config.patches.class_folders):
        return _check_class_folders(config, workspace)
    unused = unused_folders(workspace)
    if not any((workspace.split(split) / "image").is_dir() for split in SPLITS):
        return Check("slides", "error", "; ".join([f"{workspace.slides} {there}", *unused]), get)
    try:
        counts = {split: len(list_patches(workspace.split(split))) for split in SPLITS}
    except DataError as error:
        return Check("slides", "error", f"{workspace.slides} {there}, and of the patches: {error}", get)
    message = "none, but patches: " + ", ".join(f"{s} {n}" for s, n in counts.items())
    not_used = [f"{s}: {line}" for s in SPLITS for line in lines_of_not_used(read_folder(workspace.split(s)))]
    not_used += unused
    if not_used:
        return Check(
            "slides", "warning", f"{message}; not used: {'; '.join(not_used)}", "rename them, or go on without"
        )
    return Check("slides", "ok", message)


def _check_class_folders(config: Config, workspace: Workspace) -> Check:
    found, warnings = find_class_patches(workspace, config.patches.class_folders)
    counts = {
        split: [sum(p.split == split and p.label == label for p in found) for label in (1, 0)] for split in SPLITS
    }
    message = "none, but patches in a folder per class: " + ", ".join(
        f"{split} {tumour} of tumour and {normal} normal" for split, (tumour, normal) in counts.items()
    )
    if not all(all(numbers) for numbers in counts.values()):
        fix = f"fill {workspace.dataset}/{{train,val,test}}/{{tumor,normal}}, or see patches.class_folders"
        return Check("slides", "error", message, fix)
    if warnings:
        return Check("slides", "warning", f"{message}; {'; '.join(warnings)}", "rename them, or go on without")
    return Check("slides", "ok", message)


def _bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())
